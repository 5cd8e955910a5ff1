"""What runs keep on disk for later ones: latents, targets, and features on request.

An entry is a table in `<cache>/<kind>/<digest of its key>`; `key.json` in it says what it is of.
Several programs may fill the same entry at a time: each writes what lacks, whoever is first wins,
and all get the same. An entry is locked, for sharing, while a program fills or reads it; removing
wants the lock alone, so what is in use stays. Locks end with the programs that hold them.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from probe_eval.runs import read_json
from probe_eval.storage.tables import INDEX_FILE, KEY_FILE, key_digest, verify_table

FOLDER_VARIABLE = "PROBE_EVAL_CACHE"
CAP_VARIABLE = "PROBE_EVAL_CACHE_GB"
DEFAULT_CAP_GB = 200.0
KINDS = ("inputs", "targets", "features")
LOCK_FILE = ".lock"
REMOVED = ".removed-"
GIGABYTE = 1e9
SECONDS_PER_DAY = 86400.0
RECENT_SECONDS = 3600.0
"""Where a file system has no locks, an entry that changed within this time counts as in use."""


def cache_root(folder: str = "") -> Path:
    """Where the cache lies.

    Args:
        folder: where it was asked to lie; empty: the folder in PROBE_EVAL_CACHE, or else
            ~/.cache/probe-eval.
    """
    given = folder or os.environ.get(FOLDER_VARIABLE, "")
    return Path(given or "~/.cache/probe-eval").expanduser()


def cap_gb() -> float:
    """How large the cache may become, in GB: PROBE_EVAL_CACHE_GB, or else 200.

    Raises:
        ValueError: the variable is no number, or a negative one.
    """
    text = os.environ.get(CAP_VARIABLE, "") or str(DEFAULT_CAP_GB)
    try:
        cap = float(text)
    except ValueError:
        cap = -1.0
    if not cap >= 0:
        raise ValueError(f"{CAP_VARIABLE} {text!r} must be a number of GB, 0 or more")
    return cap


def entry_folder(root: Path, kind: str, key: Mapping[str, Any]) -> Path:
    """Folder of a table of one kind."""
    return root / kind / key_digest(key)[:20]


def cache_bytes(root: Path) -> int:
    """Bytes of all entries."""
    return sum(folder_bytes(root / kind) for kind in KINDS)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is no such folder."""
    total = 0
    for home, _, names in os.walk(folder):
        for name in names:
            # Another program may remove or rename it at this moment.
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(home, name), follow_symlinks=False).st_size
    return total


def check_cap(root: Path, have: int, need: int) -> None:
    """Refuses what would make the cache larger than it may become.

    Args:
        root: of the cache.
        have: bytes in it.
        need: bytes that are going to be written.

    Raises:
        ValueError: saying how much there is, and the ways out.
    """
    cap = cap_gb()
    if have + need > cap * GIGABYTE:
        raise ValueError(
            f"the cache {root} holds {have / GIGABYTE:.3g} GB, and {need / GIGABYTE:.3g} GB more "
            f"would be above its cap of {cap:g} GB; make room with `probe-eval cache gc`, raise "
            f"{CAP_VARIABLE}, or keep nothing with --features.cache none"
        )


def check_disk(folder: Path, need: int) -> None:
    """Refuses what does not fit onto the disk.

    Args:
        folder: where it would go; need not be there.
        need: bytes that are going to be written.

    Raises:
        ValueError: saying how much is free, and the ways out.
    """
    home = folder.absolute()
    while not home.exists():
        home = home.parent
    free = shutil.disk_usage(home).free
    if need > free:
        raise ValueError(
            f"{need / GIGABYTE:.3g} GB are needed in {folder}, but its disk has "
            f"{free / GIGABYTE:.3g} GB left; {WAYS_OUT}"
        )


WAYS_OUT = (
    "make room (`probe-eval cache gc` removes what was kept of earlier runs), or use another disk: "
    f"{FOLDER_VARIABLE} or --features.cache-folder for the cache, --output for the run"
)


@contextlib.contextmanager
def told_disk_errors(folder: Path) -> Iterator[None]:
    """Says of a full disk or a folder that cannot be written which it is, and the ways out.

    Raises:
        OSError: in place of the system's own.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells the system's number in its text alone.
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or f"os error {errno.ENOSPC}" in str(error):
            raise OSError(f"the disk of {folder} is full; {WAYS_OUT}") from error
        if isinstance(error, SafetensorError):
            raise
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise OSError(
                f"{folder} cannot be written ({error.strerror}); use a folder that can: "
                f"{FOLDER_VARIABLE} or --features.cache-folder for the cache, --output for the "
                "run; or keep nothing with --features.cache none"
            ) from error
        raise


def hold(folder: Path, owner: object) -> None:
    """Keeps an entry from being removed for as long as an object of this program lives.

    Args:
        folder: the entry; made where it lacks.
        owner: the object.

    Raises:
        OSError: it is not there and cannot be made.
    """
    while True:
        try:
            descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
            continue
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and folder.is_dir():
                return  # read only for this program, which therefore cannot mark it
            raise
        locked = lock(descriptor, fcntl.LOCK_SH)
        if locked and same_file(descriptor, folder / LOCK_FILE):
            weakref.finalize(owner, os.close, descriptor)
            return
        os.close(descriptor)  # no locks here; or the entry was removed meanwhile
        if not locked:
            return


def lock(descriptor: int, how: int) -> bool:
    """Locks a file; False where the file system has no locks.

    Raises:
        BlockingIOError: another program has it, and `how` does not wait.
    """
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def same_file(descriptor: int, path: Path) -> bool:
    """Whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def touch(folder: Path) -> None:
    """Notes that an entry was used now."""
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(folder / INDEX_FILE)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the cache keeps of one thing."""

    folder: Path
    kind: str
    """`inputs`, `targets` or `features`."""
    key: Mapping[str, Any]
    """What it is of; empty where that cannot be read."""
    about: Mapping[str, Any]
    """Title, backbone, data set: for people."""
    complete: bool
    """Whether a run has finished it."""
    rows: int
    """Clips, where it is complete."""
    bytes: int
    used: float
    """When it was last opened or written, in seconds since 1970."""


def entries(root: Path) -> list[Entry]:
    """What lies in a cache, the latest used first."""
    folders = [
        path
        for kind in KINDS
        if (root / kind).is_dir()
        for path in (root / kind).iterdir()
        if path.is_dir() and not path.name.startswith(".")
    ]
    found = [entry for path in folders if (entry := read_entry(path))]
    return sorted(found, key=lambda entry: (-entry.used, str(entry.folder)))


def read_entry(folder: Path) -> Entry | None:
    """What a folder of the cache is; None if it has just been removed."""
    described: dict[str, Any] = {}
    index: dict[str, Any] = {}
    with contextlib.suppress(ValueError, FileNotFoundError):
        described = read_json(folder / KEY_FILE)
    with contextlib.suppress(ValueError, FileNotFoundError):
        index = read_json(folder / INDEX_FILE)
    try:
        used = max(path.stat().st_mtime for path in (folder, folder / INDEX_FILE) if path.exists())
    except (FileNotFoundError, ValueError):
        return None
    return Entry(
        folder=folder,
        kind=folder.parent.name,
        key=described.get("key", {}),
        about=described.get("about", {}),
        complete=bool(index),
        rows=index.get("rows", 0),
        bytes=folder_bytes(folder),
        used=used,
    )


def verify(entry: Entry) -> list[str]:
    """Reads an entry to the last byte.

    Returns:
        What is wrong with it, a phrase each. An entry that no run has finished yet has no errors.
    """
    return verify_table(entry.folder) if entry.complete else []


def in_use(folder: Path) -> bool:
    """Whether a program fills or reads an entry.

    Where the file system has no locks: whether it changed within the last hour.
    """
    with claimed(folder) as mine:
        return not mine


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """An entry that no other program can begin to use meanwhile; False if one uses it."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield is_old(folder)
        return
    except OSError:  # not ours to change
        yield False
        return
    try:
        try:
            locked = lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield locked or is_old(folder)
    finally:
        os.close(descriptor)


def is_old(folder: Path) -> bool:
    """Whether a folder is there, and nothing was added to it lately."""
    return folder.is_dir() and time.time() - folder.stat().st_mtime > RECENT_SECONDS


def select_garbage(
    found: Sequence[Entry],
    *,
    max_gb: float | None = None,
    older_than_days: float | None = None,
    incomplete: bool = False,
    now: float | None = None,
) -> list[Entry]:
    """Entries that are to go, those used longest ago first.

    Args:
        found: all entries.
        max_gb: how much may stay, in GB; what was used last stays.
        older_than_days: what was not used for so long goes.
        incomplete: what no run has finished goes.
        now: seconds since 1970; the present time by default.
    """
    oldest_first = sorted(found, key=lambda entry: entry.used)
    now = time.time() if now is None else now
    chosen = [
        entry
        for entry in oldest_first
        if (incomplete and not entry.complete)
        or (older_than_days is not None and now - entry.used > older_than_days * SECONDS_PER_DAY)
    ]
    left = sum(entry.bytes for entry in found) - sum(entry.bytes for entry in chosen)
    for entry in oldest_first:
        if max_gb is not None and left > max_gb * GIGABYTE and entry not in chosen:
            chosen.append(entry)
            left -= entry.bytes
    return chosen


def remove(entry: Entry) -> bool:
    """Removes an entry, unless a program uses it.

    Returns:
        Whether it was removed.

    Raises:
        OSError: the cache cannot be written.
    """
    with claimed(entry.folder) as mine:
        if not mine:
            return False
        # Renamed first: nobody ever finds the half of it.
        gone = entry.folder.with_name(f"{REMOVED}{entry.folder.name}-{secrets.token_hex(4)}")
        with told_disk_errors(entry.folder):
            os.rename(entry.folder, gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def sweep_leftovers(root: Path) -> None:
    """Removes what a program that was killed while removing left behind."""
    for kind in KINDS:
        for leftover in (root / kind).glob(f"{REMOVED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
