"""RealEstate10K in its four layouts, written here: what is drawn is where pose and camera say."""

import json
import os
import runpy
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import realestate10k
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.formats.poses import relative_pose
from probe_datasets.formats.realestate10k_chunks import chunk_places, read_chunk
from probe_datasets.realestate10k import RealEstate10K

HEIGHT, WIDTH, SIZE = 48, 80, 24
CAMERA = (0.5, 0.85, 0.48, 0.53)  # fx, fy, cx, cy by width and height
MARKER = np.array([0.2, -0.1, 2.0])
NUM_FRAMES = 9
CLIP = ClipConfig(num_frames=4, size=SIZE)
NAME, OTHER, THIRD = "0123456789abcdef", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"
VIDEO = "-a_B3456789"
LAYOUTS = ("frames", "clips", "videos", "chunks")
FIRST_FRAME = 30  # of the clip in its video, which has 25 frames a second


def world_to_camera(i: int) -> np.ndarray:
    c, s = np.cos(0.02 * i + 0.1), np.sin(0.02 * i + 0.1)
    return np.array([[c, 0, s, 0.03 * i], [0, 1, 0, 0.01], [-s, 0, c, 0.05 * i]])


def draw(i: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame whose blue is its number, with a red marker where camera i sees it."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 2] = 20 * i
    x, y, z = world_to_camera(i) @ np.append(MARKER, 1)
    fx, fy, cx, cy = CAMERA
    column, row = int((fx * x / z + cx) * width), int((fy * y / z + cy) * height)
    frame[row - 5 : row + 6, column - 5 : column + 6, 0] = 255
    return frame


def times(first: int = FIRST_FRAME, count: int = NUM_FRAMES) -> list[int]:
    """Microseconds up to 15 ms away from the frames that are meant."""
    return [40_000 * (first + i) + (-15_000, 0, 15_000)[i % 3] for i in range(count)]


def write_poses(path: Path, stamps: list[int], video: str = VIDEO) -> None:
    lines = [f"https://www.youtube.com/watch?v={video}"]
    for i, time in enumerate(stamps):
        numbers = (*CAMERA, 0, 0, *world_to_camera(i).ravel())
        lines.append(f"{time} " + " ".join(f"{v:.9f}" for v in numbers))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.time_base = stream.time_base = Fraction(1, 25)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def encoded(pixels: np.ndarray) -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=95, subsampling=0)
    return sink.getvalue()


def chunk_entry(clip: str, count: int = NUM_FRAMES) -> dict[str, object]:
    rows = [[*CAMERA, 0, 0, *world_to_camera(i).ravel()] for i in range(count)]
    green = np.uint8([0, 10 * (ord(clip[0]) % 8), 0])  # so that no two clips are the same
    pictures = [bytearray(encoded(draw(i) + green)) for i in range(count)]
    return {
        "key": clip,
        "url": "",
        "timestamps": torch.tensor(times(count=count)),
        "cameras": torch.tensor(rows, dtype=torch.float32),
        "images": [torch.frombuffer(data, dtype=torch.uint8) for data in pictures],
    }


def write_chunks(root: Path, split: str, **chunks: list[str]) -> None:
    (root / split).mkdir(parents=True, exist_ok=True)
    for name, clips in chunks.items():
        torch.save([chunk_entry(clip) for clip in clips], root / split / f"{name}.torch")
    table = {clip: f"{name}.torch" for name, clips in chunks.items() for clip in clips}
    (root / split / "index.json").write_text(json.dumps(table))


def write(root: Path, layout: str, split: str = "train", clip: str = NAME) -> None:
    if layout == "chunks":
        return write_chunks(root, split, **{"000000": [OTHER], "000001": [clip]})
    write_poses(root / "RealEstate10K" / split / f"{clip}.txt", times())
    frames = [draw(i) for i in range(NUM_FRAMES)]
    if layout == "frames":
        (root / split / clip).mkdir(parents=True)
        for time, frame in zip(times(), frames, strict=True):
            (root / split / clip / f"{time}.jpg").write_bytes(encoded(frame))
    elif layout == "clips":
        write_video(root / "video_clips" / VIDEO / f"{clip}.mp4", frames)
    else:
        grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        around = [grey] * FIRST_FRAME, [grey] * 5
        write_video(root / "videos" / f"{VIDEO}.mp4", [*around[0], *frames, *around[1]])
    return None


def numbers(example: dict) -> list[int]:
    """Which rows these frames are of, by their blue."""
    return [round(float(v)) for v in (example["video"][2, :, -1, -1] + 1) * 127.5 / 20]


def index_of(data: RealEstate10K, clip: str = NAME) -> int:
    return [data.sample_id(i) for i in range(len(data))].index(clip)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_where_things_are_drawn(tmp_path: Path, layout: str):
    write(tmp_path, layout, "test")
    data = RealEstate10K(tmp_path, "test", clip=CLIP)
    example = data[index_of(data)]
    assert data.index.row(index_of(data))["layout"] == layout
    assert numbers(example) == [0, 1, 2, 3]
    assert example["sample_id"] == NAME
    assert example["poses_valid"].all()
    assert example["video"].shape == (3, 4, SIZE, SIZE)
    for i in range(4):
        x, y, z = example["poses"][i].double().numpy() @ np.append(MARKER, 1)
        np.testing.assert_allclose(example["poses"][i], world_to_camera(i), atol=1e-6)
        fx, fy, cx, cy = example["intrinsics"][i].tolist()
        column, row = int((fx * x / z + cx) * SIZE), int((fy * y / z + cy) * SIZE)
        red = example["video"][0, i]
        assert red[row, column] > 0.8
        assert red[row, column - 8] < -0.8
        assert red[row - 8, column] < -0.8
    motion = relative_pose(example["poses"][0].numpy(), example["poses"][-1].numpy())
    expected = relative_pose(world_to_camera(0), world_to_camera(3))
    np.testing.assert_allclose(motion, expected, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_starts_anywhere_and_evaluation_at_the_first_row(tmp_path: Path, layout: str):
    write(tmp_path, layout, "train")
    data = RealEstate10K(tmp_path, "train", clip=CLIP)
    k = index_of(data)
    clips = [data.clip(k, draw) for draw in range(20)]
    assert {numbers(clip)[0] for clip in clips} == set(range(NUM_FRAMES - 3))
    for clip in clips:
        first = numbers(clip)[0]
        assert numbers(clip) == list(range(first, first + 4))
        np.testing.assert_allclose(clip["poses"][0], world_to_camera(first), atol=1e-6)
    torch.testing.assert_close(data.clip(k, 7)["video"], clips[7]["video"], rtol=0, atol=0)
    fixed = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
    assert {numbers(fixed.clip(k, draw))[0] for draw in range(4)} == {0}
    strided = ClipConfig(num_frames=4, stride=2, size=SIZE)
    assert numbers(RealEstate10K(tmp_path, "train", clip=strided, augment=False)[k]) == [0, 2, 4, 6]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scale_table_makes_metres(tmp_path: Path, layout: str):
    write(tmp_path, layout, "test")
    table = tmp_path / "scale.csv"
    table.write_text(f"clip,metres\n{NAME},2.5\n")
    plain = RealEstate10K(tmp_path, "test", clip=CLIP, on_error="skip")
    metric = RealEstate10K(tmp_path, "test", clip=CLIP, scale_table=table, on_error="skip")
    assert (plain.metric, metric.metric) == (False, True)
    assert metric.example_options() == {"metric": True}
    assert metric.fingerprint != plain.fingerprint
    before, after = plain[index_of(plain)], metric[index_of(metric)]
    torch.testing.assert_close(after["poses"][..., 3], before["poses"][..., 3] * 2.5)
    torch.testing.assert_close(after["poses"][..., :3], before["poses"][..., :3], rtol=0, atol=0)
    assert len(metric) == 1
    if layout == "chunks":
        assert metric.coverage.failed == 1
        assert "not in the scale table" in dict(metric.coverage.reasons)[OTHER]
    table.write_text(f"clip,metres\n{OTHER},2.5\n")
    with pytest.raises(DataError, match="not in the scale table"):
        RealEstate10K(tmp_path, "test", clip=CLIP, scale_table=table)


def test_what_is_missing_and_what_is_bad(tmp_path: Path):
    root = tmp_path / "data"
    folder = root / "RealEstate10K" / "test"
    names = [f"{k:016x}" for k in range(7)]
    write_video(root / "test" / f"{VIDEO}.mp4", [draw(i) for i in range(NUM_FRAMES + 1)])
    write_poses(folder / f"{names[0]}.txt", times(first=1))
    write_poses(folder / f"{names[1]}.txt", times(), video="another_one")  # its video is not there
    write_poses(folder / f"{names[2]}.txt", times(first=1, count=3))  # too short
    write_poses(folder / f"{names[3]}.txt", times(first=900))  # beyond the video's end
    (folder / f"{names[4]}.txt").write_text(f"https://youtu.be/{VIDEO}\n1 2 3\n")
    (folder / f"{names[5]}.txt").write_text("")
    write_poses(folder / f"{names[6]}.txt", times(first=1))
    os.symlink(tmp_path, root / "test" / names[6])
    data = RealEstate10K(root, "test", clip=CLIP, on_error="skip")
    assert [data.sample_id(i) for i in range(len(data))] == [names[0]]
    coverage = data.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (7, 1, 2, 4)
    reasons = dict(coverage.reasons)
    assert set(reasons) == set(names[1:])
    assert "no file" in reasons[names[1]]
    assert "no file" in reasons[names[5]]  # without its address, nothing is known of it
    assert "has 3 frames" in reasons[names[2]]
    assert "does not show clip" in reasons[names[3]]
    assert "3 columns in line 2" in reasons[names[4]]
    assert "leaves" in reasons[names[6]]
    with pytest.raises(DataError, match="4 of 7 samples"):
        RealEstate10K(root, "test", clip=CLIP)
    with pytest.raises(DataError, match="no pose files of split 'train'"):
        RealEstate10K(root, "train", clip=CLIP)
    (root / "test" / f"{VIDEO}.mp4").unlink()
    (root / "test" / names[6]).unlink()
    with pytest.raises(DataError, match="frames of none of the 7 clips"):
        RealEstate10K(root, "test", clip=CLIP)


def test_chunks_that_are_missing_or_bad(tmp_path: Path):
    names = [f"{k:016x}" for k in range(6)]
    write_chunks(tmp_path, "train", a=names[:2], b=names[2:4], c=names[4:5])
    table = json.loads((tmp_path / "train" / "index.json").read_text())
    table[names[5]] = "a.torch"  # which does not hold it
    (tmp_path / "train" / "index.json").write_text(json.dumps(table))
    bad = tmp_path / "train" / "b.torch"
    bad.write_bytes(bad.read_bytes()[:-40])
    (tmp_path / "train" / "c.torch").unlink()
    data = RealEstate10K(tmp_path, "train", clip=CLIP, on_error="skip")
    assert [data.sample_id(i) for i in range(len(data))] == names[:2]
    coverage = data.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (6, 2, 1, 3)
    reasons = dict(coverage.reasons)
    assert "cut short" in reasons[names[2]]
    assert "does not hold it" in reasons[names[5]]
    # What a chunk does not hold stays known when another changes, and a longer list is seen.
    index = tmp_path / "train" / "index.json"
    write_chunks(tmp_path, "train", b=names[2:4], c=names[4:5])
    for listed, counts in ((table, (6, 5, 1)), ({**table, "f" * 16: "a.torch"}, (7, 5, 2))):
        index.write_text(json.dumps(listed))
        coverage = RealEstate10K(tmp_path, "train", clip=CLIP, on_error="skip").coverage
        assert (coverage.expected, coverage.found, coverage.failed) == counts


def test_only_the_clip_is_read_from_a_chunk(tmp_path: Path):
    write_chunks(tmp_path, "test", a=[OTHER, NAME, THIRD])
    data = RealEstate10K(tmp_path, "test", clip=CLIP)
    before = data[index_of(data)]
    path = tmp_path / "test" / "a.torch"
    (places,) = (place for place in chunk_places(path) if place.clip == NAME)
    (whole,) = (clip for clip in read_chunk(path) if clip.poses.clip == NAME)
    content, status = bytearray(path.read_bytes()), path.stat()
    kept = bytearray(len(content))  # the rest of the file is zeros
    spans = [(places.cameras, NUM_FRAMES * 18 * 4)]
    spans += list(zip(places.offsets[:4].tolist(), places.lengths[:4].tolist(), strict=True))
    for offset, length in spans:
        kept[offset : offset + length] = content[offset : offset + length]
    for i, (offset, length) in enumerate(spans[1:]):
        assert kept[offset : offset + length] == whole.images[i].tobytes()
    path.write_bytes(kept)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = data[index_of(data)]
    for key in ("video", "poses", "intrinsics"):
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    with pytest.raises(DataError, match=r"a\.torch"):
        data[index_of(data, THIRD)]


def test_views_of_one_tensor_are_found_in_a_chunk(tmp_path: Path):
    entry = chunk_entry(NAME)
    lengths = [len(image) for image in entry["images"]]
    entry["images"] = list(torch.cat(entry["images"]).split(lengths))
    torch.save([entry], tmp_path / "a.torch")
    (places,) = chunk_places(tmp_path / "a.torch")
    content = (tmp_path / "a.torch").read_bytes()
    for i, offset in enumerate(places.offsets):
        assert content[offset : offset + lengths[i]] == entry["images"][i].numpy().tobytes()
    entry["cameras"] = entry["cameras"].T.contiguous().T
    torch.save([entry], tmp_path / "a.torch")
    with pytest.raises(DataError, match="contiguous"):
        chunk_places(tmp_path / "a.torch")


def test_gaps_in_the_pictures(tmp_path: Path):
    write(tmp_path, "frames")
    gone = [tmp_path / "train" / NAME / f"{times()[i]}.jpg" for i in (2, 8)]
    for path in gone:
        path.unlink()
    data = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
    assert data.row(0)["num_frames"] == 5  # rows 3 to 7
    assert numbers(data[0]) == [3, 4, 5, 6]
    np.testing.assert_allclose(data[0]["poses"][0], world_to_camera(3), atol=1e-6)
    moved = RealEstate10K(tmp_path, "train", clip=CLIP)
    assert {numbers(moved.clip(0, draw))[0] for draw in range(12)} == {3, 4}
    gone[0].write_bytes(encoded(draw(2)))  # the index notices a picture that came
    data = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
    assert numbers(data[0]) == [0, 1, 2, 3]
    gone[0].write_bytes(encoded(draw(2, HEIGHT, WIDTH - 2)))
    data = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
    with pytest.raises(DataError, match="48 x 78 pixels"):
        data[0]
    gone[0].rename(gone[0].with_suffix(".jpeg"))
    with pytest.raises(DataError, match="in two ways"):
        RealEstate10K(tmp_path, "train", clip=CLIP)


def test_frames_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, "videos")
    other = tmp_path / "RealEstate10K" / "train" / f"{OTHER}.txt"
    write_poses(other, times(first=FIRST_FRAME + 3, count=5))
    RealEstate10K(tmp_path, "train", clip=CLIP)

    def refuse(*_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(realestate10k, "video_frames", refuse)
        patch.setattr(realestate10k, "frame_index", refuse)
        data = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
        assert numbers(data[index_of(data, OTHER)]) == [3, 4, 5, 6]
        assert numbers(data[index_of(data)]) == [0, 1, 2, 3]
    # The video is as it was, but other frames of it are wanted now.
    write_poses(other, times(first=FIRST_FRAME + 2, count=5))
    with pytest.raises(DataError, match="changed since it was indexed"):
        data[index_of(data, OTHER)]
    again = RealEstate10K(tmp_path, "train", clip=CLIP, augment=False)
    assert numbers(again[index_of(again, OTHER)]) == [2, 3, 4, 5]
    assert again.fingerprint != data.fingerprint


# ------------------------------------------------------------------------------------ real clips

EPIPOLAR = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parent / "test_formats_realestate10k.py"))
)


@pytest.fixture(scope="module")
def real_clips(
    shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Callable[[], dict]]:
    """The clips of 16 frames, scaled to 224 x 224 after their central square was taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROBE_DATASETS_CACHE", str(tmp_path_factory.mktemp("real")))
        clip = ClipConfig(num_frames=16, size=224)
        data = RealEstate10K(shared / "re10k", "test", clip=clip)
        assert data.coverage.found == len(data) == 5
    return {data.sample_id(i): lambda i=i: data[i] for i in range(len(data))}


@pytest.mark.parametrize(
    "clip",
    [
        "0bf152ef84195293",
        "0c9b371cc6225682",
        "0f68374b76390082",
        "2f25826f0d0ef09a",
        "3f79dc32d575bcdc",
    ],
)
def test_examples_obey_epipolar_geometry(real_clips: dict[str, Callable[[], dict]], clip: str):
    """Matches between frames lie within a pixel of where poses and intrinsics put them."""
    example = real_clips[clip]()
    frames = (example["video"][:, :2].double().mean(0).numpy() + 1) * 127.5
    size = frames.shape[-1]
    fx, fy, cx, cy = (example["intrinsics"][0].double() * size).tolist()
    camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    matches = []
    for y, x in EPIPOLAR.corners(frames[0], 40):
        there = EPIPOLAR.match(frames[0], frames[1], y, x)
        places = there and (round(there[0]), round(there[1]))
        back = there and EPIPOLAR.match(frames[1], frames[0], *places)
        if there and back and np.hypot(back[0] - y, back[1] - x) < 1.5:
            matches.append((x + 0.5, y + 0.5, there[1] + 0.5, there[0] + 0.5))
    points = np.array(matches)
    assert len(points) >= 8
    motion = relative_pose(example["poses"][0].numpy(), example["poses"][1].numpy())
    error = EPIPOLAR.sampson(points[:, :2], points[:, 2:], camera, motion)
    assert np.median(error) < 1


def test_real_clips_keep_their_colours(real_clips: dict[str, Callable[[], dict]], shared: Path):
    """The central square of the frames as another decoder gives them."""
    clip = "2f25826f0d0ef09a"
    with av.open(str(shared / "re10k" / "clips" / f"{clip}.mp4")) as source:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in source.decode(video=0)])
    square = frames[:, :, 64:320].astype(np.float64).mean((1, 2))
    video = (real_clips[clip]()["video"].double().mean((2, 3)).T + 1) * 127.5
    np.testing.assert_allclose(video, square, atol=0.5)
