"""Tasks: what is read from features, how it is trained and how it is measured."""

from probe_datasets import ClipDataset
from probe_eval.tasks.base import Task
from probe_eval.tasks.classification import Classification

TASKS: dict[str, Task] = {
    "action": Classification(label="action"),
    "shape": Classification(label="shape"),
}
"""Name -> task."""


def load_task(name: str, dataset: ClipDataset) -> Task:
    """A task by name, checked against the data set.

    Raises:
        ValueError: for an unknown name, or a data set without the task's labels.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    TASKS[name].check(dataset)
    return TASKS[name]
