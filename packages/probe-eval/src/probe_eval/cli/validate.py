"""`probe-eval validate DATASET ROOT`."""

import dataclasses
from typing import Annotated

import tyro

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, plain
from probe_eval.config import ValidateConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Validate(ValidateConfig):
    """How much of a data set is there: found, expected, missing and unreadable samples.

    Exit status 1 where a split has too few of them.
    """

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """Name in the registry of probe-datasets."""
    root: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ROOT")] = ""
    """Folder of the data set; left out for data sets that need none."""


def validate(words: list[str]) -> int:
    """How much of a data set is there."""
    config = plain(ValidateConfig, parse(Validate, words, "validate"))
    from probe_eval.validate import as_rows, as_text, passes, run_validate

    reports = run_validate(config)
    say(as_text(reports, config.threshold), as_rows(reports))
    return 0 if passes(reports, config.threshold) else 1
