import io
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from probe_datasets.formats.files import DataError
from probe_datasets.formats.still_images import decode_rgb
from probe_datasets.formats.waymo import CAMERAS, WaymoV1Segment, open_v1, parse_frame
from probe_datasets.formats.waymo_v2 import WaymoV2Segment, open_v2

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))

NAME = "1234_000_1254_000"
TIMES = [1_550_000_000_000_000 + 100_000 * i for i in range(7)]
BOXES = [("a", 1, (100.0, 50.0, 40.0, 20.0)), ("b", 2, (30.5, 60.0, 10.0, 30.0))]


def jpeg(level: int, height: int = 16, width: int = 24) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (level, level, level)).save(out, "JPEG")
    return out.getvalue()


def label(name: str, kind: int, box: tuple[float, float, float, float]) -> bytes:
    """A 2-D Label: `length` is the extent in x, `width` that in y."""
    x, y, dx, dy = box
    place = b"".join(WRITE.field(n, v) for n, v in ((1, x), (2, y), (4, dy), (5, dx)))
    return WRITE.field(1, place) + WRITE.field(3, kind) + WRITE.field(4, name)


def frame(
    time: int, level: int = 100, labels: dict[int, list] | None = None, context: str = NAME
) -> bytes:
    """A Frame: context, time, pose, five pictures out of order, lasers, labels."""
    labels = {1: BOXES, 3: []} if labels is None else labels
    calibration = WRITE.field(2, bytes(3000))
    parts = [
        WRITE.field(1, WRITE.field(1, context) + calibration),
        WRITE.field(2, time),
        WRITE.field(3, bytes(128)),
    ]
    for camera in (1, 2, 4, 3, 5):
        picture = jpeg(level + camera)
        parts.append(WRITE.field(4, WRITE.field(1, camera) + WRITE.field(2, picture)))
    parts.append(WRITE.field(5, bytes(100_000)))
    for camera, entries in labels.items():
        content = b"".join(WRITE.field(2, label(*entry)) for entry in entries)
        parts.append(WRITE.field(8, WRITE.field(1, camera) + content))
    return b"".join(parts)


def write_v1(path: Path, order: list[int]) -> Path:
    return WRITE.write_tfrecord(path, [frame(TIMES[i], 100 + 10 * i) for i in order])


def write_v2(folder: Path, *, named: bool = False, group: int = 8, **options: Any) -> dict:
    """Both tables of a segment; frame 3 has no boxes, and rows are in no order."""
    rng = np.random.default_rng(0)
    cameras = {v: k for k, v in CAMERAS.items()} if named else {v: v for v in CAMERAS.values()}
    kind = pa.string() if named else pa.int8()
    rows = [(t, c) for t in range(len(TIMES)) for c in cameras]
    rng.shuffle(rows)
    keys = {
        "key.segment_context_name": pa.array([NAME] * len(rows)),
        "key.frame_timestamp_micros": pa.array([TIMES[t] for t, _ in rows], pa.int64()),
        "key.camera_name": pa.array([cameras[c] for _, c in rows], kind),
    }
    images = pa.table(
        keys
        | {
            "[CameraImageComponent].image": pa.array([jpeg(100 + 10 * t + c) for t, c in rows]),
            "[CameraImageComponent].pose.transform": pa.array(
                [[0.0] * 16] * len(rows), pa.list_(pa.float64(), 16)
            ),
        }
    )
    labelled = [(t, c, b) for t, c in rows if t != 3 and c in (1, 2) for b in BOXES]
    box = "[CameraBoxComponent]"
    boxes = pa.table(
        {
            "key.segment_context_name": pa.array([NAME] * len(labelled)),
            "key.frame_timestamp_micros": pa.array([TIMES[t] for t, _, _ in labelled], pa.int64()),
            "key.camera_name": pa.array([cameras[c] for _, c, _ in labelled], kind),
            "key.camera_object_id": pa.array([b[0] for _, _, b in labelled]),
            f"{box}.box.center.x": pa.array([b[2][0] for _, _, b in labelled]),
            f"{box}.box.center.y": pa.array([b[2][1] for _, _, b in labelled]),
            f"{box}.box.size.x": pa.array([b[2][2] for _, _, b in labelled]),
            f"{box}.box.size.y": pa.array([b[2][3] for _, _, b in labelled]),
            f"{box}.type": pa.array([b[1] for _, _, b in labelled], pa.int8()),
            f"{box}.difficulty_level.detection": pa.array([None] * len(labelled), pa.int8()),
        }
    )
    paths = {}
    for name, table in (("camera_image", images), ("camera_box", boxes)):
        paths[name] = folder / name / f"{NAME}.parquet"
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, paths[name], row_group_size=group, **options)
    return paths


def check(segment: WaymoV1Segment | WaymoV2Segment, camera: int = 1) -> None:
    """Every frame has its own picture and boxes, in any order that it is asked for."""
    assert segment.timestamps.tolist() == TIMES
    for rank, found in zip([5, 0, 3, 0], segment.frames([5, 0, 3, 0]), strict=True):
        assert (found.context, found.timestamp_micros) == (NAME, TIMES[rank])
        pixels = decode_rgb(found.image, "here", formats=("JPEG",))
        assert pixels.shape == (16, 24, 3)
        assert np.abs(pixels.astype(int) - (100 + 10 * rank + camera)).max() <= 1  # JPEG


# ------------------------------------------------------------------------------------------- v1


def test_v1_is_read_in_the_order_of_time(tmp_path: Path):
    path = write_v1(tmp_path / "segment.tfrecord", [3, 0, 1, 6, 5, 2, 4])
    segment = open_v1(path)
    check(segment)
    labels = segment.frames([2])[0].labels
    assert labels.ids == ("a", "b")
    assert labels.types.tolist() == [1, 2]
    assert labels.boxes.tolist() == [[80, 40, 120, 60], [25.5, 45, 35.5, 75]]
    check(open_v1(path, "SIDE_RIGHT"), camera=5)


def test_v1_tells_no_objects_from_no_labels():
    record = memoryview(frame(TIMES[0]))
    assert parse_frame(record, "here", "FRONT_RIGHT").labels.ids == ()
    assert parse_frame(record, "here", "SIDE_LEFT").labels is None


def test_v1_is_indexed_without_its_payloads(tmp_path: Path):
    """Pictures that are all wrong leave the index as it was; reading one shows it."""
    path = write_v1(tmp_path / "segment.tfrecord", [0, 1, 2])
    segment = open_v1(path)
    content = bytearray(path.read_bytes())
    for offset, length in segment.index.tolist():
        content[offset + 12 + 70_000 : offset + 12 + length] = bytes(length - 70_000)
    path.write_bytes(content)
    assert np.array_equal(open_v1(path).timestamps, segment.timestamps)
    with pytest.raises(DataError, match="does not match its checksum"):
        segment.frames([1])


def test_v1_finds_a_late_time(tmp_path: Path):
    """A context that is larger than what is read first."""
    context = WRITE.field(1, NAME) + WRITE.field(2, bytes(100_000))
    record = WRITE.field(1, context) + WRITE.field(2, TIMES[1])
    path = WRITE.write_tfrecord(tmp_path / "a", [record])
    assert open_v1(path).timestamps.tolist() == [TIMES[1]]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (frame(TIMES[0], context=""), "has no name"),
        (WRITE.field(1, WRITE.field(1, NAME)) + WRITE.field(2, 5), "has no picture of FRONT"),
        (frame(0, labels={1: [("a", 1, (1.0, 1.0, float("nan"), 1.0))]}), "a box that cannot be"),
        (frame(0, labels={1: [("a", 1, (1.0, 1.0, -1.0, 1.0))]}), "a box that cannot be"),
        (frame(0, labels={1: [("a", 9, (1.0, 1.0, 1.0, 1.0))]}), "an unknown type"),
        (frame(0, labels={1: [BOXES[0], BOXES[0]]}), "without an identity of its own"),
        (frame(0, labels={1: [BOXES[0]] * 10_001}), "more labels than one camera can see"),
        (frame(0, labels={1: [("", 1, (1.0, 1.0, 1.0, 1.0))]}), "without an identity"),
    ],
)
def test_v1_refuses_what_cannot_be(record: bytes, message: str):
    with pytest.raises(DataError, match=message):
        parse_frame(memoryview(record), "here")


def test_v1_refuses_other_files(tmp_path: Path):
    other = WRITE.write_tfrecord(tmp_path / "other", [WRITE.example({"a": [1]})])
    with pytest.raises(DataError, match="has no time"):
        open_v1(other)
    junk = WRITE.write_tfrecord(tmp_path / "junk", [b"\xff" * 50])
    with pytest.raises(DataError, match="malformed"):
        open_v1(junk)
    twice = WRITE.write_tfrecord(tmp_path / "twice", [frame(5), frame(5)])
    with pytest.raises(DataError, match="two frames of one time"):
        open_v1(twice)
    with pytest.raises(ValueError, match="unknown camera 'BACK'; known: FRONT, "):
        open_v1(twice, "BACK")


def test_v1_random_damage_is_refused_or_harmless():
    record = frame(TIMES[0])
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(record[: rng.integers(len(record)) if rng.integers(2) else None])
        for position in rng.integers(0, len(damaged), 5).tolist():
            damaged[position] = int(rng.integers(256))
        try:
            parse_frame(memoryview(bytes(damaged)), "here")
        except DataError as error:
            assert str(error).startswith("here: ")  # noqa: PT017


# ------------------------------------------------------------------------------------------- v2


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("group", [8, 1000])
def test_v2_joins_pictures_and_boxes(tmp_path: Path, named: bool, group: int):
    paths = write_v2(tmp_path, named=named, group=group)
    segment = open_v2(paths["camera_image"], paths["camera_box"])
    check(segment)
    check(open_v2(paths["camera_image"], None, "SIDE_LEFT"), camera=4)
    labelled = [found.labels for found in segment.frames(range(7))]
    assert [labels.ids for labels in labelled] == [("a", "b")] * 3 + [()] + [("a", "b")] * 3
    assert labelled[0].boxes.tolist() == [[80, 40, 120, 60], [25.5, 45, 35.5, 75]]
    assert labelled[0].types.tolist() == [1, 2]


def test_v2_tells_no_objects_from_no_labels(tmp_path: Path):
    paths = write_v2(tmp_path)
    assert open_v2(paths["camera_image"], None).labels == (None,) * 7
    unlabelled = open_v2(paths["camera_image"], paths["camera_box"], "SIDE_LEFT")
    assert unlabelled.labels == (None,) * 7


def test_v2_dictionaries_and_compression(tmp_path: Path):
    """Camera names as dictionary codes, and pages under zstd and snappy."""
    for codec in ("zstd", "snappy", "none"):
        paths = write_v2(tmp_path / codec, named=True, compression=codec)
        table = parquet.read_table(paths["camera_image"])
        column = table.schema.get_field_index("key.camera_name")
        codes = table.column(column).dictionary_encode()
        table = table.set_column(column, "key.camera_name", codes)
        parquet.write_table(table, paths["camera_image"], compression=codec)
        check(open_v2(paths["camera_image"], paths["camera_box"]))


def test_v2_refuses_tables_that_do_not_fit(tmp_path: Path):
    paths = write_v2(tmp_path)
    images, boxes = paths["camera_image"], paths["camera_box"]
    with pytest.raises(DataError, match=r"has no column 'key\.camera_object_id'"):
        open_v2(images, images)
    with pytest.raises(DataError, match="no such file"):
        open_v2(images.with_name("none"), None)
    table = parquet.read_table(boxes)

    def changed(name: str, values: list) -> Path:
        i = table.schema.get_field_index(name)
        path = tmp_path / "changed.parquet"
        kind = table.schema.field(i).type
        new = table.set_column(i, name, pa.array(values * table.num_rows, kind))
        parquet.write_table(new, path)
        return path

    for name, value, message in (
        ("key.segment_context_name", "other", "box of segment 'other'"),
        ("key.frame_timestamp_micros", 5, "at time 5"),
        ("key.camera_name", 9, "has the camera 9"),
        ("key.camera_object_id", "same", "without an identity of its own"),
        ("[CameraBoxComponent].box.size.x", -1.0, "a box that cannot be"),
        ("[CameraBoxComponent].box.size.x", None, "a missing number"),
        ("[CameraBoxComponent].type", 7, "an unknown type"),
    ):
        with pytest.raises(DataError, match=message):
            open_v2(images, changed(name, [value]))


def test_v2_refuses_a_table_that_changed(tmp_path: Path):
    paths = write_v2(tmp_path)
    segment = open_v2(paths["camera_image"], None)
    table = parquet.read_table(paths["camera_image"])
    backwards = table.take(list(range(table.num_rows - 1, -1, -1)))
    parquet.write_table(backwards, paths["camera_image"], row_group_size=8)
    with pytest.raises(DataError, match="expected what was indexed"):
        segment.frames(range(7))
    parquet.write_table(table, paths["camera_image"])
    with pytest.raises(DataError, match="has 0 rows in row group"):
        segment.frames(range(7))


@pytest.mark.slow
def test_v2_damage_under_page_checksums_is_always_found(tmp_path: Path):
    """As for TFRecords, where the writer stored checksums; other tables give what they hold."""
    paths = write_v2(tmp_path, write_page_checksum=True, group=20)
    path = paths["camera_image"]
    content = path.read_bytes()
    expected = [f.image for f in open_v2(path, None).frames(range(7))]
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(content), 400).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = open_v2(path, None).frames(range(7))
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017
            refused += 1
            continue
        assert [f.image for f in found] == expected
    assert refused > 100


def test_v1_damaged_times_put_no_frame_out_of_place(tmp_path: Path):
    """No checksum covers the beginning of a record alone, which is what indexing reads."""
    path = write_v1(tmp_path / "segment.tfrecord", list(range(7)))
    content, index = path.read_bytes(), open_v1(path).index.tolist()
    coded = WRITE.field(2, TIMES[3])
    start = content.index(coded) + 1
    refused = 0
    for bit in range(8 * (len(coded) - 1)):
        damaged = bytearray(content)
        damaged[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert open_v1(path).index.tolist() == index
        except DataError:
            refused += 1
    assert refused > 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camera_image", "camera_box"])
@pytest.mark.parametrize("codec", ["snappy", "none"])
def test_v2_random_damage_is_refused_or_read(tmp_path: Path, name: str, codec: str):
    paths = write_v2(tmp_path, compression=codec)
    content = paths[name].read_bytes()
    rng = np.random.default_rng(1)
    for i, position in enumerate(rng.integers(0, len(content), 90).tolist()):
        damaged = bytearray(content)
        damaged[position] = int(rng.integers(256))
        paths[name].write_bytes(damaged if i < 60 else content[:position])
        try:
            open_v2(paths["camera_image"], paths["camera_box"]).frames(range(7))
        except DataError as error:
            assert str(tmp_path) in str(error)  # noqa: PT017
            continue
        assert i < 60, "a table that was cut has lost its footer"


# ------------------------------------------------------------------------------------ real files


def test_a_real_frame(shared: Path):
    path = shared / "waymo" / "v1" / "pvps_data_one_frame.tfrecord"
    labels = 0
    for camera in CAMERAS:
        segment = open_v1(path, camera)
        (found,) = segment.frames([0])
        assert found.context == "1024360143612057520_3580_000_3600_000"
        assert segment.timestamps.tolist() == [1553735853462203]
        height = 886 if camera.startswith("SIDE") else 1280
        assert decode_rgb(found.image, path, formats=("JPEG",)).shape == (height, 1920, 3)
        boxes = found.labels.boxes
        labels += len(boxes)
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes >= -0.5).all()
        assert (boxes <= np.array([1920, height, 1920, height]) + 0.5).all()
        assert set(found.labels.types.tolist()) <= {1, 2, 4}
    assert labels == 66


def test_a_real_table_of_another_component_is_refused(shared: Path):
    (path,) = (shared / "waymo" / "v2" / "vehicle_pose").glob("*.parquet")
    with pytest.raises(DataError, match=r"has no column 'key\.camera_name'"):
        open_v2(path, None)
