"""`probe-eval sweep`."""

import dataclasses
from collections.abc import Sequence

from probe_eval.cli.console import say, table_text
from probe_eval.cli.parsing import PROG, parse, plain, start
from probe_eval.sweeps.sweep import SweepConfig

LISTS = ("--tasks", "--backbones", "--blocks", "--timesteps", "--seeds", "--peak-lrs")
"""Options whose values may also be parted by commas."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sweep(SweepConfig):
    """Readouts of many tasks, backbones, blocks, noise levels and seeds, on shared forwards.

    One forward for each clip and noise level serves all blocks, tasks and seeds. Block, noise level
    and learning rate are chosen on clips kept from training; what is chosen is measured once on the
    test split. Given again, it goes on where it was; with more seeds or blocks, it runs what lacks.
    Exit status 1 where a cell failed.
    """

    dry_run: bool = False
    """Say what would be run: jobs, forwards, heads, GB on disk and in memory, and how long; takes
    seconds, in which one forward and one step of each readout are timed; writes nothing."""


def sweep(words: list[str]) -> int:
    """Readouts on many features."""
    given = parse(Sweep, parted(words), "sweep")
    config = plain(SweepConfig, given)
    from probe_eval.records import MIN_SEEDS

    few = ""
    if len(config.seeds) < MIN_SEEDS:
        few = f"{len(config.seeds)} of at least {MIN_SEEDS} seeds: the spread says little (!)"
    accelerator = start()
    if given.dry_run:
        from probe_eval.sweeps.plan_table import plan_lines, plan_table
        from probe_eval.sweeps.sweep import plan_sweep

        planned = plan_sweep(config, accelerator)
        lines = [table_text(plan_table(planned))] if planned["jobs"] else []
        lines += [*plan_lines(planned), *([few] if few else [])]
        say("\n".join(lines), planned)
        return 0
    from probe_eval.sweeps.selection import results_table
    from probe_eval.sweeps.sweep import run_sweep

    found = run_sweep(config, accelerator)
    lines = [table_text(results_table(found["results"], held_out=bool(config.held_out)))]
    if not config.held_out:
        lines.append("nothing was chosen (--held-out 0): every cell was measured on the test split")
    lines += [few] if few else []
    lines += [f"chosen anew after a test score was seen: {phrase}" for phrase in found["changed"]]
    lines += [f"failed: {name}: {reason}" for name, reason in found["failed"].items()]
    if found["failed"]:
        lines.append("the same command tries failed jobs again, with --retry-failed also cells")
    lines.append(f"tables and figures: {PROG} report {config.output}")
    say("\n".join(lines), found)
    return 1 if found["failed"] else 0


def parted(words: Sequence[str]) -> list[str]:
    """Words in which the values of lists are words of their own, where commas parted them."""
    given: list[str] = []
    option = ""
    for word in words:
        name, sign, value = word.partition("=")
        if word.startswith("--"):
            option = name
            if sign and option in LISTS:
                given += [name, *split(value)]
                continue
        given += split(word) if option in LISTS and not word.startswith("--") else [word]
    return given


def split(text: str) -> list[str]:
    """The parts of a text between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
