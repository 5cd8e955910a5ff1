"""Curves reach the trackers of the cells that ask for them, each under its name."""

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from probe_eval import trackers
from probe_eval.config import ProbeConfig
from probe_eval.trackers import Curves, TensorBoardFolders, check_trackers


class Notebook(GeneralTracker):
    """Remembers what it was told."""

    name = "notebook"
    requires_logging_directory = False
    made: ClassVar[list["Notebook"]] = []

    def __init__(self, run_name: str, **_: Any) -> None:
        super().__init__()
        self.run_name, self.told, self.finished = run_name, [], False
        self.made.append(self)

    @property
    def tracker(self) -> list:
        return self.told

    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Notebook]:
    """A tracker that Accelerate knows and has."""
    from accelerate import accelerator, tracking

    Notebook.made = []
    for module in (tracking, accelerator, trackers):
        if hasattr(module, "LOGGER_TYPE_TO_CLASS"):
            monkeypatch.setitem(module.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["notebook"])
    return Notebook


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What event files hold: (folder, name, value, step)."""
    lines: list[tuple] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.folder = folder
            lines.append((folder, "opened", purge_step))

        def add_scalar(self, name: str, value: float, global_step: int) -> None:
            lines.append((self.folder, name, value, global_step))

        def flush(self) -> None: ...

        def close(self) -> None:
            lines.append((self.folder, "closed"))

    module = type(sys)("tensorboardX")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorboardX", module)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: name)
    return lines


def cell(output: str, *names: str) -> ProbeConfig:
    return ProbeConfig(task="action", output=output, trackers=names)


ROWS = [
    {"step": 10, "loss": 1.5, "one": 1.0, "two": 2.0},
    {"step": 10, "one/top1": 0.25, "two/top1": 0.5},
]


def test_each_cell_has_event_files_of_its_own(written: list[tuple]) -> None:
    cells = {"one": cell("a", "tensorboard"), "two": cell("b"), "three": cell("c", "tensorboard")}
    curves = Curves(cells, Accelerator(cpu=True))
    for row in ROWS:
        curves.log(row)
    curves.close()
    folder = str(Path("a/tensorboard"))
    assert written == [
        (folder, "opened", 10),
        (folder, "loss", 1.0, 10),
        (folder, "top1", 0.25, 10),
        (folder, "closed"),
    ]


def test_event_files_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    curves = Curves({"one": cell(str(tmp_path), "tensorboard")}, Accelerator(cpu=True))
    curves.log(ROWS[0])
    curves.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_other_trackers_have_one_run_for_all_cells(notebook: type[Notebook]) -> None:
    accelerator = Accelerator(cpu=True)
    curves = Curves({"one": cell("a", "notebook"), "two": cell("b", "notebook")}, accelerator)
    for row in ROWS:
        curves.log(row)
    (book,) = notebook.made
    assert book.told == [
        (10, {"one/loss": 1.0, "two/loss": 2.0}),
        (10, {"one/top1": 0.25, "two/top1": 0.5}),
    ]
    assert not book.finished
    curves.close()
    assert book.finished
    assert accelerator.trackers == []


def test_the_only_cell_needs_no_name(notebook: type[Notebook]) -> None:
    curves = Curves({"one": cell("a", "notebook")}, Accelerator(cpu=True))
    for row in ROWS:
        curves.log(row)
    assert notebook.made[0].told == [(10, {"loss": 1.0}), (10, {"top1": 0.25})]


def test_no_trackers_are_no_trackers() -> None:
    curves = Curves({"one": cell("a")}, Accelerator(cpu=True))
    curves.log(ROWS[0])
    curves.close()


def test_a_tracker_that_lacks_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"'wandb' is not installed: pip install wandb; or leave"):
        check_trackers([cell("a", "wandb")])
    with pytest.raises(ValueError, match=r"'tensorboard' is not .*pip install tensorboardX"):
        check_trackers([cell("a", "tensorboard")])
    with pytest.raises(ValueError, match=r"unknown tracker 'wand'; known: .*wandb"):
        check_trackers([cell("a", "wand")])


def test_only_the_first_process_writes(
    written: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "is_main_process", False)
    TensorBoardFolders({"one": Path("a")}).log({"one/loss": 1.0}, step=3)
    assert written == []
