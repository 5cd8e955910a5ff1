"""Colours of the solids' pixels, and ray-traced shadows.

Axes: T frames, H W pixels, i instances, n pixels of instances.
"""

import numpy as np
from jaxtyping import Bool, Float32

from probe_datasets.synthetic.casting import Hits, View
from probe_datasets.synthetic.scene import Instances, Scene
from probe_datasets.synthetic.shapes import interval, normals, reach
from probe_datasets.synthetic.textures import LAMP, falloff, pattern, to_pixels

BIAS = 2e-3
"""Share of the way to the lamp that is left out at a surface, so that it does not hide itself."""


def shade(
    scene: Scene, instances: Instances, hits: Hits, lamp: Bool[np.ndarray, " n"] | None
) -> Float32[np.ndarray, "3 n"]:
    """Colours of pixels of instances, -1 to 1.

    Args:
        scene: holds the lamp.
        instances: the solids.
        hits: their pixels.
        lamp: whether the lamp is in sight; everywhere where None.
    """
    kind, place = instances.kind, hits.place
    num_frames = instances.centres.shape[1]
    member = instances.member.take(place // num_frames)
    sizes = np.sqrt((instances.axes**2).sum(-2))
    lamps = (instances.inverses @ (scene.lamp - instances.centres)[..., None])[..., 0]
    local = hits.local
    outward = normals(kind.shape, *local)
    if hits.cut.any():
        cut = np.flatnonzero(hits.cut)
        towards = -instances.axes[..., 2, :].reshape(-1, 3)[place.take(cut)]
        outward = tuple(part.copy() for part in outward)
        for part, column in zip(outward, towards.T, strict=True):
            part[cut] = column
    facing, distance2, steepness2 = (np.zeros(len(place), np.float32) for _ in range(3))
    cells = []
    for axis, (part, normal) in enumerate(zip(local, outward, strict=True)):
        size = sizes[..., axis].astype(np.float32).reshape(-1).take(place)
        way = lamps[..., axis].astype(np.float32).reshape(-1).take(place) - part
        facing += normal * way
        way *= size
        distance2 += way * way
        steep = normal / size
        steepness2 += steep * steep
        size *= part
        size *= kind.cells.take(member)
        size += kind.offsets[:, axis].take(member)
        cells.append(size)
    light = np.maximum(facing, 0) / np.sqrt(distance2 * steepness2 + np.float32(1e-12))
    light *= falloff(distance2)
    if lamp is not None:
        light *= lamp
    light *= (1 - scene.ambient) * LAMP
    light += scene.ambient
    second = pattern(kind.texture, tuple(cells), kind.grain)
    colours = np.empty((3, len(place)), np.float32)
    for channel in range(3):
        pair = kind.colours[..., channel] * scene.light[channel]
        mixed = second * (pair[:, 1] - pair[:, 0]).take(member)
        mixed += pair[:, 0].take(member)
        mixed *= light
        colours[channel] = to_pixels(mixed)
    return colours


def shadowed(
    scene: Scene,
    view: View,
    depth: Float32[np.ndarray, "T H W"],
    solids: tuple[Instances, ...],
) -> Bool[np.ndarray, "T H W"]:
    """Whether something stands between the lamp and what each pixel shows.

    Rays start at the lamp, which is in front of the glass, and reach the surface at 1.

    Args:
        scene: holds the lamp.
        view: the camera.
        depth: z-depth of every pixel in metres.
        solids: what may be in the way.
    """
    columns, rows = (part.astype(np.float32) for part in view.directions())
    start = (view.centres - scene.lamp).astype(np.float32)[..., None, None]
    ways = [(columns[:, a] + rows[:, a]) * depth + start[:, a] for a in range(3)]
    inverse = np.reciprocal(np.sqrt(sum(way * way for way in ways)))
    units = [way * inverse for way in ways]
    lamp_z = np.float32(scene.lamp[2])
    result = np.zeros(depth.size, bool)
    for instances in solids:
        sizes = np.sqrt((instances.axes**2).sum(-2))
        radius = reach(instances.kind.shape, sizes)
        towards = instances.centres - scene.lamp
        far = np.sqrt((towards**2).sum(-1))
        # Cosine of the angle under which the lamp sees the ball round the instance.
        sine = np.minimum(radius / far, 1)
        cosine = np.where(far > radius, np.sqrt(1 - sine * sine), -1.0)
        cosine[~instances.present] = 2.0
        for i in np.flatnonzero(instances.present.any(-1)):
            aim = (towards[i] / far[i][:, None]).astype(np.float32)[..., None, None]
            along = units[0] * aim[:, 0]
            along += units[1] * aim[:, 1]
            along += units[2] * aim[:, 2]
            near = np.flatnonzero(along > cosine[i].astype(np.float32)[:, None, None])
            frame = near // depth[0].size
            way = [part.take(near) for part in ways]
            matrix = instances.inverses[i].astype(np.float32)
            origin = -(instances.inverses[i] @ towards[i][..., None])[..., 0].T
            direction = tuple(
                matrix[:, row, 0].take(frame) * way[0]
                + matrix[:, row, 1].take(frame) * way[1]
                + matrix[:, row, 2].take(frame) * way[2]
                for row in range(3)
            )
            source = tuple(part.astype(np.float32).take(frame) for part in origin)
            enter, leave = interval(instances.kind.shape, source, direction)
            # Nothing casts a shadow on what is in front of the glass.
            behind = way[2] > -lamp_z
            glass = -lamp_z / np.where(behind, way[2], 1)
            blocked = behind & (np.maximum(enter, glass) < np.minimum(leave, 1 - BIAS))
            result[near[blocked]] = True
    return result.reshape(depth.shape)
