from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from probe_datasets import frame_decoding
from probe_datasets.frame_index import frame_index
from probe_datasets.video_io import VideoError, read_frames, scan_video

GOP12 = "keyint=12:min-keyint=12"


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_open_groups_of_pictures(
    codec: str,
    write_video: Callable[..., Path],
    decode_all: Callable[[Path], np.ndarray],
    tmp_path: Path,
):
    """A frame that is shown before its keyframe needs the group before that."""
    params = f"open-gop=1:bframes=3:b-adapt=0:{GOP12}:scenecut=0"
    quiet = ":log-level=none" if codec == "libx265" else ""
    options = {"codec": codec, f"{codec[3:]}-params": params + quiet}
    path = write_video(tmp_path / "a.mp4", **options)
    assert scan_video(path).num_frames == 40
    expected = torch.from_numpy(decode_all(path)).permute(0, 3, 1, 2)
    for i in range(40):
        assert torch.equal(read_frames(path, [i])[0], expected[i])
        assert torch.equal(read_frames(path, [i], backend="pyav")[0], expected[i])


def test_pyav_decodes_little_more_than_it_is_asked_for(
    mp4: Path, torchcodec: str, monkeypatch: pytest.MonkeyPatch
):
    """It begins at the nearest keyframe and passes over B-frames that nothing refers to."""
    decoded: list[int] = []
    real = frame_decoding._frames

    def frames(*arguments: object) -> Iterator[av.VideoFrame]:
        for frame in real(*arguments):
            decoded.append(frame.pts)
            yield frame

    index = frame_index(mp4)
    assert [index.times.index(time) for time, _ in index.entries] == [0, 12, 24, 36]
    expected = read_frames(mp4, range(40), backend=torchcodec)
    monkeypatch.setattr(frame_decoding, "_frames", frames)
    for wanted in (35, 23, 34):
        decoded.clear()
        assert torch.equal(read_frames(mp4, [wanted], backend="pyav")[0], expected[wanted])
        entry = wanted // 12 * 12
        assert entry <= index.times.index(decoded[0])
        assert len(decoded) <= wanted - entry


def test_a_seek_that_goes_too_far_costs_time_only(mp4: Path, monkeypatch: pytest.MonkeyPatch):
    index, wanted = frame_index(mp4), [25, 39, 25, 14]
    expected = read_frames(mp4, wanted, backend="pyav")
    frames, decode = frame_decoding._frames, frame_decoding._decode
    attempts: list[tuple[bool, bool]] = []

    def no_frames_after_a_seek(source, stream, entry_time, needed) -> Iterator[av.VideoFrame]:
        return frames(source, stream, entry_time, needed) if entry_time is None else iter(())

    def counted(*arguments: object, seek: bool, hurry: bool) -> None:
        attempts.append((seek, hurry))
        decode(*arguments, seek=seek, hurry=hurry)

    monkeypatch.setattr(frame_decoding, "_frames", no_frames_after_a_seek)
    monkeypatch.setattr(frame_decoding, "_decode", counted)
    assert torch.equal(read_frames(mp4, wanted, backend="pyav", index=index), expected)
    assert attempts == [(True, True), (True, False), (False, False)]


def test_a_decoder_that_returns_another_frame_is_caught(
    webm: Path, torchcodec: str, monkeypatch: pytest.MonkeyPatch
):
    real = frame_decoding.torchcodec_decoder()

    class OffByOne(real):
        def get_frames_at(self, indices: list[int]):
            return super().get_frames_at([i + 1 for i in indices])

    monkeypatch.setattr(frame_decoding, "torchcodec_decoder", lambda: OffByOne)
    with pytest.raises(VideoError, match="other frames than those asked for"):
        read_frames(webm, [3], backend=torchcodec)
    assert torch.equal(read_frames(webm, [3]), read_frames(webm, [3], backend="pyav"))
