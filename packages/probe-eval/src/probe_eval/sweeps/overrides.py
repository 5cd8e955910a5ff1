"""Settings of a configuration replaced by words, such as `optim.steps=200`.

Imports neither torch nor tyro: every mistake is told before anything long begins.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")
TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def split_word(word: str, what: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`.

    Raises:
        ValueError: if it is no such word; `what` says where it was given.
    """
    name, sign, value = word.partition("=")
    if not sign or not name.strip():
        raise ValueError(f"{what} takes NAME=VALUE, not {word!r}")
    return name.strip(), value.strip()


def override(config: Config, words: Sequence[str], fixed: Mapping[str, str]) -> Config:
    """A configuration with some of its settings replaced, all at once.

    Args:
        config: a dataclass of plain values and further such dataclasses.
        words: `NAME=VALUE`, with dots for what lies deeper; commas part the items of a tuple.
        fixed: settings that are not to be replaced -> what decides them.

    Raises:
        ValueError: for a setting that does not exist or is fixed, a value of the wrong type, or
            one that the configuration refuses.
    """
    known = dict(settings(type(config)))
    changes: dict[str, Any] = {}
    for word in words:
        name, value = split_word(word, "--set")
        if name in fixed:
            raise ValueError(f"setting {name!r} cannot be set here: {fixed[name]} decides it")
        check_known("setting", name, [setting for setting in known if setting not in fixed])
        if name in changes:
            raise ValueError(f"setting {name!r} is set twice; keep one of them")
        changes[name] = convert(known[name], value, name)
    return replaced(config, changes)


def check_known(kind: str, name: str, names: Collection[str]) -> None:
    """Checks that a name is one of several.

    Raises:
        ValueError: naming the known ones, and the nearest.
    """
    if name not in names:
        near = difflib.get_close_matches(name, list(names), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(names)}{hint}")


def settings(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every plain setting of a configuration."""
    for name, declared in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(declared):
            yield from settings(typing.cast(type, declared), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", declared


def convert(declared: Any, text: str, name: str) -> Any:
    """A value of a declared type from its text.

    Raises:
        ValueError: naming the setting and what it takes.
    """
    origin = typing.get_origin(declared)
    if origin is tuple:
        item = typing.get_args(declared)[0]
        return tuple(convert(item, part.strip(), name) for part in text.split(",") if part.strip())
    if origin is Literal:
        choices = typing.get_args(declared)
        if text not in choices:
            raise ValueError(f"{name} is {text!r}, expected one of {', '.join(choices)}")
        return text
    if origin is types.UnionType:
        raise ValueError(f"{name} cannot be given in words")
    if declared is bool:
        if text.lower() not in TRUTHS:
            raise ValueError(f"{name} is {text!r}, expected True or False")
        return TRUTHS[text.lower()]
    try:
        return declared(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(declared, declared.__name__)
        raise ValueError(f"{name} is {text!r}, expected {wanted}") from None


def replaced(config: Config, changes: Mapping[str, Any]) -> Config:
    """A configuration with the settings of these dotted names replaced."""
    own: dict[str, Any] = {}
    deeper: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, dot, rest = name.partition(".")
        if dot:
            deeper.setdefault(first, {})[rest] = value
        else:
            own[name] = value
    own |= {name: replaced(getattr(config, name), inner) for name, inner in deeper.items()}
    return dataclasses.replace(typing.cast(Any, config), **own)
