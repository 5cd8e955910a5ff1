"""`probe-eval embed PROMPT...`."""

import dataclasses

import tyro

from probe_eval.cli.console import say
from probe_eval.cli.parsing import parse, plain, start
from probe_eval.config import EmbedConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Embed(EmbedConfig):
    """States of prompts, written to a file that `pretrain walt` and `generate` read.

    Needs the extra `probe-eval[text]`, which brings transformers.
    """

    prompts: tyro.conf.Positional[tuple[str, ...]]
    """Prompts, each in quotes."""


def embed(words: list[str]) -> int:
    """States of prompts from a text encoder, written to a file."""
    given = parse(Embed, words, "embed")
    from probe_eval.text import run_embed

    text = run_embed(given.prompts, plain(EmbedConfig, given), start())
    say(
        f"{len(text.prompts)} prompts, width {text.width}  {given.output}",
        {"prompts": list(text.prompts), "width": text.width, "output": given.output},
    )
    return 0
