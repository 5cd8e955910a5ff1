"""What a tokenizer is trained on: the same pixels for the same index, in bounded memory."""

from pathlib import Path

import pytest
import torch
from einops import rearrange

from probe_datasets import ClipConfig, FolderDataset, read_frames, to_float
from probe_eval.config import DataConfig
from probe_eval.data import open_split
from probe_eval.pretrain.samples import (
    Stretches,
    VideoStretches,
    clips_at_once,
    load_frames,
    number_of_shares,
    open_videos,
)
from probe_eval.report.video import VideoWriter

DATA = DataConfig(size=16, num_frames=9, limit=6)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of three videos, of 12, 20 and 40 frames."""
    for length in (12, 20, 40):
        generator = torch.Generator().manual_seed(length)
        coarse = torch.rand(length, 3, 6, 8, generator=generator)
        frames = torch.nn.functional.interpolate(coarse, (24, 32)) * 255
        with VideoWriter(tmp_path / "videos" / f"{length}.mp4", 10.0) as writer:
            writer.write(frames.to(torch.uint8))
    return tmp_path / "videos"


def test_stretches_are_cut_from_the_clips() -> None:
    dataset = open_split(DATA, "train")
    stretches = Stretches(dataset, 5, seed=0)
    assert len(stretches) == len(dataset) == 6
    starts = []
    for index in range(6):
        clip, found = dataset[index]["video"], stretches[index]["video"]
        places = [k for k in range(5) if torch.equal(clip[:, k : k + 5], found)]
        assert places
        starts.append(places[0])
        assert torch.equal(stretches[index]["video"], found)
    assert len(set(starts)) > 1


def test_frames_in_memory_are_those_of_the_videos(videos: Path) -> None:
    folder = open_videos(DATA, str(videos), "train")
    found = load_frames(folder, 1.0)
    assert [len(frames) for frames in found] == [
        int(folder.sample_id(i).removesuffix(".mp4")) for i in range(len(folder))
    ]
    clip = folder[0]["video"]
    frames = rearrange(to_float(found[0]), "T c H W -> c T H W")
    errors = [float((frames[:, k : k + 9] - clip).abs().max()) for k in range(frames.shape[1] - 8)]
    # Half a level of the rounding to bytes, which the data set does not do.
    assert min(errors) < 1.01 / 255


def test_long_videos_are_read_in_parts(videos: Path) -> None:
    """40 frames are more than are read at once."""
    folder = FolderDataset(videos, "all", clip=ClipConfig(num_frames=9, size=24))
    longest = max(load_frames(folder, 1.0), key=len)
    assert torch.equal(longest, read_frames(videos / "40.mp4", range(40))[..., 4:28])


def test_too_many_frames_for_the_memory_are_refused(videos: Path) -> None:
    folder = FolderDataset(videos, "all", clip=ClipConfig(num_frames=9, size=16))
    with pytest.raises(ValueError, match=r"72 frames of 3 videos .* videos_memory_gb 1e-05; raise"):
        load_frames(folder, 1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_stretches_of_videos_depend_on_their_index_alone(stride: int) -> None:
    counting = [
        torch.arange(length, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
        for length in (12, 30)
    ]

    def stretches(seed: int = 0) -> VideoStretches:
        return VideoStretches(counting, 100, num_frames=5, stride=stride, seed=seed)

    one, two = stretches(), stretches()
    assert len(one) == 100
    starts: dict[int, set[int]] = {12: set(), 30: set()}
    for index in reversed(range(100)):
        video = one[index]["video"]
        assert torch.equal(video, two[index]["video"])
        levels = ((video[0, :, 0, 0] + 1) * 127.5).round().int()
        assert (levels.diff() == stride).all()
        starts[(12, 30)[index % 2]].add(int(levels[0]))
    assert starts[12] == set(range(12 - 4 * stride))
    assert len(starts[30]) > 5
    assert any(not torch.equal(one[i]["video"], stretches(1)[i]["video"]) for i in range(len(one)))


@pytest.mark.parametrize(
    ("others", "share", "number"), [(75, 0.25, 25), (10, 0.5, 10), (1, 0.1, 1)]
)
def test_a_share_is_of_all_samples(others: int, share: float, number: int) -> None:
    assert number_of_shares(others, share) == number


@pytest.mark.parametrize(
    ("shape", "number"), [((17, 32, 32), 16), ((17, 128, 128), 3), ((257, 720, 1280), 1)]
)
def test_large_clips_come_in_small_numbers(shape: tuple[int, int, int], number: int) -> None:
    assert clips_at_once(shape) == number


def test_a_folder_of_one_video_cannot_be_divided(videos: Path) -> None:
    for path in sorted(videos.iterdir())[1:]:
        path.unlink()
    with pytest.raises(ValueError, match="one file cannot be divided"):
        open_videos(DATA, str(videos), "validation")
