"""A plan for people."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table


def plan_table(plan: Mapping[str, Any]) -> Table:
    """One line for each job."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("backbone", "data", "tasks"):
        table.add_column(name)
    for name in ("timestep", "blocks", "heads", "forwards", "one by one", "disk", "memory", "time"):
        table.add_column(name, justify="right")
    for job in plan["jobs"]:
        table.add_row(
            *(job["backbone"], job["dataset"], " ".join(job["tasks"])),
            *(str(job["timestep"]), ",".join(map(str, job["blocks"])), str(job["heads"])),
            *(f"{job['forwards']:,}", f"{job['forwards_one_by_one']:,}"),
            *(gigabytes(job["disk_gb"]), gigabytes(job["memory_gb"]), duration(job["seconds"])),
        )
    return table


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What all jobs come to."""
    cells = plan["cells"]
    counts = ", ".join(f"{number} {state}" for state, number in cells.items() if state != "all")
    ratio = plan["forwards_one_by_one"] / max(1, plan["forwards"])
    tested = "every cell, as nothing is chosen on held-out clips"
    if most := plan["test_forwards_at_most"]:
        tested = f"what is chosen on held-out clips: at most {most:,} forwards more"
    return [
        f"cells     {cells['all']}: {counts}",
        f"jobs      {len(plan['jobs'])} with {plan['heads']} heads",
        f"forwards  {plan['forwards']:,}, one by one {plan['forwards_one_by_one']:,} ({ratio:.1f} "
        f"times as many); the cache spares {plan['forwards_held']:,}",
        f"encode    {plan['encodes']:,} clips; the cache spares {plan['encodes_held']:,}",
        f"test      {tested}",
        f"disk      {gigabytes(plan['disk_gb'])} of scratch at most, {gigabytes(plan['cache_gb'])} "
        "kept in the cache",
        f"memory    {gigabytes(plan['memory_gb'])}: weights, heads with their optimiser, features "
        "of a batch",
        f"time      {duration(plan['seconds'])}, from timing one forward and one step of each kind "
        f"for {plan['seconds_of_timing']:.0f} s",
        "dry run: nothing was written",
    ]


def gigabytes(size: float) -> str:
    """A size with its unit."""
    return f"{size * 1000:.3g} MB" if size < 1 else f"{size:.3g} GB"


def duration(seconds: float) -> str:
    """A time in the two units that matter."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
