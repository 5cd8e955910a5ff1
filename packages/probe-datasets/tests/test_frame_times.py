import random
import zlib
from array import array
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from probe_datasets.containers import VideoError
from probe_datasets.formats.files import DataError
from probe_datasets.frame_index import frame_index
from probe_datasets.frame_times import FrameIndex, mean_rate, shortest
from probe_datasets.video_io import read_frames, scan_video

UNEVEN = [i + i // 7 * 5 for i in range(40)]


def sealed(body: bytes) -> bytes:
    """Packed bytes with the right checksum, whatever they say."""
    checked = b"\0" + body
    return b"\1" + zlib.crc32(checked).to_bytes(4) + checked


@pytest.mark.parametrize("name", ["mp4", "webm", "uneven", "keyframes", "late", "turned", "10 bit"])
def test_what_is_unpacked_is_what_was_packed(
    name: str, write_video: Callable[..., Path], tmp_path: Path, request: pytest.FixtureRequest
):
    options = {
        "uneven": {"times": UNEVEN},
        "keyframes": {"gop": 1, "num_frames": 90},
        "late": {"times": list(range(100, 140)), "bf": "2"},
        "turned": {"matrix": (0, -1, 1, 0)},
        "10 bit": {"pix_fmt": "yuv420p10le"},
    }
    if name in options:
        path = write_video(tmp_path / "a.mp4", **options[name])
    else:
        path = request.getfixturevalue(name)
    index = frame_index(path)
    packed = index.pack()
    assert FrameIndex.unpack(path, packed) == index
    assert len(packed) < 150
    assert index.info == scan_video(path)
    assert isinstance(index.times, array if name == "uneven" else range)
    moved = FrameIndex.unpack("elsewhere/b.mp4", packed)
    assert moved.info.path == Path.cwd() / "elsewhere" / "b.mp4"
    assert replace(moved, info=index.info) == index


def test_times_may_be_early_and_large():
    rate = Fraction(1, 90000)
    for times in ([-5], [-7, -6, 10**14], [2**40 + 3003 * i for i in range(5000)]):
        assert list(shortest(times)) == times
        assert mean_rate(times, rate) == pytest.approx(
            90000 * (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        )
    assert shortest([3, 5, 7]) == range(3, 9, 2)


def test_an_index_serves_without_walking_the_file(
    mp4: Path, webm: Path, backend: str, monkeypatch: pytest.MonkeyPatch
):
    for path in (mp4, webm):
        wanted = [39, 0, 7, 7, 26, 13]
        expected = read_frames(path, wanted, backend=backend)
        packed = frame_index(path).pack()
        with monkeypatch.context() as patch:
            patch.setattr("probe_datasets.video_io.frame_index", None)
            index = FrameIndex.unpack(path, packed)
            for choice in (backend, "auto"):
                frames = read_frames(path, wanted, backend=choice, index=index)
                assert torch.equal(frames, expected)


def test_a_file_that_changed_or_another_one_is_refused(
    mp4: Path, webm: Path, copy_of: Callable[..., Path]
):
    path = copy_of(mp4, "a.mp4")
    index = FrameIndex.unpack(path, frame_index(path).pack())
    with pytest.raises(ValueError, match=r"index is of .*a\.mp4' and not of .*clip\.webm'"):
        read_frames(webm, [0], index=index)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(VideoError, match="when it was indexed; expected the file unchanged"):
        read_frames(path, [0], index=index)
    path.unlink()
    with pytest.raises(VideoError, match="there is no such file"):
        read_frames(path, [0], index=index)


def test_every_damage_is_noticed(mp4: Path):
    packed = frame_index(mp4).pack()
    for length in range(len(packed)):
        with pytest.raises(VideoError, match="has a frame index that"):
            FrameIndex.unpack(mp4, packed[:length])
    for at in range(len(packed)):
        wrong = bytearray(packed)
        wrong[at] ^= 1 << at % 8
        with pytest.raises(DataError, match=r"a frame index that .* build the dataset's index"):
            FrameIndex.unpack(mp4, bytes(wrong))
    with pytest.raises(VideoError, match="is of version 2; expected an index of version 1"):
        FrameIndex.unpack(mp4, b"\2" + packed[1:])


def test_claims_are_not_believed(mp4: Path):
    """Bytes that were made to pass the checksum end in an error or an index, without much ado."""
    chance = random.Random(0)
    packed = frame_index(mp4).pack()
    body = zlib.decompress(packed[6:]) if packed[5] else packed[6:]
    for _ in range(400):
        wrong = bytearray(body)
        for _ in range(chance.randrange(1, 4)):
            wrong[chance.randrange(len(wrong))] = chance.randrange(256)
        try:
            index = FrameIndex.unpack(mp4, sealed(bytes(wrong)))
        except VideoError:
            continue
        assert len(index.times) == index.info.num_frames >= 1
    bomb = b"\1" + zlib.compress(bytes(1 << 20))
    with pytest.raises(VideoError, match="has a frame index that"):
        FrameIndex.unpack(mp4, b"\1" + zlib.crc32(bomb).to_bytes(4) + bomb)
