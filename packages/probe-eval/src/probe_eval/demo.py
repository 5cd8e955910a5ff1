"""The main job, small: pretrain the twins, probe them, look at them, put it on one page."""

import dataclasses
import importlib.resources
import itertools
import logging
import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from probe_eval import runs
from probe_eval.config import FeatureConfig, ProbeConfig, ShowConfig
from probe_eval.features import FeatureStore
from probe_eval.pretrain.twins import run_twins
from probe_eval.probe import run_probe
from probe_eval.recipes import DemoConfig
from probe_eval.report.page import summarise, write_page
from probe_eval.show import TWINS, run_show

logger = logging.getLogger(__name__)
CLIP = "dog.mp4"
PROBES = ("action", "shape")


def run_demo(config: DemoConfig, accelerator: Accelerator) -> Path:
    """Runs every step that `config.output` lacks and writes `index.html` there.

    Reference: From Image to Video, Sec. 3.3 (twins), Sec. 3.4 (probes), Fig. 3 (pictures).

    Returns:
        The page.

    Raises:
        ValueError: if the results folder holds another run, or a setting is out of range.
    """
    started = time.monotonic()
    folder = Path(config.output)
    identity = dataclasses.asdict(config)
    identity.pop("output")
    identity["pretrain"].pop("output")
    runs.claim(folder, "demo", identity, write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    pretrained = folder / "pretrained"
    run_twins(dataclasses.replace(config.pretrain, output=str(pretrained)), accelerator)
    features = FeatureConfig(pretrained=str(pretrained))
    probe_all(config, features, accelerator)
    clip = importlib.resources.files("probe_eval") / "assets" / CLIP
    with importlib.resources.as_file(clip) as path:
        run_show(
            [str(path)],
            ShowConfig(pretrained=str(pretrained), output=str(folder / "show")),
            accelerator,
        )
    accelerator.wait_for_everyone()
    page = folder / "index.html"
    if accelerator.is_main_process:
        write_page(folder, page)
        print_table(folder)
        logger.info("%.0f s in all; open %s", time.monotonic() - started, page)
    accelerator.wait_for_everyone()
    return page


def probe_all(config: DemoConfig, features: FeatureConfig, accelerator: Accelerator) -> None:
    """Both tasks on both twins with every seed, and again with shuffled labels."""
    for name in TWINS:
        store = FeatureStore(accelerator)
        for task, shuffled, seed in itertools.product(PROBES, (False, True), config.seeds):
            control = "-shuffled" if shuffled else ""
            run_probe(
                ProbeConfig(
                    task=task,
                    data=config.pretrain.data,
                    features=dataclasses.replace(features, backbone=name),
                    optim=config.optim,
                    seed=seed,
                    shuffle_labels=shuffled,
                    output=str(Path(config.output) / "probes" / f"{task}-{name}{control}-{seed}"),
                ),
                accelerator,
                store,
            )


def print_table(folder: Path) -> None:
    """Mean and standard deviation over seeds of every probe."""
    rows: list[dict[str, Any]] = summarise(folder)
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "backbone", "labels", "seeds", "top-1", "chance")
    for row in rows:
        table.add_row(
            row["task"],
            row["backbone"],
            "shuffled" if row["shuffled"] else "true",
            str(row["count"]),
            f"{row['mean']:.3f} +- {row['std']:.3f}",
            f"{row['chance']:.3f}",
        )
    Console().print(table)
