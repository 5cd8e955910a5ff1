"""Data sets as runs use them: opened from a configuration, cut to a limit and into parts."""

import ast
import dataclasses
import hashlib
import heapq
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from probe_datasets import (
    DATASETS,
    ClipConfig,
    ClipDataset,
    FolderDataset,
    open_dataset,
)
from probe_eval.config import DataConfig
from probe_eval.progress import index_progress
from probe_eval.views import Draws, FirstClips, ManyClips, Part, sample_ids, source

OWN_SETTINGS = ("name", "root", "split", "clip", "seed", "on_error", "progress")
"""Arguments of data sets that have settings of their own in a configuration."""
COPY = re.compile(r"#\d+$")
PLACES = {"scannet": re.compile(r"scene\d+")}
"""Data set -> what the names of its recordings of one place have in common."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Splits:
    """What a readout is trained and measured on; no clip is in two of them."""

    train: ClipDataset
    """Clips to train on, with chance where the data set has it: with one draw, or with several as
    clips of their own; or with an own draw whenever it is asked for, under `draws=0`."""
    held_out: ClipDataset | None
    """The part of the training split that is kept from training, without chance."""
    test: ClipDataset
    """The test split, without chance."""


def open_splits(config: DataConfig, held_out: float) -> Splits:
    """Training split, the part of it that is held out, and test split.

    A clip is held out by a hash of its name, or of its video's or scene's where several are of
    one: whatever the order and the number of the others.

    Args:
        config: which clips.
        held_out: share of the training split that is held out, from 0 to below 1.

    Raises:
        ValueError: for a setting that a data set refuses, a part that would be empty, or classes
            that differ between the splits.
    """
    of_test = config_of_test(config)
    if of_test.test_split == config.train_split and not config.test_dataset:
        raise ValueError(
            f"test_split {of_test.test_split!r} is the split that readouts are trained on; choose "
            "another, or hold a part out with held_out"
        )
    train = open_split(config, config.train_split)
    test = open_split(of_test, of_test.test_split, augment=False)
    check_classes({"train": train, "test": test})
    kept = None
    if held_out:
        once = dataclasses.replace(config, clips_per_video=1)
        calm = open_split(once, config.train_split, augment=False)
        kept = part(config, calm, held_out, held_out=True)
        train = part(config, train, held_out, held_out=False)
    if config.draws != 1 and not getattr(source(train), "augment", False):
        raise ValueError(
            f"draws {config.draws}: clips of {config.dataset!r} are the same in every draw; use "
            "draws=1"
        )
    if config.draws > 1:
        train = Draws(train, config.draws)
    return Splits(train=train, held_out=kept, test=test)


def config_of_test(config: DataConfig) -> DataConfig:
    """The configuration of the data set that the test split is of.

    Options of the training data hold for it too where it is the same data set.
    """
    other = config.test_dataset and config.test_dataset != config.dataset
    return dataclasses.replace(
        config,
        dataset=config.test_dataset or config.dataset,
        root=config.test_root or ("" if other else config.root),
        stride=config.test_stride or config.stride,
        options=(*(() if other else config.options), *config.test_options),
        clips_per_video=1,
    )


def open_split(config: DataConfig, split: str, *, augment: bool | None = None) -> ClipDataset:
    """One split of the data.

    Args:
        config: which clips.
        split: name of the split.
        augment: whether its clips have chance in them, where the data set has any; None leaves
            that to the data set, which has it in training.

    Raises:
        ValueError: for an unknown data set or split, an empty one, or settings it refuses.
    """
    options = parse_options(config.options, OWN_SETTINGS)
    of_files = config.dataset in DATASETS and DATASETS[config.dataset].needs_root
    if of_files:
        title = f"{config.dataset} {split}"
        options |= {"on_error": config.on_error, "progress": index_progress(title)}
        if augment is not None:
            options["augment"] = augment
    dataset = open_dataset(
        config.dataset,
        config.root or None,
        split,
        clip=clip_config(config),
        seed=config.seed,
        **options,
    )
    if isinstance(dataset, FolderDataset):
        dataset = ManyClips(dataset, config.clips_per_video)
    elif config.clips_per_video > 1:
        raise ValueError(
            f"data set {config.dataset!r} has one clip a sample; clips_per_video is for folders "
            "of videos"
        )
    if not len(dataset):
        raise ValueError(f"split {split!r} of data set {config.dataset!r} is empty")
    return limited(dataset, config.limit, of_files) if config.limit else dataset


def limited(dataset: ClipDataset, limit: int, of_files: bool) -> ClipDataset:
    """So many clips of a data set: of rendered ones the first, which have all classes alike.

    Of files, whose order often is that of their classes, those whose names have the lowest hashes.
    """
    if not of_files or limit >= len(dataset):
        return FirstClips(dataset, limit)
    hashes = ((unit_hash(f"limit/{name}"), i) for i, name in enumerate(sample_ids(dataset)))
    chosen = sorted(index for _, index in heapq.nsmallest(limit, hashes))
    return Part(dataset, chosen, f"some-{limit}", whole=False)


def part(config: DataConfig, dataset: ClipDataset, share: float, *, held_out: bool) -> ClipDataset:
    """The clips that are held out, or all others.

    Raises:
        ValueError: if there are none.
    """
    place = PLACES.get(config.dataset)

    def group(name: str) -> str:
        found = place.match(name) if place else None
        return found[0] if found else COPY.sub("", name)

    chosen = [
        index
        for index, name in enumerate(sample_ids(dataset))
        if (unit_hash(f"held-out/{group(name)}") < share) == held_out
    ]
    if not chosen:
        what, other = ("held out", "larger") if held_out else ("left to train on", "smaller")
        raise ValueError(
            f"held_out {share:g} of the {len(dataset)} clips of {config.dataset!r}: none is "
            f"{what}; use a {other} share or more clips"
        )
    name = f"held-{share}" if held_out else f"without-{share}"
    return Part(dataset, chosen, name, whole=not held_out)


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:6]) / 2**48


def check_classes(splits: Mapping[str, ClipDataset]) -> None:
    """Checks that an index means the same class in every split.

    Raises:
        ValueError: naming the first label that differs.
    """
    first, *others = splits
    for split in others:
        for label, names in splits[first].classes.items():
            if splits[split].classes.get(label) != names:
                raise ValueError(
                    f"the classes of {label!r} differ between {first} ({len(names)}) and {split} "
                    f"({len(splits[split].classes.get(label, ()))}); use lists of the same classes"
                )


def clip_config(config: DataConfig) -> ClipConfig:
    """The clips of a configuration; short videos as the data set treats them."""
    clip = ClipConfig(num_frames=config.num_frames, stride=config.stride, size=config.size)
    if config.dataset in DATASETS:
        clip = dataclasses.replace(clip, short=DATASETS[config.dataset].clip.short)
    return clip


def parse_options(words: Sequence[str], own: Collection[str]) -> dict[str, Any]:
    """Options of a data set from NAME=VALUE: Python literals where they are such, else text.

    Args:
        words: the options; of two with one name the later counts.
        own: names that are no options, because they have a setting or an argument of their own.

    Raises:
        ValueError: for a word without a name or "=", or one of `own`.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or name in own:
            raise ValueError(
                f"option {word!r} must be NAME=VALUE of a data set's own, such as sparse=True"
            )
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options
