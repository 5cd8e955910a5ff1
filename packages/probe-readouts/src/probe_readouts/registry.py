"""The readouts of the study by name, with their published sizes."""

import dataclasses
import inspect
from typing import Any, Literal

from probe_readouts.attentive import AttentiveReadout
from probe_readouts.depth import DepthReadout
from probe_readouts.pose import PoseReadout
from probe_readouts.readout import Readout
from probe_readouts.tracking import BoxTrackReadout, PointTrackReadout

ReadoutTask = Literal["classification", "pose", "depth", "points", "boxes"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutSpec:
    """One readout of the study."""

    task: ReadoutTask
    """What is read: classes, the camera pose, depth, tracks of points or tracks of boxes."""
    readout: type[Readout]
    """The class that reads it."""
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its keyword arguments; those left out have defaults, which are the study's sizes."""
    parameters: int
    """Published parameter count at 1024 feature channels."""


def _classes(num_outputs: int, width: int, parameters: int) -> ReadoutSpec:
    """The attentive readout of so many classes."""
    return ReadoutSpec(
        task="classification",
        readout=AttentiveReadout,
        arguments={"num_outputs": num_outputs, "width": width},
        parameters=parameters,
    )


READOUTS: dict[str, ReadoutSpec] = {
    "imagenet": _classes(1000, 768, 7_678_184),
    "places365": _classes(365, 768, 7_189_869),
    "inat2018": _classes(8142, 768, 13_170_382),
    "ssv2": _classes(174, 768, 7_042_990),
    "kinetics400": _classes(400, 1024, 11_975_056),
    "kinetics700": _classes(700, 1024, 12_282_556),
    "re10k_pose": ReadoutSpec(task="pose", readout=PoseReadout, parameters=1_650_444),
    "scannet_depth": ReadoutSpec(task="depth", readout=DepthReadout, parameters=3_284_353),
    "point_tracks": ReadoutSpec(task="points", readout=PointTrackReadout, parameters=12_897_668),
    "waymo_boxes": ReadoutSpec(task="boxes", readout=BoxTrackReadout, parameters=12_931_462),
}
"""Name -> readout, in the order of the study's tables."""


def create_readout(name: str, feature_dim: int = 1024, **overrides: Any) -> Readout:
    """Build a readout of the study, with new weights from torch's default generator.

    | name | task | readout | outputs | width | parameters at 1024 channels |
    |---|---|---|---|---|---|
    | imagenet | classification | AttentiveReadout | 1000 classes | 768 | 7,678,184 |
    | places365 | classification | AttentiveReadout | 365 classes | 768 | 7,189,869 |
    | inat2018 | classification | AttentiveReadout | 8142 classes | 768 | 13,170,382 |
    | ssv2 | classification | AttentiveReadout | 174 classes | 768 | 7,042,990 |
    | kinetics400 | classification | AttentiveReadout | 400 classes | 1024 | 11,975,056 |
    | kinetics700 | classification | AttentiveReadout | 700 classes | 1024 | 12,282,556 |
    | re10k_pose | pose | PoseReadout | 3x4 pose | 256 | 1,650,444 |
    | scannet_depth | depth | DepthReadout | metres | features + 64 | 3,284,353 |
    | point_tracks | points | PointTrackReadout | xy, 2 logits | 512 | 12,897,668 |
    | waymo_boxes | boxes | BoxTrackReadout | xyxy, 2 logits | 512 | 12,931,462 |

    Reference:
        Velez et al., From Image to Video (2025), Tables 5 and 6.

    Args:
        name: key of `READOUTS`.
        feature_dim: channels of the features; 1024 is the study's 284 M backbone.
        overrides: keyword arguments of the readout in place of the study's, such as
            `num_outputs`, `num_frames` or `time_method`.

    Raises:
        ValueError: an unknown name or keyword, or sizes that the readout refuses.
    """
    if name not in READOUTS:
        raise ValueError(f"unknown readout {name!r}; choose one of {', '.join(READOUTS)}")
    spec = READOUTS[name]
    known = [key for key in inspect.signature(spec.readout).parameters if key != "feature_dim"]
    if unknown := [key for key in overrides if key not in known]:
        raise ValueError(
            f"unknown arguments {', '.join(unknown)} for readout {name!r}; {spec.readout.__name__} "
            f"takes {', '.join(known)}"
        )
    return spec.readout(feature_dim=feature_dim, **spec.arguments | overrides)
