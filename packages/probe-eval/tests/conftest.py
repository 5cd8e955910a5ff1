"""Fixtures: untrained twins that differ in every weight, and what a probe would leave behind.

The packages are imported inside the fixtures: jaxtyping checks only what is imported after it has
been set up, which is later than this file is read.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

if TYPE_CHECKING:
    from probe_eval.config import ProbeConfig
    from walt_core import WaltConfig
    from walt_tokenizer import TokenizerConfig


def random_weights(module: torch.nn.Module, seed: int) -> None:
    """Gives a value to every weight, also to those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.2)


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Puts back what a command line that a test ran in this process chose to log."""
    loggers = [logging.getLogger(name) for name in ("", "probe_eval", "walt_tokenizer")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Indexes and caches are kept away from the user's own, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("indexes")
        patch.setenv("PROBE_DATASETS_CACHE", str(folder))
        patch.setenv("PROBE_EVAL_CACHE", str(folder / "kept"))
        yield folder


@pytest.fixture(scope="session")
def minimal() -> "TokenizerConfig":
    """The smallest tokenizer with all that one has."""
    import walt_tokenizer

    return walt_tokenizer.TokenizerConfig(
        base_channels=8,
        channel_multipliers=(1, 1, 1, 2),
        num_res_blocks=1,
        latent_channels=4,
        norm_groups=4,
    )


@pytest.fixture(scope="session")
def walt_size() -> "WaltConfig":
    """A denoiser with all that one has, for clips of 5 x 16 x 16 of the smallest tokenizer."""
    import walt_core

    return walt_core.WaltConfig(
        width=16,
        depth=2,
        num_heads=2,
        latent_channels=4,
        latent_size=(2, 2, 2),
        spatial_window=(1, 2, 2),
        spatiotemporal_window=(2, 2, 2),
        self_conditioning=True,
        frame_conditioning=True,
    )


@pytest.fixture(scope="session")
def write_twins(minimal: "TokenizerConfig") -> Callable[[Path], Path]:
    """Function that writes a tokenizer and both twins, for clips of 5 x 16 x 16, to a folder."""
    import walt_core
    import walt_tokenizer
    from probe_eval.backbones.walt import WINDOWS

    denoiser_config = walt_core.WaltConfig(
        width=16,
        depth=4,
        num_heads=2,
        latent_channels=4,
        latent_size=(2, 2, 2),
        spatial_window=(1, 2, 2),
        spatiotemporal_window=(2, 2, 2),
    )

    def write(folder: Path) -> Path:
        tokenizer = walt_tokenizer.VideoTokenizer(minimal)
        random_weights(tokenizer, 0)
        tokenizer.save_pretrained(folder / "tokenizer")
        for seed, (name, windows) in enumerate(WINDOWS.items(), start=1):
            denoiser = walt_core.Walt(dataclasses.replace(denoiser_config, windows=windows))
            random_weights(denoiser, seed)
            denoiser.latent_mean.copy_(tokenizer.latent_mean)
            denoiser.latent_std.copy_(tokenizer.latent_std)
            denoiser.save_pretrained(folder / name)
        return folder

    return write


@pytest.fixture(scope="session")
def twins(write_twins: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `probe-eval pretrain twins` leaves it; nobody writes to it."""
    return write_twins(tmp_path_factory.mktemp("twins"))


@pytest.fixture
def clips() -> torch.Tensor:
    """Three clips of 5 x 16 x 16."""
    return torch.rand(3, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)


@pytest.fixture
def bf16_accelerator() -> Iterator[Accelerator]:
    """One process on the CPU, in mixed precision; other tests keep theirs."""
    shared = AcceleratorState._shared_state
    before = dict(shared)
    shared.clear()
    yield Accelerator(cpu=True, mixed_precision="bf16")
    shared.clear()
    shared.update(before)


@pytest.fixture
def config() -> "ProbeConfig":
    """A probe with settings that are no defaults."""
    from probe_eval.config import OptimConfig, ProbeConfig

    return ProbeConfig(task="action", optim=OptimConfig(steps=4, batch_size=4, warmup_steps=1))


@pytest.fixture
def make_record(config: "ProbeConfig") -> Callable[..., dict[str, Any]]:
    """Function that makes a valid record; fields are replaced by their places: `metric.value`."""

    def make(fields: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        split = {
            "fingerprint": "f",
            "expected": 9,
            "evaluated": 8,
            "missing": 1,
            "failed": 0,
            "reasons": [["clip 3", "no such file"]],
        }
        record = {
            "schema_version": 2,
            "task": "action",
            "recipe": "",
            "split": "test",
            "metric": {
                "name": "top1",
                "variant": "",
                "direction": "up",
                "value": 0.5,
                "chance": 0.25,
                "samples": 8,
            },
            "metrics": {"top5": 0.75},
            "dataset": {
                "name": "moving_shapes",
                "test_name": "moving_shapes",
                "clip": {"num_frames": 17, "stride": 1, "size": 32},
                "train": split,
                "test": split,
            },
            "backbone": {"name": "v-walt", "weights_hash": "abc", "num_parameters": 7},
            "features": {
                "block": 4,
                "timestep": 200,
                "alpha": 0.8,
                "sigma": 0.6,
                "log_snr": None,
                "noise": "gaussian by (seed, sample, timestep)",
                "noise_seed": 0,
                "average_time": False,
                "dtype": "float32",
            },
            "readout": {"name": "AttentiveReadout", "num_parameters": 7, "sha256": "0" * 64},
            "optim": dataclasses.asdict(config.optim),
            "seed": 0,
            "order_seed": 0,
            "shuffled_labels": False,
            "held_out": 0.0,
            "final_loss": 1.5,
            "time": {"total": 3.5, "forwards": 18},
            "config": dataclasses.asdict(config),
            "environment": {
                "python": "3.11.0",
                "platform": "Linux",
                "cores": 2,
                "device": "cpu",
                "processes": 1,
                "precision": "no",
                "packages": {"torch": "2.13.0"},
                "git_commit": "",
            },
        }
        record = json.loads(json.dumps(record))
        for place, value in {**(fields or {}), **more}.items():
            *groups, name = place.split(".")
            group = record
            for part in groups:
                group = group[part]
            group[name] = json.loads(json.dumps(value))
        return record

    return make
