"""Words of a command line to frozen configurations; mistakes to one line."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import tyro

from probe_eval.cli.console import reader_may_go, say, wants_json
from probe_eval.distributed import is_main_process
from probe_eval.sweeps.overrides import check_known

PROG = "probe-eval"
_asking: ContextVar[bool] = ContextVar("asking", default=False)


class Takes(Exception):
    """What a command takes; not an error: what `what_it_takes` stops the command with.

    Args:
        names: the names that it takes first, where it takes one of a list.
        kind: the configuration that it takes.
        default: its values; None: those of the kind.
    """

    def __init__(self, names: tuple[str, ...] = (), kind: Any = None, default: Any = None) -> None:
        super().__init__()
        self.names, self.kind, self.default = names, kind, default


def what_it_takes(command: Callable[[list[str]], int], words: list[str]) -> Takes:
    """What a command takes after some words.

    Args:
        command: a function of `COMMANDS`, which calls `say_list` or `parse`.
        words: names that are given already.
    """
    token = _asking.set(True)
    try:
        command([*words, "--help"])
    except Takes as takes:
        return takes
    finally:
        _asking.reset(token)
    raise AssertionError(f"{command} neither lists names nor parses words")


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name`, if it is one of `names`.

    Raises:
        ValueError: naming the known ones, and the nearest.
    """
    check_known(kind, name, list(names))
    return name


def asks_for_list(words: list[str]) -> bool:
    """Whether a command that needs a name was given none, or was asked what there is."""
    return not words or words[0] in ("-h", "--help")


def say_list(usage: str, title: str, entries: Mapping[str, str], ending: str) -> None:
    """Says which names a command takes, each with a line on what it is."""
    if _asking.get():
        raise Takes(names=tuple(entries))
    width = max(len(name) for name in entries)
    lines = [f"usage: {PROG} {usage}", "", f"{title}:"]
    lines += [f"  {name:{width}s}  {text}" for name, text in entries.items()]
    say("\n".join([*lines, "", ending]), {title: dict(entries)})


def parse(kind: Any, words: list[str], command: str, default: Any = None) -> Any:
    """A configuration from words; `--help` prints it with defaults and units and ends the program.

    Raises:
        ValueError: for an unknown option or a value of the wrong type or out of range.
        SystemExit: with status 0, after the help.
    """
    if _asking.get():
        raise Takes(kind=kind, default=default)
    given = {} if default is None else {"default": default}
    complaint, printed = io.StringIO(), io.StringIO()
    try:
        with reader_may_go(), contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stderr(complaint))
            if wants_json():
                stack.enter_context(contextlib.redirect_stdout(printed))
            return tyro.cli(
                kind,
                args=words,
                prog=f"{PROG} {command}",
                console_outputs=is_main_process(),
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            say("", {"help": printed.getvalue()})
            raise
        raise ValueError(f"{reason(complaint.getvalue())}; see `{PROG} {command} --help`") from None


def reason(complaint: str) -> str:
    """What tyro says is wrong, without its frame, its heading and its hints.

    Its text is blocks between rules: what is wrong, then hints; the heading is part of the frame,
    or, where the terminal has no characters for a frame, a first block.
    """
    framed = "\u256d" in complaint
    text = re.sub(r"^\u256d.*$|^[\u2570].*$|\u2502", "", complaint, flags=re.MULTILINE)
    blocks = [" ".join(block.split()) for block in re.split(r"[\u2500-]{5,}", text)]
    blocks = [block for block in blocks if block]
    message = blocks[0 if framed else 1 :][:1]
    return message[0] if message else "wrong arguments"


def plain(kind: Any, given: Any) -> Any:
    """The configuration of a run without what the command line adds to it."""
    return kind(**{field.name: getattr(given, field.name) for field in dataclasses.fields(kind)})


def start() -> Any:
    """The Accelerate handle."""
    from probe_eval.distributed import create_accelerator

    return create_accelerator()
