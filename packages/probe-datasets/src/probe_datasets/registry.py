"""Every dataset by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from probe_datasets.schema import ClipDataset, Coverage

__all__ = ["DATASETS", "ClipDataset", "Coverage", "DatasetSpec", "open_dataset"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """What one registered dataset is and where its builder lives."""

    summary: str
    """One line for listings."""
    builder: str
    """`module:name` of the class; imported when the dataset is opened, not before."""
    splits: tuple[str, ...]
    """Names of the splits."""
    needs_root: bool
    """True when the data is read from a folder of the user's, False when it is generated."""
    labels: tuple[str, ...] = ()
    """Names of the labels; empty when unlabelled."""
    citation: str = ""
    """Where the data comes from, when it is published."""

    def load_builder(self) -> Callable[..., ClipDataset]:
        """Import and return the class that reads or generates the dataset."""
        module, _, name = self.builder.partition(":")
        return getattr(import_module(module), name)


DATASETS: dict[str, DatasetSpec] = {
    "folder": DatasetSpec(
        summary="every mp4, mov, webm and mkv video below a folder, unlabelled",
        builder="probe_datasets.folder:FolderDataset",
        splits=("train", "validation", "all"),
        needs_root=True,
    ),
    "moving_shapes": DatasetSpec(
        summary="rendered shapes that move, labelled by action and shape; nothing to download",
        builder="probe_datasets.moving_shapes:MovingShapes",
        splits=("train", "validation"),
        needs_root=False,
        labels=("action", "shape"),
    ),
}
"""Dataset name -> what it is. A new dataset is one module and one entry here."""


def open_dataset(
    name: str,
    *,
    split: str,
    root: str | Path | None = None,
    num_frames: int = 17,
    stride: int = 1,
    size: int = 64,
    seed: int = 0,
    **options: object,
) -> ClipDataset:
    """Open one split of a registered dataset.

    Args:
        name: key of `DATASETS`.
        split: one of the dataset's splits.
        root: the folder that holds the data, where the dataset needs one.
        num_frames: frames in a clip.
        stride: distance between neighbouring frames of a clip, in frames of the video.
        size: height and width of a clip in pixels.
        seed: decides whatever is random about the examples.
        options: what else this dataset's builder takes, such as `on_error` of a folder.

    Returns:
        The split, whose items are a `VideoExample` or a `LabelledVideoExample`.

    Raises:
        ValueError: unknown name or split, a root that is missing or not wanted, or whatever the
            dataset itself finds wrong; VideoError, which is one, for a bad file.
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
    settings = {
        "split": split,
        "num_frames": num_frames,
        "stride": stride,
        "size": size,
        "seed": seed,
    }
    return spec.load_builder()(**({"root": root} if spec.needs_root else {}), **settings, **options)
