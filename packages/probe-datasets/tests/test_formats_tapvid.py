"""Pickles written here by Python's own writer, and the reader that never runs one."""

import os
import pickle
import random
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from probe_datasets.formats.files import DataError
from probe_datasets.formats.plain_pickle import load_plain
from probe_datasets.formats.tapvid import convert_pickle, read_point_video


def entry(num_frames: int = 3, seed: int = 0) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    return {
        "video": chance.integers(0, 256, (num_frames, 4, 6, 3), np.uint8),
        "points": chance.random((2, num_frames, 2)).astype(np.float32),
        "occluded": chance.random((2, num_frames)) < 0.5,
    }


def load(content: Any, protocol: int = 4) -> Any:
    return load_plain(memoryview(pickle.dumps(content, protocol)), "a.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_python_reads_it(protocol: int):
    shared = np.arange(3)
    content = {
        "text": "caf\u00e9" * 100,
        "numbers": [0, -1, 255, 65535, 1 << 40, -(1 << 31), 1.5, True, False, None],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        7: {"a": {}, "b": []},
        "arrays": [
            np.arange(6, dtype=np.uint8).reshape(2, 3),
            np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
            np.arange(4, dtype=">f8"),
            np.array([True, False]),
            np.zeros((0, 3), np.float16),
            np.array(5, np.int64),
        ],
        "scalar": np.float32(2.5),
        "twice": [shared, shared],
    }
    found = load(content, protocol)
    assert found.keys() == content.keys()
    for key in ("text", "numbers", "tuples", 7):
        assert found[key] == content[key]
    for a, b in zip(
        found["arrays"] + found["twice"], content["arrays"] + [shared] * 2, strict=True
    ):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    assert found["scalar"] == 2.5
    assert bytes(load(b"\x00\xff" * 300, protocol)) == b"\x00\xff" * 300
    objects = np.empty(2, object)
    objects[:] = [b"one", b"two"]
    assert [bytes(item) for item in load(objects, protocol)] == [b"one", b"two"]


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


class Plain:
    pass


@pytest.mark.parametrize(
    "content",
    [
        Runs(),
        {"a": [Runs()]},
        Plain(),
        np.array([Runs()], object),
        np.dtype("f4"),
        np.array(["text"]),
        np.zeros(2, [("a", "f4")]),
        {1, 2},
        {(1, 2): 3},
        len,
        1 + 2j,
        np.datetime64("2020-01-01"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, protocol: int
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"a\.pkl: cannot be read as plain data \("):
        load(content, protocol)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04.",
        b"\x80\x04}}.",
        b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b".",  # bytes without end
        b"\x80\x04}r\xff\xff\xff\xffj\xff\xff\xff\x7f.",  # far places in memory
        b"\x80\x04]\x94h\x00a.",  # a list that holds itself
        b"\x80\x04(((.",
        b"\x80\x04cos\nsystem\n(\x8c\x02lst\x85R.",
        b"\x80\x04c" + b"x" * 500,
        b"\x80\x00(I1\nI2\nt.",  # protocol 0
        b"\x80\x04e.",
        b"\x80\x04b.",
        b"\x80\x04KaKbs.",
    ],
)
def test_malformed_pickles_are_refused(content: bytes):
    with pytest.raises(DataError):
        load_plain(memoryview(content), "a.pkl")


def test_what_is_shared_does_not_multiply():
    """Sixty lists, each twice in the next: 2^60 items if they were copied."""
    inner: list[Any] = []
    for _ in range(60):
        inner = [inner, inner]
    assert len(load(inner)) == 2


@pytest.mark.slow
def test_flipped_and_cut_pickles_are_refused_or_plain():
    whole = pickle.dumps({"a": entry()}, 4)
    chance = random.Random(0)
    for k in range(600):
        content = bytearray(whole)
        if k % 3:
            content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            content = content[: chance.randrange(len(whole))]
        try:
            found = load_plain(memoryview(bytes(content)), "a.pkl")
        except DataError:
            continue
        assert isinstance(found, dict)


@pytest.mark.parametrize("listed", [False, True])
def test_a_pickle_becomes_archives(tmp_path: Path, listed: bool):
    truth = {"goat": entry(seed=1), "car-turn": entry(5, seed=2)}
    content: Any = list(truth.values()) if listed else truth
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    written = convert_pickle(tmp_path / "a.pkl", tmp_path / "out")
    names = ["video_00000", "video_00001"] if listed else ["goat", "car-turn"]
    assert [path.stem for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.npz" for name in names
    )
    for path, expected in zip(written, truth.values(), strict=True):
        found = read_point_video(path)
        np.testing.assert_array_equal(found.video, expected["video"])
        np.testing.assert_array_equal(found.points, expected["points"])
        np.testing.assert_array_equal(found.visible, ~expected["occluded"])
    with pytest.raises(DataError, match="there already"):
        convert_pickle(tmp_path / "a.pkl", tmp_path / "out")


def test_encoded_frames_are_decoded(tmp_path: Path):
    frames = []
    for level in (10, 200):
        sink = BytesIO()
        Image.new("RGB", (6, 4), (level, level, level)).save(sink, "JPEG")
        frames.append(sink.getvalue())
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([{**entry(2), "video": frames}]))
    (path,) = convert_pickle(tmp_path / "a.pkl", tmp_path)
    video = read_point_video(path).video
    assert video.shape == (2, 4, 6, 3)
    assert [round(float(frame.mean())) for frame in video] == [10, 200]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds a dict"),
        (3, "holds a int"),
        ({"../a": entry()}, "names a video"),
        ({"/a": entry()}, "names a video"),
        ({1: entry()}, "names a video"),
        ({"a": {"video": 1}}, "has no video, points, occluded"),
        ({"a": {**entry(), "points": np.zeros((2, 4, 2), np.float32)}}, "points of shape"),
        ({"a": {**entry(), "points": np.full((2, 3, 2), 200, np.float32)}}, "not normalised"),
        ({"a": {**entry(), "video": np.zeros((3, 4, 6), np.uint8)}}, "a video of shape"),
        ({"a": {**entry(), "video": [b"not a jpeg"] * 3}}, "is no JPEG or PNG"),
        ({"a": {**entry(), "occluded": np.zeros((2, 3))}}, "occlusion of shape"),
        ({"a": Runs()}, "posix.mkdir"),
    ],
)
def test_pickles_that_do_not_fit(tmp_path: Path, content: Any, message: str):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=message):
        convert_pickle(tmp_path / "a.pkl", tmp_path / "out")
    assert not any((tmp_path / "out").glob("*")) or message != "posix.mkdir"


def test_damaged_archives_are_refused(tmp_path: Path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([entry()]))
    (path,) = convert_pickle(tmp_path / "a.pkl", tmp_path)
    whole, truth = path.read_bytes(), read_point_video(path)
    chance = random.Random(0)
    for k in range(300):
        content = bytearray(whole)
        if k % 2:
            content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        else:
            content = content[: chance.randrange(1, len(whole))]
        path.write_bytes(content)
        try:
            found = read_point_video(path)
        except DataError:
            continue
        # The checksum is of the data: what is read in spite of a flip is what was written.
        np.testing.assert_array_equal(found.video, truth.video)
        np.testing.assert_array_equal(found.points, truth.points)
        np.testing.assert_array_equal(found.visible, truth.visible)


def test_archives_with_objects_or_bombs_are_refused(tmp_path: Path):
    path = tmp_path / "a.npz"
    np.savez(path, video=np.array([Plain()], object), points=np.zeros(1), occluded=np.zeros(1))
    with pytest.raises(DataError, match="claims shape"):
        read_point_video(path)
    np.savez_compressed(path, **{**entry(), "video": np.zeros((3, 400, 600, 3), np.uint8)})
    with pytest.raises(DataError, match="compressed"):
        read_point_video(path)
    header = b"\x93NUMPY\x01\x00\x76\x00"
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776,), }"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("video", "points", "occluded"):
            archive.writestr(f"{name}.npy", header + text.ljust(117) + b"\n")
    with pytest.raises(DataError, match="claims shape"):
        read_point_video(path)
