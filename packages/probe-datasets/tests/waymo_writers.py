"""Writers of Waymo Open segments in both releases, made from the descriptions of the formats."""

import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))

HEIGHT, WIDTH = 64, 96
FRAMES = 23
START = 1_550_000_000_000_000
Box = tuple[float, float, float, float]


def objects(t: int) -> dict[str, Box]:
    """Corners of the objects in a frame; `late` and `small` are of no clip that begins early."""
    boxes = {
        "mover": (20.0 + 2 * t, 20.0, 36.0 + 2 * t, 30.0),
        "edge": (4.0, 40.0, 28.0, 60.0),  # columns 16 to 28 are in the central square
        "outside": (0.0, 0.0, 15.0, 15.0),
        "small": (50.0, 50.0, 54.0, 55.0),  # 20 of 4096 pixels; 0.5 % are 20.48
    }
    if t >= 12:
        boxes["late"] = (60.0, 4.0, 70.0, 14.0)
    if t in (3, 4):
        del boxes["edge"]
    return boxes


def picture(t: int, camera: int = 1) -> bytes:
    """Black, with the mover in white and the number of the frame as the level of a stripe."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    if camera == 1:
        x0, y0, x1, y1 = map(int, objects(t)["mover"])
        pixels[y0:y1, x0:x1] = 255
        pixels[56:] = 8 * t
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def label(name: str, box: Box) -> bytes:
    x0, y0, x1, y1 = box
    values = ((1, (x0 + x1) / 2), (2, (y0 + y1) / 2), (4, y1 - y0), (5, x1 - x0))
    place = b"".join(WRITE.field(n, v) for n, v in values)
    return WRITE.field(1, place) + WRITE.field(3, 1) + WRITE.field(4, name)


def frame(context: str, t: int, labelled: bool = True, lasers: int = 1_000) -> bytes:
    """A Frame with two cameras, of which the second is never labelled."""
    parts = [
        WRITE.field(1, WRITE.field(1, context) + WRITE.field(2, bytes(500))),
        WRITE.field(2, START + 100_000 * t),
        *(WRITE.field(4, WRITE.field(1, c) + WRITE.field(2, picture(t, c))) for c in (2, 1)),
        WRITE.field(5, bytes(lasers)),
        WRITE.field(6, b""),
    ]
    if labelled:
        content = b"".join(WRITE.field(2, label(*entry)) for entry in objects(t).items())
        parts.append(WRITE.field(8, WRITE.field(1, 1) + content))
    return b"".join(parts)


def write_v1(
    path: Path,
    context: str,
    unlabelled: tuple[int, ...] = (),
    count: int = FRAMES,
    lasers: int = 1_000,
) -> Path:
    """A segment whose frames are in no order."""
    order = np.random.default_rng(0).permutation(count).tolist()
    records = [frame(context, t, t not in unlabelled, lasers) for t in order]
    return WRITE.write_tfrecord(path, records)


def write_v2(folder: Path, context: str, boxes: bool = True) -> None:
    rows = [(t, c) for t in range(FRAMES) for c in (2, 1)]
    entries = [(t, name, box) for t in range(FRAMES) for name, box in objects(t).items()]

    def keys(times: list[int], cameras: list[int]) -> dict[str, pa.Array]:
        return {
            "key.segment_context_name": pa.array([context] * len(times)),
            "key.frame_timestamp_micros": pa.array([START + 100_000 * t for t in times]),
            "key.camera_name": pa.array(cameras, pa.int8()),
        }

    images = keys(*map(list, zip(*rows, strict=True))) | {
        "[CameraImageComponent].image": pa.array([picture(t, c) for t, c in rows])
    }
    name = "[CameraBoxComponent]"
    corners = np.array([box for _, _, box in entries])
    labels = keys([t for t, _, _ in entries], [1] * len(entries)) | {
        "key.camera_object_id": pa.array([n for _, n, _ in entries]),
        f"{name}.box.center.x": pa.array((corners[:, 0] + corners[:, 2]) / 2),
        f"{name}.box.center.y": pa.array((corners[:, 1] + corners[:, 3]) / 2),
        f"{name}.box.size.x": pa.array(corners[:, 2] - corners[:, 0]),
        f"{name}.box.size.y": pa.array(corners[:, 3] - corners[:, 1]),
        f"{name}.type": pa.array([1] * len(entries), pa.int8()),
    }
    for component, table in (("camera_image", images), ("camera_box", labels)):
        path = folder / component / f"{context}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        if component == "camera_image" or boxes:
            parquet.write_table(pa.table(table), path, row_group_size=8)
