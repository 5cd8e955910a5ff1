"""What a scene is, and how it is drawn.

World axes: x right, y down, z away from the camera; metres. The room is a box. Objects live where z
is above 0: a plane of glass, which cuts off whatever comes through it, stands between them and the
camera. They glide through walls, pillars and glass, and the space they move in is a torus that
reaches just outside of the room on all sides. So no motion ever stops, and nothing appears or
vanishes in sight. Each of an object's ways through the room is one instance: what leaves by one
wall, and comes in by the one opposite, is another instance.

Axes: T frames, n objects, i instances (objects and pillars).
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from probe_datasets.synthetic.actions import Motion, growth, rotation, shift
from probe_datasets.synthetic.camera import SWAY, TURN, CameraPath
from probe_datasets.synthetic.config import WorldConfig
from probe_datasets.synthetic.shapes import EXTENTS, SIZES, reach
from probe_datasets.synthetic.textures import tiled_room

LARGEST = 0.85
"""Largest scale of an object."""
GRAINS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Solids:
    """Solids of one shape and texture, without their motion."""

    shape: str
    """One of `SHAPES`."""
    texture: str
    """One of `TEXTURES`."""
    centres: Float[np.ndarray, "n 3"]
    """Positions at time 0, in metres."""
    turns: Float[np.ndarray, "n 3 3"]
    """Orientations at time 0, object to world."""
    sizes: Float[np.ndarray, "n 3"]
    """Half sides in metres: what 1 in a solid's own coordinates is worth."""
    colours: Float32[np.ndarray, "n 2 3"]
    """The two colours of each texture, 0 to 1."""
    cells: Float32[np.ndarray, " n"]
    """Cells of the texture in a metre."""
    offsets: Float32[np.ndarray, "n 3"]
    """Shift of the texture, in cells."""
    grain: Float32[np.ndarray, "g"]
    """Random numbers of the texture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything that decides a clip but its times and its size in pixels."""

    low: Float[np.ndarray, " 3"]
    """Left, upper corner of the room, behind the camera."""
    high: Float[np.ndarray, " 3"]
    """Right, lower, far corner of the room."""
    margin: float
    """How far the torus reaches outside of the room in metres, so that an object is out of sight
    when it comes to the end."""
    movers: Solids
    """The objects; their centres are positions on the torus."""
    motion: Motion
    """What all objects do."""
    pillars: Solids
    """Boxes from floor to ceiling that stand still."""
    camera: CameraPath
    """Where the camera is, and how it looks."""
    lamp: Float[np.ndarray, " 3"]
    """Position of the lamp, in front of the glass."""
    light: Float32[np.ndarray, " 3"]
    """Colour of the light."""
    ambient: float
    """Share of the light that comes from everywhere."""
    shadows: bool
    """Whether solids cast shadows."""
    lit: Float32[np.ndarray, "3 x y z"]
    """Colours of the room's surface under the lamp."""
    dark: Float32[np.ndarray, "3 x y z"]
    """The same in shadow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instances:
    """Where instances of one kind are at each time; pure rigid motion and growth."""

    kind: Solids
    """What they are."""
    member: Int[np.ndarray, " i"]
    """Which solid of the kind each instance is."""
    centres: Float[np.ndarray, "i T 3"]
    """Positions in metres; outside of the room for an instance that is not in it."""
    axes: Float[np.ndarray, "i T 3 3"]
    """Object coordinates to world: a rotation times the half sides in metres."""
    inverses: Float[np.ndarray, "i T 3 3"]
    """World to object coordinates, about the centre."""
    low: Float[np.ndarray, "i T 3"]
    """Corner of a box round what is in the room and behind the glass, along the world's axes."""
    high: Float[np.ndarray, "i T 3"]
    """The opposite corner, not above `low` where nothing of the instance is there."""

    @property
    def present(self) -> Bool[np.ndarray, "i T"]:
        """Whether something of an instance is in the room and behind the glass."""
        return np.all(self.high > self.low, axis=-1)


def draw_scene(
    rng: np.random.Generator, shape: str, texture: str, action: str, config: WorldConfig
) -> Scene:
    """Draws everything random about a clip of the given classes.

    Args:
        rng: source of chance.
        shape: one of `SHAPES`.
        texture: one of `TEXTURES`.
        action: one of `ACTIONS`.
        config: how hard the clip is.
    """
    u = rng.random(40)
    half = np.array([1.7 + 0.3 * u[0], 1.25 + 0.25 * u[1]])
    low, high = np.array([*-half, -3.0]), np.array([*half, 2.8 + 0.7 * u[2]])
    vary = config.light_variation
    light = (1 + vary * (u[3] - 0.5)) * (1 + 0.3 * vary * (u[4:7] - 0.5))
    lamp = np.array([1.2 * (2 * u[7] - 1), -half[1] + 0.15, -1.4 + 1.1 * u[8]])
    ambient = config.ambient
    lit, dark = tiled_room(rng, low, high, lamp, light, config)
    motion = Motion(
        action=action,
        speed=config.object_speed * (0.9 + 0.6 * u[9]),
        turning=config.object_speed * (1.6 + 1.6 * u[10]),
        angle=2 * math.pi * u[11],
        pulses=rng.random(config.num_objects),
    )
    movers, margin = _movers(rng, shape, texture, low, high, config)
    return Scene(
        low=low,
        high=high,
        margin=margin,
        movers=movers,
        motion=motion,
        pillars=_pillars(rng, low, high, config),
        camera=_camera(u[12:], config),
        lamp=lamp,
        light=light.astype(np.float32),
        ambient=ambient,
        shadows=config.shadows,
        lit=lit,
        dark=dark,
    )


def _camera(u: Float[np.ndarray, " u"], config: WorldConfig) -> CameraPath:
    """A mean pose that looks into the room, and how the camera moves about it."""
    vertical, around = 2 * u[0] - 1, 2 * math.pi * u[1]
    across = math.sqrt(1 - vertical * vertical)
    heading = np.array([across * math.cos(around), vertical, across * math.sin(around)])
    centre = np.array([1.2 * u[2] - 0.6, 0.6 * u[3] - 0.3, -1.9 - 0.3 * u[4]])
    speed = config.camera_speed
    moving = min(speed / 0.3, 1.0)
    # Towards the middle of the room, give or take.
    aim = np.array([0.1 * centre[1] / 2, -0.6 * centre[0] / 4, 0.0])
    return CameraPath(
        centre=centre,
        sway=SWAY * (speed > 0) * heading,
        angles=aim + np.array([0.1, 0.16, 0.1]) * (2 * u[5:8] - 1),
        turn=moving * TURN * np.array([0.7, 1.0, 0.5]) * (0.5 + 0.5 * u[8:11]),
        rates=np.array([speed / SWAY, (1.0 + u[11]) * max(moving, speed / 0.3)]),
        phases=2 * math.pi * u[12:16],
        focal=0.75 + 0.2 * u[16],
    )


def random_turns(u: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Uniform rotations from uniform numbers.

    Reference: K. Shoemake, Uniform random rotations, Graphics Gems III, 1992.
    """
    one, other = np.sqrt(1 - u[:, 0]), np.sqrt(u[:, 0])
    a, b = 2 * math.pi * u[:, 1], 2 * math.pi * u[:, 2]
    x, y, z, w = one * np.sin(a), one * np.cos(a), other * np.sin(b), other * np.cos(b)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _colours(rng: np.random.Generator, num: int, contrast: float) -> Float32[np.ndarray, "num 2 3"]:
    """Two colours for each of some solids, moved towards each other as contrast is low."""
    pair = 0.1 + 0.9 * rng.random((num, 2, 3))
    # A second colour that is unlike the first: the other way round the middle of the range.
    pair[:, 1] = 0.35 * pair[:, 1] + 0.65 * np.remainder(pair[:, 0] + 0.45, 0.9)
    mean = pair.mean(1, keepdims=True)
    return (mean + contrast * (pair - mean)).astype(np.float32)


def _movers(
    rng: np.random.Generator,
    shape: str,
    texture: str,
    low: Float[np.ndarray, " 3"],
    high: Float[np.ndarray, " 3"],
    config: WorldConfig,
) -> tuple[Solids, float]:
    """The objects, and the distance of their farthest point from a centre."""
    num = config.num_objects
    u = rng.random((num, 11))
    scale = LARGEST * (0.65 + 0.35 * u[:, :1])
    sizes = scale * (0.92 + 0.16 * u[:, 1:4]) * np.array(SIZES[shape])
    margin = float(reach(shape, sizes).max())
    solids = Solids(
        shape=shape,
        texture=texture,
        centres=_spread(rng, num, torus(low, high, margin)),
        turns=random_turns(u[:, 4:7]),
        sizes=sizes,
        colours=_colours(rng, num, config.texture_contrast),
        cells=(3.4 + 1.2 * u[:, 7]).astype(np.float32),
        offsets=u[:, 8:11].astype(np.float32),
        grain=rng.random(GRAINS).astype(np.float32),
    )
    return solids, margin


def _spread(
    rng: np.random.Generator, num: int, period: Float[np.ndarray, " 3"], tries: int = 24
) -> Float[np.ndarray, "num 3"]:
    """Positions on a torus that keep away from each other: each is the farthest of some tries."""
    tried = rng.random((num, tries, 3)) * period
    chosen = tried[:, 0].copy()
    for k in range(1, num):
        away = np.abs(tried[k, :, None] - chosen[:k])
        away = np.minimum(away, period - away)
        chosen[k] = tried[k, (away * away).sum(-1).min(-1).argmax()]
    return chosen


def _pillars(
    rng: np.random.Generator,
    low: Float[np.ndarray, " 3"],
    high: Float[np.ndarray, " 3"],
    config: WorldConfig,
) -> Solids:
    num = config.num_occluders
    u = rng.random((num, 9))
    angle = math.pi * u[:, 0]
    turns = np.zeros((num, 3, 3))
    turns[:, 0, 0] = turns[:, 2, 2] = np.cos(angle)
    turns[:, 0, 2], turns[:, 2, 0] = np.sin(angle), -np.sin(angle)
    turns[:, 1, 1] = 1
    centres = np.zeros((num, 3))
    centres[:, 0] = (high[0] - 0.5) * (2 * u[:, 1] - 1)
    centres[:, 2] = 0.3 + 1.5 * u[:, 2]
    sizes = np.stack([0.1 + 0.07 * u[:, 3], np.full(num, high[1]), 0.1 + 0.07 * u[:, 4]], axis=1)
    return Solids(
        shape="box",
        texture="stripes",
        centres=centres,
        turns=turns,
        sizes=sizes,
        colours=_colours(rng, num, 0.5 * config.texture_contrast),
        cells=(1.0 + 2.0 * u[:, 5]).astype(np.float32),
        offsets=u[:, 6:9].astype(np.float32),
        grain=np.zeros(1, np.float32),
    )


def torus(
    low: Float[np.ndarray, " 3"], high: Float[np.ndarray, " 3"], margin: float
) -> Float[np.ndarray, " 3"]:
    """Periods of the space that objects move in, in metres."""
    return np.array([high[0] - low[0], high[1] - low[1], high[2]]) + 2 * margin


def moving_instances(scene: Scene, times: Float[np.ndarray, " T"]) -> Instances:
    """Every way of an object through the room during a clip.

    Args:
        scene: what moves.
        times: seconds.
    """
    kind, period = scene.movers, torus(scene.low, scene.high, scene.margin)
    corner = np.array([scene.low[0], scene.low[1], 0.0]) - scene.margin
    moved = shift(scene.motion, times)
    path = kind.centres[:, None] + moved
    grown = growth(scene.motion, times)
    turned = rotation(scene.motion, times) @ kind.turns[:, None]
    axes = turned * (kind.sizes[:, None] * grown[..., None])[:, :, None]
    # Laps round the torus that objects are in, along each axis.
    first = np.floor(path.min((0, 1)) / period).astype(int)
    last = np.floor(path.max((0, 1)) / period).astype(int)
    laps = np.array(list(product(*(range(a, b + 1) for a, b in zip(first, last, strict=True)))))
    member = np.repeat(np.arange(len(path)), len(laps))
    centres = path[member] + corner - (np.tile(laps, (len(path), 1)) * period)[:, None]
    return _placed(scene, kind, member, centres, axes[member])


def standing_instances(scene: Scene, times: Float[np.ndarray, " T"]) -> Instances:
    """The pillars during a clip.

    Args:
        scene: where they stand.
        times: seconds.
    """
    kind, num = scene.pillars, len(times)
    axes = (kind.turns * kind.sizes[:, None])[:, None].repeat(num, axis=1)
    centres = kind.centres[:, None].repeat(num, axis=1)
    return _placed(scene, kind, np.arange(len(centres)), centres, axes)


def _placed(
    scene: Scene,
    kind: Solids,
    member: Int[np.ndarray, " i"],
    centres: Float[np.ndarray, "i T 3"],
    axes: Float[np.ndarray, "i T 3 3"],
) -> Instances:
    """Instances that are in the room at some time."""
    half = (np.abs(axes) * EXTENTS[kind.shape]).sum(-1)
    low = np.maximum(centres - half, [*scene.low[:2], 0.0])
    high = np.minimum(centres + half, scene.high)
    keep = np.flatnonzero((high > low).all(-1).any(-1))
    axes = axes[keep]
    sizes2 = (axes * axes).sum(-2, keepdims=True)
    return Instances(
        kind=kind,
        member=member[keep],
        centres=centres[keep],
        axes=axes,
        inverses=np.swapaxes(axes / sizes2, -1, -2),
        low=low[keep],
        high=high[keep],
    )
