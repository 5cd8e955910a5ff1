"""Every dataset by name."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from probe_datasets import (
    davis,
    folder,
    imagenet,
    inat2018,
    kinetics,
    movi_e,
    moving_shapes,
    perception_test,
    places365,
    realestate10k,
    scannet,
    ssv2,
    synthetic,
    tapvid,
    waymo,
)
from probe_datasets.clips import ClipConfig
from probe_datasets.schema import ClipDataset
from probe_datasets.spec import DatasetSpec

__all__ = ["DATASETS", "open_dataset"]

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        imagenet.SPEC,
        places365.SPEC,
        inat2018.SPEC,
        ssv2.SPEC,
        kinetics.SPEC_400,
        kinetics.SPEC_700,
        scannet.SPEC,
        realestate10k.SPEC,
        perception_test.SPEC,
        tapvid.SPEC,
        movi_e.SPEC,
        waymo.SPEC,
        davis.SPEC,
        folder.SPEC,
        synthetic.SPEC,
        moving_shapes.SPEC,
    )
}
"""Dataset name -> what it is. A new dataset is one module and one line here."""


def open_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    clip: ClipConfig | None = None,
    seed: int = 0,
    **options: Any,
) -> ClipDataset:
    """Open one split of a registered dataset.

    Args:
        name: key of `DATASETS`.
        root: the folder that holds the data, where the dataset needs one.
        split: one of the dataset's splits.
        clip: which frames, and how large; by default the study's clip of this dataset.
        seed: decides whatever is random about the examples.
        options: what else this dataset's builder takes, such as `on_error` of those with files.

    Returns:
        The split; `schema.py` says what its items are.

    Raises:
        ValueError: unknown name, split or option, a root that is missing or not wanted, or whatever
            the dataset itself finds wrong; DataError, which is one, for bad files.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"dataset {name!r} must be one of {', '.join(sorted(DATASETS))}{hint}")
    spec = DATASETS[name]
    if split not in spec.splits:
        raise ValueError(f"split {split!r} of {name!r} must be one of {', '.join(spec.splits)}")
    if spec.needs_root and root is None:
        raise ValueError(f"dataset {name!r} needs root, the folder that holds its files")
    if not spec.needs_root and root is not None:
        raise ValueError(f"dataset {name!r} is generated; leave root={str(root)!r} out")
    given = ("root", "split", "clip", "seed")
    known = [option for option in spec.options() if option not in given]
    if unknown := sorted(set(options) - set(known)):
        choice = ", ".join(known)
        raise ValueError(f"dataset {name!r} has no option {unknown[0]!r}; it has {choice}")
    places = {"root": root} if spec.needs_root else {}
    build = spec.load_builder()
    return build(**places, split=split, clip=clip or spec.clip, seed=seed, **options)
