"""Video datasets for probing frozen models, with one documented schema per task."""

from probe_datasets.clips import clip_indices
from probe_datasets.folder import FolderDataset
from probe_datasets.registry import DATASETS, DatasetSpec, open_dataset
from probe_datasets.schema import ClipDataset, Coverage, LabelledVideoExample, VideoExample
from probe_datasets.transforms import centre_crop, resize_short_side, to_float
from probe_datasets.video_io import VideoError, VideoInfo, read_frames, scan_video

__version__ = "0.1.0"

__all__ = [
    "DATASETS",
    "ClipDataset",
    "Coverage",
    "DatasetSpec",
    "FolderDataset",
    "LabelledVideoExample",
    "VideoError",
    "VideoExample",
    "VideoInfo",
    "centre_crop",
    "clip_indices",
    "open_dataset",
    "read_frames",
    "resize_short_side",
    "scan_video",
    "to_float",
]
