import contextlib
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from probe_datasets.containers import VideoError, container_of


def box(kind: bytes, body: bytes = b"", claimed: int | None = None) -> bytes:
    return (len(body) + 8 if claimed is None else claimed).to_bytes(4) + kind + body


FTYP = box(b"ftyp", b"isom\0\0\2\0isomiso2")
MOOV = box(b"moov", b"x" * 40)
MDAT = box(b"mdat", b"y" * 100)
EBML_HEADER = bytes.fromhex("1a45dfa3 87 4282 84") + b"webm"
SEGMENT, CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")
UNKNOWN = bytes.fromhex("01ffffffffffffff")
BLOCK = b"\xa3\x84" + b"data"


def ok(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "file.bin").write_bytes(content)
    return container_of(tmp_path / "file.bin")


def refused(tmp_path: Path, content: bytes, name: str = "file.mp4") -> str:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError) as caught:
        container_of(tmp_path / name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / name))
    assert message.count("; ") >= 2
    return message


def test_real_files_are_named_by_content(
    write_video: Callable[..., Path], tmp_path: Path, mp4: Path, webm: Path
):
    assert container_of(mp4) == "mp4"
    assert container_of(webm) == "webm"
    assert container_of(write_video(tmp_path / "a.mov", num_frames=3)) == "mov"
    mkv = write_video(tmp_path / "a.mkv", num_frames=3)
    assert container_of(mkv.rename(tmp_path / "really_mkv.mp4")) == "mkv"


@pytest.mark.parametrize("faststart", [False, True])
def test_every_cut_of_an_mp4_is_refused(
    write_video: Callable[..., Path], tmp_path: Path, faststart: bool
):
    muxer = {"movflags": "faststart"} if faststart else {}
    whole = write_video(tmp_path / "whole.mp4", num_frames=8, muxer=muxer).read_bytes()
    for length in [
        *range(1, 64),
        *range(64, len(whole) - 64, 61),
        *range(len(whole) - 64, len(whole)),
    ]:
        refused(tmp_path, whole[:length])


def test_every_cut_of_a_webm_is_refused(webm: Path, tmp_path: Path):
    whole = webm.read_bytes()
    for length in [*range(4, 64), *range(64, len(whole), 97), len(whole) - 1]:
        assert "cut short" in refused(tmp_path, whole[:length]) or length < 80


def test_a_live_webm_may_only_end_between_blocks(tmp_path: Path):
    live = (
        EBML_HEADER
        + SEGMENT
        + UNKNOWN
        + CLUSTER
        + UNKNOWN
        + BLOCK
        + BLOCK
        + CLUSTER
        + UNKNOWN
        + BLOCK
    )
    assert ok(tmp_path, live) == "webm"
    assert ok(tmp_path, live[: -len(BLOCK)]) == "webm"
    for lost in range(1, len(BLOCK)):
        assert "cut short" in refused(tmp_path, live[:-lost])


def test_legitimate_layouts(tmp_path: Path):
    large = (1).to_bytes(4) + b"mdat" + (16 + 50).to_bytes(8) + b"z" * 50
    to_the_end = (0).to_bytes(4) + b"mdat" + b"z" * 77
    fragment = box(b"moof", b"f" * 30) + MDAT
    assert ok(tmp_path, FTYP + MOOV + MDAT) == "mp4"
    assert ok(tmp_path, FTYP + large + MOOV) == "mp4"
    assert ok(tmp_path, FTYP + MOOV + to_the_end) == "mp4"
    assert ok(tmp_path, FTYP + MOOV + fragment * 3) == "mp4"
    assert ok(tmp_path, box(b"ftyp", b"qt  \0\0\0\0") + MDAT + MOOV) == "mov"
    assert ok(tmp_path, box(b"wide") + MDAT + MOOV) == "mov"
    assert ok(tmp_path, FTYP + box(b"beam", b"?" * 9) + MDAT + MOOV) == "mp4"


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 100, b"\n", b"free as in garbage", b"\xff" * 33])
def test_bytes_after_the_last_box_do_no_harm(tmp_path: Path, tail: bytes):
    assert ok(tmp_path, FTYP + MOOV + MDAT + tail) == "mp4"
    assert ok(tmp_path, EBML_HEADER + SEGMENT + b"\x86" + BLOCK + tail) == "webm"


def test_a_begun_fragment_is_a_cut(tmp_path: Path):
    fragments = FTYP + MOOV + (box(b"moof", b"f" * 30) + MDAT) * 2
    for extra in (b"\0\0\0", b"\0\0\0\x26moof", b"\0\0\0\x26moof" + b"f" * 29):
        assert "cut short" in refused(tmp_path, fragments + extra)


def test_what_is_missing_is_named(tmp_path: Path):
    assert "no index (moov box)" in refused(tmp_path, FTYP + MDAT)
    assert "no frames (mdat box)" in refused(tmp_path, FTYP + MOOV)
    assert "no Segment" in refused(tmp_path, EBML_HEADER)
    assert "no box at byte" in refused(tmp_path, FTYP + b"\0\0\0\3abcd" + MOOV)


AVI = b"RIFF\x10\0\0\0AVI LIST"


@pytest.mark.parametrize(
    ("content", "name", "what"),
    [
        (b"", "empty.mp4", "is empty (0 bytes)"),
        (b"not a video\n", "text.mp4", "is a text file"),
        ("\u00e9t\u00e9 ".encode() * 2000, "text.mp4", "is a text file"),
        (b"\n<!DOCTYPE html><html>", "page.mp4", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "lfs.mp4", "git lfs pull"),
        (b"\0" * 500, "zeros.mp4", "begins with zeros"),
        (AVI, "clip.avi", "packed B-frames"),
        (AVI, "clip.mp4", "packed B-frames"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "photo.mp4", "is a JPEG image"),
        (b"\x89PNG\r\n\x1a\n\0\0", "photo.webm", "is a PNG image"),
        (b"GIF89a\1\0\1\0", "loop.mp4", "is a GIF image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "photo.mp4", "is a WebP image"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "sound.mp4", "is WAV audio"),
        (box(b"ftyp", b"heic\0\0\0\0"), "photo.mp4", "is a HEIF or AVIF image"),
        (b"FLV\x01\5\0\0\0", "clip.flv", "Flash video"),
        (b"\x00\x00\x01\xba\x44", "clip.mpg", "MPEG program stream"),
        ((b"G" + b"\1" * 187) * 3, "clip.ts", "MPEG transport stream"),
        (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9", "clip.wmv", "Windows Media"),
        (b"OggS\0\2", "clip.ogv", "Ogg file"),
        (bytes(range(128, 256)), "clip.mp4", "unknown kind (first bytes 80 81 82"),
        (bytes.fromhex("1a45dfa3 86 4282 83") + b"abc", "clip.webm", "EBML file of type 'abc'"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes, name: str, what: str):
    assert what in refused(tmp_path, content, name)


def test_what_is_no_file(tmp_path: Path):
    for path, what in [
        (tmp_path / "none.mp4", "there is no such file"),
        (tmp_path, "is a folder; expected a video file; open a folder with FolderDataset"),
        (tmp_path / "none.mp4" / "below.mp4", "there is no such file"),
        (Path("/dev/null"), "is a device, pipe or socket"),
    ]:
        with pytest.raises(VideoError, match=what):
            container_of(path)


def test_a_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path):
    with pytest.raises(VideoError) as caught:
        container_of(tmp_path / "two\nlines.mp4")
    assert "two\\nlines.mp4: there is no such file" in str(caught.value)


def test_claimed_sizes_allocate_nothing(tmp_path: Path):
    huge = (2**62).to_bytes(8)
    claims = [
        FTYP + box(b"moov", claimed=0xFFFFFFF0),
        FTYP + (1).to_bytes(4) + b"mdat" + huge,
        EBML_HEADER + SEGMENT + bytes.fromhex("01fffffffffffffe"),
        bytes.fromhex("1a45dfa3 01 00ffffffffffff") + b"webm",
        bytes.fromhex("1a45dfa3 8b 4282 01 00ffffffffffff") + b"webm",
    ]
    tracemalloc.start()
    try:
        for content in claims:
            refused(tmp_path, content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_noise_after_a_good_beginning_gives_an_answer(tmp_path: Path):
    """Whatever follows the first bytes, the walk ends, and with a VideoError if with any."""
    chance = random.Random(0)
    file = tmp_path / "noise.mp4"
    for start in (FTYP, FTYP + MOOV, EBML_HEADER, EBML_HEADER + SEGMENT + UNKNOWN):
        for _ in range(100):
            file.write_bytes(start + chance.randbytes(chance.randrange(1, 200)))
            with contextlib.suppress(VideoError):
                assert container_of(file) in ("mp4", "webm")
