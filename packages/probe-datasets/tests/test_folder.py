import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from probe_datasets import FolderDataset, VideoError, read_frames, to_float


@pytest.fixture(scope="module")
def tree(
    write_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, mp4: Path
) -> Path:
    """Twelve videos of 40 frames at several depths, beside files that are none."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(10):
        target = root / f"class{i % 3}" / f"clip{i:02}.{'MP4' if i % 2 else 'mp4'}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(mp4.read_bytes())
    write_video(root / "deep" / "er" / "a.WebM", codec="libvpx-vp9", height=48, width=32)
    write_video(root / "b.mkv")
    (root / "notes.txt").write_text("not a video")
    (root / "cover.jpg").write_bytes(b"\xff\xd8\xff")
    (root / ".hidden.mp4").write_bytes(b"x")
    (root / ".cache").mkdir()
    (root / ".cache" / "c.mp4").write_bytes(b"x")
    return root


def open_tree(root: Path, split: str = "all", **options) -> FolderDataset:
    return FolderDataset(root, split, num_frames=5, stride=2, size=16, seed=1, **options)


def test_finds_videos_sorted_and_counts_the_rest(tree: Path):
    dataset = open_tree(tree)
    names = [dataset.sample_id(i) for i in range(len(dataset))]
    assert len(names) == 12
    assert names == sorted(names)
    assert {"b.mkv", "deep/er/a.WebM", "class1/clip01.MP4"} <= set(names)
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.failed) == (12, 12, 0)
    assert coverage.ignored == 2  # hidden files are not even counted
    assert dataset.classes == {}


def test_splits_divide_the_videos_and_keep_them(tree: Path, mp4: Path, tmp_path: Path):
    def ids(root: Path, split: str) -> set[str]:
        dataset = open_tree(root, split, verify=False)
        return {dataset.sample_id(i) for i in range(len(dataset))}

    train, validation = ids(tree, "train"), ids(tree, "validation")
    assert not train & validation
    assert train | validation == ids(tree, "all")
    # 300 videos: a tenth of them, six standard deviations of a binomial being 31
    for i in range(300):
        (tmp_path / f"{i}.mp4").write_bytes(mp4.read_bytes())
    before = ids(tmp_path, "validation")
    assert abs(len(before) - 30) < 31
    for i in range(300, 400):
        (tmp_path / f"{i}.mp4").write_bytes(mp4.read_bytes())
    assert before <= ids(tmp_path, "validation")


def test_two_videos_fill_both_splits_and_one_cannot(mp4: Path, tmp_path: Path):
    for n in range(2, 8):
        root = tmp_path / str(n)
        root.mkdir()
        for i in range(n):
            (root / f"{i}.mp4").write_bytes(mp4.read_bytes())
        sizes = [len(open_tree(root, s, verify=False)) for s in ("train", "validation")]
        assert min(sizes) >= 1
        assert sum(sizes) == n
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mp4").write_bytes(mp4.read_bytes())
    assert len(open_tree(tmp_path / "one", "train")) == 1
    with pytest.raises(ValueError, match="cannot be divided; add videos or use split='all'"):
        open_tree(tmp_path / "one", "validation")


def test_a_clip_is_the_frames_it_says(tree: Path, read_index: Callable):
    dataset = FolderDataset(tree, "all", num_frames=5, stride=3, size=32, seed=1)
    i = [dataset.sample_id(k) for k in range(len(dataset))].index("b.mkv")
    example = dataset[i]
    video = example["video"]
    assert (video.shape, video.dtype) == ((3, 5, 32, 32), torch.float32)
    assert video.is_contiguous()
    # frames are 32 x 64, so nothing is resized and the centre 32 columns are kept
    every = to_float(read_frames(tree / "b.mkv", range(40)))[..., 16:48]
    starts = [s for s in range(28) if torch.equal(every[s], video[:, 0])]
    assert len(starts) == 1
    assert torch.equal(video.transpose(0, 1), every[starts[0] : starts[0] + 13 : 3])


def test_draws_are_pure_and_differ(tree: Path):
    dataset, again = open_tree(tree), open_tree(tree)
    clips = [dataset.clip(0, draw)["video"] for draw in range(20)]
    assert torch.equal(dataset[0]["video"], clips[0])
    assert all(torch.equal(again.clip(0, d)["video"], clips[d]) for d in reversed(range(20)))
    assert len({tuple(clip.flatten().tolist()) for clip in clips}) > 10
    other = FolderDataset(tree, "all", num_frames=5, stride=2, size=16, seed=2)
    assert any(not torch.equal(other.clip(0, d)["video"], clips[d]) for d in range(5))


def test_validation_has_no_chance_in_it(tree: Path):
    dataset = open_tree(tree, "validation")
    clip = dataset.clip(0, 0)["video"]
    assert torch.equal(dataset.clip(0, 5)["video"], clip)
    frames = read_frames(tree / dataset.sample_id(0), [15, 17, 19, 21, 23])
    assert frames.shape[0] == clip.shape[1]
    assert torch.equal(clip[:, 0], open_tree(tree, "validation")[0]["video"][:, 0])


def test_fingerprint_follows_content_and_settings(tree: Path, mp4: Path, tmp_path: Path):
    def fingerprint(root: Path, **changed) -> str:
        options = {"num_frames": 5, "stride": 2, "size": 16, "seed": 1, "split": "all", **changed}
        return FolderDataset(root, verify=False, **options).fingerprint

    prints = [
        fingerprint(tree),
        *(fingerprint(tree, **{key: 3}) for key in ("num_frames", "stride", "size", "seed")),
        *(fingerprint(tree, split=split) for split in ("train", "validation")),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(tree) == prints[0]
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(mp4.read_bytes())
    before = fingerprint(tmp_path)
    (tmp_path / "b.mp4").rename(tmp_path / "c.mp4")
    renamed = fingerprint(tmp_path)
    (tmp_path / "c.mp4").write_bytes(mp4.read_bytes() + b"\0\0\0")
    assert len({before, renamed, fingerprint(tmp_path)}) == 3


def test_bad_videos_raise_or_are_skipped_and_counted(
    mp4: Path, write_video: Callable[..., Path], tmp_path: Path
):
    (tmp_path / "good.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "cut.mp4").write_bytes(mp4.read_bytes()[:-500])
    (tmp_path / "text.mov").write_text("hello")
    write_video(tmp_path / "short.webm", codec="libvpx-vp9", num_frames=8)
    with pytest.raises(VideoError, match=r"cut\.mp4: .*on_error='skip' leaves such videos out"):
        open_tree(tmp_path)
    seen = []
    dataset = open_tree(tmp_path, on_error="skip", progress=lambda *state: seen.append(state))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["good.mp4"]
    assert (dataset.coverage.expected, dataset.coverage.failed) == (4, 3)
    reasons = dict(dataset.coverage.reasons)
    assert list(reasons) == ["cut.mp4", "short.webm", "text.mov"]
    assert "has 8 frames, fewer than a clip spans; expected at least 9" in reasons["short.webm"]
    assert "cut short" in reasons["cut.mp4"]
    (tmp_path / "good.mp4").unlink()
    with pytest.raises(VideoError, match="none of the 3 videos of split 'all' can be used"):
        open_tree(tmp_path, on_error="skip")


def test_no_videos(tmp_path: Path):
    (tmp_path / "clip.avi").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"\.mp4 \.mov \.webm \.mkv at any depth, found 1 other"):
        open_tree(tmp_path)
    with pytest.raises(ValueError, match="does not exist; pass the folder"):
        open_tree(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a folder; pass the folder"):
        open_tree(tmp_path / "clip.avi")


def test_links_are_followed_but_not_in_circles(mp4: Path, tmp_path: Path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.mp4").write_bytes(mp4.read_bytes())
    os.symlink(elsewhere, root / "linked")
    os.symlink(root, root / "again")
    dataset = open_tree(root)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["linked/a.mp4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "train, validation, all"),
        ({"on_error": "ignore"}, "'raise' or 'skip'"),
        ({"size": 0}, "size 0"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"stride": 0}, "stride 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path, **options)


def test_only_existing_videos_can_be_asked_for(tree: Path):
    dataset = open_tree(tree)
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match="outside the split of 12 videos"):
            dataset[index]
