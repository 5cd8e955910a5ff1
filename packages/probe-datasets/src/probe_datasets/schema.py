"""What one example of a dataset is: the one home of axis order, units and ranges.

Axes: `3` colour channels in the order red, green, blue; `T` frames in display order; `H` rows from
the top; `W` columns from the left; `p` tracked points; `m` objects with a box. Pixels are float32
in [-1, 1], where -1 is the byte 0 and 1 the byte 255. Places in the image are `xy` and boxes `xyxy`
in [0, 1], with pixel centres at (i + 0.5) / W. Lengths are metres; cameras look along z, with x to
the right and y down (OpenCV). A mask is true where its entry counts; what does not count is finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

__all__ = [
    "BoxTrackExample",
    "CameraExample",
    "ClipDataset",
    "Coverage",
    "DepthExample",
    "FailedExample",
    "LabelledVideoExample",
    "PointTrackExample",
    "SegmentationExample",
    "VideoExample",
]


class VideoExample(TypedDict):
    """One clip without labels. A single picture is a clip of equal frames."""

    video: Float[Tensor, "3 T H W"]
    """Pixels in [-1, 1]."""
    sample_id: str
    """Name of the sample, unique within its dataset and the same in every run."""


class LabelledVideoExample(VideoExample):
    """One clip with class labels: pictures, actions."""

    labels: dict[str, int]
    """Label name -> class index, 0 to the number of that label's classes less one."""


class CameraExample(VideoExample):
    """One clip with the camera of each frame: camera pose."""

    poses: Float[Tensor, "T 3 4"]
    """World-to-camera poses [R | t]; zeros where they do not count."""
    poses_valid: Bool[Tensor, " T"]
    """Whether the camera of a frame is known."""
    intrinsics: Float[Tensor, "T 4"]
    """fx, fy, cx, cy of the clip's frames by their width and height."""


class DepthExample(CameraExample):
    """One clip with depth: monocular depth."""

    depth: Float[Tensor, "T H W"]
    """z-depth at pixel centres, in metres; 0 where it does not count."""
    depth_valid: Bool[Tensor, "T H W"]
    """Whether the depth is known."""


class PointTrackExample(VideoExample):
    """One clip with tracks of points, padded to a fixed number."""

    points: Float[Tensor, "p T 2"]
    """Positions xy, in [0, 1] where inside the image."""
    points_visible: Bool[Tensor, "p T"]
    """Whether a point can be seen."""
    points_valid: Bool[Tensor, " p"]
    """False for padding."""
    query_frames: Int[Tensor, " p"]
    """The frame in which each point is queried, 0 to T - 1; it is visible there."""


class BoxTrackExample(VideoExample):
    """One clip with the boxes of objects that keep their identity, padded to a fixed number."""

    boxes: Float[Tensor, "m T 4"]
    """Boxes xyxy in [0, 1]."""
    boxes_valid: Bool[Tensor, "m T"]
    """Whether an object has a box in a frame; nowhere for padding."""


class SegmentationExample(VideoExample):
    """One clip with the masks of objects."""

    segments: UInt8[Tensor, "T H W"]
    """0 background, k for object k - 1, 255 where nothing is known."""


class FailedExample(TypedDict):
    """In the place of an example that could not be read, under `on_error="skip"`."""

    sample_id: str
    """Name of the sample."""
    problem: str
    """What is wrong with it, in one line."""


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
    """(sample_id, why) of samples that are missing or failed: all of them up to a hundred of each
    kind."""

    def __post_init__(self) -> None:
        if self.expected != self.found + self.missing + self.failed:
            raise ValueError(
                f"expected {self.expected} samples must be found {self.found} + missing "
                f"{self.missing} + failed {self.failed}; count each sample once"
            )

    def with_failed(self, failed: Mapping[str, str]) -> "Coverage":
        """The coverage after some samples that were found could not be read.

        Args:
            failed: why, by sample_id.

        Raises:
            ValueError: more samples failed than there are.
        """
        if len(failed) > self.found:
            raise ValueError(f"{len(failed)} samples cannot fail of {self.found} that were found")
        return replace(
            self,
            found=self.found - len(failed),
            failed=self.failed + len(failed),
            reasons=(*self.reasons, *failed.items()),
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

    def __getitem__(self, index: int) -> Any:
        """Example `index` with the chance of draw 0."""
        ...

    def clip(self, index: int, draw: int = 0) -> Any:
        """Example `index`, of its task's schema, with the chance of one draw, such as an epoch's.

        Under `on_error="skip"` it may be a `FailedExample`.
        """
        ...

    def sample_id(self, index: int) -> str:
        """Name of sample `index`, without decoding it."""
        ...
