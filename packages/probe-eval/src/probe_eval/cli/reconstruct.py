"""`probe-eval reconstruct VIDEO`."""

import dataclasses

import tyro

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, plain, start
from probe_eval.config import ReconstructConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruct(ReconstructConfig):
    """A video beside what a tokenizer makes of it, and how close the two are."""

    video: tyro.conf.Positional[str]
    """Video file: mp4, mov, webm or mkv."""


def reconstruct(words: list[str]) -> int:
    """A video beside its reconstruction."""
    given = parse(Reconstruct, words, "reconstruct")
    from probe_eval.reconstruct import run_reconstruct, summary

    record = run_reconstruct(given.video, plain(ReconstructConfig, given), start())
    say(f"{summary(record)}  {given.output}/side-by-side.mp4", record)
    return 0
