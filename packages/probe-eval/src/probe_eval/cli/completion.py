"""`probe-eval completion bash|zsh|fish`: tyro's completion, for all commands together."""

import contextlib
import dataclasses
import functools
import io
import operator
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import tyro

from probe_eval.cli import COMMANDS, find_command
from probe_eval.cli.console import say
from probe_eval.cli.parsing import PROG, asks_for_list, known, say_list, what_it_takes

SHELLS = {
    "bash": "> ~/.local/share/bash-completion/completions/probe-eval",
    "zsh": "> _probe-eval, in a folder of $fpath",
    "fish": "> ~/.config/fish/completions/probe-eval.fish",
}
"""Shell -> where the script goes."""
SPEC = re.compile(r"^COMPLETION_SPEC = .*$", re.MULTILINE)
"""Where tyro keeps descriptions; it would offer the second line of one as a word."""


@dataclasses.dataclass
class Nothing:
    """No options."""


def completion(words: list[str]) -> int:
    """What makes a shell complete commands, recipes and options."""
    if asks_for_list(words):
        say_list(
            "completion SHELL",
            "shells",
            SHELLS,
            "The script knows this version's options; write it anew after an upgrade.",
        )
        return 0
    shell = known("shell", words[0], SHELLS)
    if words[1:]:
        raise ValueError(f"completion takes one shell, and not {' '.join(words[1:])!r} as well")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(
            one_of({name: branch(find_command(name)) for name in COMMANDS}),
            args=["--tyro-print-completion", shell],
            prog=PROG,
        )
    script = SPEC.sub(lambda line: re.sub(r"\\+n", " ", line[0]), printed.getvalue())
    say(script, {"shell": shell, "script": script})
    return 0


def branch(command: Callable[[list[str]], int], *words: str) -> tuple[Any, dict[str, Any]]:
    """What a command takes after some words, as a type, and the settings of its branch."""
    if command is completion and words:
        return Nothing, {}
    takes = what_it_takes(command, list(words))
    if takes.names:
        return one_of({name: branch(command, *words, name) for name in takes.names}), {}
    return takes.kind, {} if takes.default is None else {"default": takes.default}


def one_of(branches: Mapping[str, tuple[Any, dict[str, Any]]]) -> Any:
    """The type of a command line that begins with one of the names."""
    kinds = (
        Annotated[kind, tyro.conf.subcommand(name, **settings)]
        for name, (kind, settings) in branches.items()
    )
    return functools.reduce(operator.or_, kinds)
