"""How tasks, backbones and metrics are called where people read them."""

from collections.abc import Iterable

TASKS = {
    "places365": "Places365",
    "imagenet": "ImageNet",
    "inat2018": "iNat2018",
    "kinetics400": "K400",
    "kinetics700": "K700",
    "ssv2": "SSv2",
    "scannet-depth": "Depth",
    "realestate10k-pose": "Cam. Pose",
    "point-tracks": "PointTracks",
    "waymo-boxes": "Obj. Tracks",
}
"""Recipe -> the study's name, in the order of its appendix."""
DATASETS = {
    ("image-class", "places365"): "Places365",
    ("image-class", "imagenet"): "ImageNet",
    ("image-class", "inat2018"): "iNat2018",
    ("action", "kinetics400"): "K400",
    ("action", "kinetics700"): "K700",
    ("action", "ssv2"): "SSv2",
    ("depth", "scannet"): "Depth",
    ("pose", "realestate10k"): "Cam. Pose",
    ("points", "movi_e"): "PointTracks",
    ("boxes", "waymo"): "Obj. Tracks",
}
"""Task and data set -> the study's name."""
BACKBONES = {"i-walt": "I-WALT", "v-walt": "V-WALT", "tokenizer": "tokenizer"}
"""Name -> the study's name."""
METRICS = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "abs_rel": "AbsRel",
    "end_point_error": "EPE, m",
    "average_jaccard": "average Jaccard",
    "mean_iou": "mean IoU",
}
"""Name -> what stands at an axis, with its unit where it has one."""
ARROWS = {"up": "\N{UPWARDS ARROW}", "down": "\N{DOWNWARDS ARROW}"}
"""Direction -> what says which way is better."""


def metric_label(name: str, variant: str, direction: str) -> str:
    """Metric, variant and the arrow that says which way is better."""
    label = METRICS.get(name, name.replace("_", " "))
    return f"{label}{f' ({variant})' if variant else ''} {ARROWS[direction]}"


def axis_label(name: str, direction: str) -> str:
    """Metric and which way is better, as short as an axis wants it."""
    better = {"up": "higher", "down": "lower"}[direction]
    return f"{METRICS.get(name, name.replace('_', ' '))}\n({better} is better)"


def in_order(labels: Iterable[str], known: dict[str, str]) -> list[str]:
    """Each label once: those of the study in its order, then the others as they come."""
    names = list(dict.fromkeys(labels))
    order = {label: place for place, label in enumerate(known.values())}
    return sorted(names, key=lambda label: order.get(label, len(order)))
