"""The main job, small: pretrain the twins, probe them, look at them, put it on one page."""

import dataclasses
import importlib.resources
import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from probe_eval import runs
from probe_eval.config import FeatureConfig, ProbeConfig, ShowConfig
from probe_eval.pretrain.twins import run_twins
from probe_eval.probing.jobs import run_job, split_into_jobs
from probe_eval.recipes import DemoConfig
from probe_eval.report.figures import draw_losses
from probe_eval.report.names import BACKBONES
from probe_eval.report.page import Part, Picture, Section, Text, made_with, write_page
from probe_eval.report.results import Results, write_results
from probe_eval.report.rows import Group, read_groups
from probe_eval.report.tables import Table, number_text
from probe_eval.runs import read_json
from probe_eval.show import TWINS, run_show
from probe_eval.sweeps.selection import Score

logger = logging.getLogger(__name__)
CLIP = "dog.mp4"
PROBES = ("action", "shape")
MODELS = ("tokenizer", *TWINS)
INTRO = (
    "I-WALT and V-WALT are one architecture, trained here for equally many steps on the same "
    "clips: I-WALT on single frames, V-WALT on whole clips. Both are frozen, and an attentive "
    "readout is trained on the features of each. The action (which way shapes move) can "
    "be read from no single frame, the shape from any. Readouts that were trained on "
    "shuffled labels are controls, which should be at chance."
)


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
    for place, job in enumerate(split_into_jobs(cells_of(config, str(pretrained)))):
        run_job(job, accelerator, folder=folder / f"work-{place}")
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
        groups = read_groups([folder / "probes"])
        write_demo_page(groups, folder, page)
        print_table(groups)
        logger.info("%.0f s in all; open %s", time.monotonic() - started, page)
    accelerator.wait_for_everyone()
    return page


def cells_of(config: DemoConfig, pretrained: str) -> list[ProbeConfig]:
    """Both tasks on both twins with every seed, and again with shuffled labels."""
    return [
        ProbeConfig(
            task=task,
            data=config.pretrain.data,
            features=FeatureConfig(pretrained=pretrained, backbone=name, cache="none"),
            optim=config.optim,
            seed=seed,
            shuffle_labels=shuffled,
            trackers=(),
            output=str(
                Path(config.output, "probes", f"{task}-{name}{'-shuffled' * shuffled}-{seed}")
            ),
        )
        for name, task, shuffled, seed in itertools.product(
            TWINS, PROBES, (False, True), config.seeds
        )
    ]


def write_demo_page(groups: Sequence[Group], folder: Path, page: Path) -> None:
    """Draws the figures of a demo's results folder and writes the page, which needs no network."""
    results = write_results(Results(groups=groups, folder=folder))
    shows = [
        Picture(
            path=path,
            alt=f"Frames of the clip {path.stem}, first principal component of both twins on each, "
            "and their difference",
            caption=f"Frames of {path.stem}, the first principal component of the features of each "
            "twin, and the difference between the two. The twins were trained on rendered shapes "
            "only.",
        )
        for path in sorted((folder / "show").glob("*.png"))
    ]
    again = Text(
        text="probe-eval demo with the same settings gives the same numbers on the same machine. "
        "Every score has a record (probes/*/record.json) with all settings, hashes and versions."
    )
    write_page(
        page,
        title="An image diffusion model and its video twin",
        intro=[INTRO],
        sections=[
            *results,
            Section(title="What the features look like on a real clip", parts=tuple(shows)),
            Section(title="How they were trained", parts=tuple(training_parts(folder))),
            Section(title="How to make it again", parts=(again,)),
        ],
        footer=made_with([r for group in groups for row in group.rows for r in row.records]),
    )


def training_parts(folder: Path) -> list[Part]:
    """Curves and sizes of the models that a demo trained."""
    paths = [folder / "pretrained" / name / "model.json" for name in MODELS]
    models: dict[str, dict[str, Any]] = {
        path.parent.name: read_json(path) for path in paths if path.is_file()
    }
    # A tokenizer that was given has not been trained here.
    models = {name: model for name, model in models.items() if model["losses"]}
    if not models:
        return []
    curves = folder / "figures" / "losses.png"
    draw_losses({name: model["losses"] for name, model in models.items()}, curves)
    body = [
        (
            BACKBONES.get(name, name),
            f"{model['num_parameters']:,}",
            str(model["optim"]["steps"]),
            str(model["optim"]["batch_size"]),
            number_text(model["losses"][-1][1], ".4f"),
            number_text(model["seconds_since_start_or_resume"], ".0f"),
        )
        for name, model in models.items()
    ]
    parts: list[Part] = [
        Picture(path=curves, alt="Training loss of the tokenizer and of both twins over steps"),
        Table(
            name="models",
            caption="The models",
            head=("model", "parameters", "steps", "batch", "last loss", "seconds"),
            body=tuple(body),
        ),
    ]
    if "psnr" in models.get("tokenizer", {}):
        psnr = models["tokenizer"]["psnr"]
        parts.append(
            Text(text=f"Reconstruction of held-out clips by the tokenizer: {psnr:.1f} dB PSNR.")
        )
    return parts


def print_table(groups: Sequence[Group]) -> None:
    """Mean and standard deviation over seeds of every probe."""
    from rich.console import Console
    from rich.table import Table as RichTable

    table = RichTable("task", "backbone", "labels", "seeds", "top-1", "chance")
    for group in groups:
        for row in group.rows:
            table.add_row(
                group.label,
                row.backbone,
                "shuffled" if group.shuffled else "true",
                str(row.count),
                str(Score.of(row.values)),
                number_text(group.chance),
            )
    Console().print(table)
