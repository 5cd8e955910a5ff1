"""What one example of a dataset is: the one home of axis order, units and ranges.

Axes: `3` colour channels in the order red, green, blue; `T` frames in display order; `H` rows from
the top; `W` columns from the left. Pixels are float32 in [-1, 1], where -1 is the byte 0 and 1 the
byte 255.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["ClipDataset", "Coverage", "LabelledVideoExample", "VideoExample"]


class VideoExample(TypedDict):
    """One clip without labels."""

    video: Float[Tensor, "3 T H W"]
    """Pixels in [-1, 1]."""
    sample_id: str
    """Name of the sample, unique within its dataset and the same in every run."""


class LabelledVideoExample(VideoExample):
    """One clip with class labels."""

    labels: dict[str, int]
    """Label name -> class index, 0 to the number of that label's classes less one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How much of what a dataset split should hold is there.

    `expected` counts the samples that the split should have, `found` those that it gives, and
    `expected == found + missing + failed`.
    """

    expected: int
    """Samples that belong to the split."""
    found: int
    """Samples that the split gives."""
    missing: int = 0
    """Samples whose file is not there."""
    failed: int = 0
    """Samples whose file is there but is unreadable or too short."""
    ignored: int = 0
    """Other files that were passed over, such as pictures and text beside the videos."""
    reasons: tuple[tuple[str, str], ...] = ()
    """(sample_id, why) of each sample that is missing or failed."""

    def __post_init__(self) -> None:
        if self.expected != self.found + self.missing + self.failed:
            raise ValueError(
                f"expected {self.expected} samples must be found {self.found} + missing "
                f"{self.missing} + failed {self.failed}; count each sample once"
            )


@runtime_checkable
class ClipDataset(Protocol):
    """A finite, indexable set of video clips; what every builder in the registry returns."""

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Label name -> class names in the order of their indices; empty when unlabelled."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what the split is; equal fingerprints give equal examples."""
        ...

    @property
    def coverage(self) -> Coverage:
        """How much of what the split should hold is there."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> VideoExample | LabelledVideoExample: ...

    def sample_id(self, index: int) -> str:
        """Name of sample `index`, without decoding it."""
        ...
