"""What a command says: text for people, or one JSON document for programs.

Rank 0 speaks. With `--json`, everything else that is printed goes to the error stream, so that the
document stands alone.
"""

import contextlib
import io
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

from probe_eval.distributed import is_main_process

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 160
"""Columns of a table that no terminal shows."""

_stream: ContextVar[TextIO | None] = ContextVar("stream", default=None)
"""Where the document goes, and that one is wanted."""
_document: ContextVar[list[Any]] = ContextVar("document")


class ReaderGone(Exception):
    """Nobody reads what is printed any more, as after `| head -1`; no error of the command."""


def wants_json() -> bool:
    """Whether this command line has `--json`."""
    return _stream.get() is not None


def say(text: str, value: Any) -> None:
    """Says the outcome of a command.

    Args:
        text: for people.
        value: the same for programs, of plain values; a command says one.
    """
    if wants_json():
        _document.get().append(value)
    elif is_main_process() and text:
        with reader_may_go():
            print(text)  # noqa: T201


@contextlib.contextmanager
def reader_may_go() -> Iterator[None]:
    """For what prints, and nothing else: other pipes may break, too.

    Raises:
        ReaderGone: if nobody reads the output.
    """
    stream = _stream.get() or sys.stdout
    try:
        try:
            yield
        finally:
            stream.flush()
    except BrokenPipeError as error:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise ReaderGone from error


def table_text(table: "Table") -> str:
    """A table as text, as wide as the terminal, if it goes to one; cells wrap, none is cut."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    text = io.StringIO()
    width = shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH
    Console(file=text, width=width, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


@contextlib.contextmanager
def one_document(wanted: bool) -> Iterator[None]:
    """While it is open, `say` collects what is printed at the end as one JSON document.

    Args:
        wanted: whether `--json` was given; nothing is done otherwise.
    """
    if not wanted:
        yield
        return
    said: list[Any] = []
    tokens = _stream.set(sys.stdout), _document.set(said)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            try:
                yield
            except Exception as error:
                print_document({"error": " ".join(str(error).split()) or type(error).__name__})
                raise
        print_document(said[-1] if said else None)
    finally:
        _stream.reset(tokens[0])
        _document.reset(tokens[1])


def print_document(value: Any) -> None:
    """Prints a value as JSON, on rank 0, to where the document goes."""
    if is_main_process():
        with reader_may_go():
            print(json.dumps(plain_values(value), indent=2), file=_stream.get())


def plain_values(value: Any) -> Any:
    """The same with lists for tuples, text for paths, and null for numbers that JSON has not."""
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
