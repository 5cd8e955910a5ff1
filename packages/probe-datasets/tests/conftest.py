"""Fixtures: small videos whose frames spell their own index, and the real files where present."""

import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BITS = 8
BLOCK = 16


def picture(index: int, height: int = 32, width: int = 64) -> np.ndarray:
    """Grey frame whose 16 x 16 blocks are the bits of an index, black or white, under a texture."""
    y, x = np.mgrid[0:height, 0:width]
    bit = (y // BLOCK * (width // BLOCK) + x // BLOCK) % BITS
    level = np.where((index >> bit) & 1, 200, 40) + (x * 5 + y * 3 + index * 7) % 16
    return np.repeat(level[..., None], 3, axis=2).astype(np.uint8)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Overwrite the matrix of an MP4's track header; (1, 0, 0, 1) shows the frames as they are."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2
    one = 1 << 16
    assert content[start : start + 4] == one.to_bytes(4)
    for offset, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        content[start + offset : start + offset + 4] = (value * one).to_bytes(4, signed=True)
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def index_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the indexes of each test."""
    folder = tmp_path_factory.mktemp("indexes")
    monkeypatch.setenv("PROBE_DATASETS_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Function that encodes pictures of indices; the keyword arguments are encoder options."""

    def write(
        path: Path,
        num_frames: int = 40,
        codec: str = "libx264",
        height: int = 32,
        width: int = 64,
        pix_fmt: str = "yuv420p",
        matrix: tuple[int, int, int, int] = (1, 0, 0, 1),
        times: list[int] | None = None,
        gop: int = 12,
        muxer: dict[str, str] | None = None,
        audio_seconds: float = 0.0,
        **options: str,
    ) -> Path:
        if codec == "libvpx-vp9":
            options = {"deadline": "realtime", "cpu-used": "8", "crf": "10", "b": "0", **options}
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=muxer or {}) as sink:
            stream = sink.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
            stream.codec_context.gop_size = gop
            stream.codec_context.time_base = stream.time_base = Fraction(1, 25)
            sound = sink.add_stream("aac", rate=8000) if audio_seconds else None
            for i in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(i, height, width), format="rgb24")
                frame.pts = times[i] if times else i
                frame.time_base = Fraction(1, 25)
                sink.mux(stream.encode(frame))
            sink.mux(stream.encode(None))
            for start in range(0, int(audio_seconds * 8000), 1024):
                samples = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), "fltp", "mono"
                )
                samples.sample_rate, samples.pts = 8000, start
                sink.mux(sound.encode(samples))
            if sound is not None:
                sink.mux(sound.encode(None))
        if matrix != (1, 0, 0, 1):
            set_display_matrix(path, *matrix)
        return path

    return write


@pytest.fixture(scope="session")
def read_index() -> Callable[[np.ndarray], int]:
    """Function that reads the index back from a frame of at least 32 x 64, (3, H, W)."""

    def read(frame: np.ndarray) -> int:
        blocks = [
            frame[:, y + 4 : y + 12, x + 4 : x + 12].mean() > 120
            for y in (0, BLOCK)
            for x in range(0, BITS // 2 * BLOCK, BLOCK)
        ]
        return sum(int(on) << bit for bit, on in enumerate(blocks))

    return read


@pytest.fixture(scope="session")
def decode_all() -> Callable[[Path], np.ndarray]:
    """Function that decodes a whole file in order with PyAV alone, (T, H, W, 3), as stored."""

    def decode(path: Path) -> np.ndarray:
        with av.open(str(path)) as source:
            return np.stack([f.to_ndarray(format="rgb24") for f in source.decode(video=0)])

    return decode


@pytest.fixture(scope="session")
def mp4(write_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with B-frames and a keyframe every 12 frames; 40 frames."""
    return write_video(tmp_path_factory.mktemp("mp4") / "clip.mp4", bf="2")


@pytest.fixture(scope="session")
def webm(write_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VP9; 40 frames."""
    return write_video(tmp_path_factory.mktemp("webm") / "clip.webm", codec="libvpx-vp9")


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[..., Path]:
    """Function that copies a file under a new name, all of it or its beginning."""

    def copy(source: Path, name: str, num_bytes: int | None = None) -> Path:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if num_bytes is None:
            shutil.copyfile(source, target)
        else:
            target.write_bytes(source.read_bytes()[:num_bytes])
        return target

    return copy


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real files, `shared/data` beside the repository or in PROBE_SHARED."""
    if "PROBE_SHARED" in os.environ:
        candidates = [Path(os.environ["PROBE_SHARED"])]
    else:
        candidates = [parent / "shared" for parent in Path(__file__).resolve().parents]
    for candidate in candidates:
        if (candidate / "data" / "expected" / "videos.json").is_file():
            return candidate / "data"
    pytest.skip("the real videos are not here: no shared/data beside the repository")


@pytest.fixture(scope="session")
def torchcodec() -> str:
    """The name of the torchcodec backend, where it works."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"torchcodec cannot be imported: {str(error).splitlines()[0]}")
    return "torchcodec"


@pytest.fixture(params=["pyav", "torchcodec"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    if request.param == "torchcodec":
        request.getfixturevalue("torchcodec")
    return request.param
