"""What is known of the training of a backbone: its step, its loss, how well it generates."""

import csv
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe_eval.report.rows import Row
from probe_eval.runs import read_json

MODEL_FILE = "model.json"
RUN_FILES = ("../record.json", "../../record.json")
"""Of the training, beside `walt/` and two above `kept/step-<step>/`."""
QUANTITIES = {"loss": "training loss", "fid": "FID", "fvd": "FVD"}
"""Name -> what performance is correlated with; of all of them, lower is better."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One checkpoint."""

    step: int | None = None
    """Optimiser steps of its training."""
    quantities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Some of `QUANTITIES`."""


def read_sheet(path: str | Path) -> dict[str, Training]:
    """Checkpoints from a CSV with the columns `weights_hash`, `step`, `loss`, `fid`, `fvd`.

    Args:
        path: the file; all columns but the first may lack, and so may numbers.

    Returns:
        Training by the beginning of the hash that is given.

    Raises:
        ValueError: if a column lacks or is unknown, or something is no number.
    """
    known = ("weights_hash", "step", *QUANTITIES)
    with Path(path).open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or ()
        if "weights_hash" not in names or set(names) - set(known):
            raise ValueError(
                f"{path} has the columns {', '.join(names) or 'none'}; expected weights_hash and "
                f"any of {', '.join(known[1:])}"
            )
        found = {}
        for line, cells in enumerate(reader, start=2):
            try:
                numbers = {name: float(cells[name]) for name in known[1:] if cells.get(name)}
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}; expected numbers") from error
            if not cells["weights_hash"]:
                raise ValueError(f"{path}, line {line}: weights_hash is empty")
            step = numbers.pop("step", None)
            found[cells["weights_hash"]] = Training(
                step=None if step is None else int(step), quantities=numbers
            )
    return found


def training_of(row: Row, sheet: Mapping[str, Training]) -> Training:
    """What is known of the checkpoint of a row: from the sheet, its record, or its folder.

    Args:
        row: the row.
        sheet: as `read_sheet` returns it.
    """
    for start, training in sheet.items():
        if row.model[1].startswith(start):
            return training
    said = row.first["backbone"].get("training")
    if isinstance(said, Mapping):
        return _of(said)
    pretrained = Path(str(row.first["config"]["features"].get("pretrained") or "."))
    for folder in (pretrained / row.backbone, pretrained):
        if (folder / MODEL_FILE).is_file():
            return _of_folder(folder)
    return Training()


def _of(values: Mapping[str, Any]) -> Training:
    """From plain values, those that are numbers."""
    numbers = {
        name: float(values[name])
        for name in QUANTITIES
        if isinstance(values.get(name), int | float)
    }
    step = values.get("step")
    return Training(step=step if isinstance(step, int) else None, quantities=numbers)


def _of_folder(folder: Path) -> Training:
    """From a model's folder: its model.json, and the curve of the run that left it."""
    model = read_json(folder / MODEL_FILE)
    values = dict(model)
    if "step" not in values and isinstance(values.get("optim"), Mapping):
        values["step"] = values["optim"].get("steps")
    curve: Iterable[Sequence[float]] = values.get("losses") or ()
    for name in RUN_FILES:
        path = folder / name
        if not curve and path.is_file():
            rows = read_json(path).get("losses") or ()
            curve = [(row["step"], row["loss"]) for row in rows if {"step", "loss"} <= row.keys()]
    until = [loss for at, loss in curve if values.get("step") is None or at <= values["step"]]
    if until:
        values.setdefault("loss", until[-1])
    return _of(values)
