"""Results folders: claimed by one configuration, written atomically, resumed."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

RUN_FILE = "run.json"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text so that the file is there whole or not at all."""
    with replacing(path, f"{os.getpid()}.partial") as partial:
        partial.write_text(text, encoding="utf-8")


def write_tensors(
    path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str] | None = None
) -> None:
    """Writes tensors as safetensors so that the file is there whole or not at all."""
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial, metadata)


@contextlib.contextmanager
def replacing(path: Path, ending: str = "partial") -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place if the block ends without an error.

    Args:
        path: what is to be there whole or not at all; its folder is made where it lacks.
        ending: of the name beside it, which a later attempt overwrites.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{ending}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete the folder {path.parent} to start again"
        ) from error


def _refuse_constant(name: str) -> None:
    """NaN and infinities, which Python's json takes and JSON has not."""
    raise ValueError(f"{name} is no number of JSON")


def claim(folder: Path, kind: str, config: dict[str, Any], *, write: bool) -> bool:
    """Makes a results folder this run's own, or recognises it as such.

    Args:
        folder: the results folder.
        kind: what made it, for instance `probe`, `pretrain-twins` or `demo`.
        config: everything that decides the result.
        write: whether this process creates the folder (the main process only).

    Returns:
        Whether the folder already held this very run, to be resumed.

    Raises:
        ValueError: if the folder holds another run (the differing settings are named) or other
            files, or is not a folder.
    """
    identity = json.loads(json.dumps({"kind": kind, "config": config}))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"results folder {folder} is a file; choose another --output")
    path = folder / RUN_FILE
    if path.is_file():
        differences = compare(read_json(path), identity)
        if differences:
            raise ValueError(
                f"results folder {folder} already holds another run ({'; '.join(differences)}); "
                "choose another --output, or delete the folder"
            )
        return True
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    # The claim itself can be there by now, when the main process was quicker.
    if any(not name.startswith(".") and name != RUN_FILE for name in names):
        raise ValueError(
            f"results folder {folder} holds files that are not a run of probe-eval; "
            "choose an empty or new folder as --output"
        )
    if write:
        write_json(path, identity)
    return False


def compare(old: Any, new: Any, name: str = "") -> list[str]:
    """One phrase for each setting in which two configurations differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(old) + [key for key in new if key not in old]
        return [
            phrase
            for key in keys
            for phrase in compare(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name.removeprefix('config.')} is {old!r} there, {new!r} here"]
