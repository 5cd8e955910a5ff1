"""Readout heads that turn the features of a frozen video backbone into predictions."""

from probe_readouts.attentive import AttentiveReadout
from probe_readouts.depth import DepthReadout, PixelGrid
from probe_readouts.flax import load_flax
from probe_readouts.geometry import (
    check_boxes,
    check_points,
    nearest_rigid,
    procrustes_so3,
    relative_pose,
)
from probe_readouts.losses import (
    PointTrackLoss,
    box_track_loss,
    classification_loss,
    depth_loss,
    point_track_loss,
    pose_loss,
)
from probe_readouts.pose import PoseReadout
from probe_readouts.positional import fourier_features
from probe_readouts.readout import Readout
from probe_readouts.registry import READOUTS, ReadoutSpec, create_readout
from probe_readouts.saving import BackboneIdentity, load_readout, save_readout, weights_hash
from probe_readouts.time import resize_time, temporal_matrix
from probe_readouts.tracking import BoxTrackReadout, PointTrackReadout, Tracks

__version__ = "0.2.1"

__all__ = [
    "READOUTS",
    "AttentiveReadout",
    "BackboneIdentity",
    "BoxTrackReadout",
    "DepthReadout",
    "PixelGrid",
    "PointTrackLoss",
    "PointTrackReadout",
    "PoseReadout",
    "Readout",
    "ReadoutSpec",
    "Tracks",
    "__version__",
    "box_track_loss",
    "check_boxes",
    "check_points",
    "classification_loss",
    "create_readout",
    "depth_loss",
    "fourier_features",
    "load_flax",
    "load_readout",
    "nearest_rigid",
    "point_track_loss",
    "pose_loss",
    "procrustes_so3",
    "relative_pose",
    "resize_time",
    "save_readout",
    "temporal_matrix",
    "weights_hash",
]
