"""`probe-eval run RECIPE`."""

import dataclasses
from typing import Any, get_args

from probe_eval.cli.console import say
from probe_eval.cli.parsing import PROG, asks_for_list, known, parse, plain, say_list, start
from probe_eval.config import ProbeConfig
from probe_eval.recipes import RECIPES, Preset, recipe


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Run(ProbeConfig):
    """One readout on one task: train it on frozen features, then measure it.

    The values of the recipe stand below; an option replaces one. Given again, it goes on where it
    was.
    """

    preset: Preset = "short"
    """Size of the recipe: the study's, a shorter one, or one of a minute that tests the way."""
    dry_run: bool = False
    """Say what would be run and what it would take, after timing one forward and one step; write
    nothing."""


def run(words: list[str]) -> int:
    """One readout on frozen features."""
    if asks_for_list(words):
        say_list(
            "run RECIPE [options]",
            "recipes",
            {name: (make.__doc__ or "").splitlines()[0] for name, make in RECIPES.items()},
            f"`{PROG} run RECIPE --help` lists the options with the recipe's values.",
        )
        return 0
    name = known("recipe", words[0], RECIPES)
    preset, rest = take_preset(words[1:])
    made = recipe(name, preset)
    values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    given = parse(Run, rest, f"run {name}", Run(**values, preset=preset))
    config = plain(ProbeConfig, given)
    accelerator = start()
    if given.dry_run:
        planned = plan_run(name, config, accelerator.device)
        say(in_words(planned, config), planned)
        return 0
    from probe_eval.probing.jobs import run_cell

    record = run_cell(config, accelerator)
    metric = record["metric"]
    chance = "" if metric["chance"] is None else f" (chance {metric['chance']:.4f})"
    say(
        f"{record['task']} on {record['backbone']['name']}: {metric['name']} "
        f"{metric['value']:.4f}{chance}  {config.output}/record.json",
        record,
    )
    return 0


def take_preset(words: list[str]) -> tuple[Preset, list[str]]:
    """The preset, which decides the other options' defaults, and the words without it."""
    preset: Any = "short"
    rest, coming = [], iter(words)
    for word in coming:
        option, sign, value = word.partition("=")
        if option != "--preset":
            rest.append(word)
        elif (preset := value if sign else next(coming, None)) is None:
            raise ValueError("--preset needs a value: smoke, short or paper")
    known("preset", preset, get_args(Preset))
    return preset, rest


def plan_run(name: str, config: ProbeConfig, device: Any) -> dict[str, Any]:
    """What a run would do and take, as plain data; everything that can be refused is."""
    from probe_eval.sweeps import estimate, plan, survey
    from probe_eval.sweeps.sweep import Cell

    cell = Cell(recipe=name, backbone=config.features.backbone, config=config)
    found = survey.look([cell], device, timed=True)
    job = plan.Job(kind="train", cells=(config,))
    (row,) = plan.describe([cell], [job], plan.states([cell], cell.output), found.clips)["jobs"]
    (cost,) = estimate.of_jobs([job], [[config]], found)
    return {"recipe": name, **row, **cost, "output": config.output}


def in_words(planned: dict[str, Any], config: ProbeConfig) -> str:
    """The plan of a run for people."""
    from probe_eval.sweeps.plan_table import duration, gigabytes

    clips, features, optim = planned["clips"], config.features, config.optim
    measured = clips["held_out"] or clips["test"]
    return "\n".join(
        [
            f"{config.task} on {features.backbone}, block {features.block}, timestep "
            f"{features.timestep}: {config.data.dataset}, {clips['train']:,} clips to train on, "
            f"{measured:,} to measure on",
            f"{planned['forwards']:,} forwards, {optim.steps:,} steps of {optim.batch_size}",
            f"{gigabytes(planned['disk_gb'])} of scratch, {gigabytes(planned['kept_gb'])} kept in "
            f"the cache, {gigabytes(planned['memory_gb'])} of memory, about "
            f"{duration(planned['seconds'])}",
            f"results go to {config.output}",
        ]
    )
