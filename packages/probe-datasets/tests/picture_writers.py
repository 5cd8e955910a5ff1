"""Pictures that show which way round they are and what was cut off, for the tests of datasets."""

from pathlib import Path

import numpy as np
from PIL import Image

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128)


def draw(height: int = 40, width: int = 80) -> Image.Image:
    """The left half of the central square is red and the right one green; the margins are blue."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = BLUE
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels[top : top + side, left : left + side // 2] = RED
    pixels[top : top + side, left + side // 2 : left + side] = GREEN
    return Image.fromarray(pixels)


def write_picture(path: Path, *, mode: str = "RGB", format: str = "JPEG", **size: int) -> Path:
    """A picture as a file, whatever its name says about its format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    draw(**size).convert(mode).save(path, format, **options)
    return path


def is_colour(video: object, row: int, column: int, colour: tuple[int, int, int]) -> bool:
    """Whether one pixel of all frames of a clip in [-1, 1] has a colour, within 24 of 255."""
    found = (np.asarray(video)[:, :, row, column] + 1) * 127.5
    return bool(np.abs(found - np.array(colour)[:, None]).max() <= 24)
