"""The record of a dataset: what it is, how much of it there should be and where it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from typing import get_args

from probe_datasets.clips import ClipConfig
from probe_datasets.schema import ClipDataset

__all__ = ["TASKS", "DatasetSpec"]

TASKS = (
    "images",
    "actions",
    "depth",
    "camera pose",
    "point tracks",
    "box tracks",
    "segmentation",
    "videos",
    "all",
)
"""What examples are for: their schemas are in `schema.py`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """What one registered dataset is and where its builder lives.

    Raises:
        ValueError: for a task that there is not, or counts of splits that there are not.
    """

    name: str
    """Name in the registry."""
    summary: str
    """One line for listings."""
    builder: str
    """`module:name` of the class; imported when the dataset is opened, not before."""
    task: str
    """What its examples are for, one of `TASKS`."""
    splits: tuple[str, ...]
    """Names of the splits."""
    needs_root: bool = True
    """True when the data is read from a folder of the user's, False when it is generated."""
    clip: ClipConfig = field(default_factory=ClipConfig)
    """The clip that the study uses, or the one that suits the data."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Split -> samples that the published data set has."""
    labels: tuple[str, ...] = ()
    """Names of the labels; empty when unlabelled."""
    num_classes: Mapping[str, int] = field(default_factory=dict)
    """Label -> number of its classes, where that is fixed."""
    layouts: tuple[str, ...] = ()
    """The ways to keep its files that are recognised, each in one line."""
    obtain: str = ""
    """How to get the data."""
    licence: str = ""
    """What may be done with the data, in one line; the owner's own terms decide."""
    citation: str = ""
    """The publication to cite."""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} must be one of {', '.join(TASKS)}")
        if unknown := set(self.expected) - set(self.splits):
            raise ValueError(f"expected names splits that there are not: {sorted(unknown)}")
        if unknown := set(self.num_classes) - set(self.labels):
            raise ValueError(f"num_classes names labels that there are not: {sorted(unknown)}")

    def load_builder(self) -> Callable[..., ClipDataset]:
        """Import and return the class that reads or generates the dataset."""
        module, _, name = self.builder.partition(":")
        return getattr(import_module(module), name)

    def options(self) -> tuple[str, ...]:
        """Names of all that the builder takes, those of a shared TypedDict included."""
        names: list[str] = []
        for parameter in signature(self.load_builder()).parameters.values():
            shared = (
                get_args(parameter.annotation) if parameter.kind is Parameter.VAR_KEYWORD else ()
            )
            names += shared[0].__annotations__ if shared else [parameter.name]
        return tuple(names)
