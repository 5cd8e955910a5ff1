import inspect
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from probe_datasets import video_io
from probe_datasets.video_io import VideoError, read_frames, scan_video

INSTALL = "pip install 'probe-datasets[video]'"
TURNED_LEFT, UPSIDE_DOWN, TURNED_RIGHT = (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)
QUARTER_TURNS = {TURNED_LEFT: 1, UPSIDE_DOWN: 2, TURNED_RIGHT: 3}  # counter-clockwise
GOP12 = "keyint=12:min-keyint=12"
ENCODINGS = {
    "h264 with B-frames": ("a.mp4", {"bf": "2"}),
    "h264 in Matroska": ("a.mkv", {"bf": "2"}),
    "h264 in QuickTime": ("a.mov", {}),
    "h264 in fragments": ("a.mp4", {"muxer": {"movflags": "frag_keyframe+empty_moov"}}),
    "h264, one keyframe": ("a.mp4", {"gop": 250}),
    "h264, keyframes only": ("a.mp4", {"gop": 1}),
    "h264, odd size": ("a.mp4", {"height": 33, "width": 65, "pix_fmt": "yuv444p"}),
    "h264, full range": ("a.mp4", {"pix_fmt": "yuvj420p"}),
    "h264, turned left": ("a.mp4", {"matrix": TURNED_LEFT}),
    "h264, upside down": ("a.mp4", {"matrix": UPSIDE_DOWN}),
    "h264, turned right": ("a.mp4", {"matrix": TURNED_RIGHT}),
    "h264, longer sound": ("a.mp4", {"audio_seconds": 4.0}),
    "h264, varying rate": ("a.mp4", {"times": [i + i // 7 * 5 for i in range(40)]}),
    "h264, late start": ("a.mp4", {"times": list(range(100, 140))}),
    "h264, interlaced": ("a.mp4", {"x264-params": "tff=1"}),
    "vp9": ("a.webm", {"codec": "libvpx-vp9"}),
    "vp9, odd size": ("a.webm", {"codec": "libvpx-vp9", "height": 37, "width": 67}),
    "vp9, live": ("a.webm", {"codec": "libvpx-vp9", "muxer": {"live": "1"}}),
    "vp8": ("a.webm", {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "hevc": ("a.mp4", {"codec": "libx265", "x265-params": f"log-level=none:open-gop=0:{GOP12}"}),
    "mpeg4": ("a.mp4", {"codec": "mpeg4", "bf": "2"}),
    "mjpeg": ("a.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
}
# torchcodec 0.13 gets these wrong or differs from PyAV, so "auto" reads them with PyAV.
PYAV_ONLY = {
    "10 bit": ("a.mp4", {"pix_fmt": "yuv420p10le"}),
    "intra refresh": ("a.mp4", {"x264-params": "intra-refresh=1:keyint=12"}),
}


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_frames_come_in_the_order_asked_for(
    suffix: str,
    backend: str,
    request: pytest.FixtureRequest,
    read_index: Callable[[np.ndarray], int],
):
    path = request.getfixturevalue(suffix)
    order = [39, 0, 7, 7, 13, 12, 11, 25, 24, 38, 1]
    frames = read_frames(path, order, backend=backend)
    assert frames.dtype == torch.uint8
    assert frames.shape == (len(order), 3, 32, 64)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert [read_index(frame.numpy()) for frame in frames] == order


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_frames_equal_sequential_decoding(
    encoding: str,
    backend: str,
    write_video: Callable[..., Path],
    decode_all: Callable[[Path], np.ndarray],
    tmp_path: Path,
):
    name, options = ENCODINGS[encoding]
    path = write_video(tmp_path / name, **options)
    turns = QUARTER_TURNS.get(options.get("matrix"), 0)
    expected = np.rot90(decode_all(path), turns, axes=(1, 2))
    if "interlaced" in encoding:  # PyAV by itself converts such frames field by field
        expected = read_frames(path, range(40), backend="pyav").permute(0, 2, 3, 1).numpy()
    info = scan_video(path)
    assert (info.num_frames, info.height, info.width) == expected.shape[:3]
    generator = np.random.default_rng(0)
    requests = [list(range(40)), [39], [0], list(range(20, 37, 2))]
    requests += [generator.integers(40, size=4).tolist() for _ in range(8)]
    for indices in requests:
        frames = read_frames(path, indices, backend=backend)
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[indices]), indices


@pytest.mark.parametrize("encoding", PYAV_ONLY)
def test_where_the_backends_would_differ_auto_reads_with_pyav(
    encoding: str,
    write_video: Callable[..., Path],
    decode_all: Callable[[Path], np.ndarray],
    tmp_path: Path,
    torchcodec: str,
):
    name, options = PYAV_ONLY[encoding]
    path = write_video(tmp_path / name, **options)
    expected = torch.from_numpy(decode_all(path)).permute(0, 3, 1, 2)
    for indices in ([39], [14, 13], [30, 31, 20]):
        assert torch.equal(read_frames(path, indices), expected[indices])
        assert torch.equal(read_frames(path, indices, backend="pyav"), expected[indices])
        with pytest.raises(VideoError, match="use backend='auto'"):
            read_frames(path, indices, backend=torchcodec)


def test_what_the_scan_says(mp4: Path, webm: Path, write_video: Callable[..., Path]):
    for path, container, codec in [(mp4, "mp4", "h264"), (webm, "webm", "vp9")]:
        info = scan_video(path)
        assert (info.path, info.container, info.codec) == (path, container, codec)
        assert (info.num_frames, info.height, info.width) == (40, 32, 64)
        assert info.fps == pytest.approx(25, rel=0.001)  # WebM keeps times in milliseconds
        assert scan_video(path, verify=False) == info


def test_one_frame_is_a_video(write_video: Callable[..., Path], tmp_path: Path, backend: str):
    path = write_video(tmp_path / "a.mp4", num_frames=1)
    assert (scan_video(path).num_frames, scan_video(path).fps) == (1, 0.0)
    assert read_frames(path, [0, 0], backend=backend).shape == (2, 3, 32, 64)


@pytest.mark.parametrize("index", [-1, 40, 10**12])
def test_index_out_of_range(mp4: Path, index: int, backend: str):
    with pytest.raises(VideoError, match=f"frame index {index} .* 40 frames; expected .* 0 to 39"):
        read_frames(mp4, [0, index], backend=backend)


def test_bad_requests(mp4: Path):
    with pytest.raises(ValueError, match="'opencv' must be one of auto, torchcodec, pyav"):
        read_frames(mp4, [0], backend="opencv")
    with pytest.raises(ValueError, match="indices is empty"):
        read_frames(mp4, [])


def test_names_that_ffmpeg_would_misread(
    mp4: Path, copy_of: Callable[..., Path], backend: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("http:clip.mp4", "frame%03d.mp4", "-i.MP4", "caf\u00e9 \u2603.mp4"):
        monkeypatch.chdir(copy_of(mp4, name).parent)
        assert scan_video(name).num_frames == 40
        assert len(read_frames(name, [3], backend=backend)) == 1


def test_a_file_that_changes_is_indexed_anew(
    mp4: Path, webm: Path, copy_of: Callable[..., Path], write_video: Callable[..., Path]
):
    path = copy_of(mp4, "a.mp4")
    assert scan_video(path).num_frames == 40
    write_video(path, num_frames=9)
    assert scan_video(path).num_frames == 9
    path.unlink()
    with pytest.raises(VideoError, match="there is no such file"):
        read_frames(path, [0])


def damaged_payload(source: Path, target: Path) -> Path:
    """A copy with bytes of the frame data inverted, all sizes right."""
    content = bytearray(source.read_bytes())
    start = content.index(b"mdat") + 4
    for at in range(start + (len(content) - start) * 2 // 3, len(content) - 3000, 331):
        content[at] ^= 0xFF
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_damage_inside_frames_is_found_by_verification(
    codec: str, write_video: Callable[..., Path], tmp_path: Path
):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    whole = write_video(
        tmp_path / "whole.mp4", codec=codec, height=128, width=192, crf="5", gop=250, **options
    )
    path = damaged_payload(whole, tmp_path / "damaged.mp4")
    scan_video(whole)
    assert scan_video(path, verify=False).num_frames == 40
    with pytest.raises(
        VideoError, match=r"of (its )?40.*expected an undamaged file; copy or download"
    ):
        scan_video(path)


def test_a_cut_that_the_container_does_not_show(write_video: Callable[..., Path], tmp_path: Path):
    """An mdat box of size 0 reaches to the end of the file, wherever that is."""
    muxer = {"movflags": "faststart"}
    content = bytearray(write_video(tmp_path / "whole.mp4", muxer=muxer).read_bytes())
    at = content.index(b"mdat") - 4
    content[at : at + 4] = bytes(4)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert scan_video(path).num_frames == 40
    for lost in (1, 300, len(content) // 2):
        path.write_bytes(content[:-lost])
        with pytest.raises(VideoError, match="cut short or damaged within its frames"):
            scan_video(path, verify=False)


def test_no_video_stream(write_video: Callable[..., Path], tmp_path: Path, mp4: Path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        sink.mux(stream.encode(samples))
        sink.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds audio but no video; expected a video stream"):
        scan_video(path)


def test_a_mirrored_video_is_refused(write_video: Callable[..., Path], tmp_path: Path):
    """The backends know quarter turns only and would show a mirrored video upside down."""
    path = write_video(tmp_path / "a.mp4", num_frames=4, matrix=(-1, 0, 0, 1))
    with pytest.raises(VideoError, match="mirrored or at an odd angle"):
        read_frames(path, [0])


def test_a_change_of_size_is_refused(write_video: Callable[..., Path], tmp_path: Path):
    """Two VP9 streams of different sizes, one after the other, in one track."""
    path = tmp_path / "a.webm"
    small = write_video(tmp_path / "small.webm", codec="libvpx-vp9", num_frames=5)
    large = write_video(
        tmp_path / "large.webm", codec="libvpx-vp9", num_frames=5, height=64, width=128
    )
    with av.open(str(path), "w") as sink, av.open(str(small)) as one, av.open(str(large)) as two:
        stream = sink.add_stream_from_template(one.streams.video[0])
        for offset, source in ((0, one), (1000, two)):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    sink.mux(packet)
    with pytest.raises(VideoError, match="changes its frame size from 32 x 64"):
        scan_video(path)
    for backend in ("auto", "pyav"):
        with pytest.raises(VideoError, match="changes its frame size"):
            read_frames(path, [0, 9], backend=backend)


def test_ffmpeg_keeps_silent(
    write_video: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture, caplog
):
    whole = write_video(tmp_path / "whole.mp4", height=128, width=192, crf="5", gop=250)
    path = damaged_payload(whole, tmp_path / "damaged.mp4")
    before = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with pytest.raises(VideoError):
            scan_video(path)
        assert av.logging.get_level() == av.logging.WARNING
    finally:
        av.logging.set_level(before)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("libav")]


def test_errors_survive_the_way_out_of_a_worker(tmp_path: Path):
    with pytest.raises(VideoError) as caught:
        scan_video(tmp_path / "none.mp4")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (VideoError, str(caught.value))


# ------------------------------------------------------------------------ choice of the backend


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Let "auto" decide anew in this test and afterwards."""
    video_io._auto_backend.cache_clear()
    yield
    video_io._auto_backend.cache_clear()


def forget_torchcodec(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchcodec"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("fresh_choice")
def test_without_torchcodec(
    webm: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    forget_torchcodec(monkeypatch)
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with caplog.at_level(logging.INFO, logger="probe_datasets"):
        read_frames(webm, [1])
        read_frames(webm, [2])
    assert [r.getMessage()[:29] for r in caplog.records] == ["video backend for vp9: pyav ("]
    assert INSTALL in caplog.text
    with pytest.raises(ImportError) as caught:
        read_frames(webm, [1], backend="torchcodec")
    assert INSTALL in str(caught.value)


@pytest.mark.usefixtures("fresh_choice")
def test_torchcodec_without_ffmpeg_libraries(
    webm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its import then raises RuntimeError."""
    forget_torchcodec(monkeypatch)
    (tmp_path / "torchcodec").mkdir()
    (tmp_path / "torchcodec" / "__init__.py").write_text("raise RuntimeError('no libavutil')")
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.INFO, logger="probe_datasets"):
        assert len(read_frames(webm, [1])) == 1
    assert "apt-get install ffmpeg" in caplog.text
    with pytest.raises(ImportError, match="use backend='pyav'"):
        read_frames(webm, [1], backend="torchcodec")


@pytest.mark.usefixtures("fresh_choice")
def test_auto_chooses_by_codec_and_says_so(
    mp4: Path,
    webm: Path,
    torchcodec: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.INFO, logger="probe_datasets"):
        with monkeypatch.context() as patch:
            patch.setattr(video_io, "read_pyav", None)
            assert len(read_frames(webm, [1, 2])) == 2
            assert len(read_frames(webm, [1, 2])) == 2
        monkeypatch.setattr(video_io, "read_torchcodec", None)
        assert len(read_frames(mp4, [1, 2])) == 2
    said = [r.getMessage() for r in caplog.records]
    assert said == ["video backend for vp9: torchcodec", "video backend for h264: pyav"]


def test_without_pyav(mp4: Path, copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (scan_video, lambda path: read_frames(path, [0])):
        with pytest.raises(ImportError) as caught:
            call(copy_of(mp4, "not_indexed_yet.mp4"))
        assert INSTALL in str(caught.value)


def test_the_package_imports_without_the_extra():
    code = """
        import sys
        sys.modules["av"] = sys.modules["torchcodec"] = None
        import probe_datasets
        assert probe_datasets.clip_indices(20)[-1] == 16
        assert len(probe_datasets.open_dataset("moving_shapes", split="train")) > 0
    """
    subprocess.run([sys.executable, "-c", inspect.cleandoc(code)], check=True)
