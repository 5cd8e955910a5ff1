"""`probe-eval show VIDEO...`."""

import dataclasses

import tyro

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, start
from probe_eval.config import ShowConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Show(ShowConfig):
    """Frames, first principal component of both twins, and where they differ."""

    videos: tyro.conf.Positional[tuple[str, ...]]
    """Video files: mp4, mov, webm or mkv."""


def show(words: list[str]) -> int:
    """Frames and features of both twins, drawn."""
    config = parse(Show, words, "show")
    from probe_eval.show import run_show

    say("", {"pictures": run_show(config.videos, config, start())})
    return 0
