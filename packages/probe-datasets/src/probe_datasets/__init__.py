"""Datasets for probing frozen video and image models, with one documented schema per task."""

from probe_datasets.clips import ClipConfig, clip_indices
from probe_datasets.folder import FolderDataset
from probe_datasets.formats.files import DataError
from probe_datasets.loader import ClipLoader, collate
from probe_datasets.registry import DATASETS, open_dataset
from probe_datasets.schema import (
    BoxTrackExample,
    CameraExample,
    ClipDataset,
    Coverage,
    DepthExample,
    FailedExample,
    LabelledVideoExample,
    PointTrackExample,
    SegmentationExample,
    VideoExample,
)
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import (
    centre_crop,
    crop_nearest,
    crop_resize,
    crop_resize_bytes,
    flip,
    resize_short_side,
    to_float,
)
from probe_datasets.video_io import VideoError, VideoInfo, read_frames, scan_video
from probe_datasets.windows import (
    Window,
    central_window,
    inception_window,
    move_boxes,
    move_intrinsics,
    move_points,
    track_window,
    whole_window,
)

__version__ = "0.2.0"

__all__ = [
    "DATASETS",
    "BoxTrackExample",
    "CameraExample",
    "ClipConfig",
    "ClipDataset",
    "ClipLoader",
    "Coverage",
    "DataError",
    "DatasetSpec",
    "DepthExample",
    "FailedExample",
    "FolderDataset",
    "LabelledVideoExample",
    "PointTrackExample",
    "SegmentationExample",
    "VideoError",
    "VideoExample",
    "VideoInfo",
    "Window",
    "central_window",
    "centre_crop",
    "clip_indices",
    "collate",
    "crop_nearest",
    "crop_resize",
    "crop_resize_bytes",
    "flip",
    "inception_window",
    "move_boxes",
    "move_intrinsics",
    "move_points",
    "open_dataset",
    "read_frames",
    "resize_short_side",
    "scan_video",
    "to_float",
    "track_window",
    "whole_window",
]
