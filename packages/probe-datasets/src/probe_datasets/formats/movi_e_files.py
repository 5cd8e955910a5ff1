"""The files of Kubric MOVi-E as TFDS lays them out: which a split has, and where its examples lie.

`<data folder>/movi_e/<height>x<width>/<version>/movi_e-<split>.tfrecord-<i>-of-<n>`, beside them
`dataset_info.json`, which says how many examples each file holds.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_json
from probe_datasets.formats.tfrecord import record_index

__all__ = ["MoviShard", "MoviSplit", "find_movi_e", "shard_index"]

_SHARD = re.compile(r"movi_e-([a-z_]+)\.tfrecord-(\d{5})-of-(\d{5})")
_CONFIG = re.compile(r"\d+x\d+")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_LAYOUT = "movi_e/<config>/<version>/movi_e-<split>.tfrecord-*, as TFDS writes it"
_FETCH = "pass the TFDS data folder, or fetch gs://kubric-public/tfds/movi_e"
_MAX_JSON = 1 << 26


@dataclass(frozen=True, kw_only=True, slots=True)
class MoviShard:
    """One file of a split."""

    path: Path
    """The file, which may not exist."""
    present: bool
    """Whether it exists."""
    num_examples: int | None
    """Examples that it should hold; None where dataset_info.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoviSplit:
    """The files of one split of one configuration."""

    folder: Path
    """The folder that holds them."""
    config: str
    """Name of the configuration, such as 256x256; empty where the folders do not say."""
    split: str
    """train, validation or test."""
    shards: tuple[MoviShard, ...]
    """All files that the split should have, in order."""


def find_movi_e(
    root: str | os.PathLike[str], split: str, *, config: str | None = None
) -> MoviSplit:
    """Find the files of a split in a TFDS data folder; of several versions, the highest.

    Args:
        root: the data folder, or in it `movi_e`, `movi_e/<config>` or `movi_e/<config>/<version>`.
        split: train, validation or test.
        config: which configuration, such as "256x256", where there are several.

    Raises:
        DataError: there is no such folder, configuration or split, the choice between several
            configurations is left open, or the files contradict each other.
    """
    folder = _version_folder(Path(root), config)
    found: dict[str, dict[int, set[int]]] = {}
    for name in _listed(folder):
        if match := _SHARD.fullmatch(name):
            found.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
    if split not in found:
        known = ", ".join(sorted(found)) or "none"
        problem = f"has no files of the split {split!r}; those that it has: {known}"
        raise data_error(folder, problem, f"movi_e-{split}.tfrecord-*", _FETCH)
    if len(found[split]) > 1:
        problem = f"mixes sets of {', '.join(map(str, sorted(found[split])))} files of {split!r}"
        raise data_error(folder, problem, "one set", "remove the files of the other")
    ((total, present),) = found[split].items()
    lengths = _shard_lengths(folder, split)
    if max(present) >= total or (lengths is not None and len(lengths) != total):
        problem = f"has files of {split!r} that are numbered of {total}"
        expected = f"numbers below {total}"
        if lengths is not None:
            expected += f", and {len(lengths)} files by dataset_info.json"
        raise data_error(folder, problem, expected, FETCH_AGAIN)
    shards = tuple(
        MoviShard(
            path=folder / f"movi_e-{split}.tfrecord-{i:05}-of-{total:05}",
            present=i in present,
            num_examples=None if lengths is None else lengths[i],
        )
        for i in range(total)
    )
    name = folder.parent.name
    return MoviSplit(
        folder=folder, config=name if _CONFIG.fullmatch(name) else "", split=split, shards=shards
    )


def shard_index(shard: MoviShard) -> Int64[np.ndarray, "n 2"]:
    """Offset and length of each example of a file, what `read_movi_e` takes; reads headers only.

    Args:
        shard: a file of a split.

    Raises:
        DataError: it is missing, damaged in a header, or holds another number of examples.
    """
    index = record_index(shard.path)
    if shard.num_examples is not None and len(index) != shard.num_examples:
        problem = f"holds {len(index)} examples"
        expected = f"{shard.num_examples}, as dataset_info.json says"
        raise data_error(shard.path, problem, expected, FETCH_AGAIN)
    return index


def _version_folder(root: Path, config: str | None) -> Path:
    """The folder with the files, below any of the folders that a user may pass."""
    names = _listed(root)
    if any(_SHARD.fullmatch(name) for name in names):
        if config not in (None, root.parent.name):
            problem = f"is a folder of the configuration {root.parent.name!r}"
            raise data_error(root, problem, f"{config!r}", "pass the TFDS data folder")
        return root
    if "movi_e" in names:
        return _version_folder(root / "movi_e", config)
    versions = {
        tuple(map(int, m.groups())): name for name in names if (m := _VERSION.fullmatch(name))
    }
    if versions:
        return _version_folder(root / versions[max(versions)], config)
    configs = [name for name in names if _CONFIG.fullmatch(name)]
    if not configs:
        raise data_error(root, "holds no MOVi-E files", _LAYOUT, _FETCH)
    if config is None and len(configs) > 1:
        problem = f"holds the configurations {', '.join(configs)}"
        raise data_error(root, problem, "a choice", "say which with config=")
    chosen = configs[0] if config is None else config
    if chosen not in configs:
        problem = f"holds the configurations {', '.join(configs)}"
        raise data_error(root, problem, f"{chosen!r}", "choose one of them or fetch it")
    folder = root / chosen
    if not any(_VERSION.fullmatch(n) or _SHARD.fullmatch(n) for n in _listed(folder)):
        raise data_error(folder, "holds no MOVi-E files", _LAYOUT, _FETCH)
    return _version_folder(folder, None)


def _listed(folder: Path) -> list[str]:
    """Sorted names in a folder."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        problem = f"cannot be listed ({getattr(error, 'strerror', None) or error})"
        raise data_error(folder, problem, "a folder", _FETCH) from error


def _shard_lengths(folder: Path, split: str) -> list[int] | None:
    """Examples in each file of a split, by dataset_info.json; None where that does not say."""
    path = folder / "dataset_info.json"
    if not path.exists():
        return None
    what = "the dataset_info.json of TFDS"
    info = read_json(path, what, max_bytes=_MAX_JSON)
    splits = info.get("splits") if isinstance(info, dict) else None
    if not isinstance(splits, list) or not all(isinstance(s, dict) for s in splits):
        raise data_error(path, "lists no splits", what, FETCH_AGAIN)
    for entry in splits:
        if entry.get("name") == split and (lengths := entry.get("shardLengths")) is not None:
            texts = [str(n) for n in lengths] if isinstance(lengths, list) else [""]
            if not all(t.isascii() and t.isdigit() and len(t) < 16 for t in texts):
                raise data_error(path, f"has no lengths of the split {split!r}", what, FETCH_AGAIN)
            return [int(t) for t in texts]
    return None
