"""Damage to a small file of every format, and what its reader makes of it; a program.

`python damage_cases.py FOLDER TRUNCATIONS FLIPS SEED [NAME ...]` prints a JSON object of counts.
The name of the case at hand is in `FOLDER/at`, for when the process dies. Each outcome is one of

* refused: a DataError that names the file;
* equal: the sample of the undamaged file;
* shorter: the beginning of a list of rows, for text that says nowhere how long it is;
* changed: another sample, where the format has no checksum over what was hit;
* wrong: anything else, or too slow, or too large; described.
"""

import dataclasses
import hashlib
import json
import os
import random
import resource
import runpy
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, GROWTH = 1.0, 200 << 20
ADDRESS_SPACE = 2 << 30  # beyond what the process has when the cases begin
HERE = Path(__file__).parent


def formats() -> dict[str, Any]:
    """All formats by name."""
    modules = (runpy.run_path(str(HERE / f"damage_{n}.py")) for n in ("formats", "texts"))
    return {name: form for module in modules for name, form in module["formats"]().items()}


def damages(content: bytes, truncations: int, flips: int, chance: random.Random) -> Any:
    """Damaged versions of a file, each with what was done."""
    size = len(content)
    ends = chance.sample(range(size), min(size, truncations))
    for end in ends:
        yield f"cut at {end}", content[:end]
    for i in range(flips):
        damaged = bytearray(content)
        kind = i % 10
        for _ in range(1 if kind < 8 else chance.randint(2, 8)):
            position = chance.randrange(size)
            if kind < 7:
                damaged[position] ^= 1 << chance.randrange(8)
            else:
                damaged[position] = chance.randrange(256)
        if kind == 9:
            position = chance.randrange(size)
            run = min(chance.randint(2, 64), size - position)
            damaged[position : position + run] = bytes(run)
        yield f"flip {i} at {position}", bytes(damaged)


def frozen(value: Any) -> Any:
    """The same value made of text and tuples, to be compared."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).tobytes()
        return value.shape, value.dtype.str, hashlib.sha256(data).hexdigest()
    if dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
        return tuple(frozen(getattr(value, name)) for name in names if name != "path")
    if isinstance(value, dict):
        return tuple((key, frozen(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(frozen(item) for item in value)
    return value.hex() if isinstance(value, bytes) else repr(value)


def outcome(form: Any, path: Path, whole: Any) -> tuple[str, str]:
    """What becomes of one damaged file, and words about it."""
    from probe_datasets.containers import VideoError
    from probe_datasets.formats.files import DataError

    try:
        found = frozen(form.read(path))
    except (DataError, VideoError) as error:
        cause: BaseException | None = error
        while cause is not None:
            # FFmpeg says so of a length beyond its own bound, without having asked for any.
            if isinstance(cause, MemoryError) and not type(cause).__module__.startswith("av."):
                return "wrong", f"asked for too much memory: {error}"
            cause = cause.__cause__
        text = str(error)
        fine = str(path.parent.parent) in text and len(text.splitlines()) == 1
        return ("refused", "") if fine else ("wrong", f"the message does not serve: {text!r}")
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    if found == whole:
        return "equal", ""
    if form.rows and len(found) < len(whole) and found == whole[: len(found)]:
        return "shorter", ""
    return "changed", ""


def sweep(
    name: str, form: Any, folder: Path, truncations: int, flips: int, seed: int
) -> dict[str, Any]:
    """Counts of the outcomes of one format, by cuts and flips, and what was wrong."""
    (folder / "whole").mkdir(parents=True)
    path = folder / "whole" / form.file
    form.write(path)
    content, whole = path.read_bytes(), frozen(form.read(path))
    counts: dict[str, Any] = {"bytes": len(content), "cut": {}, "flip": {}, "wrong": []}
    chance = random.Random(f"{name} {seed}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    slowest = 0.0
    for number, (what, damaged) in enumerate(damages(content, truncations, flips, chance)):
        kind = what.partition(" ")[0]
        path = folder / str(number) / form.file
        path.parent.mkdir()
        path.write_bytes(damaged)
        (folder.parent / "at").write_text(f"{name}: {what}: {path}")
        start = time.process_time()
        result, words = outcome(form, path, whole)
        seconds = time.process_time() - start
        slowest = max(slowest, seconds)
        growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
        if kind == "flip" and result == "shorter":
            result = "changed"
        if (result == "changed" and not form.cut and kind == "cut") or (
            result == "changed" and form.guarded
        ):
            result, words = "wrong", "another sample"
        if seconds > SECONDS or growth > GROWTH:
            result, words = "wrong", f"{seconds:.2f} s and {growth >> 20} MB more; {words}"
            before += growth
        if result == "wrong":
            counts["wrong"].append(f"{what}: {words}")
            if keep := os.environ.get("DAMAGE_KEEP"):
                Path(keep).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, Path(keep, f"{name} {what} {form.file}".replace(" ", "_")))
        counts[kind][result] = counts[kind].get(result, 0) + 1
        shutil.rmtree(path.parent)
    return {**counts, "slowest": round(slowest, 3)}


def main(folder: str, truncations: str, flips: str, seed: str, *names: str) -> None:
    """Sweep some formats, all by default, and print what came out."""
    known = formats()
    (size,) = (int(n) * 4096 for n in Path("/proc/self/statm").read_text().split()[:1])
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE, size + ADDRESS_SPACE))
    short = int(flips) < 500
    found = {}
    for name in names or known:
        share = known[name].slow if short else 1
        counts = int(truncations) // share, int(flips) // share
        place = Path(folder, name.replace(" ", "_"))
        found[name] = sweep(name, known[name], place, *counts, int(seed))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
