"""Convex solids in their own coordinates, where each fits the cube [-1, 1]^3; y is the axis.

A ray is `origin + t * direction`. A solid meets it in one interval of t, so that cutting a solid by
a plane, or asking whether anything lies before a point, is arithmetic on intervals. The functions
keep the precision of what they are given, and cancel as little as they can: the nearest point of
the ray to the axis or centre is found first, and discriminants are taken about it.
"""

import numpy as np
from jaxtyping import Float

from probe_datasets.synthetic.config import SHAPES

Array = Float[np.ndarray, "*#n"]
Vector = tuple[Array, ...]

SIZES = {
    "sphere": (0.78, 0.78, 0.78),
    "box": (0.57, 0.57, 0.57),
    "cylinder": (0.62, 0.7, 0.62),
    "cone": (0.72, 0.78, 0.72),
    "capsule": (0.98, 0.98, 0.98),
    "octahedron": (0.95, 0.95, 0.95),
}
"""Half of each side of an object whose scale is 1, before its own proportions."""
CAPSULE = 0.5
"""Radius of the capsule, and half of the length of its straight part."""
EXTENTS = {shape: np.ones(3) for shape in SHAPES} | {"capsule": np.array([CAPSULE, 1.0, CAPSULE])}
"""Half of each side of the smallest box round a solid."""
ELLIPSOIDS = {
    "sphere": (np.array([1.0, 1.0, 1.0]), 0.0),
    "cylinder": (np.array([1.5**0.5, 3**0.5, 1.5**0.5]), 0.0),
    "cone": (np.array([1.125**0.5, 1.5, 1.125**0.5]), -0.5),
    "capsule": (np.array([0.62, 1.07, 0.62]), 0.0),
    "octahedron": (np.array([1.0, 1.0, 1.0]), 0.0),
}
"""Half axes of an ellipsoid round a solid, and the place of its centre on the axis."""
_TINY = 1e-30


def unknown(shape: str) -> ValueError:
    """The error for a shape that is not one of `SHAPES`."""
    return ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def reach(shape: str, sizes: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Distance within which a solid of some half sides lies of its centre, in their unit."""
    if shape in ("sphere", "capsule", "octahedron"):
        return sizes.max(-1)
    return np.sqrt((sizes * sizes).sum(-1) if shape == "box" else _rim(sizes))


def _rim(sizes: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    """Squared distance of the rim of a cylinder's or cone's base from the centre."""
    return np.maximum(sizes[..., 0], sizes[..., 2]) ** 2 + sizes[..., 1] ** 2


def interval(shape: str, origin: Vector, direction: Vector) -> tuple[Array, Array]:
    """Where rays enter and leave a solid: (t in, t out), with t in above t out where they miss.

    Args:
        shape: one of `SHAPES`.
        origin: starts of the rays, in the solid's coordinates.
        direction: directions of the rays, of any length but 0.

    Raises:
        ValueError: for an unknown shape.
    """
    ox, oy, oz = origin
    dx, dy, dz = direction
    with np.errstate(all="ignore"):
        if shape == "sphere":
            return _round(ox, oy, oz, dx, dy, dz, 1.0)
        if shape == "box":
            low, high = _slab(oy, dy)
            for one_low, one_high in (_slab(ox, dx), _slab(oz, dz)):
                low, high = np.maximum(low, one_low), np.minimum(high, one_high)
            return low, high
        if shape == "octahedron":
            low, high = _slab(ox + oy + oz, dx + dy + dz)
            for sy, sz in ((1, -1), (-1, 1), (-1, -1)):
                one_low, one_high = _slab(ox + sy * oy + sz * oz, dx + sy * dy + sz * dz)
                low, high = np.maximum(low, one_low), np.minimum(high, one_high)
            return low, high
        if shape == "cylinder":
            low, high = _slab(oy, dy)
            side_low, side_high = _round(ox, None, oz, dx, None, dz, 1.0)
            return np.maximum(low, side_low), np.minimum(high, side_high)
        if shape == "cone":
            low, high = _slab(oy, dy)
            side_low, side_high = _nappe(ox, oy, oz, dx, dy, dz)
            return np.maximum(low, side_low), np.minimum(high, side_high)
        if shape == "capsule":
            low, high = _slab(oy, dy, CAPSULE)
            side_low, side_high = _round(ox, None, oz, dx, None, dz, CAPSULE**2)
            low, high = np.maximum(low, side_low), np.minimum(high, side_high)
            gone = low > high
            low[gone], high[gone] = np.inf, -np.inf
            for end in (-CAPSULE, CAPSULE):
                ball_low, ball_high = _round(ox, oy - end, oz, dx, dy, dz, CAPSULE**2)
                gone = ball_low > ball_high
                ball_low[gone], ball_high[gone] = np.inf, -np.inf
                low, high = np.minimum(low, ball_low), np.maximum(high, ball_high)
            return low, high
    raise unknown(shape)


def _slab(o: Array, d: Array, half: float = 1.0) -> tuple[Array, Array]:
    """Interval of |o + t d| <= half."""
    inverse = 1 / (d + _TINY)
    one, other = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(one, other), np.maximum(one, other)


def _round(
    ox: Array,
    oy: Array | None,
    oz: Array,
    dx: Array,
    dy: Array | None,
    dz: Array,
    radius2: float,
) -> tuple[Array, Array]:
    """Interval inside a ball, or inside a cylinder about y where the y parts are None."""
    a, b = dx * dx + dz * dz, ox * dx + oz * dz
    if oy is not None and dy is not None:
        a, b = a + dy * dy, b + oy * dy
    inverse = 1 / (a + _TINY)
    middle = -b * inverse
    x, z = ox + middle * dx, oz + middle * dz
    spare = radius2 - x * x - z * z
    if oy is not None and dy is not None:
        y = oy + middle * dy
        spare -= y * y
    missed = spare < 0
    half = np.sqrt(np.maximum(spare, 0) * inverse)
    half[missed] = -np.inf
    return middle - half, middle + half


def _nappe(ox: Array, oy: Array, oz: Array, dx: Array, dy: Array, dz: Array) -> tuple[Array, Array]:
    """Interval inside the cone below its tip at y = 1, whose radius at y = -1 is 1, unbounded."""
    # About the point of the ray that is nearest to the centre, so that the terms stay small.
    start = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
    x, y, z = ox + start * dx, oy + start * dy, oz + start * dz
    height, fall = 0.5 * (1 - y), -0.5 * dy
    a = dx * dx + dz * dz - fall * fall
    b = x * dx + z * dz - height * fall
    c = x * x + z * z - height * height
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    q = -(b + np.copysign(root, b))
    one, other = q / (a + np.copysign(_TINY, a)), c / (q + np.copysign(_TINY, q))
    low, high = np.minimum(one, other), np.maximum(one, other)
    # A ray steeper than the cone is inside both before the first root and after the second.
    steep, down = a < 0, dy < 0
    before, after = steep & ~down, steep & down
    high[before] = low[before]
    low[before] = -np.inf
    low[after] = high[after]
    high[after] = np.inf
    missed = discriminant < 0
    low[missed], high[missed] = np.inf, -np.inf
    return low + start, high + start


def normals(shape: str, x: Array, y: Array, z: Array) -> Vector:
    """Outward normals of any length at points of a solid's surface.

    Args:
        shape: one of `SHAPES`.
        x: first coordinate of the points.
        y: second coordinate.
        z: third coordinate.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape == "sphere":
        return x, y, z
    if shape == "octahedron":
        return np.sign(x), np.sign(y), np.sign(z)
    if shape == "capsule":
        return x, y - np.clip(y, -CAPSULE, CAPSULE), z
    if shape == "box":
        ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
        largest = np.maximum(np.maximum(ax, ay), az)
        return (ax >= largest) * x, (ay >= largest) * y, (az >= largest) * z
    if shape == "cylinder":
        flat = np.abs(y) > np.sqrt(x * x + z * z)
        return x * ~flat, y * flat, z * ~flat
    if shape == "cone":
        across = np.sqrt(x * x + z * z)
        flat = y + 1 < 0.5 * (1 - y) - across + 1e-5
        return x * ~flat, 0.5 * across * ~flat - flat, z * ~flat
    raise unknown(shape)
