"""Frozen features of a split, made once and kept on disk for every readout that needs them.

Axes: b clips, T H W pixels, t h w feature grid, d width.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from probe_datasets import ClipDataset
from probe_datasets.loader import Batch
from probe_eval.backbone import FrozenBackbone
from probe_eval.clock import Clock
from probe_eval.config import FeatureConfig
from probe_eval.sharding import in_step
from probe_eval.storage import cache
from probe_eval.storage.chunks import (
    CLIPS_AT_ONCE,
    Pieces,
    WithTargets,
    clip_chunks,
    describe_data,
    digest_tensors,
    first_readable,
    row_chunks,
    targets_of,
)
from probe_eval.storage.filling import Chunks, Columns, Filling, Make
from probe_eval.storage.forwards import (
    NOISE,
    check_finite,
    column_name,
    encode_batch,
    features_of_batch,
)
from probe_eval.storage.tables import Table, TableWriter, check_same_rows, join_tables, open_table
from probe_eval.tasks.base import Task
from probe_eval.views import source

__all__ = ["SplitTables", "column_name", "encode_batch", "extract_split", "features_of_batch"]

FORESEEN_CLIPS = 256
"""Splits of more clips are worth a forward to know beforehand how large their features become."""
SHARD_CLIPS = 32
"""Clips of a shard; of features, the next multiple of the batch size."""
INPUTS = "inputs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitTables:
    """A split as readouts see it: the same rows in the same order in both tables."""

    features: Table
    """Columns `block-00`, ...: features t h w d after each block."""
    targets: Table
    """Columns `<task>/<name>`: what each task needs to know of a clip."""


def extract_split(
    backbone: FrozenBackbone,
    dataset: ClipDataset,
    features: FeatureConfig,
    *,
    blocks: Sequence[int],
    tasks: Mapping[str, Task],
    accelerator: Accelerator,
    folder: Path,
    num_workers: int,
    clock: Clock,
    title: str,
) -> SplitTables:
    """Features and targets of a whole split, made once, by all processes together.

    Clips are decoded and encoded first, and each is put through the backbone once for all blocks.
    What is there already, from an earlier attempt or in the cache, is not made again; numbers do
    not depend on the number of processes.

    Reference: From Image to Video, Sec. 3.4.

    Args:
        backbone: on its device.
        dataset: the split.
        features: which features, and what of them is kept for later runs.
        blocks: which blocks; that of `features` is not looked at.
        tasks: by name.
        accelerator: the processes.
        folder: for what is not kept; all processes see it.
        num_workers: processes that read clips ahead, for each of these.
        clock: told the time that goes into data and backbone, and the `forwards`.
        title: shown beside the progress bar.

    Raises:
        ValueError: no clip can be read, features are not finite, or the tables would be larger
            than they may be.
        OSError: the disk is full or a folder cannot be written.
    """
    return Extraction(
        backbone=backbone,
        dataset=dataset,
        config=features,
        blocks=tuple(dict.fromkeys(blocks)),
        tasks=dict(tasks),
        accelerator=accelerator,
        folder=folder,
        num_workers=num_workers,
        clock=clock,
        title=title,
    ).run()


@dataclasses.dataclass(kw_only=True)
class Extraction:
    """One call of `extract_split`."""

    backbone: FrozenBackbone
    dataset: ClipDataset
    config: FeatureConfig
    blocks: tuple[int, ...]
    tasks: dict[str, Task]
    accelerator: Accelerator
    folder: Path
    num_workers: int
    clock: Clock
    title: str

    def run(self) -> SplitTables:
        """The tables, once they are complete."""
        with self.clock.time("data"):
            example = first_readable(self.dataset)
            data = describe_data(self.dataset, example)
        common = {"data": data, "precision": self.accelerator.mixed_precision}
        unit = SHARD_CLIPS if self.backbone.encoder_hash else self.unit_clips
        targets = {name: self.target_writer(name, data, example, unit) for name in self.tasks}
        if self.backbone.encoder_hash:
            at_once = min(self.config.batch_size, CLIPS_AT_ONCE)
            key = {
                **common,
                "encoder": self.backbone.encoder_hash,
                "clips_at_once": at_once,
                "clips_per_shard": SHARD_CLIPS,
            }
            if len(self.dataset) > FORESEEN_CLIPS:
                self.foresee_size(example)
            writers = {INPUTS: self.writer("inputs", key, len(self.dataset), SHARD_CLIPS)}
            self.fill_from_clips({**targets, **writers}, SHARD_CLIPS, at_once)
            inputs = self.open([writers[INPUTS]])
            blocks = self.block_writers({"inputs": key}, len(inputs))
            self.fill_from_inputs(blocks, inputs)
        else:
            blocks = self.block_writers(common, len(self.dataset))
            self.fill_from_clips({**targets, **blocks}, self.unit_clips, self.config.batch_size)
        tables = SplitTables(
            features=self.open(list(blocks.values())), targets=self.open(list(targets.values()))
        )
        check_same_rows(tables.features, tables.targets)
        return tables

    @property
    def cache_root(self) -> Path:
        """Where the cache lies."""
        return cache.cache_root(self.config.cache_folder)

    @property
    def unit_clips(self) -> int:
        """Clips of a shard of features: whole batches."""
        return self.config.batch_size * math.ceil(SHARD_CLIPS / self.config.batch_size)

    def target_writer(
        self, name: str, data: Mapping[str, Any], example: Mapping[str, Any], unit: int
    ) -> TableWriter:
        """Where the targets of a task go; their key holds what the task makes of one example."""
        first = targets_of({name: self.tasks[name]}, example)
        key = {"data": data, "task": name, "first": digest_tensors(first), "clips_per_shard": unit}
        return self.writer("targets", key, len(self.dataset), unit, task=name)

    def block_writers(self, common: Mapping[str, Any], count: int) -> dict[str, TableWriter]:
        """Where the features of each block go."""
        config = self.config
        return {
            column_name(block): self.writer(
                "features",
                {
                    **common,
                    "weights": self.backbone.weights_hash,
                    "block": block,
                    "timestep": config.timestep,
                    "noise": NOISE,
                    "noise_seed": config.noise_seed,
                    "prompt": "",
                    "average_time": config.average_time,
                    "dtype": config.dtype,
                    "precision": self.accelerator.mixed_precision,
                    "clips_at_once": config.batch_size,
                    "clips_per_shard": self.unit_clips,
                },
                count,
                self.unit_clips,
                block=block,
                timestep=config.timestep,
            )
            for block in self.blocks
        }

    def writer(
        self, kind: str, key: Mapping[str, Any], count: int, unit: int, **about: Any
    ) -> TableWriter:
        """Where a table goes: into the cache, or else into the folder."""
        home = self.cache_root if self.is_kept(kind) else self.folder
        key = {"kind": kind, **key}
        about = {**self.about_data(), **about}
        if kind != "targets":
            about["backbone"] = self.backbone.name
        return TableWriter(
            cache.entry_folder(home, kind, key), key, math.ceil(count / unit), about=about
        )

    def about_data(self) -> dict[str, Any]:
        """What the split is called, as far as it says so."""
        below: Any = source(self.dataset)
        spec = getattr(below, "spec", None)
        return {
            "dataset": getattr(spec, "name", type(below).__name__),
            "split": getattr(below, "split", ""),
            "clips": len(self.dataset),
        }

    def is_kept(self, kind: str) -> bool:
        """Whether tables of a kind lie in the cache."""
        return self.config.cache == "features" or (
            self.config.cache == "latents" and kind != "features"
        )

    def fill_from_clips(self, writers: Mapping[str, TableWriter], unit: int, at_once: int) -> None:
        """Decodes what lacks, once, for targets and for what the backbone makes of pixels."""
        count = len(self.dataset)

        def chunks(units: Sequence[int], names: Sequence[str]) -> Iterator[tuple[int, Batch]]:
            tasks = {name: task for name, task in self.tasks.items() if name in names}
            clips = WithTargets(self.dataset, tasks, video=len(tasks) < len(names))
            pieces = Pieces(units, unit, at_once, count)
            return clip_chunks(clips, pieces, num_workers=self.num_workers, clock=self.clock)

        def make(batch: Batch, names: Sequence[str]) -> dict[str, Columns]:
            made = {
                name: {key: value for key, value in batch.items() if key.startswith(f"{name}/")}
                for name in names
                if name in self.tasks
            }
            rest = [name for name in names if name not in self.tasks]
            if rest == [INPUTS]:
                made[INPUTS] = {INPUTS: self.encode(batch["video"], batch["sample_id"])}
            elif rest:
                made |= self.make_features(batch["video"], batch["sample_id"], rest)
            return made

        self.fill(writers, unit, count, chunks, make, title=f"{self.title}: clips")

    def fill_from_inputs(self, writers: Mapping[str, TableWriter], inputs: Table) -> None:
        """Puts what the backbone made of the pixels through it, once for all blocks."""
        unit, at_once = self.unit_clips, self.config.batch_size

        def chunks(units: Sequence[int], _: Sequence[str]) -> Iterator[tuple[int, Batch]]:
            return row_chunks(inputs, INPUTS, units, unit, at_once, clock=self.clock)

        def make(batch: Batch, names: Sequence[str]) -> dict[str, Columns]:
            return self.make_features(batch[INPUTS], batch["sample_id"], names)

        self.fill(
            writers,
            unit,
            len(inputs),
            chunks,
            make,
            title=f"{self.title}: features",
            failed=inputs.failed,
        )

    def encode(self, video: Tensor, sample_ids: Sequence[str]) -> Tensor:
        """What the backbone makes of pixels, on the CPU."""
        with self.clock.time("backbone"):
            inputs = encode_batch(self.backbone, video, self.accelerator).cpu()
        check_finite(inputs, inputs, sample_ids, "latents", self.backbone.name)
        return inputs

    def make_features(
        self, inputs: Tensor, sample_ids: Sequence[str], names: Sequence[str]
    ) -> dict[str, Columns]:
        """Features of some blocks on the CPU, by column."""
        blocks = [block for block in self.blocks if column_name(block) in names]
        with self.clock.time("backbone"):
            features = features_of_batch(
                self.backbone,
                inputs,
                sample_ids,
                self.config,
                blocks,
                accelerator=self.accelerator,
                clock=self.clock,
            )
            return {
                column_name(block): {column_name(block): grid.cpu()}
                for block, grid in features.items()
            }

    def fill(
        self,
        writers: Mapping[str, TableWriter],
        unit: int,
        count: int,
        chunks: Chunks,
        make: Make,
        *,
        title: str,
        failed: Mapping[str, str] | None = None,
    ) -> None:
        """Makes the shards that lack."""
        Filling(
            writers=writers,
            cache_root=self.cache_root,
            unit=unit,
            count=count,
            chunks=chunks,
            make=make,
            check_size=self.check_size,
            step=lambda: in_step(self.backbone, lambda: first_readable(self.dataset)["video"]),
            failed=failed or {},
            title=title,
            accelerator=self.accelerator,
            clock=self.clock,
        ).run()

    def check_size(self, row_bytes: Mapping[str, int]) -> None:
        """Refuses features that need more than `disk_gb`."""
        names = [column_name(block) for block in self.blocks]
        row = max((row_bytes[name] for name in names if name in row_bytes), default=0)
        need = row * len(names) * len(self.dataset)
        if need > self.config.disk_gb * cache.GIGABYTE:
            raise ValueError(
                f"features of {len(self.dataset)} clips after {len(names)} blocks need "
                f"{need / cache.GIGABYTE:.3g} GB, more than disk_gb {self.config.disk_gb:g}; raise "
                "--features.disk-gb, use --features.dtype bfloat16 or fewer blocks, lower "
                "--data.limit, or keep none with --data.draws 0"
            )

    def foresee_size(self, example: Mapping[str, Any]) -> None:
        """Refuses features that become too large before all clips are decoded for them."""
        features = features_of_batch(
            self.backbone,
            encode_batch(self.backbone, example["video"][None], self.accelerator),
            [example["sample_id"]],
            self.config,
            self.blocks,
            accelerator=self.accelerator,
            clock=Clock(),
        )
        self.check_size({column_name(block): grid.nbytes for block, grid in features.items()})

    def open(self, writers: Sequence[TableWriter]) -> Table:
        """Finished tables of the same rows as one, kept from being removed while it lives."""
        tables = []
        for writer in writers:
            table = open_table(writer.folder)
            cache.hold(writer.folder, table.parts[0])
            cache.touch(writer.folder)
            tables.append(table)
        whole = join_tables(tables)
        if not len(whole):
            first = next(iter(whole.failed.values()), "there are no clips")
            raise ValueError(
                f"none of the {len(self.dataset)} clips can be read, the first: {first}"
            )
        return whole
