import contextlib
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.movi_e import MoviExample, read_movi_e
from probe_datasets.formats.movi_e_files import find_movi_e, shard_index
from probe_datasets.formats.rgb16 import decode_rgb16
from probe_datasets.formats.tfrecord import record_index

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))


SMALL = WRITE.png(np.zeros((1, 1), np.uint8))
TALL = SMALL[:20] + (70_000_000).to_bytes(4) + SMALL[24:]


def parse(features: dict) -> MoviExample:
    return MoviExample(memoryview(WRITE.example(features)), "here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A TFDS data folder: two shards of train (2 and 1 examples), one of validation, one config."""
    version = tmp_path / "data" / "movi_e" / "12x10" / "1.0.0"
    counts = {"train": [2, 1], "validation": [1]}
    seed = 0
    for split, lengths in counts.items():
        for i, count in enumerate(lengths):
            records = []
            for _ in range(count):
                records.append(WRITE.example(WRITE.movi_features(seed)["features"]))
                seed += 1
            name = f"movi_e-{split}.tfrecord-{i:05}-of-{len(lengths):05}"
            WRITE.write_tfrecord(version / name, records)
    splits = [
        {"name": split, "shardLengths": [str(n) for n in lengths], "numBytes": "1"}
        for split, lengths in counts.items()
    ]
    (version / "dataset_info.json").write_text(json.dumps({"name": "movi_e", "splits": splits}))
    (version / "features.json").write_text("{}")
    return tmp_path / "data"


# ------------------------------------------------------------------------------- the 16-bit PNG


def test_sixteen_bits_of_colour_survive_every_filter():
    pixels = np.random.default_rng(0).integers(0, 65536, (11, 7, 3), dtype=np.uint16)
    pixels[5:] = pixels[5:] // 4096 * 4096 + 255  # smooth parts too
    assert np.array_equal(decode_rgb16(WRITE.png(pixels), "here", size=(11, 7)), pixels)


def test_wrong_and_damaged_pictures_are_refused():
    pixels = np.random.default_rng(0).integers(0, 65536, (11, 7, 3), dtype=np.uint16)
    data = WRITE.png(pixels)
    with pytest.raises(DataError, match=r"11 x 7 pixels.*expected 7 x 11"):
        decode_rgb16(data, "here", size=(7, 11))
    with pytest.raises(DataError, match="of kind"):
        decode_rgb16(WRITE.png(pixels.astype(np.uint8)), "here", size=(11, 7))
    with pytest.raises(DataError, match="no PNG"):
        decode_rgb16(b"GIF89a" + bytes(50), "here", size=(11, 7))
    for cut in range(len(data)):
        with pytest.raises(DataError):
            decode_rgb16(data[:cut], "here", size=(11, 7))
    for i in range(len(data) - 12):  # all but the end, which holds nothing
        damaged = bytearray(data)
        damaged[i] ^= 0x10
        try:
            found = decode_rgb16(bytes(damaged), "here", size=(11, 7))
        except DataError:
            continue
        assert np.array_equal(found, pixels)  # a checksum of the header, which is not needed


def test_a_picture_that_inflates_beyond_its_size_is_refused():
    small = WRITE.png(np.zeros((2, 2, 3), np.uint16))
    large = bytearray(WRITE.png(np.zeros((200, 200, 3), np.uint16)))
    large[16:33] = small[16:33]  # the size, and the checksum that goes with it
    with pytest.raises(DataError, match="or more"):
        decode_rgb16(bytes(large), "here", size=(2, 2))


# ------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("packed", [True, False])
def test_everything_that_was_written_is_read(packed: bool):
    written = WRITE.movi_features()
    arrays = written["arrays"]
    record = WRITE.example(written["features"], packed=packed)
    example = MoviExample(memoryview(record), "here")
    assert (example.num_frames, example.height, example.width) == (3, 10, 12)
    assert np.array_equal(example.video(), arrays["video"])
    assert np.array_equal(example.segmentations(), arrays["segmentations"])
    assert np.array_equal(example.depth(), arrays["depth"])
    assert np.array_equal(example.normal(), arrays["normal"])
    assert np.array_equal(example.object_coordinates(), arrays["object_coordinates"])
    assert np.array_equal(example.flow(), arrays["forward_flow"])
    assert example.depth_range == (2.0, 30.5)
    assert example.flow_range() == (-3.0, 4.0)
    assert example.video_name == "scene"
    camera, instances = example.camera, example.instances
    assert (camera.focal_length, camera.sensor_width) == (35.0, 32.0)
    assert np.array_equal(camera.positions, arrays["camera/positions"])
    assert np.array_equal(camera.quaternions, arrays["camera/quaternions"])
    for name in ("bboxes_3d", "quaternions", "positions"):
        assert np.array_equal(getattr(instances, name), arrays[name])
    assert instances.visibility.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert instances.category.tolist() == [3, 13]
    assert instances.is_dynamic.tolist() == [True, False]
    assert instances.asset_id == ("cube", "sphere")
    assert instances.boxes_valid.tolist() == [[False, False, True], [True, True, True]]
    assert instances.boxes[1, 2].tolist() == arrays["yxyx"][3][[1, 0, 3, 2]].tolist()
    assert not instances.boxes[0, :2].any()


def test_frames_are_chosen_before_they_are_decoded():
    """A picture that is broken matters only to those who ask for it."""
    written = WRITE.movi_features()
    written["features"]["normal"][1] = b"broken"
    example = parse(written["features"])
    expected = written["arrays"]["normal"][[2, 0, 2]]
    assert np.array_equal(example.normal([2, 0, 2]), expected)
    with pytest.raises(DataError, match="no PNG"):
        example.normal()
    with pytest.raises(ValueError, match="frame 3 must be from 0 to 2"):
        example.video([3])


@pytest.mark.parametrize(
    ("name", "value", "use", "message"),
    [
        ("video", None, None, "no feature 'video'"),
        ("video", [1, 2], None, "list of int64, not of bytes"),
        ("video", [b"junk"], None, "no PNG"),
        ("video", [TALL], None, "1 frames of 70000000 x 1 pixels; expected 1 to 16777216"),
        ("depth", [b"x"], "depth", "1 pictures in 'depth'; expected 3"),
        ("depth", [WRITE.png(np.zeros((9, 12), np.uint16))] * 3, "depth", "9 x 12"),
        ("depth", [WRITE.png(np.zeros((10, 12), np.uint8))] * 3, "depth", "16 bits"),
        ("segmentations", [WRITE.png(np.zeros((10, 12), np.uint16))] * 3, "segmentations", "grey"),
        ("forward_flow", [1, 2], "flow", "2 values in 'forward_flow'; expected 720"),
        ("forward_flow", [-1] * 720, "flow", "outside 0 to 65535"),
        ("metadata/depth_range", [3.0, 1.0], "depth_range", "depth range of 3.0 to 1.0"),
        ("camera/positions", [0.0] * 8, "camera", "8 values"),
        ("camera/positions", [float("nan")] * 9, "camera", "impossible numbers"),
        ("camera/quaternions", [1.0] * 12, "camera", "no rotations"),
        ("camera/sensor_width", [0.0], "camera", "sensor width 0.0"),
        ("instances/bboxes_3d", [0.0] * 70, "instances", "70 numbers"),
        ("instances/asset_id", [b"one"], "instances", "1 values"),
        ("instances/bbox_frames/ragged_flat_values", [0, 1, 2, 3], "instances", "a frame that"),
        ("instances/bboxes/ragged_row_lengths_0", [2, 2], "instances", "boxes without frames"),
        ("instances/bboxes/ragged_row_lengths_0", [-1, 2], "instances", "impossible lengths"),
    ],
)
def test_contradictions_are_refused(name: str, value: list, use: str, message: str):
    features = WRITE.movi_features()["features"]
    if value is None:
        del features[name]
    else:
        features[name] = value

    def read() -> None:
        used = getattr(parse(features), use or "source")
        if callable(used):
            used()

    with pytest.raises(DataError, match=message) as error:
        read()
    assert str(error.value).startswith("here: ")


def test_a_record_of_something_else_is_refused():
    with pytest.raises(DataError, match="malformed"):
        MoviExample(memoryview(b"\xff" * 40), "here")
    with pytest.raises(DataError, match="malformed"):
        MoviExample(memoryview(b""), "here")


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("below", ["", "movi_e", "movi_e/12x10", "movi_e/12x10/1.0.0"])
def test_a_split_is_found_from_any_of_its_folders(folder: Path, below: str):
    split = find_movi_e(folder / below, "train")
    assert split.config == "12x10"
    assert [(s.path.name[-14:], s.present, s.num_examples) for s in split.shards] == [
        ("00000-of-00002", True, 2),
        ("00001-of-00002", True, 1),
    ]
    seeds = iter(range(3))
    for shard in split.shards:
        for record in shard_index(shard).tolist():
            expected = WRITE.movi_features(next(seeds))["arrays"]["depth"]
            assert np.array_equal(read_movi_e(shard.path, *record).depth(), expected)


def test_missing_files_are_told(folder: Path):
    split = find_movi_e(folder, "train")
    split.shards[0].path.unlink()
    shards = find_movi_e(folder, "train").shards
    assert [s.present for s in shards] == [False, True]
    assert shards[0].num_examples == 2
    (split.folder / "dataset_info.json").unlink()
    assert [s.num_examples for s in find_movi_e(folder, "train").shards] == [None, None]


def test_a_file_that_ends_between_two_records_is_refused(folder: Path):
    shard = find_movi_e(folder, "train").shards[0]
    second = shard_index(shard)[1, 0]
    shard.path.write_bytes(shard.path.read_bytes()[:second])
    assert len(record_index(shard.path)) == 1
    with pytest.raises(DataError, match=r"holds 1 examples; expected 2, as dataset_info\.json"):
        shard_index(shard)


def _add_config(version: Path) -> None:
    other = version.parent.parent / "64x64" / "1.0.0"
    WRITE.write_tfrecord(other / "movi_e-train.tfrecord-00000-of-00001", [b"x"])


def _add_set(version: Path) -> None:
    (version / "movi_e-test.tfrecord-00000-of-00003").touch()
    (version / "movi_e-test.tfrecord-00000-of-00004").touch()


def _number_too_high(version: Path) -> None:
    (version / "movi_e-test.tfrecord-00007-of-00003").touch()


def _info(text: str) -> Callable[[Path], None]:
    def change(version: Path) -> None:
        (version / "movi_e-test.tfrecord-00000-of-00001").touch()
        (version / "dataset_info.json").write_text(text)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda version: None, "no files of the split 'test'; those that it has: train, valid"),
        (_add_config, "holds the configurations 12x10, 64x64; expected a choice"),
        (_add_set, "mixes sets of 3, 4 files"),
        (_number_too_high, "expected numbers below 3"),
        (_info("[]"), "lists no splits"),
        (_info("{"), "no valid JSON"),
        (_info('{"splits": [{"name": "test", "shardLengths": ["1", "2"]}]}'), "and 2 files by"),
        (_info('{"splits": [{"name": "test", "shardLengths": ["-1"]}]}'), "has no lengths"),
        (_info('{"splits": [{"name": "test", "shardLengths": 3}]}'), "has no lengths"),
    ],
)
def test_folders_that_do_not_add_up_are_refused(
    folder: Path, change: Callable[[Path], None], message: str
):
    change(folder / "movi_e" / "12x10" / "1.0.0")
    with pytest.raises(DataError, match=message):
        find_movi_e(folder, "test")


def test_a_configuration_and_the_highest_version_are_chosen(folder: Path):
    version = folder / "movi_e" / "12x10" / "1.0.0"
    _add_config(version)
    name = "movi_e-train.tfrecord-00000-of-00001"
    WRITE.write_tfrecord(version.parent / "1.10.0" / name, [b"x"])
    WRITE.write_tfrecord(version.parent / "1.9.0" / name, [b"x"])
    assert find_movi_e(folder, "train", config="64x64").config == "64x64"
    assert find_movi_e(folder, "train", config="12x10").folder.name == "1.10.0"
    with pytest.raises(DataError, match="expected '256x256'"):
        find_movi_e(folder, "train", config="256x256")
    with pytest.raises(DataError, match="is a folder of the configuration '12x10'"):
        find_movi_e(version, "train", config="64x64")
    for other in (folder / "none", version / "features.json", folder.parent / "data" / ".."):
        with pytest.raises(DataError, match=r"cannot be listed|holds no MOVi-E"):
            find_movi_e(other, "train")


# ------------------------------------------------------------------------------------ real files


@pytest.mark.parametrize("config", ["64x64", "128x128"])
def test_a_real_example_is_what_tfds_decodes(shared: Path, config: str):
    (shard,) = find_movi_e(shared / "movi_e", "train", config=config).shards
    ((offset, length),) = shard_index(shard).tolist()
    example = read_movi_e(shard.path, offset, length)
    expected = np.load(
        shared / "movi_e" / "reference" / f"{config}_train_0_decoded.npz", allow_pickle=False
    )
    assert np.array_equal(example.segmentations(), expected["segmentations"][..., 0])
    assert np.array_equal(example.depth(), expected["depth"][..., 0])
    assert np.array_equal(example.video([0])[0], expected["video_f0"])
    assert np.array_equal(example.normal([0])[0], expected["normal_f0"])
    assert np.array_equal(example.object_coordinates([0])[0], expected["object_coordinates_f0"])
    assert np.array_equal(example.flow()[0], expected["forward_flow_f0"])
    assert np.array_equal(np.float32(example.depth_range), expected["depth_range"])
    camera = example.camera
    assert np.array_equal(camera.positions, expected["camera_positions"])
    assert np.array_equal(camera.quaternions, expected["camera_quaternions"])
    for name in ("focal_length", "sensor_width", "field_of_view"):
        assert np.float32(getattr(camera, name)) == expected[f"camera_{name}"]
    assert np.array_equal(example.instances.bboxes_3d, expected["bboxes_3d"])
    assert np.array_equal(example.instances.quaternions, expected["quaternions"])
    # What is shown of an object is as many pixels as it says, in the box that it says.
    shown = example.segmentations()
    instances = example.instances
    for i in range(len(instances.category)):
        assert (shown == i + 1).sum(axis=(1, 2)).tolist() == instances.visibility[i].tolist()
        rows, columns = np.nonzero(shown[0] == i + 1)
        if len(rows):
            box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
            found = instances.boxes[i, 0] * np.array([example.width, example.height] * 2)
            assert np.abs(found - box).max() <= 1.001  # whether the last pixel counts


def test_a_real_file_that_is_damaged_is_refused(shared: Path, tmp_path: Path):
    """Bits in 150 places, cuts in 50; all of them are found."""
    (shard,) = find_movi_e(shared / "movi_e", "train", config="64x64").shards
    path = tmp_path / "damaged"
    path.write_bytes(shard.path.read_bytes())
    size = path.stat().st_size
    ((offset, length),) = record_index(path).tolist()
    rng = np.random.default_rng(0)
    for i, position in enumerate(rng.integers(0, size, 150).tolist()):
        with open(path, "r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 1 << int(rng.integers(8))]))
        with pytest.raises(DataError, match="damaged"):
            read_movi_e(path, offset, length)
        if i < 40:  # as if someone had made the checksum fit
            with contextlib.suppress(DataError):
                example = read_movi_e(path, offset, length, verify=False)
                assert example.segmentations([0, 23]).shape == (2, 64, 64)
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(bytes([byte]))
    read_movi_e(path, offset, length)
    for position in sorted(rng.integers(1, size, 50).tolist(), reverse=True):
        os.truncate(path, position)
        with pytest.raises(DataError, match=r"cut short|ends inside"):
            read_movi_e(path, offset, length)


def test_pillow_keeps_half_of_sixteen_bit_colour(tmp_path: Path):
    """Why `rgb16` exists; when this fails, it can go."""
    path = tmp_path / "wide.png"
    path.write_bytes(WRITE.png(np.full((2, 2, 3), 0x1234, np.uint16)))
    assert np.asarray(Image.open(path)).dtype == np.uint8
