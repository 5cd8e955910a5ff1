"""Sweeps: every cell of a grid, trained on as few forwards as there can be, and what came of it.

A cell is one readout on one block at one noise level, with one learning rate and one seed. Cells
that need the same forwards are one job (`probe_eval.probing.jobs`). torch is imported only to run
them.
"""

import dataclasses
import functools
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from probe_eval import runs
from probe_eval.config import ProbeConfig
from probe_eval.probing.cells import cell_name
from probe_eval.recipes import RECIPES, Preset, recipe
from probe_eval.sweeps.overrides import check_known, override, split_word

if TYPE_CHECKING:
    from accelerate import Accelerator

BACKBONE = re.compile(r"(?P<backbone>.+?\.py:\w+|[\w.]+:\w+|[^@:]+)(?:@(?P<folder>.+))?")
FIXED = {
    "task": "the recipe",
    "data.root": "--roots",
    "data.test_root": "--roots",
    "features.backbone": "--backbones",
    "features.pretrained": "--pretrained",
    "features.block": "--blocks",
    "features.timestep": "--timesteps",
    "optim.peak_lr": "--peak-lrs",
    "seed": "--seeds",
    "held_out": "--held-out",
    "trackers": "--trackers",
    "output": "--output",
}
"""Settings of a cell that a sweep decides -> how."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Readouts of many tasks, backbones, blocks, noise levels and seeds, on shared forwards."""

    tasks: tuple[str, ...]
    """Recipes, by the names that `probe-eval run --help` lists."""
    backbones: tuple[str, ...]
    """Names, or FILE.py:FUNCTION or MODULE:FUNCTION of your own; @FOLDER behind one says where
    its weights are, if not in `pretrained`."""
    blocks: tuple[int, ...]
    """Blocks that are read: 0 is the patch embedding, then 1 to the depth."""
    timesteps: tuple[int, ...]
    """Noise levels: 0 (almost clean) to 999 (pure noise)."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the readouts' weights; fewer than 3 say nothing of the spread."""
    peak_lrs: tuple[float, ...] = ()
    """Learning rates; none: that of each recipe."""
    preset: Preset = "short"
    """Sizes of the recipes."""
    set: tuple[str, ...] = ()
    """Settings of the recipes as NAME=VALUE, such as `optim.steps=200` or `data.size=64`; with
    RECIPE: before it, of that recipe alone."""
    roots: tuple[str, ...] = ()
    """Folders of data sets as DATASET=FOLDER, such as `ssv2=/data/ssv2`."""
    pretrained: str = "results/pretrained"
    """Folder of the weights, for backbones that are given none of their own."""
    held_out: float = 0.1
    """Share of the training split that block, noise level and learning rate are chosen on; 0
    chooses nothing and measures every cell on the test split."""
    engine: Literal["local", "submitit", "ray"] = "local"
    """What runs the jobs: this process and those launched with it, Slurm, or a Ray cluster."""
    engine_options: tuple[str, ...] = ()
    """Options of the engine as NAME=VALUE, such as `partition=gpu`."""
    trackers: tuple[str, ...] = ()
    """Where curves go, by the names of Accelerate; `tensorboard` keeps files open for each cell,
    so it is for sweeps of dozens of cells."""
    retry_failed: bool = False
    """Train cells that failed once more."""
    output: str = "results/sweep"
    """Results folder; a sweep given again with more tasks, blocks or seeds runs what lacks."""

    def __post_init__(self) -> None:
        for name in ("tasks", "backbones", "blocks", "timesteps", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one with --{name}")
        for name in ("tasks", "backbones", "blocks", "timesteps", "seeds", "peak_lrs"):
            values = getattr(self, name)
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{name} has {twice[0]!r} twice; give each once")
        for name in ("blocks", "timesteps", "seeds"):
            if min(getattr(self, name)) < 0:
                raise ValueError(f"{name} {min(getattr(self, name))} must not be negative")
        if any(not rate > 0 for rate in self.peak_lrs):
            raise ValueError(f"peak_lrs {min(self.peak_lrs)} must be above 0")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out {self.held_out} must be 0 or more and below 1")
        for task in self.tasks:
            check_known("recipe", task, RECIPES)
        for backbone in self.backbones:
            split_backbone(backbone, self.pretrained)
        for word in self.engine_options:
            split_word(word, "--engine-options")
        if self.engine_options and self.engine == "local":
            raise ValueError(
                "engine_options are for --engine submitit or ray; the local engine has none"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One readout of a sweep."""

    recipe: str
    """Name of the recipe that it started from."""
    backbone: str
    """The backbone as it was given."""
    config: ProbeConfig
    """All of it."""

    @property
    def output(self) -> Path:
        """Its folder."""
        return Path(self.config.output)

    @property
    def group(self) -> tuple[str, str]:
        """What a block is chosen for."""
        return self.recipe, self.backbone


def split_backbone(word: str, pretrained: str) -> tuple[str, str]:
    """Backbone and folder of its weights, from `BACKBONE[@FOLDER]`.

    Raises:
        ValueError: if it is neither a name nor a function.
    """
    match = BACKBONE.fullmatch(word)
    if not match:
        raise ValueError(
            f"backbone {word!r} must be a name, FILE.py:FUNCTION or MODULE:FUNCTION, each with "
            "@FOLDER behind it where its weights lie elsewhere"
        )
    return match["backbone"], match["folder"] or pretrained


def expand(config: SweepConfig) -> list[Cell]:
    """Every cell of a sweep, each with a folder of its own.

    Raises:
        ValueError: for a setting or a data set that no recipe has, or a value that one refuses.
    """
    cells = []
    starts = starting_points(config)
    for task, start in starts.items():
        for backbone in config.backbones:
            name, pretrained = split_backbone(backbone, config.pretrained)
            for timestep in config.timesteps:
                for block in config.blocks:
                    for rate in config.peak_lrs or (start.optim.peak_lr,):
                        for seed in config.seeds:
                            cell = dataclasses.replace(
                                start,
                                features=dataclasses.replace(
                                    start.features,
                                    backbone=name,
                                    pretrained=pretrained,
                                    block=block,
                                    timestep=timestep,
                                ),
                                optim=dataclasses.replace(start.optim, peak_lr=rate),
                                seed=seed,
                                trackers=config.trackers,
                            )
                            output = Path(config.output, "cells", cell_name(cell))
                            cell = dataclasses.replace(cell, output=str(output))
                            cells.append(Cell(recipe=task, backbone=backbone, config=cell))
    folders: dict[str, Cell] = {}
    for cell in cells:
        other = folders.setdefault(cell.config.output, cell)
        if other is not cell:
            raise ValueError(
                f"{cell.recipe} on {cell.backbone} is the same as {other.recipe} on "
                f"{other.backbone}; give each once"
            )
    return cells


def starting_points(config: SweepConfig) -> dict[str, ProbeConfig]:
    """What the cells of each task have in common.

    Raises:
        ValueError: for a setting or a data set that no recipe has, or a value that one refuses.
    """
    general = [word for word in config.set if ":" not in word.partition("=")[0]]
    special: dict[str, list[str]] = {}
    for word in config.set:
        if word not in general:
            task, _, rest = word.partition(":")
            check_known("recipe before ':' in --set", task, config.tasks)
            special.setdefault(task, []).append(rest)
    roots = dict(split_word(word, "--roots") for word in config.roots)
    starts = {}
    for task in config.tasks:
        start = recipe(task, config.preset)
        own = special.get(task, [])
        names = {word.partition("=")[0].strip() for word in own}
        common = [word for word in general if word.partition("=")[0].strip() not in names]
        try:
            start = override(start, [*common, *own], FIXED)
            # A learning rate below the recipe's end is wrong for this recipe; say which.
            for rate in config.peak_lrs:
                dataclasses.replace(start.optim, peak_lr=rate)
        except ValueError as error:
            raise ValueError(f"recipe {task}: {error}") from error
        data = start.data
        data = dataclasses.replace(
            data,
            root=roots.get(data.dataset, data.root),
            test_root=roots.get(data.test_dataset, data.test_root),
        )
        starts[task] = dataclasses.replace(start, data=data, held_out=config.held_out)
    used = {start.data.dataset for start in starts.values()}
    used |= {start.data.test_dataset for start in starts.values() if start.data.test_dataset}
    for name in roots:
        check_known("data set in --roots", name, sorted(used))
    return starts


# --- Running -------------------------------------------------------------------------------------


def run_sweep(config: SweepConfig, accelerator: "Accelerator") -> dict[str, Any]:
    """Trains the cells that lack, chooses by their held-out scores, and tests what is chosen.

    Reference: From Image to Video, Sec. 4 and Figs. 3-6: scores over blocks and noise levels.

    Args:
        config: the sweep.
        accelerator: devices and processes of the jobs that run here.

    Returns:
        `results`, a row for each task and backbone; `failed`, why cells or jobs failed; `changed`,
        choices that are others than in an earlier run; and `plan`.

    Raises:
        ValueError: before anything long: for unknown names, values out of range, a results folder
            of something else, an edited record, or weights that have changed.
        FileNotFoundError: if weights or data are not there.
        OSError: if the results folder cannot be written to.
    """
    from probe_eval.sweeps import plan, selection, survey
    from probe_eval.sweeps.execution import execute

    cells = expand(config)
    output = Path(config.output)
    run = functools.partial(
        execute,
        output=output,
        accelerator=accelerator,
        engine=config.engine,
        options=dict(split_word(word, "--engine-options") for word in config.engine_options),
    )
    runs.claim(output, "sweep", {}, write=False)
    found = survey.look(cells, timed=False)
    plan.check_records(cells, found.weights)
    if accelerator.is_main_process:
        plan.remove_finished(output)
        for cell in cells if config.retry_failed else ():
            (cell.output / plan.FAILED_FILE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    jobs = plan.plan_jobs(
        [cell.config for cell in cells], output, "train", lambda cell: bool(plan.failure(cell))
    )
    planned = plan.describe(cells, jobs, plan.states(cells, output), found.clips)
    # What was read above must not change before everyone has read it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        check_writable(output)
        runs.claim(output, "sweep", {}, write=True)
        runs.write_json(output / "plan.json", {"config": dataclasses.asdict(config), **planned})
    accelerator.wait_for_everyone()
    failed = run(jobs)
    failed |= {cell.output.name: reason for cell in cells if (reason := plan.failure(cell.config))}
    choices, changed = None, []
    if config.held_out:
        choices = selection.choose_all(cells, config.seeds)
        chosen = selection.chosen_cells(cells, choices)
        tests = plan.plan_jobs([cell.config for cell in chosen], output, "test")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            changed = selection.write_selection(output, choices)
        failed |= run(tests)
    return {
        "output": config.output,
        "results": selection.summarise(cells, choices),
        "failed": failed,
        "changed": changed,
        "plan": planned,
    }


def plan_sweep(config: SweepConfig, accelerator: "Accelerator") -> dict[str, Any]:
    """What `run_sweep` would do, after the same checks; writes nothing.

    One forward of each backbone and one step of each readout are timed.

    Returns:
        The plan as plain data: cells by state, heads, forwards, clips to encode, GB on disk and in
        memory, seconds, and the same for every job.

    Raises:
        ValueError: as `run_sweep` does.
        FileNotFoundError: if weights or data are not there.
    """
    from probe_eval.sweeps import estimate, plan, survey

    cells = expand(config)
    output = Path(config.output)
    runs.claim(output, "sweep", {}, write=False)
    started = time.monotonic()
    found = survey.look(cells, accelerator.device, timed=True)
    plan.check_records(cells, found.weights)
    jobs = plan.plan_jobs(
        [cell.config for cell in cells],
        output,
        "train",
        lambda cell: bool(plan.failure(cell)) and not config.retry_failed,
    )
    planned = plan.describe(cells, jobs, plan.states(cells, output), found.clips)
    costs = estimate.of_jobs(jobs, [plan.open_cells(job) for job in jobs], found)
    for row, cost in zip(planned["jobs"], costs, strict=True):
        row |= cost
    scratch = [cost["disk_gb"] for cost in costs] or [0.0]
    return {
        "output": config.output,
        **planned,
        **{
            name: sum(cost[name] for cost in costs)
            for name in ("forwards_held", "encodes", "encodes_held")
        },
        "cache_gb": sum((cost["kept_gb"] for cost in costs), 0.0),
        "disk_gb": max(scratch) if config.engine == "local" else sum(scratch),
        "memory_gb": max([cost["memory_gb"] for cost in costs] or [0.0]),
        "seconds": sum((cost["seconds"] for cost in costs), 0.0) / accelerator.num_processes,
        "seconds_of_timing": round(time.monotonic() - started, 1),
    }


def check_writable(output: Path) -> None:
    """Checks that files can be written to a folder, which is made where it lacks.

    Raises:
        OSError: naming the folder and why not.
    """
    try:
        runs.write_text(output / ".writable", "")
        (output / ".writable").unlink()
    except OSError as error:
        raise OSError(
            f"results folder {output} cannot be written to ({error.strerror}); choose another "
            "--output"
        ) from error
