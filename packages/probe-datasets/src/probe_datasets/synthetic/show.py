"""A film strip of one clip with its labels drawn over it.

Axes: T frames, H W pixels, m instances that have boxes, p points; n frames on the strip.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from probe_datasets.clips import ClipConfig
from probe_datasets.synthetic.config import WorldConfig
from probe_datasets.synthetic.dataset import NUM_CLIPS, SyntheticWorld, WorldExample

Colour = tuple[int, int, int]

CELL = 208
"""Pixels of each side of a frame on the strip."""
GAP, LEFT, TOP = 6, 78, 62
"""Pixels between frames, and of the margins that hold the names of rows and the title."""
PAPER, INK, FAINT = (250, 249, 246), (34, 34, 40), (140, 138, 134)
IDENTITIES: tuple[Colour, ...] = (
    (239, 83, 80),
    (66, 165, 245),
    (255, 202, 40),
    (102, 187, 106),
    (171, 71, 188),
    (255, 138, 60),
    (38, 198, 218),
    (236, 64, 160),
    (174, 213, 60),
    (121, 134, 236),
    (161, 120, 100),
    (0, 150, 136),
)
"""Colours of instances 0, 1, ..., and again from the start."""
ROOM: Colour = (196, 196, 200)
"""Colour of points that are on the room or a pillar."""
LEGEND = """blue: way of the camera, and what
it sees in the first and last frame
pale line: the glass, behind which
the objects move
colours: ways of points on objects
dots: the last frame
grey: pillars

points: a ring is hidden"""
NEAR_TO_FAR = np.array(
    [[255, 246, 190], [253, 187, 92], [230, 92, 74], [140, 41, 117], [44, 17, 82], [8, 6, 30]]
)


def identity_colour(instance: int) -> Colour:
    """Colour of instance `instance`, from 0; of the room below 0."""
    return IDENTITIES[instance % len(IDENTITIES)] if instance >= 0 else ROOM


def colour_depth(depth: Float[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    """Colours of depths, on a scale of 1 / depth: pale is the nearest, black the farthest.

    Args:
        depth: z-depth in metres, above 0.
    """
    nearness = 1 / depth
    low, high = nearness.min(), nearness.max()
    place = (high - nearness) / max(high - low, 1e-6) * (len(NEAR_TO_FAR) - 1)
    steps = np.arange(len(NEAR_TO_FAR))
    colours = [np.interp(place, steps, channel) for channel in NEAR_TO_FAR.T]
    return np.stack(colours, axis=-1).astype(np.uint8)


def point_owners(example: WorldExample) -> Int[np.ndarray, " p"]:
    """Instance that each tracked point is on, and -1 for those on the room or on pillars."""
    segments = example["segments"].numpy()
    frame = example["query_frames"].numpy()
    place = example["points"].numpy()[np.arange(len(frame)), frame]
    size = np.array([segments.shape[2], segments.shape[1]])
    column, row = np.clip((place * size).astype(int), 0, size - 1).T
    return segments[frame, row, column].astype(int) - 1


def draw_strip(dataset: SyntheticWorld, index: int, num_columns: int = 6) -> Image.Image:
    """Draws some frames of a clip: boxes, point tracks, depth, masks, and a map of the room.

    Args:
        dataset: a split of the synthetic world.
        index: which clip.
        num_columns: frames on the strip, spread evenly from the first to the last.

    Raises:
        ValueError: if `num_columns` is below 1.
        IndexError: if `index` is outside the split.
    """
    if num_columns < 1:
        raise ValueError(f"columns {num_columns} must be at least 1")
    example = dataset[index]
    num_frames = len(example["depth"])
    shown = np.unique(np.linspace(0, num_frames - 1, num_columns).round().astype(int))
    pixels = ((example["video"].numpy() + 1) * 127.5).round().astype(np.uint8)
    video = rearrange(pixels, "c T H W -> T H W c")
    grey = repeat(video.mean(-1), "T H W -> T H W c", c=3)
    segments = example["segments"].numpy()
    palette = np.array([ROOM, *(identity_colour(k) for k in range(255))])
    share = np.where(segments > 0, 0.62, 0.0)[..., None]
    masks = ((1 - share) * 0.8 * grey + share * palette[segments]).astype(np.uint8)
    depth = example["depth"].numpy()
    tinted = colour_depth(depth)
    owners = point_owners(example)
    rows = ("boxes", "points", "depth", "masks")
    step = CELL + GAP
    width = LEFT + max(len(shown), 6) * step + GAP
    sheet = Image.new("RGB", (width, TOP + (len(rows) + 1) * step + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_title(draw, dataset, index)
    for row, name in enumerate(rows):
        draw.text((LEFT - 10, TOP + row * step + CELL / 2), name, INK, _font(15), anchor="rm")
    for column, t in enumerate(shown.tolist()):
        left = LEFT + column * step
        draw.text((left + CELL / 2, TOP - 4), f"frame {t}", FAINT, _font(12), anchor="mb")
        cells = (
            _with_boxes(_cell(video[t]), example, t),
            _with_points(_cell(grey[t].astype(np.uint8) // 2 + 40), example, owners, t),
            _cell(tinted[t]),
            _cell(masks[t], smooth=False),
        )
        for row, cell in enumerate(cells):
            sheet.paste(cell, (left, TOP + row * step))
    draw.text(
        (LEFT - 10, TOP + 2 * step + CELL / 2 + 20),
        f"{depth.min():.1f} m\nto {depth.max():.1f} m",
        FAINT,
        _font(12),
        anchor="ra",
        align="right",
    )
    top = TOP + len(rows) * step
    draw.text((LEFT - 10, top + CELL / 2), "maps", INK, _font(15), anchor="rm")
    left = LEFT
    for axis, name in ((0, "from above"), (1, "from the side")):
        card = _map(dataset, index, example, owners, axis)
        sheet.paste(card, (left, top))
        draw.text((left + 8, top + 6), name, FAINT, _font(12), anchor="la")
        left += card.width + 2 * GAP
    draw.multiline_text((left + GAP, top + GAP), LEGEND, FAINT, _font(12), spacing=7)
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write_title(draw: ImageDraw.ImageDraw, dataset: SyntheticWorld, index: int) -> None:
    names = {name: dataset.classes[name][k] for name, k in dataset.labels(index).items()}
    x = float(LEFT)
    for name, value in names.items():
        draw.text((x, 24), name, FAINT, _font(13), anchor="ls")
        x += draw.textlength(name, _font(13)) + 7
        draw.text((x, 24), value, INK, _font(20), anchor="ls")
        x += draw.textlength(value, _font(20)) + 22
    draw.text((x, 24), dataset.sample_id(index), FAINT, _font(13), anchor="ls")


def _cell(pixels: UInt8[np.ndarray, "H W 3"], *, smooth: bool = True) -> Image.Image:
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize((CELL, CELL), how)


def _with_boxes(cell: Image.Image, example: WorldExample, t: int) -> Image.Image:
    """Boxes in the colours of their instances; the most visible is drawn last."""
    draw = ImageDraw.Draw(cell)
    boxes, valid = example["boxes"].numpy()[:, t] * CELL, example["boxes_valid"].numpy()[:, t]
    for k in reversed(np.flatnonzero(valid).tolist()):
        x0, y0, x1, y1 = boxes[k].round().tolist()
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), None, identity_colour(k), 2)
    return cell


def _with_points(
    cell: Image.Image, example: WorldExample, owners: Int[np.ndarray, " p"], t: int
) -> Image.Image:
    """Points from their query on: discs where seen, rings where hidden, with their last steps."""
    large = cell.resize((2 * CELL, 2 * CELL), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(large)
    places = example["points"].numpy() * 2 * CELL
    visible, query = example["points_visible"].numpy(), example["query_frames"].numpy()
    for p in np.flatnonzero(query <= t):
        colour = identity_colour(int(owners[p]))
        path = [tuple(places[p, s].tolist()) for s in range(max(query[p], t - 4), t + 1)]
        if len(path) > 1:
            draw.line(path, colour, 2)
        x, y = path[-1]
        if visible[p, t]:
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), colour, (20, 20, 20), 1)
        else:
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), None, colour, 2)
    return large.resize((CELL, CELL), Image.Resampling.LANCZOS)


def _map(
    dataset: SyntheticWorld,
    index: int,
    example: WorldExample,
    owners: Int[np.ndarray, " p"],
    axis: int,
) -> Image.Image:
    """The room with z to the right and x (axis 0) or y (1) down.

    Shows the way of the camera and what it sees, pillars, and ways of points on objects.
    """
    scene, _ = dataset.scene(index)
    # All maps have the scale at which a room of the greatest width fills the height.
    scale, rim = 2 * CELL / 4.2, 8
    size = (scene.high - scene.low)[[2, axis]] * scale + 2 * rim
    image = Image.new("RGB", (round(size[0]), round(size[1])), (255, 255, 255))
    draw = ImageDraw.Draw(image)

    def place(point: Float[np.ndarray, " 3"]) -> tuple[float, float]:
        z, across = ((point - scene.low) * scale + rim)[[2, axis]]
        return float(z), float(across)

    def way(points: Float[np.ndarray, "T 3"], colour: Colour, width: int) -> None:
        path = [place(point) for point in points]
        draw.line(path if len(path) > 1 else path * 2, colour, width)
        x, y = path[-1]
        draw.ellipse((x - width - 2, y - width - 2, x + width + 2, y + width + 2), colour)

    glass = place(np.zeros(3))[0]
    draw.line((glass, 0, glass, image.height), (176, 206, 222), 4)
    solids = scene.pillars
    for k in range(len(solids.centres)):
        reach = np.abs(solids.turns[k] * solids.sizes[k]).sum(-1)
        draw.rectangle((*place(solids.centres[k] - reach), *place(solids.centres[k] + reach)), ROOM)
    poses = example["poses"].double().numpy()
    centres = -np.einsum("tji,tj->ti", poses[..., :3], poses[..., 3])
    for t, colour in ((0, (208, 221, 238)), (len(poses) - 1, (104, 140, 186))):
        edge = np.array([0.0, 0.0, 1.0])
        for side in (-1, 1):
            edge[axis] = side * 0.5 / float(example["intrinsics"][t, axis])
            end = centres[t] + 20 * poses[t, :, :3].T @ edge
            draw.line((*place(centres[t]), *place(end)), colour, 3)
    world = example["points_world"].double().numpy()
    for p in np.flatnonzero(owners >= 0):
        way(world[p], identity_colour(int(owners[p])), 4)
    way(centres, (40, 84, 140), 7)
    draw.rectangle((0, 0, image.width - 1, image.height - 1), None, FAINT, 4)
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m probe_datasets.synthetic",
        description="Draw one clip of the synthetic world with its labels over it.",
        usage="%(prog)s --show FILE.png [--split SPLIT] [--index N] [options]",
    )
    parser.add_argument("--show", metavar="FILE.png", required=True, help="picture to write")
    which = parser.add_argument_group("which clip")
    known = ", ".join(NUM_CLIPS)
    which.add_argument("--split", metavar="SPLIT", default="train", help=f"{known}; default train")
    for name, (value, text) in NUMBERS.items():
        which.add_argument(
            f"--{name}", type=int, default=value, metavar="N", help=f"{text}; default {value}"
        )
    hard = parser.add_argument_group("difficulty")
    hard.add_argument("--shadows", action="store_true", help="ray-traced shadows")
    plain = WorldConfig()
    for name, text in DIFFICULTIES.items():
        value = getattr(plain, name)
        flag = f"--{name.replace('_', '-')}"
        hard.add_argument(
            flag, type=type(value), default=value, metavar="N", help=f"{text}; default {value}"
        )
    return parser


NUMBERS = {
    "index": (0, "number of the clip"),
    "seed": (0, "seed of the whole data set"),
    "size": (CELL, "pixels of each side"),
    "num-frames": (17, "frames of the clip"),
    "stride": (1, "time steps between frames"),
    "columns": (6, "frames on the strip"),
}
"""Whole numbers that choose a clip -> default, and what they are."""
DIFFICULTIES = {
    "num_objects": "moving objects, 1 to 64",
    "num_occluders": "pillars, 0 to 16",
    "object_speed": "factor on the speed of the action, 0 to 10",
    "camera_speed": "peak speed of the camera in m/s, 0 to 2",
    "texture_contrast": "contrast of textures, 0 to 1",
    "ambient": "share of the light that comes from everywhere, 0 to 1",
    "num_points": "point tracks, 0 to 4096",
}
"""Fields of `WorldConfig` that are flags -> what they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws what the command line asks for.

    Args:
        arguments: what follows the command's name; the process's own where None.

    Returns:
        0; 2 where the arguments are wrong or the picture cannot be written, which one line of
        stderr says.
    """
    args = _parser().parse_args(arguments)
    path = Path(args.show)
    try:
        config = WorldConfig(
            shadows=args.shadows, **{name: getattr(args, name) for name in DIFFICULTIES}
        )
        clip = ClipConfig(num_frames=args.num_frames, stride=args.stride, size=args.size)
        dataset = SyntheticWorld(args.split, clip=clip, seed=args.seed, config=config)
        draw_strip(dataset, args.index, args.columns).save(path, format="PNG")
    except (ValueError, IndexError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"cannot write {path}: {error.strerror or error}")
    sys.stdout.write(f"{path}\n")
    return 0


def _refuse(problem: str) -> int:
    sys.stderr.write(f"error: {problem}\n")
    return 2
