"""A split as a Hugging Face dataset: its index as the table, its examples by a transform."""

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe_datasets.indexed import IndexedDataset

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["to_huggingface"]


def to_huggingface(dataset: IndexedDataset, *, draw: int = 0) -> "Dataset":
    """The samples of a split as a `datasets.Dataset`, to be filtered, sorted, selected and batched.

    Its columns are `index`, the sample's number; `sample_id`; and the label as a `ClassLabel`. Its
    items are the examples, read when they are asked for; `with_format(None)` gives the columns.
    A sample that fails under `on_error="skip"` has None everywhere but in `sample_id` and
    `problem`.

    Args:
        dataset: the split.
        draw: which of the random examples.

    Raises:
        ImportError: the package `datasets` is not installed.
    """
    try:
        from datasets import ClassLabel, Dataset
    except ImportError as error:
        raise ImportError(
            "datasets is not installed: pip install 'probe-datasets[huggingface]'"
        ) from error
    numbers = pa.array(dataset.row_numbers)
    names = dataset.index.column("sample_id").take(numbers).to_pylist()
    columns = {
        "index": pa.array(np.arange(len(dataset))),
        "sample_id": pa.array([os.fsdecode(n).encode("utf-8", "replace").decode() for n in names]),
    }
    for label in dataset.classes:
        columns[label] = dataset.index.column("label").take(numbers)
    table = Dataset(pa.table(columns))
    for label, classes in dataset.classes.items():
        table = table.cast_column(label, ClassLabel(names=list(classes)))
    return table.with_transform(partial(_read, dataset, draw))


def _read(dataset: IndexedDataset, draw: int, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    examples: list[Any] = [dataset.clip(index, draw) for index in rows["index"]]
    keys = dict.fromkeys(key for example in examples for key in example)
    return {key: [example.get(key) for example in examples] for key in keys}
