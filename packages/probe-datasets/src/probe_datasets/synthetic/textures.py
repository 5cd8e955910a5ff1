"""Solid textures of objects, and the tiles and lamplight of the room's walls.

A solid texture is a function of the place in the object, so it needs no seams and goes on where an
object is cut. Its class is a pattern; which two colours it mixes says nothing about the class.
"""

import numpy as np
from jaxtyping import Float, Float32

from probe_datasets.synthetic.config import TEXTURES, WorldConfig

Array = Float[np.ndarray, " n"]

LAMP = 1.6
"""Strength of the lamp next to light from everywhere."""
TILE = 0.14
"""Side of the smallest tile of a wall in metres."""


def pattern(texture: str, place: tuple[Array, ...], grain: Float[np.ndarray, " g"]) -> Array:
    """How much of the second colour there is at a place, 0 to 1.

    Args:
        texture: one of `TEXTURES`.
        place: coordinates x, y and z, in cells of the pattern.
        grain: random numbers from 0 to 1 that `mosaic` is made of.

    Raises:
        ValueError: for an unknown texture.
    """
    x, y, z = place
    if texture == "checker":
        return np.remainder(np.floor(x) + np.floor(y) + np.floor(z), 2)
    if texture == "stripes":
        return np.remainder(np.floor(y), 2)
    if texture == "sectors":
        return np.remainder(np.floor(np.arctan2(z, x) * (3 / np.pi)), 2)
    if texture == "mosaic":
        cell = 73 * np.floor(x) + 37 * np.floor(y) + 19 * np.floor(z)
        return grain.take(np.remainder(cell.astype(np.int32), len(grain)))
    x, y, z = x - np.rint(x), y - np.rint(y), z - np.rint(z)
    if texture == "dots":
        return (x * x + y * y + z * z < 0.38**2).astype(x.dtype)
    if texture == "grid":
        thin = np.minimum(np.minimum(np.abs(x), np.abs(y)), np.abs(z)) < 0.09
        return thin.astype(x.dtype)
    raise ValueError(f"unknown texture {texture!r}; known: {', '.join(TEXTURES)}")


def to_pixels(colour: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Colours of 0 to 1 as pixels of -1 to 1; what is brighter is cut off."""
    pixels = colour * 2
    pixels -= 1
    np.maximum(pixels, -1, out=pixels)
    return np.minimum(pixels, 1, out=pixels)


def falloff(distance2: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Strength of the lamp at a squared distance in square metres, 1 at 0."""
    return 1 / (1 + 0.06 * distance2)


def tiled_room(
    rng: np.random.Generator,
    low: Float[np.ndarray, " 3"],
    high: Float[np.ndarray, " 3"],
    lamp: Float[np.ndarray, " 3"],
    light: Float[np.ndarray, " 3"],
    config: WorldConfig,
) -> tuple[Float32[np.ndarray, "3 x y z"], Float32[np.ndarray, "3 x y z"]]:
    """Colours of the room's surface, a block of tiles of which only the outside is filled.

    Args:
        rng: source of chance.
        low: corner of the room in metres.
        high: opposite corner.
        lamp: position of the lamp.
        light: colour of the light.
        config: contrast of the tiles, and share of the light that comes from everywhere.

    Returns:
        Colours of -1 to 1 with the lamp and, where there are shadows, without it.
    """
    shape = tuple(int(n) for n in np.ceil((high - low) / TILE))
    lit = np.empty((3, *shape), np.float32)
    dark = np.empty_like(lit) if config.shadows else lit
    middles = [low[a] + (np.arange(n) + 0.5) / n * (high - low)[a] for a, n in enumerate(shape)]
    ambient, contrast = config.ambient, config.texture_contrast
    for axis, side in ((0, 0), (0, -1), (1, 0), (1, -1), (2, -1)):
        first, second = (a for a in range(3) if a != axis)
        wall = (shape[first], shape[second])
        base, tint = 0.35 + 0.45 * rng.random(3), 0.3 + rng.random(3)
        coarse = rng.random((wall[0] // 4 + 1, wall[1] // 4 + 1)) - 0.5
        coarse = coarse.repeat(4, axis=0).repeat(4, axis=1)[: wall[0], : wall[1]]
        shade = contrast * (0.5 * coarse + 0.3 * (rng.random(wall) - 0.5))
        # Along the normal, and along the wall: squared distances are sums of three small parts.
        depth = abs((low, high)[side][axis] - lamp[axis])
        distance2 = (middles[first] - lamp[first])[:, None] ** 2 + (
            (middles[second] - lamp[second]) ** 2 + depth**2
        )
        lamplight = LAMP * depth / np.sqrt(distance2) * falloff(distance2)
        strength = ambient + (1 - ambient) * lamplight
        where: list[slice | int] = [slice(None)] * 4
        where[axis + 1] = side
        albedo = (tint * light)[:, None, None] * shade + (base * light)[:, None, None]
        lit[tuple(where)] = to_pixels(albedo * strength)
        if config.shadows:
            dark[tuple(where)] = to_pixels(albedo * ambient)
    return lit, dark
