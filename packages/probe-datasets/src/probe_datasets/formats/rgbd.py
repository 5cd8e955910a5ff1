"""Depth pictures and camera matrices in files of their own, as exported RGB-D recordings hold them.

Axes: `H W` pixels. Depth is along the camera's z axis in metres. Poses are 3x4, world to camera,
OpenCV axes; the files hold the inverse, 4x4 camera to world.
"""

import os

import numpy as np
from jaxtyping import Bool, Float32, Float64
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    data_error,
    read_bytes,
    read_lines,
    real_number,
)
from probe_datasets.formats.poses import invert_pose, is_rigid
from probe_datasets.formats.still_images import MAX_BYTES, decode_u16

__all__ = ["read_depth", "read_intrinsics", "read_matrix", "read_pose"]


def read_depth(
    path: str | os.PathLike[str],
    *,
    units_per_metre: float = 1000.0,
    invalid: tuple[int, ...] = (0,),
    size: tuple[int, int] | None = None,
) -> tuple[Float32[ndarray, "H W"], Bool[ndarray, "H W"]]:
    """Depth of a 16-bit PNG or PGM file.

    Args:
        path: the file.
        units_per_metre: what a metre is in the file: 1000 in ScanNet and 7-Scenes.
        invalid: values that mean "no depth": 0 in ScanNet, 0 and 65535 in 7-Scenes.
        size: (height, width) that it must have.

    Returns:
        Metres, 0 where invalid; and where it is valid.

    Raises:
        DataError: no such picture, cut short, damaged, of fewer bits or of another size.
    """
    data = read_bytes(path, "a 16-bit depth picture", max_bytes=MAX_BYTES)
    units = decode_u16(data, path, size=size)
    valid = ~np.isin(units, invalid)
    metres = np.where(valid, units, 0).astype(np.float32) / np.float32(units_per_metre)
    return metres, valid


def read_matrix(path: str | os.PathLike[str]) -> Float64[ndarray, "i j"]:
    """Rows of numbers in a text file, 3x3, 3x4 or 4x4; "-inf" and "nan" are read as such.

    Args:
        path: the file.

    Raises:
        DataError: missing, or no such matrix.
    """
    what = "a 3x3, 3x4 or 4x4 matrix as text"
    rows: list[list[float]] = []
    for line, text in read_lines(path, what):
        rows.append([real_number(field, path, line, "an entry") for field in text.split()[:5]])
        if len(rows) > 4:
            break
    shape = (len(rows), len(rows[0]) if rows else 0)
    if shape not in ((3, 3), (3, 4), (4, 4)) or len({len(row) for row in rows}) != 1:
        problem = f"holds rows of {sorted({len(row) for row in rows})} numbers, {len(rows)} of them"
        raise data_error(path, problem, what, FETCH_AGAIN)
    return np.array(rows, np.float64)


def read_pose(path: str | os.PathLike[str]) -> tuple[Float32[ndarray, "3 4"], bool]:
    """World-to-camera pose of a file that holds a camera-to-world matrix.

    Args:
        path: the file.

    Returns:
        The pose, NaN where tracking was lost; and whether it was tracked.

    Raises:
        DataError: missing, or a finite matrix that is no rigid motion.
    """
    matrix = read_matrix(path)
    if matrix.shape != (4, 4):
        problem = f"holds a matrix of {matrix.shape[0]} x {matrix.shape[1]}"
        raise data_error(path, problem, "a 4x4 camera-to-world matrix", FETCH_AGAIN)
    if not np.isfinite(matrix).all():
        return np.full((3, 4), np.nan, np.float32), False
    if not is_rigid(matrix[:3], tolerance=0.01) or list(matrix[3]) != [0, 0, 0, 1]:
        problem = "holds a matrix that is no rigid motion"
        raise data_error(path, problem, "a rotation and a translation", FETCH_AGAIN)
    return invert_pose(matrix[:3]).astype(np.float32), True


def read_intrinsics(
    path: str | os.PathLike[str], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Normalised intrinsics of a file that holds a 3x3 or 4x4 pinhole matrix in pixels.

    Args:
        path: the file.
        size: (height, width) of the pictures that the matrix is for.

    Returns:
        (fx, fy, cx, cy) in widths and heights.

    Raises:
        DataError: missing, or not the matrix of such a camera.
    """
    matrix, (height, width) = read_matrix(path), size
    fx, fy, cx, cy = (float(matrix[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    plain = np.eye(matrix.shape[0], matrix.shape[1])
    plain[[0, 1, 0, 1], [0, 1, 2, 2]] = (fx, fy, cx, cy)
    plausible = 0.1 * width < fx < 10 * width and 0.1 * height < fy < 10 * height
    if not (plausible and 0 < cx < width and 0 < cy < height and (matrix == plain).all()):
        problem = f"holds intrinsics that no camera of {width} x {height} pixels has"
        problem += f": fx {fx:g}, fy {fy:g}, cx {cx:g}, cy {cy:g}"
        raise data_error(path, problem, "a pinhole matrix in pixels", "pass the size it is for")
    return fx / width, fy / height, cx / width, cy / height
