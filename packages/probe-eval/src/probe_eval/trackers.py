"""Curves of readouts while they are trained, through the trackers of Accelerate."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from probe_eval.config import ProbeConfig
from probe_eval.harness import Row

TENSORBOARD = "tensorboard"
PIP_NAMES = {TENSORBOARD: "tensorboardX", "comet_ml": "comet-ml"}
"""Trackers whose package on PyPI is called otherwise."""


def check_trackers(cells: Sequence[ProbeConfig]) -> None:
    """Checks that every tracker that a cell asks for is known and installed.

    Raises:
        ValueError: naming the tracker, and how to install it.
    """
    for name in sorted({name for cell in cells for name in cell.trackers}):
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ValueError(f"unknown tracker {name!r}; known: {known}; none: --trackers")
        there = (
            importlib.util.find_spec("tensorboardX") is not None
            if name == TENSORBOARD
            else name in get_available_trackers()
        )
        if not there:
            raise ValueError(
                f"tracker {name!r} is not installed: pip install {PIP_NAMES.get(name, name)}; or "
                "leave it out of --trackers"
            )


class Curves:
    """What trackers are told of the readouts of some cells.

    TensorBoard has a run in the folder of each cell; other trackers have one for all cells, in
    which every number bears the name of its cell if there are several.

    Args:
        cells: settings by the name of the cell.
        accelerator: the processes; its first one speaks.
    """

    def __init__(self, cells: Mapping[str, ProbeConfig], accelerator: Accelerator) -> None:
        check_trackers(list(cells.values()))
        self.cells, self.accelerator = cells, accelerator
        names = dict.fromkeys(name for cell in cells.values() for name in cell.trackers)
        folders = {
            name: Path(cell.output) / TENSORBOARD
            for name, cell in cells.items()
            if TENSORBOARD in cell.trackers
        }
        accelerator.log_with = [
            TensorBoardFolders(folders) if name == TENSORBOARD else name for name in names
        ]
        accelerator.project_configuration.logging_dir = next(iter(cells.values())).output
        accelerator.init_trackers("probe-eval")

    def log(self, row: Row) -> None:
        """Sends the numbers of a step, `<cell>` (its loss) and `<cell>/<name>`."""
        values = {
            (name if "/" in name else f"{name}/loss"): value
            for name, value in row.items()
            if name.split("/")[0] in self.cells
        }
        for tracker in self.accelerator.trackers:
            if not isinstance(tracker, TensorBoardFolders) and len(self.cells) == 1:
                own = {name.split("/", 1)[1]: value for name, value in values.items()}
                tracker.log(own, step=int(row["step"]))
            else:
                tracker.log(values, step=int(row["step"]))

    def close(self) -> None:
        """Ends the runs; the processes go on."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


class TensorBoardFolders(GeneralTracker):
    """Event files in a folder for each cell; of a resumed run, what is done again is replaced.

    Args:
        folders: folder by the name of the cell.
    """

    name = TENSORBOARD
    requires_logging_directory = False

    def __init__(self, folders: Mapping[str, Path]) -> None:
        super().__init__()
        self.folders = folders
        self.writers: dict[str, Any] = {}

    @property
    def tracker(self) -> Mapping[str, Any]:
        """Writers by the name of the cell."""
        return self.writers

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        """Writes `<cell>/<name>` under its name to the folder of the cell."""
        from accelerate import PartialState
        from tensorboardX import SummaryWriter

        if not PartialState().is_main_process:
            return
        told = set()
        for key, value in values.items():
            cell, name = key.split("/", 1)
            if cell not in self.folders:
                continue
            if cell not in self.writers:
                self.writers[cell] = SummaryWriter(str(self.folders[cell]), purge_step=step)
            self.writers[cell].add_scalar(name, value, global_step=step)
            told.add(cell)
        for cell in told:
            self.writers[cell].flush()

    def finish(self) -> None:
        """Closes the files."""
        for writer in self.writers.values():
            writer.close()
        self.writers = {}
