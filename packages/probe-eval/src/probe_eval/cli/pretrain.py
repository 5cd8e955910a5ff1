"""`probe-eval pretrain tokenizer`, `... twins` and `... walt`."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from probe_eval.cli.console import say
from probe_eval.cli.parsing import PROG, asks_for_list, known, parse, plain, say_list, start
from probe_eval.pretrain.config import (
    PretrainTokenizerConfig,
    PretrainTwinsConfig,
    PretrainWaltConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTokenizer(PretrainTokenizerConfig):
    """A tokenizer: any size, any part of MAGVIT-v2's objective."""

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainTwins(PretrainTwinsConfig):
    """A tokenizer and then both denoisers, I-WALT and V-WALT, on the same clips."""

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class PretrainWalt(PretrainWaltConfig):
    """One denoiser, V-WALT or I-WALT of any size, on the latents of a trained tokenizer.

    Needs a tokenizer (`probe-eval pretrain tokenizer`). Leaves walt/ for `probe-eval generate`.
    """

    dry_run: bool = False
    """Say what would be trained, on what and where it would go; train nothing."""


def tokenizer_outcome(record: dict[str, Any], output: str) -> str:
    """What was measured of a tokenizer, in one line."""
    measured = {name: value for name, value in record["final"].items() if name != "step"}
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
    return f"{numbers}  {output}/record.json"


def twins_outcome(folder: Any, output: str) -> str:
    """Where the twins are, in one line."""
    return f"wrote {folder}"


def walt_outcome(record: dict[str, Any], output: str) -> str:
    """What was measured of a denoiser, in one line."""
    final = record["final"]
    return (
        f"validation loss {final['validation_loss']:.4f}, that of the best constant "
        f"{final['constant_loss']:.4f}, factor {final['factor']:.2f}  {output}/record.json"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Models that can be pretrained."""

    summary: str
    given: type
    """What the command line takes."""
    config: type
    """What a run takes."""
    outcome: Callable[[Any, str], str]
    """One line from what the run returned and its folder."""


MODELS = {
    "tokenizer": Models(
        summary="a tokenizer of any size, with any part of MAGVIT-v2's objective",
        given=PretrainTokenizer,
        config=PretrainTokenizerConfig,
        outcome=tokenizer_outcome,
    ),
    "twins": Models(
        summary="a tokenizer, I-WALT and V-WALT, on the same clips",
        given=PretrainTwins,
        config=PretrainTwinsConfig,
        outcome=twins_outcome,
    ),
    "walt": Models(
        summary="one denoiser, V-WALT or I-WALT of any size, on a tokenizer's latents",
        given=PretrainWalt,
        config=PretrainWaltConfig,
        outcome=walt_outcome,
    ),
}
"""Name -> models, which `probe_eval.pretrain.<name>` trains."""


def pretrain(words: list[str]) -> int:
    """Models of one's own."""
    if asks_for_list(words):
        say_list(
            "pretrain MODELS [options]",
            "models",
            {name: models.summary for name, models in MODELS.items()},
            f"`{PROG} pretrain MODELS --help` lists the options with defaults and units.",
        )
        return 0
    name = known("models to pretrain", words[0], MODELS)
    models = MODELS[name]
    given = parse(models.given, words[1:], f"pretrain {name}")
    config = plain(models.config, given)
    module = importlib.import_module(f"probe_eval.pretrain.{name}")
    accelerator = start()
    if given.dry_run:
        plan = getattr(module, f"describe_{name}")(config, accelerator)
        say(plan, {"plan": plan.splitlines()})
        return 0
    outcome = getattr(module, f"run_{name}")(config, accelerator)
    value = outcome if isinstance(outcome, dict) else {"output": outcome}
    say(models.outcome(outcome, config.output), value)
    return 0
