"""Trains heads on tables and writes what became of them; started by torchrun.

Words: the folder of tables and results, and the step of the second process at which the loss of one
head is no number; 0 for none.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from probe_eval.clock import Clock
from probe_eval.config import FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.distributed import create_accelerator
from probe_eval.harness import train
from probe_eval.probing.heads import Head, HeadsObjective, create_readout
from probe_eval.probing.measuring import Numbers, measure
from probe_eval.probing.sources import TableSource
from probe_eval.storage.features import SplitTables
from probe_eval.storage.tables import TableWriter, open_table
from probe_eval.tasks import TASKS

ROWS = 21


class World:
    """What the task needs to know of its data set."""

    classes = {"shape": ("a", "b", "c")}  # noqa: RUF012


class Torn:
    """A task whose loss is no number from one step of one process on."""

    def __init__(self, spoiled: int) -> None:
        self.calls, self.spoiled = 0, spoiled

    def __getattr__(self, name: str) -> Any:
        return getattr(TASKS["shape"], name)

    def loss(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.calls += 1
        loss = TASKS["shape"].loss(*args, **kwargs)
        return loss * float("nan") if self.calls == self.spoiled else loss


def write_tables(folder: Path) -> None:
    """Features that tell the label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % 3
    features = torch.randn(ROWS, 2, 2, 2, 8, generator=generator)
    features[..., 0] += labels[:, None, None, None]
    tables = {"features": {"block-01": features}, "targets": {"shape/label": labels}}
    for name, columns in tables.items():
        writer = TableWriter(folder / name, {"of": name}, 1)
        writer.start()
        writer.write(0, [f"s{row}" for row in range(ROWS)], columns, {})
        writer.finish()


def main() -> None:
    folder, spoiled = Path(sys.argv[1]), int(sys.argv[2])
    accelerator = create_accelerator()
    if accelerator.is_main_process:
        write_tables(folder)
    accelerator.wait_for_everyone()
    tables = SplitTables(
        features=open_table(folder / "features"), targets=open_table(folder / "targets")
    )
    optim = OptimConfig(
        steps=6,
        batch_size=8,
        peak_lr=1e-2,
        warmup_steps=1,
        accumulate=2 // accelerator.num_processes,
    )
    heads = []
    for name, rate, clip in (("plain", 1e-2, 0.0), ("torn", 1e-2, 0.0), ("clipped", 1e-3, 0.1)):
        cell = ProbeConfig(
            task="shape",
            features=FeatureConfig(block=1),
            readout=ReadoutConfig(width=8, num_heads=2),
            optim=dataclasses.replace(optim, peak_lr=rate, clip_norm=clip),
        )
        torn = name == "torn" and accelerator.process_index == accelerator.num_processes - 1
        heads.append(
            Head(
                name=name,
                cell=cell,
                task=Torn(spoiled) if torn else TASKS["shape"],
                readout=create_readout(cell, TASKS["shape"], World(), feature_dim=8),
                num_frames=17,
            )
        )
    objective = HeadsObjective(
        "", heads, TableSource(tables, [head.cell for head in heads]), accelerator=accelerator
    )
    history = train(
        objective,
        {head.name: head.cell.optim for head in heads},
        accelerator=accelerator,
        seed=0,
        folder=folder,
        checkpoint_every=3,
    )
    found = measure(heads, tables, accelerator, batch_size=4, clock=Clock())
    save_file(
        {name: value.contiguous() for name, value in objective.bank.state_dict().items()},
        folder / f"{accelerator.process_index}.safetensors",
    )
    told = {
        "reasons": objective.reasons(),
        "losses": history.losses,
        "numbers": {
            name: dataclasses.asdict(numbers)
            for name, numbers in found.items()
            if isinstance(numbers, Numbers)
        },
    }
    (folder / f"{accelerator.process_index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
