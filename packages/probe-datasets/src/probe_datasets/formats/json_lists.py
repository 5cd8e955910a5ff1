"""Long lists in a JSON file, one element at a time, so that memory does not grow with the file."""

import json
import os
from collections.abc import Collection, Iterator
from typing import Any, TextIO

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error, file_size

__all__ = ["read_json_lists"]

_CHUNK = 1 << 18
_MAX_VALUE = 1 << 24
_TAIL = len("e+5")


def read_json_lists(
    path: str | os.PathLike[str], what: str, keys: Collection[str]
) -> Iterator[tuple[str, Any]]:
    """Elements of the lists that a JSON object holds under some of its keys, in the file's order.

    Args:
        path: the file.
        what: what it should be, with its article, for the message.
        keys: which lists; what is under other keys is passed over.

    Yields:
        Key and element.

    Raises:
        DataError: missing, not one JSON object in UTF-8, a key twice, something else than a list
            under one of the keys, or an element of more than 16 M characters.
    """
    file_size(path, what)
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _lists(_Reader(file), path, what, keys)
    except DataError:
        raise
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, what, "see to its permissions") from error
    except (ValueError, RecursionError) as error:
        problem = f"is no valid JSON ({error})"
        raise data_error(path, problem, what, FETCH_AGAIN) from error


class _Reader:
    """The part of a text that is being parsed."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.position = file, "", 0

    def more(self) -> bool:
        """Reads on, at least as much again as waits to be parsed; False at the end of the file."""
        part = self.file.read(max(_CHUNK, len(self.text) - self.position))
        if part:
            self.text, self.position = self.text[self.position :] + part, 0
        return bool(part)

    def next(self) -> str:
        """The next character that is no space, which stays; nothing at the end of the file."""
        while True:
            while self.position < len(self.text):
                character = self.text[self.position]
                if character not in " \t\r\n":
                    return character
                self.position += 1
            if not self.more():
                return ""

    def take(self, characters: str) -> str:
        """The next character that is no space, which has to be one of some."""
        found = self.next()
        if not found or found not in characters:
            raise ValueError(f"{found[:1]!r} where one of {characters} was due")
        self.position += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except ValueError:
                if len(self.text) - self.position > _MAX_VALUE or not self.more():
                    raise
                continue
            # A number may go on, as 2 does in 2.5 and 2e+5, and its value says nothing of that.
            if len(self.text) - end < _TAIL and self.more():
                continue
            self.position = end
            return value


_DECODER = json.JSONDecoder()


def _lists(
    reader: _Reader, path: str | os.PathLike[str], what: str, keys: Collection[str]
) -> Iterator[tuple[str, Any]]:
    if reader.next() != "{":
        raise data_error(path, f"has no list of {' or '.join(keys)}", what, FETCH_AGAIN)
    reader.take("{")
    seen: set[str] = set()
    ended = reader.next() == "}"
    while not ended:
        key = reader.value()
        if not isinstance(key, str) or key in seen:
            raise ValueError(f"a key {str(key)[:40]!r} that comes twice or is no text")
        seen.add(key)
        reader.take(":")
        if key not in keys:
            reader.value()
        elif reader.next() != "[":
            raise data_error(path, f"has no list of {key}", what, FETCH_AGAIN)
        else:
            for element in _elements(reader):
                yield key, element
        ended = reader.next() != ","
        if not ended:
            reader.take(",")
    reader.take("}")
    if reader.next():
        raise ValueError("something behind the object")


def _elements(reader: _Reader) -> Iterator[Any]:
    reader.take("[")
    ended = reader.next() == "]"
    while not ended:
        yield reader.value()
        ended = reader.next() != ","
        if not ended:
            reader.take(",")
    reader.take("]")
