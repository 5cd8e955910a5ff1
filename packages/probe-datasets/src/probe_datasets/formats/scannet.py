"""ScanNet's folders: split lists, scene files, and the ways in which frames are exported.

A scene is `sceneXXXX_YY`; it comes as one `.sens` recording (see `sens.py`) or as exported frames.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from probe_datasets.formats.files import FETCH_AGAIN, data_error, read_lines, safe_path
from probe_datasets.formats.rgbd import read_intrinsics

__all__ = [
    "SPLIT_SIZES",
    "ExportedFrame",
    "ExportedScene",
    "exported_intrinsics",
    "exported_units",
    "find_exported",
    "find_scenes",
    "find_sens",
    "find_split",
    "name_patterns",
    "read_scene_file",
    "read_split",
]

SPLIT_SIZES = {"train": 1201, "val": 312, "test": 100}
"""Scenes in each of the official lists `scannetv2_{split}.txt`."""

_SCENE = re.compile(r"scene\d{4}_\d{2}")
_HOLDERS = ("", "scans", "scans_test", "scannet_frames_25k")
_LISTS = ("", "Tasks/Benchmark", "ScanNet/Tasks/Benchmark", "splits")
# What each tool calls colour, depth and pose of a frame; numbers are compared as numbers.
_LAYOUTS = {
    "folders": (r"color/(\d+)\.(?:jpg|jpeg|png)", r"depth/(\d+)\.(?:png|pgm)", r"pose/(\d+)\.txt"),
    "frame-files": (
        r"frame-(\d+)\.color\.(?:jpg|jpeg|png)",
        r"frame-(\d+)\.depth\.(?:png|pgm)",
        r"frame-(\d+)\.pose\.txt",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFrame:
    """Files of one frame, below the folder of its scene."""

    number: int
    """Number of the frame in the recording."""
    color: str
    """Path of the colour picture."""
    depth: str
    """Path of the depth picture."""
    pose: str
    """Path of the camera-to-world matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedScene:
    """A scene whose frames are files of their own."""

    folder: Path
    """The folder of the scene."""
    layout: str
    """"folders" (SensReader in Python, scannet_frames_25k) or "frame-files" (SensReader in C++)."""
    frames: tuple[ExportedFrame, ...]
    """Frames that have colour, depth and pose, by number."""
    incomplete: tuple[int, ...]
    """Numbers of the frames that lack one of the three."""


def read_split(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the scenes in an official split list, one a line.

    Args:
        path: `scannetv2_train.txt` or another list.

    Raises:
        DataError: missing, or a line that names no scene, or one twice.
    """
    what = "a list of scenes such as scene0000_00"
    scenes: dict[str, int] = {}
    for line, text in read_lines(path, what):
        scene = text.strip()
        if not _SCENE.fullmatch(scene):
            problem = f"has {scene[:80]!r} in line {line}"
            raise data_error(path, problem, what, "take the list from ScanNet's Tasks/Benchmark")
        if scene in scenes:
            problem = f"names {scene} in line {scenes[scene]} and again in line {line}"
            raise data_error(path, problem, "each scene once", FETCH_AGAIN)
        scenes[scene] = line
    return tuple(scenes)


def find_split(root: str | os.PathLike[str], split: str) -> Path:
    """The official list of a split, `scannetv2_{split}.txt`.

    Args:
        root: the folder of the data, which holds it itself or in `Tasks/Benchmark`, as ScanNet's
            repository does, in `ScanNet/Tasks/Benchmark`, or in `splits`.
        split: a key of `SPLIT_SIZES`.

    Raises:
        DataError: it is in none of these.
    """
    name = f"scannetv2_{split}.txt"
    for holder in _LISTS:
        path = Path(root, holder, name)
        if path.is_file():
            return path
    expected = f"it there or in {', '.join(_LISTS[1:])}"
    fix = "take it from Tasks/Benchmark of the ScanNet repository, or pass split_file"
    raise data_error(root, f"does not hold {name}", expected, fix)


def read_scene_file(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """The `key = value` lines of a scene's text file, such as `sceneType` and `axisAlignment`.

    Args:
        path: `sceneXXXX_YY.txt` or the `_info.txt` of an export.

    Returns:
        Values as text, by key.

    Raises:
        DataError: missing, or a line without "=".
    """
    what = "a ScanNet scene file of 'key = value' lines"
    values: dict[str, str] = {}
    for line, text in read_lines(path, what):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            problem = f"has {text[:80]!r} in line {line}"
            raise data_error(path, problem, what, FETCH_AGAIN)
        values[key.strip()] = value.strip()
    return values


def find_scenes(root: str | os.PathLike[str]) -> frozenset[str]:
    """Names of the scenes of which there is something below a ScanNet folder.

    Args:
        root: the folder that holds `scans/`, `scannet_frames_25k/` or the scenes themselves.
    """
    found: set[str] = set()
    for holder in _HOLDERS:
        folder = Path(root, holder)
        entries = os.listdir(folder) if folder.is_dir() else []
        names = {entry.removesuffix(".sens") for entry in entries}
        found |= {name for name in names if _SCENE.fullmatch(name)}
    return frozenset(found)


def find_sens(root: str | os.PathLike[str], scene: str) -> Path | None:
    """The recording of a scene below a ScanNet folder; None where it is not there.

    Args:
        root: the folder that holds `scans/`, or the scenes themselves.
        scene: such as `scene0000_00`.

    Raises:
        DataError: the scene's name is none, or a link leaves the root.
    """
    _check_scene(root, scene)
    for holder in _HOLDERS[:3]:
        for name in (f"{scene}/{scene}.sens", f"{scene}.sens"):
            path = safe_path(Path(root, holder), name)
            if path.is_file():
                return path
    return None


def find_exported(root: str | os.PathLike[str], scene: str) -> ExportedScene | None:
    """The exported frames of a scene, in the order of their numbers; None where there are none.

    Args:
        root: the folder that holds `scans/`, `scannet_frames_25k/` or the scenes themselves.
        scene: such as `scene0000_00`.

    Raises:
        DataError: the scene's name is none, a link leaves the root, or two files claim one frame.
    """
    _check_scene(root, scene)
    for holder in _HOLDERS:
        base = safe_path(Path(root, holder), scene)
        for inside in ("", "exported", "sens"):
            folder = base / inside
            for layout, patterns in _LAYOUTS.items():
                color, depth, pose = (_numbered(folder, pattern) for pattern in patterns)
                complete = sorted(color.keys() & depth.keys() & pose.keys())
                if complete:
                    frames = (
                        ExportedFrame(number=n, color=color[n], depth=depth[n], pose=pose[n])
                        for n in complete
                    )
                    every = color.keys() | depth.keys() | pose.keys()
                    return ExportedScene(
                        folder=folder,
                        layout=layout,
                        frames=tuple(frames),
                        incomplete=tuple(sorted(every - set(complete))),
                    )
    return None


def name_patterns(scene: ExportedScene) -> tuple[str, str, str]:
    """What `%` turns the number of a frame into: the paths of its colour, depth and pose.

    Args:
        scene: what `find_exported` returned.

    Raises:
        DataError: not all of its frames are named in the same way.
    """
    patterns = []
    for what in ("color", "depth", "pose"):
        first = getattr(scene.frames[0], what)
        below, slash, name = first.rpartition("/")
        digits = re.sub(r"^\D*(\d+).*$", r"\1", name)
        pattern = f"{below}{slash}{name.replace(digits, f'%0{len(digits)}d', 1)}"
        for frame in scene.frames:
            if pattern % frame.number != getattr(frame, what):
                problem = f"names its frames in two ways, as {first} and as {getattr(frame, what)}"
                raise data_error(scene.folder, problem, "one", "export the scene again")
        patterns.append(pattern)
    return patterns[0], patterns[1], patterns[2]


def exported_units(folder: Path) -> float:
    """Depth units in a metre of exported frames: as `_info.txt` says, or 1000.

    Args:
        folder: of the scene.

    Raises:
        DataError: the file says something else than a number of units.
    """
    info = safe_path(folder, "_info.txt")
    text = read_scene_file(info).get("m_depthShift", "1000") if info.is_file() else "1000"
    try:
        units = float(text)
    except ValueError:
        units = np.nan
    if not 1 <= units <= 65535:
        problem = f"has {text[:40]!r} as m_depthShift"
        raise data_error(info, problem, "1 to 65535 units in a metre, 1000 in ScanNet", FETCH_AGAIN)
    return units


def exported_intrinsics(
    scene: ExportedScene | Path, size: tuple[int, int], *, what: str = "depth"
) -> tuple[float, float, float, float]:
    """Normalised intrinsics of an exported scene.

    Args:
        scene: what `find_exported` returned, or the folder in it.
        size: (height, width) of the pictures.
        what: "color" or "depth".

    Returns:
        (fx, fy, cx, cy) in widths and heights.

    Raises:
        ValueError: `what` is neither.
        DataError: no file holds them, or not as a pinhole matrix.
    """
    if what not in ("color", "depth"):
        raise ValueError(f"what {what!r} must be 'color' or 'depth'")
    folder = scene.folder if isinstance(scene, ExportedScene) else scene
    for name in (f"intrinsic/intrinsic_{what}.txt", f"intrinsics_{what}.txt"):
        path = safe_path(folder, name)
        if path.is_file():
            return read_intrinsics(path, size)
    info = safe_path(folder, "_info.txt")
    if not info.is_file():
        problem = f"has neither intrinsic/intrinsic_{what}.txt nor _info.txt"
        raise data_error(folder, problem, f"the intrinsics of {what}", "export them too")
    key = "m_calibrationColorIntrinsic" if what == "color" else "m_calibrationDepthIntrinsic"
    fields = read_scene_file(info).get(key, "").split()
    try:
        matrix = np.array([float(field) for field in fields], np.float64)
    except ValueError:
        matrix = np.empty(0)
    height, width = size
    fx, fy, cx, cy = matrix[[0, 5, 2, 6]].tolist() if matrix.size == 16 else (np.nan,) * 4
    if not (fx > 0 and fy > 0 and 0 < cx < width and 0 < cy < height):
        problem = f"has no usable {key}"
        raise data_error(info, problem, "16 numbers of a pinhole matrix", FETCH_AGAIN)
    return fx / width, fy / height, cx / width, cy / height


def _check_scene(root: str | os.PathLike[str], scene: str) -> None:
    if not _SCENE.fullmatch(scene):
        problem = f"cannot hold a scene {scene[:80]!r}"
        raise data_error(root, problem, "a name such as scene0000_00", "check the split list")


def _numbered(folder: Path, pattern: str) -> dict[int, str]:
    """Paths below a folder that fit a pattern of at most two parts, by the number in them."""
    below, _, name = pattern.rpartition("/")
    where = folder / below if below else folder
    try:
        entries = sorted(os.listdir(where))
    except OSError:
        return {}
    fits = re.compile(name)
    found: dict[int, str] = {}
    for entry in entries:
        match = fits.fullmatch(entry)
        if match is None or len(match[1]) > 12:
            continue
        number = int(match[1])
        if number in found:
            problem = f"has both {found[number]!r} and {entry!r} for frame {number}"
            raise data_error(folder, problem, "one file a frame", "remove one of them")
        found[number] = f"{below}/{entry}" if below else entry
    return found
