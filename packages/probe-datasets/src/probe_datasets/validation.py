"""What of a dataset is there: found, expected, missing and unreadable samples of each split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.indexed import EmptySplitError, IndexedDataset
from probe_datasets.loader import load_batches
from probe_datasets.registry import DATASETS, open_dataset
from probe_datasets.scan import Progress
from probe_datasets.schema import Coverage

__all__ = ["SplitReport", "validate_split"]

_BATCH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """What one split of a dataset on disk amounts to."""

    dataset: str
    """Name in the registry."""
    split: str
    """Name of the split."""
    layout: str
    """The layout that was recognised; empty where none was."""
    published: int
    """Samples that the published split has; 0 where that is not known."""
    coverage: Coverage
    """Counts, and why samples are missing or failed."""
    decoded: int
    """Samples that were read to the last pixel; the others were indexed only."""
    problem: str
    """Why the split cannot be opened at all; empty where it can."""

    @property
    def share(self) -> float:
        """Samples found for each that there should be, 0 to 1."""
        total = max(self.published, self.coverage.expected)
        return self.coverage.found / total if total else 0.0


def validate_split(
    name: str,
    root: str | Path | None,
    split: str,
    *,
    clip: ClipConfig | None = None,
    decode: int = 0,
    num_workers: int = 0,
    progress: Progress | None = None,
    reading: Progress | None = None,
    **options: Any,
) -> SplitReport:
    """Looks at every sample of a split, and reads some of them.

    Args:
        name: key of `DATASETS`.
        root: the folder of the data, where the dataset needs one.
        split: one of the dataset's splits.
        clip: which frames are needed; by default the study's clip.
        decode: how many samples are read to the last pixel, evenly spread; -1 for all of them.
        num_workers: processes that read.
        progress: called with (files done, files in all) while files are indexed.
        reading: called with (samples done, samples in all) while samples are read.
        options: what else the dataset's builder takes.

    Raises:
        ValueError: unknown name, split or option. What is wrong with the files is in the report.
    """
    spec = DATASETS.get(name)
    if spec is not None and spec.needs_root:
        options = {"on_error": "skip", "progress": progress, **options}
    try:
        dataset = open_dataset(name, root, split, clip=clip, **options)
    except DataError as error:
        empty = isinstance(error, EmptySplitError)
        return SplitReport(
            dataset=name,
            split=split,
            layout=error.layout if empty else "",
            published=DATASETS[name].expected.get(split, 0),
            coverage=error.coverage if empty else Coverage(expected=0, found=0),
            decoded=0,
            problem="" if empty else str(error),
        )
    count = len(dataset) if decode < 0 else min(decode, len(dataset))
    places = [(k * len(dataset) // count, 0) for k in range(count)]
    failed: dict[str, str] = {}
    batches = [places[k : k + _BATCH] for k in range(0, count, _BATCH)]
    for number, batch in enumerate(load_batches(dataset, batches, num_workers=num_workers)):
        failed |= {example["sample_id"]: example["problem"] for example in batch["failed"]}
        if reading is not None:
            reading(min((number + 1) * _BATCH, count), count)
    return SplitReport(
        dataset=name,
        split=split,
        layout=dataset.index.layout if isinstance(dataset, IndexedDataset) else "generated",
        published=DATASETS[name].expected.get(split, 0),
        coverage=dataset.coverage.with_failed(failed),
        decoded=count,
        problem="",
    )
