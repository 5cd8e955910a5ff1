"""One example of Kubric MOVi-E: its pictures, camera and objects, each decoded when asked for.

Axes: `T` frames; `H` rows from the top; `W` columns from the left; `k` objects. Values are those of
the file, and their units are said here; `movi_e_geometry` converts them. The optical flow, most of
the bytes, is stepped over unless it is asked for.

Reference:
    Greff et al. 2022, "Kubric: A scalable dataset generator", and its challenges/movi/movi_e.py.
"""

import os
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error
from probe_datasets.formats.protobuf import Feature, ProtobufError, parse_example
from probe_datasets.formats.rgb16 import decode_rgb16, png_size
from probe_datasets.formats.still_images import decode_indices, decode_rgb, decode_u16
from probe_datasets.formats.tfrecord import read_record

__all__ = ["MoviCamera", "MoviExample", "MoviInstances", "read_movi_e"]

_MAX_FRAMES, _MAX_PIXELS = 4096, 1 << 24
_MAX_NUMBER = 1e6
_ROUNDING = 1e-2
_Value = TypeVar("_Value")
_Sized = TypeVar("_Sized", bound=Sized)


@dataclass(frozen=True, kw_only=True, slots=True)
class MoviCamera:
    """The camera of a video, in Blender's axes: x right, y up, looking along -z."""

    focal_length: float
    """In mm."""
    sensor_width: float
    """In mm."""
    field_of_view: float
    """Horizontal, in radians."""
    positions: Float32[np.ndarray, "T 3"]
    """World coordinates in metres."""
    quaternions: Float32[np.ndarray, "T 4"]
    """Rotation from camera to world, (w, x, y, z)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoviInstances:
    """The objects of a video; object i has the value i + 1 in the segmentations."""

    bboxes_3d: Float32[np.ndarray, "k T 8 3"]
    """Corners in world coordinates, in the order of product((-.5, .5), repeat=3): x slowest."""
    quaternions: Float32[np.ndarray, "k T 4"]
    """Rotation from object to world, (w, x, y, z)."""
    positions: Float32[np.ndarray, "k T 3"]
    """World coordinates in metres."""
    visibility: Int64[np.ndarray, "k T"]
    """Pixels of the object in each frame."""
    boxes: Float32[np.ndarray, "k T 4"]
    """xyxy in [0, 1] in the picture; zeros where the object is not in the frame."""
    boxes_valid: Bool[np.ndarray, "k T"]
    """Whether the object is in the frame."""
    category: Int64[np.ndarray, " k"]
    """Line, from 0, in instances-category.labels.txt."""
    is_dynamic: Bool[np.ndarray, " k"]
    """Whether the object was thrown."""
    asset_id: tuple[str, ...]
    """Name of each object's mesh."""


def read_movi_e(
    path: str | os.PathLike[str], offset: int, length: int, *, verify: bool = True
) -> "MoviExample":
    """One example of a file, with nothing of it decoded yet.

    Args:
        path: a TFRecord file.
        offset: where the record begins.
        length: bytes of the record.
        verify: compare the record with its checksum.

    Raises:
        DataError: the file has no such record, or the record is damaged or no MOVi-E example.
    """
    record = read_record(path, offset, length, verify=verify)
    return MoviExample(record, f"{os.fspath(path)} (record at byte {offset})")


class MoviExample:
    """One video and everything known about it.

    Args:
        record: a serialised `tf.Example`.
        source: where it comes from, for messages.

    Raises:
        DataError: the record is no MOVi-E example. So does everything below, on what it needs.
    """

    def __init__(self, record: memoryview, source: str) -> None:
        self.source = source
        self._features: dict[str, Feature] = self._checked(lambda: parse_example(record))
        self._pictures: dict[str, list[memoryview]] = {}
        video = self._checked(self._feature("video").bytes_list)
        self.num_frames = len(video)
        if not 1 <= self.num_frames <= _MAX_FRAMES:
            raise self.error(f"has {self.num_frames} frames", f"1 to {_MAX_FRAMES}")
        self.height, self.width = png_size(video[0], source)
        if not 1 <= self.num_frames * self.height * self.width <= _MAX_PIXELS:
            problem = f"has {self.num_frames} frames of {self.height} x {self.width} pixels"
            raise self.error(problem, f"1 to {_MAX_PIXELS} pixels in all")

    # ------------------------------------------------------------------------------- pictures

    def video(self, frames: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        """Red, green and blue of some frames, of all by default; 0 to 255."""
        size = (self.height, self.width)
        return self._stacked(
            "video",
            frames,
            lambda data: decode_rgb(data, self.source, size=size, formats=("PNG",)),
        )

    def segmentations(self, frames: Sequence[int] | None = None) -> UInt8[np.ndarray, "T H W"]:
        """Which object a pixel shows: its index plus 1, or 0 for the background."""
        size = (self.height, self.width)
        return self._stacked(
            "segmentations", frames, lambda data: decode_indices(data, self.source, size=size)
        )

    def depth(self, frames: Sequence[int] | None = None) -> UInt16[np.ndarray, "T H W"]:
        """Distance from the centre of the camera; 0 and 65535 are the ends of `depth_range`."""
        size = (self.height, self.width)
        return self._stacked("depth", frames, lambda data: decode_u16(data, self.source, size=size))

    def normal(self, frames: Sequence[int] | None = None) -> UInt16[np.ndarray, "T H W 3"]:
        """Surface normals in world axes; 0 is -1 and 65535 is 1."""
        size = (self.height, self.width)
        return self._stacked(
            "normal", frames, lambda data: decode_rgb16(data, self.source, size=size)
        )

    def object_coordinates(
        self, frames: Sequence[int] | None = None
    ) -> UInt16[np.ndarray, "T H W 3"]:
        """Position in the object's 3-D box; 0 is -0.5 and 65535 is 0.5 of its extent."""
        size = (self.height, self.width)
        return self._stacked(
            "object_coordinates", frames, lambda data: decode_rgb16(data, self.source, size=size)
        )

    def flow(self, *, forward: bool = True) -> UInt16[np.ndarray, "T H W 2"]:
        """Optical flow (rows, columns) of all frames; 0 and 65535 are the ends of `flow_range`."""
        count = self.num_frames * self.height * self.width * 2
        values = self._ints(f"{_direction(forward)}_flow", count)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise self.error("has a flow outside 0 to 65535", "numbers of 16 bits")
        return rearrange(
            values.astype(np.uint16), "(T H W c) -> T H W c", H=self.height, W=self.width, c=2
        )

    # --------------------------------------------------------------------------------- numbers

    @cached_property
    def video_name(self) -> str:
        """Name of the scene."""
        return self._texts("metadata/video_name", 1)[0]

    @cached_property
    def depth_range(self) -> tuple[float, float]:
        """Metres at the depths 0 and 65535."""
        low, high = self._floats("metadata/depth_range", 2).tolist()
        if not 0 <= low <= high:
            raise self.error(f"has a depth range of {low} to {high}", "0 <= first <= second")
        return low, high

    def flow_range(self, *, forward: bool = True) -> tuple[float, float]:
        """Pixels at the flows 0 and 65535."""
        low, high = self._floats(f"metadata/{_direction(forward)}_flow_range", 2).tolist()
        return low, high

    @cached_property
    def camera(self) -> MoviCamera:
        """The camera."""
        focal_length, sensor_width, field_of_view = (
            self._floats(f"camera/{name}", 1).item()
            for name in ("focal_length", "sensor_width", "field_of_view")
        )
        if focal_length <= 0 or sensor_width <= 0:
            problem = f"has a camera of focal length {focal_length} and sensor width {sensor_width}"
            raise self.error(problem, "numbers above 0")
        positions = self._floats("camera/positions", self.num_frames * 3)
        return MoviCamera(
            focal_length=focal_length,
            sensor_width=sensor_width,
            field_of_view=field_of_view,
            positions=rearrange(positions, "(T xyz) -> T xyz", xyz=3),
            quaternions=self._quaternions("camera/quaternions", self.num_frames),
        )

    @cached_property
    def instances(self) -> MoviInstances:
        """The objects."""
        numbers = len(self._checked(self._feature("instances/bboxes_3d").floats))
        count, rest = divmod(numbers, self.num_frames * 24)
        if rest or count > 255:  # the segmentations have 8 bits
            problem = f"has {numbers} numbers in instances/bboxes_3d"
            expected = f"{self.num_frames} x 8 x 3 for each of at most 255 objects"
            raise self.error(problem, expected)
        each = {"k": count, "T": self.num_frames}
        total = count * self.num_frames
        boxes, boxes_valid = self._boxes(count)
        return MoviInstances(
            bboxes_3d=rearrange(
                self._floats("instances/bboxes_3d", total * 24),
                "(k T corner xyz) -> k T corner xyz",
                corner=8,
                xyz=3,
                **each,
            ),
            quaternions=rearrange(
                self._quaternions("instances/quaternions", total), "(k T) c -> k T c", **each
            ),
            positions=rearrange(
                self._floats("instances/positions", total * 3), "(k T c) -> k T c", c=3, **each
            ),
            visibility=rearrange(self._ints("instances/visibility", total), "(k T) -> k T", **each),
            boxes=boxes,
            boxes_valid=boxes_valid,
            category=self._ints("instances/category", count),
            is_dynamic=self._ints("instances/is_dynamic", count) != 0,
            asset_id=tuple(self._texts("instances/asset_id", count)),
        )

    def _boxes(self, count: int) -> tuple[Float32[np.ndarray, "k T 4"], Bool[np.ndarray, "k T"]]:
        """Boxes of each object in each frame, from lists as long as the object is in view."""
        owner = np.repeat(np.arange(count), self._lengths("instances/bbox_frames", count))
        lengths = self._lengths("instances/bboxes", count)
        frame = self._ints("instances/bbox_frames/ragged_flat_values", len(owner))
        flat = self._floats("instances/bboxes/ragged_flat_values", len(owner) * 4)
        if not np.array_equal(lengths, np.bincount(owner, minlength=count)):
            raise self.error("has boxes without frames", "as many boxes as frames")
        if len(frame) and not 0 <= frame.min() <= frame.max() < self.num_frames:
            problem = "has a box in a frame that does not exist"
            raise self.error(problem, f"frames 0 to {self.num_frames - 1}")
        boxes = np.zeros((count, self.num_frames, 4), np.float32)
        valid = np.zeros((count, self.num_frames), bool)
        boxes[owner, frame] = rearrange(flat, "(n yxyx) -> n yxyx", yxyx=4)[:, [1, 0, 3, 2]]
        valid[owner, frame] = True
        return boxes, valid

    def _lengths(self, name: str, count: int) -> Int64[np.ndarray, " k"]:
        lengths = self._ints(f"{name}/ragged_row_lengths_0", count)
        if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= self.num_frames:
            expected = f"0 to {self.num_frames} for each object"
            raise self.error(f"has impossible lengths in {name}", expected)
        return lengths

    # -------------------------------------------------------------------------------- features

    def _stacked(
        self, name: str, frames: Sequence[int] | None, decode: Callable[[bytes], np.ndarray]
    ) -> np.ndarray:
        if name not in self._pictures:
            pictures = self._checked(self._feature(name).bytes_list)
            if len(pictures) != self.num_frames:
                problem = f"has {len(pictures)} pictures in {name!r}"
                raise self.error(problem, f"{self.num_frames}, one for each frame")
            self._pictures[name] = pictures
        chosen = range(self.num_frames) if frames is None else frames
        for i in chosen:
            if not 0 <= i < self.num_frames:
                raise ValueError(f"frame {i} must be from 0 to {self.num_frames - 1}")
        return np.stack([decode(bytes(self._pictures[name][i])) for i in chosen])

    def _floats(self, name: str, count: int) -> Float32[np.ndarray, " n"]:
        values = self._counted(name, self._checked(self._feature(name).floats), count)
        if not (np.abs(values) <= _MAX_NUMBER).all():  # nor for NaN
            problem = f"has impossible numbers in {name!r}"
            raise self.error(problem, f"numbers from {-_MAX_NUMBER:g} to {_MAX_NUMBER:g}")
        return values

    def _quaternions(self, name: str, count: int) -> Float32[np.ndarray, "n 4"]:
        values = rearrange(self._floats(name, count * 4), "(n wxyz) -> n wxyz", wxyz=4)
        if not (np.abs(np.square(values).sum(axis=1) - 1) < _ROUNDING).all():
            raise self.error(f"has numbers in {name!r} that are no rotations", "unit quaternions")
        return values

    def _ints(self, name: str, count: int) -> Int64[np.ndarray, " n"]:
        return self._counted(name, self._checked(self._feature(name).ints), count)

    def _texts(self, name: str, count: int) -> list[str]:
        values = self._counted(name, self._checked(self._feature(name).bytes_list), count)
        return [bytes(v).decode("utf-8", "backslashreplace") for v in values]

    def _counted(self, name: str, values: _Sized, count: int) -> _Sized:
        if len(values) != count:
            raise self.error(f"has {len(values)} values in {name!r}", f"{count}")
        return values

    def _feature(self, name: str) -> Feature:
        if name not in self._features:
            known = ", ".join(sorted(self._features)[:8])
            raise self.error(f"has no feature {name!r}, only {known}, ...", "a MOVi-E example")
        return self._features[name]

    def _checked(self, read: Callable[[], _Value]) -> _Value:
        try:
            return read()
        except ProtobufError as error:
            raise self.error(f"is malformed ({error})", "a MOVi-E example") from error

    def error(self, problem: str, expected: str) -> DataError:
        """The error of this example.

        Args:
            problem: what is wrong with it, as a verb phrase.
            expected: what would have been right.
        """
        return data_error(self.source, problem, expected, FETCH_AGAIN)


def _direction(forward: bool) -> str:
    return "forward" if forward else "backward"
