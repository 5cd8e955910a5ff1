"""Cells of one job in training: tables, readouts, checkpoints, and the files of each cell.

Everything is in the scratch folder of the job: `tables/` (features and targets), `checkpoints/`,
and `job.json`, which says which cells are in training.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from probe_eval import records, runs
from probe_eval.backbone import FrozenBackbone, check_features
from probe_eval.checkpoints import finish
from probe_eval.clock import Clock
from probe_eval.config import ProbeConfig
from probe_eval.data import Splits, open_splits
from probe_eval.distributed import gather_items
from probe_eval.harness import check_batch, train
from probe_eval.probing import results
from probe_eval.probing.cells import Cells, cell_name
from probe_eval.probing.heads import Head, HeadsObjective, create_readout, frames
from probe_eval.probing.measuring import Numbers, by_block, measure
from probe_eval.probing.results import Measured
from probe_eval.probing.scratch import JOB_FILE, TABLES_FOLDER, give_back, plain_key
from probe_eval.probing.sources import ClipSource, Source, TableSource
from probe_eval.storage.features import SplitTables, extract_split
from probe_eval.tasks import load_task
from probe_eval.tasks.base import Task
from probe_eval.trackers import Curves, check_trackers

logger = logging.getLogger(__name__)


class Job:
    """Cells to be trained, and what they share.

    Args:
        cells: those that are not finished.
        under_way: those that are in training, of which some may be finished.
        accelerator: devices and processes.
        folder: scratch.
        backbone: what features come from.
        state: what `job.json` says, if there is one.
    """

    def __init__(
        self,
        cells: Sequence[ProbeConfig],
        under_way: Sequence[ProbeConfig],
        accelerator: Accelerator,
        folder: Path,
        backbone: FrozenBackbone,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.under_way = tuple(under_way)
        self.cells, self.accelerator, self.folder = tuple(cells), accelerator, folder
        self.backbone, self.first, self.clock = backbone, cells[0], Clock()
        self.state = dict(state or {"training": []})
        if state and accelerator.is_main_process:
            self.clock.load(state["time"])
        self.measured = "held-out" if self.first.held_out else "test"

    def prepare(self) -> None:
        """Checks all settings, claims the folders of the cells, and makes the tables.

        What is refused leaves nothing behind.
        """
        for cell in self.cells:
            check_features(
                self.backbone, block=cell.features.block, timestep=cell.features.timestep
            )
            check_batch(cell.optim, self.accelerator.num_processes)
            if cell.evaluate_every and not cell.held_out:
                raise ValueError(
                    f"evaluate_every {cell.evaluate_every} needs clips that are held out, because "
                    "the test split is for the end; set --held-out 0.1"
                )
            if cell.shuffle_labels and not cell.data.draws:
                raise ValueError(
                    f"labels of {cell.task!r} cannot be shuffled among clips that are new in "
                    "every epoch; set --data.draws 1"
                )
        check_trackers(self.cells)
        self.splits = open_splits(self.first.data, self.first.held_out)
        self.tasks = load_tasks([*self.cells, *self.under_way], self.splits)
        for cell in {(cell.task, cell.readout): cell for cell in self.cells}.values():
            self.head(cell)
        self.state |= {
            "key": plain_key(self.first),
            "weights_hash": self.backbone.weights_hash,
        }
        new = [cell for cell in self.cells if not results.claim(cell, write=False)]
        self.accelerator.wait_for_everyone()
        with self.claiming(new):
            self.test_tables = self.extract(self.measured)
            if self.first.data.draws:
                self.train_tables = self.extract("train")
        self.write_state()

    @contextlib.contextmanager
    def claiming(self, cells: Sequence[ProbeConfig]) -> Iterator[None]:
        """Claims folders, and gives them back if the block fails before there is anything."""
        if self.accelerator.is_main_process:
            for cell in cells:
                results.claim(cell, write=True)
        self.accelerator.wait_for_everyone()
        try:
            yield
        except (ValueError, OSError):
            if self.accelerator.is_main_process:
                give_back(self.folder, cells)
            raise

    def extract(self, split: str) -> SplitTables:
        """The tables of a split."""
        return extract(
            self.backbone,
            self.splits,
            split,
            [*self.cells, *self.under_way],
            self.tasks,
            self.accelerator,
            self.folder,
            self.clock,
        )

    def head(self, cell: ProbeConfig) -> Head:
        """A new readout of a cell."""
        task = self.tasks[cell.task]
        return Head(
            name=cell_name(cell),
            cell=cell,
            task=task,
            readout=create_readout(cell, task, self.splits.train, feature_dim=self.backbone.width),
            num_frames=frames(cell),
        )

    def source(self, cells: Cells) -> Source:
        """Where the batches of cells come from."""
        if self.first.data.draws:
            return TableSource(self.train_tables, cells)
        return ClipSource(
            self.splits.train,
            self.backbone,
            cells,
            {name: self.tasks[name] for name in sorted({cell.task for cell in cells})},
            accelerator=self.accelerator,
            clock=self.clock,
        )

    def train(self, cells: Sequence[ProbeConfig]) -> None:
        """Trains cells at the same time, measures them and writes them."""
        cells = tuple(cells)
        self.state["training"] = [dataclasses.asdict(cell) for cell in cells]
        self.write_state()
        heads, first = [self.head(cell) for cell in cells], cells[0]
        curves = Curves({head.name: head.cell for head in heads}, self.accelerator)
        many = f"{len(heads)} readouts" if len(heads) > 1 else f"readout {first.task}"
        shuffled = " shuffled" if len(heads) == 1 and first.shuffle_labels else ""
        seed = f" seed {first.seed}" if len(heads) == 1 else ""
        objective = HeadsObjective(
            f"{many} {self.backbone.name}{seed}{shuffled}",
            heads,
            self.source(cells),
            accelerator=self.accelerator,
            measure=self.measure_now,
            log=curves.log,
        )
        try:
            history = train(
                objective,
                {head.name: head.cell.optim for head in heads},
                accelerator=self.accelerator,
                seed=first.order_seed,
                folder=self.folder,
                checkpoint_every=min(cell.checkpoint_every for cell in cells),
                evaluate_every=first.evaluate_every,
                clock=self.clock,
            )
        finally:
            curves.close()
        train_split = Measured(
            name="train",
            dataset=self.splits.train,
            failed=self.train_tables.features.failed
            if first.data.draws
            else objective.unreadable(),
        )
        self.write_state()
        self.write_failed(heads, objective.reasons())
        self.finish(heads, train_split, history)
        self.forget_training()

    def measure_now(self, heads: Sequence[Head]) -> dict[str, Mapping[str, float]]:
        """Numbers of readouts in training, on clips that are held out."""
        found = measure(
            heads,
            self.test_tables,
            self.accelerator,
            batch_size=self.first.features.batch_size,
            clock=self.clock,
        )
        return {
            name: numbers.values for name, numbers in found.items() if isinstance(numbers, Numbers)
        }

    def finish(self, heads: Sequence[Head], train_split: Measured, history: Any) -> None:
        """Measures and writes the readouts that are not yet written, block by block."""
        dataset = self.splits.held_out if self.first.held_out else self.splits.test
        assert dataset is not None
        test = Measured(
            name=self.measured, dataset=dataset, failed=self.test_tables.features.failed
        )
        environment = results.environment(self.accelerator)
        waiting = [head for head in heads if not is_done(head.cell, self.backbone)]
        self.accelerator.wait_for_everyone()
        for group in by_block(waiting):
            block = group[0].cell.features.block
            numbers = measure(
                group,
                self.test_tables,
                self.accelerator,
                batch_size=self.first.features.batch_size,
                clock=self.clock,
                title=f"{self.measured} {self.backbone.name} block {block}",
            )
            time = whole_time(self.clock, self.accelerator)
            for head in group:
                result = numbers[head.name]
                if isinstance(result, str):
                    self.write_failed([head], {head.name: f"cannot be measured: {result}"})
                elif self.accelerator.is_main_process:
                    results.write_result(
                        head,
                        self.backbone,
                        result,
                        train=train_split,
                        test=test,
                        losses=history.losses,
                        evaluations=history.evaluations,
                        time=time,
                        environment=environment,
                    )
        self.accelerator.wait_for_everyone()

    def write_failed(self, heads: Sequence[Head], reasons: Mapping[str, str]) -> None:
        """Says in the folder of a cell why there is no record."""
        for head in heads:
            if head.name in reasons and self.accelerator.is_main_process:
                logger.warning("%s failed: %s", head.name, reasons[head.name])
                path = Path(head.cell.output) / results.FAILED_FILE
                runs.write_json(path, {"reason": reasons[head.name]})
        self.accelerator.wait_for_everyone()

    def forget_training(self) -> None:
        """Removes the checkpoints of cells that are written, before others can take their place."""
        finish(self.accelerator, self.folder)
        self.state["training"] = []
        self.write_state()

    def write_state(self) -> None:
        """Writes `job.json`."""
        time = whole_time(self.clock, self.accelerator)
        if self.accelerator.is_main_process:
            runs.write_json(self.folder / JOB_FILE, {**self.state, "time": time})
        self.accelerator.wait_for_everyone()


def is_done(cell: ProbeConfig, backbone: FrozenBackbone) -> bool:
    """Whether a cell has its record, or failed.

    Raises:
        ValueError: if its folder is another run's, or its record is damaged or of other weights.
    """
    results.claim(cell, write=False)
    record = results.read_finished(cell)
    if record is not None:
        results.check_weights(record, backbone, Path(cell.output) / records.RECORD_FILE)
    return record is not None or results.read_failed(cell) is not None


def load_tasks(cells: Sequence[ProbeConfig], splits: Splits) -> dict[str, Task]:
    """The tasks of cells by name, checked against what they are trained and measured on."""
    names = sorted({cell.task for cell in cells})
    for name in names:
        load_task(name, splits.test)
    return {name: load_task(name, splits.train) for name in names}


def extract(
    backbone: FrozenBackbone,
    splits: Splits,
    split: str,
    cells: Sequence[ProbeConfig],
    tasks: Mapping[str, Task],
    accelerator: Accelerator,
    folder: Path,
    clock: Clock,
) -> SplitTables:
    """Features and targets of a split for cells of one job."""
    datasets = {"train": splits.train, "held-out": splits.held_out, "test": splits.test}
    dataset = datasets[split]
    assert dataset is not None
    return extract_split(
        backbone,
        dataset,
        cells[0].features,
        blocks=sorted({cell.features.block for cell in cells}),
        tasks=tasks,
        accelerator=accelerator,
        folder=folder / TABLES_FOLDER,
        num_workers=cells[0].data.workers,
        clock=clock,
        title=f"features {backbone.name} {split}",
    )


def whole_time(clock: Clock, accelerator: Accelerator) -> dict[str, Any]:
    """Where the time of the first process went, and the forwards of all of them."""
    forwards = sum(gather_items(accelerator, [clock.counts.get("forwards", 0)]))
    return {**clock.summary(), "forwards": forwards}
