"""Prompts made of the labels of a data set, and which of them a clip has."""

import string
from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from probe_datasets import ClipDataset
from probe_eval.text import TextStates


def label_classes(dataset: ClipDataset, label: str, setting: str) -> tuple[str, ...]:
    """The class names of a label.

    Raises:
        ValueError: if the data set has no such label.
    """
    if label not in dataset.classes:
        known = ", ".join(dataset.classes) or "none"
        raise ValueError(f"{setting} names no label of the data set: {label!r}; known: {known}")
    return dataset.classes[label]


def labels_of(prompt: str) -> list[str]:
    """The labels in braces in a prompt.

    Raises:
        ValueError: if braces do not match, or there are none.
    """
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r} has braces that do not match ({error})") from error
    if not names or not all(names):
        raise ValueError(
            f"prompt {prompt!r} must name labels of the data set in braces, such as "
            "'a {shape} that moves {action}'"
        )
    return list(dict.fromkeys(names))


def choose_prompts(text: TextStates, prompt: str, dataset: ClipDataset) -> TextStates:
    """The states of every prompt that the labels make, in the order of the label numbers.

    Raises:
        ValueError: for a label that the data set has not, or a prompt without states.
    """
    filled: list[dict[str, str]] = [{}]
    for name in labels_of(prompt):
        classes = label_classes(dataset, name, "prompt")
        filled = [{**before, name: value} for before in filled for value in classes]
    return text.select([prompt.format(**values) for values in filled])


def prompt_rows(
    prompt: str, dataset: ClipDataset, labels: Mapping[str, Int[Tensor, " n"]]
) -> Int[Tensor, " n"]:
    """The row of every clip's prompt in those of `choose_prompts`: its labels are the digits.

    Args:
        prompt: with labels in braces.
        dataset: knows how many classes each label has.
        labels: class of every clip, by label.
    """
    names = labels_of(prompt)
    rows = torch.zeros_like(labels[names[0]])
    for name in names:
        rows = rows * len(dataset.classes[name]) + labels[name]
    return rows
