"""Tasks: what is read from features, how it is trained and how it is measured."""

from probe_datasets import ClipDataset
from probe_eval.tasks.base import Task
from probe_eval.tasks.box_tracks import BoxTracks
from probe_eval.tasks.classification import Classification
from probe_eval.tasks.depth import Depth
from probe_eval.tasks.point_tracks import PointTracks
from probe_eval.tasks.pose import Pose

TASKS: dict[str, Task] = {
    "image-class": Classification(labels=("class", "place", "species")),
    "action": Classification(labels=("action", "class")),
    "shape": Classification(labels=("shape",)),
    "texture": Classification(labels=("texture",)),
    "depth": Depth(),
    "pose": Pose(),
    "points": PointTracks(),
    "boxes": BoxTracks(),
}
"""Name -> task; one serves every data set of its kind."""


def load_task(name: str, dataset: ClipDataset) -> Task:
    """A task by name, checked against the data set.

    Raises:
        ValueError: for an unknown name, or a data set without the task's labels.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    TASKS[name].check(dataset)
    return TASKS[name]
