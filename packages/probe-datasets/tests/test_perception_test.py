"""Videos with a marker that moves, and annotations that say where it is."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.perception_test import SPEC, PerceptionTest
from probe_datasets.transforms import to_float
from probe_datasets.video_io import read_frames

HEIGHT, WIDTH, LENGTH = 48, 96, 30
SMALL = ClipConfig(num_frames=5, stride=2, size=64)


def centre(frame: int) -> tuple[float, float]:
    """Centre of the marker, xy: 6 x 6 pixels that go 2 to the right and 1 down a frame."""
    return (10 + 2 * frame + 3) / WIDTH, (5 + frame + 3) / HEIGHT


def track(frames: list[int], number: int = 0, offset: float = 0.0) -> dict[str, Any]:
    xy = [centre(frame) for frame in frames]
    points = [[y for _, y in xy], [x + offset for x, _ in xy]]  # y before x, as in the files
    return {"id": number, "label": "p", "parent_objects": [], "frame_ids": frames, "points": points}


def entry(tracks: list[dict[str, Any]], num_frames: int = LENGTH) -> dict[str, Any]:
    metadata = {
        "split": "valid",
        "video_id": "v",
        "frame_rate": 25.0,
        "num_frames": num_frames,
        "resolution": [HEIGHT, WIDTH],
        "is_camera_moving": 0,
    }
    return {"metadata": metadata, "object_tracking": [], "point_tracking": tracks}


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marked") / "video.mp4"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        for i in range(LENGTH):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            if 10 + 2 * i + 6 <= WIDTH:
                pixels[5 + i : 11 + i, 10 + 2 * i : 16 + 2 * i] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))
    return path


def write(root: Path, content: dict[str, Any], name: str = "point_tracking_valid.json") -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path, marked: Path) -> Path:
    tracks = [
        track([4, 5, 6, 8], 3),
        track([1, 3, 5]),  # never in the frames of the clip
        track(list(range(LENGTH)), 7, offset=0.01),
        track([], 9),
    ]
    write(tmp_path, {"video_2": entry(tracks), "video_1": entry(tracks[2:3]), "none": entry([])})
    (tmp_path / "videos").mkdir()
    for name in ("video_1", "video_2"):
        shutil.copyfile(marked, tmp_path / "videos" / f"{name}.mp4")
    return tmp_path


def open_videos(root: Path, split: str = "validation", **options: Any) -> PerceptionTest:
    return PerceptionTest(root, split, **{"clip": SMALL, "num_points": 4, "workers": 1, **options})


def marker(frame: torch.Tensor) -> tuple[float, float]:
    """Centre of the marker as xy in pixels of a frame, (3, H, W)."""
    weight = (frame.mean(dim=0) + 1) / 2
    rows, columns = (torch.arange(side) + 0.5 for side in weight.shape)
    total = weight.sum()
    return (
        float((weight.sum(dim=0) * columns).sum() / total),
        float((weight.sum(dim=1) * rows).sum() / total),
    )


def test_points_are_where_the_marker_is(root: Path):
    example = open_videos(root)[0]
    assert example["sample_id"] == "video_2"
    assert example["points_valid"].tolist() == [True, True, False, False]
    # Of frames 0, 2, 4, 6 and 8, the first track is visible in the last three.
    assert example["points_visible"][0].tolist() == [False, False, True, True, True]
    assert example["query_frames"].tolist() == [2, 0, 0, 0]
    assert example["points_visible"][1].all()
    assert not example["points_visible"][2:].any()
    for k in range(5):
        x, y = marker(example["video"][:, k])
        truth = torch.tensor([x / 64, y / 64])
        if k >= 2:
            # A tenth of a pixel: lossy colours and filtering leave the centre of mass alone.
            assert (example["points"][0, k] - truth).abs().max() * 64 < 0.1
        assert (example["points"][1, k] - truth - torch.tensor([0.01, 0])).abs().max() * 64 < 0.1


def test_frames_are_scaled_as_a_whole(root: Path, marked: Path):
    """Twice as wide as high, yet nothing is cut off: metrics are of the whole frame as a square."""
    video = open_videos(root, clip=ClipConfig(num_frames=2, size=48))[0]["video"]
    frames = to_float(read_frames(marked, [0, 1])).transpose(0, 1)
    halved = (frames[..., ::2] + frames[..., 1::2]) / 2
    assert video.shape == (3, 2, 48, 48)
    # Antialiasing reaches into the neighbours, but the sum of all pixels stays.
    torch.testing.assert_close(video.mean(), halved.mean(), atol=0.01, rtol=0)
    assert (video[..., 47] + 1).max() < 0.05


def test_evaluation_begins_at_the_first_frame(root: Path):
    dataset = open_videos(root)
    first, other = dataset.clip(0, 0), dataset.clip(0, 9)
    assert torch.equal(first["video"], other["video"])
    assert torch.equal(first["points"], other["points"])
    assert (SPEC.clip.num_frames, SPEC.clip.stride, SPEC.expected) == (17, 4, {"validation": 73})
    random = open_videos(root, augment=True)
    starts = [random.clip(1, draw)["points"][0, 0, 1].item() for draw in range(8)]
    assert len(set(starts)) > 3
    again = open_videos(root, augment=True)
    assert again.clip(1, 5)["points"][0, 0, 1].item() == starts[5]


def test_of_many_tracks_the_first_are_taken(root: Path):
    tracks = [track([8], 5), *(track([0, 2], i, offset=i / 100) for i in range(10))]
    write(root, {"video_1": entry(tracks)})
    example = open_videos(root)[0]
    assert example["points_valid"].all()
    assert example["query_frames"].tolist() == [4, 0, 0, 0]
    expected = torch.tensor([centre(0)[0] + i / 100 for i in range(3)])
    torch.testing.assert_close(example["points"][1:, 0, 0], expected)
    assert open_videos(root, num_points=1)[0]["points"].shape == (1, 5, 2)
    with pytest.raises(ValueError, match="num_points 0"):
        open_videos(root, num_points=0)


@pytest.mark.parametrize("folder", ["valid_videos", "point_tracking_valid_videos/videos", "."])
@pytest.mark.parametrize("name", ["all_valid.json", "annotations/point_tracking_valid.json"])
def test_every_layout(tmp_path: Path, marked: Path, folder: str, name: str):
    write(tmp_path, {"video_1": entry([track([0])]), "other": {"metadata": {}}}, name)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(marked, tmp_path / folder / "video_1.mp4")
    dataset = open_videos(tmp_path)
    assert len(dataset) == dataset.coverage.expected == 1
    with pytest.raises(DataError, match=r"no annotations of split 'train'.*point_tracking_train"):
        open_videos(tmp_path, "train")
    write(tmp_path, {"video_1": entry([track([0])])}, "point_tracking_train.json")
    if folder == ".":
        assert len(open_videos(tmp_path, "train")) == 1


def test_a_video_of_another_length_is_counted_as_failed(
    root: Path, marked: Path, write_video: Callable[..., Path]
):
    write_video(root / "videos" / "video_1.mp4", num_frames=LENGTH - 1)
    with pytest.raises(DataError, match=r"video_1\.mp4: has 29 frames; expected 30, as its annot"):
        open_videos(root)
    dataset = open_videos(root, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (2, 1, 0, 1)
    # With the annotations mended, the same file is sound, although it did not change.
    write(root, {"video_1": entry([track([0])], LENGTH - 1)})
    assert len(open_videos(root)) == 1
    (root / "videos" / "video_1.mp4").unlink()
    write(root, {name: entry([track([0])]) for name in ("video_1", "video_2")})
    coverage = open_videos(root).coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (2, 1, 1, 0)


def test_videos_that_are_too_short_or_damaged(root: Path, marked: Path):
    with pytest.raises(DataError, match="has 30 frames, a clip spans 65"):
        open_videos(root, clip=SPEC.clip)
    (root / "videos" / "video_1.mp4").write_bytes(marked.read_bytes()[:-100])
    dataset = open_videos(root, on_error="skip")
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["video_2"]
    assert "cut short" in dataset.coverage.reasons[0][1]
    write(root, {"../video_2": entry([track([0])])})
    with pytest.raises(DataError, match="names a video"):
        open_videos(root)


def test_tracks_decide_the_fingerprint(root: Path):
    before = open_videos(root).fingerprint
    assert open_videos(root).fingerprint == before
    assert open_videos(root, num_points=5).fingerprint != before
    write(root, {"video_2": entry([track([0])]), "video_1": entry([track([0])])})
    assert open_videos(root).fingerprint != before
