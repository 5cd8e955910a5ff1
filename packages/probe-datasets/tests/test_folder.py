import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import FolderDataset, read_frames, to_float
from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError

SMALL = ClipConfig(num_frames=5, stride=2, size=16)


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


def open_tree(root: Path, split: str = "all", **options: Any) -> FolderDataset:
    return FolderDataset(root, split, **{"clip": SMALL, "seed": 1, "workers": 1, **options})


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
    with pytest.raises(ValueError, match="cannot be divided; add files or use split='all'"):
        open_tree(tmp_path / "one", "validation")


def test_a_clip_is_the_frames_it_says(tree: Path, read_index: Callable):
    dataset = open_tree(tree, clip=ClipConfig(num_frames=5, stride=3, size=32))
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
    other = open_tree(tree, seed=2)
    assert any(not torch.equal(other.clip(0, d)["video"], clips[d]) for d in range(5))


def test_validation_has_no_chance_in_it(tree: Path):
    dataset = open_tree(tree, "validation")
    clip = dataset.clip(0, 0)["video"]
    assert torch.equal(dataset.clip(0, 5)["video"], clip)
    frames = read_frames(tree / dataset.sample_id(0), [15, 17, 19, 21, 23])
    assert frames.shape[0] == clip.shape[1]
    assert torch.equal(clip[:, 0], open_tree(tree, "validation")[0]["video"][:, 0])


def test_fingerprint_follows_content_and_settings(tree: Path, mp4: Path, tmp_path: Path):
    def fingerprint(root: Path, **options: Any) -> str:
        return open_tree(root, verify=False, **options).fingerprint

    changes = ({"num_frames": 3}, {"stride": 3}, {"size": 3}, {"start": "first"}, {"short": "loop"})
    prints = [
        fingerprint(tree),
        *(fingerprint(tree, clip=replace(SMALL, **change)) for change in changes),
        *(fingerprint(tree, split=split) for split in ("train", "validation")),
        fingerprint(tree, seed=3),
        fingerprint(tree, augment=False),
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
    with pytest.raises(DataError, match=r"3 of 4 samples .* first: .*cut\.mp4: .*on_error='skip'"):
        open_tree(tmp_path)
    seen = []
    (tmp_path / "more.mp4").write_bytes(mp4.read_bytes())
    dataset = open_tree(tmp_path, on_error="skip", progress=lambda *state: seen.append(state))
    assert seen[-1] == (5, 5)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["good.mp4", "more.mp4"]
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (5, 2, 0, 3)
    reasons = dict(coverage.reasons)
    assert reasons.keys() == {"cut.mp4", "short.webm", "text.mov"}
    assert "has 8 frames, a clip spans 9; use fewer frames" in reasons["short.webm"]
    assert "cut short" in reasons["cut.mp4"]
    assert len(open_tree(tmp_path, on_error="skip", clip=replace(SMALL, short="clamp"))) == 3
    for name in ("good.mp4", "more.mp4"):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"gives no sample of split 'all': .* 3 unreadable"):
        open_tree(tmp_path, on_error="skip")


def test_corrupt_frames_are_found_by_decoding_them(
    write_video: Callable[..., Path], tmp_path: Path
):
    content = bytearray(write_video(tmp_path / "bad.mp4", num_frames=30, bf="0").read_bytes())
    start = content.index(b"mdat") + 4
    for k in range(start + (len(content) - start) // 4, start + (len(content) - start) // 3):
        content[k] ^= 0x5A
    (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.mp4"):
        open_tree(tmp_path)
    assert len(open_tree(tmp_path, verify=False)) == 1


def test_no_videos(tmp_path: Path):
    (tmp_path / "clip.avi").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"but 1 others; .*\.mp4 \.mov \.webm \.mkv at any depth"):
        open_tree(tmp_path)
    with pytest.raises(DataError, match=r"does not exist.*pass the folder"):
        open_tree(tmp_path / "none")
    with pytest.raises(DataError, match=r"is not a folder.*pass the folder"):
        open_tree(tmp_path / "clip.avi")


def test_folders_as_labels(tree: Path, tmp_path: Path, mp4: Path):
    with pytest.raises(DataError, match=r"holds 'b\.mkv', which is in no class folder"):
        open_tree(tree, labels="folders")
    for name in ("run/a.mp4", "run/b/c.mp4", "jump/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(mp4.read_bytes())
    dataset = open_tree(tmp_path, labels="folders", verify=False)
    assert dataset.classes == {"class": ("jump", "run")}
    found = {dataset.sample_id(i): dataset[i]["labels"] for i in range(3)}
    assert found == {
        "jump/d.mp4": {"class": 0},
        "run/a.mp4": {"class": 1},
        "run/b/c.mp4": {"class": 1},
    }
    # One split may lack a class; the indices are those of all.
    for split in ("train", "validation"):
        part = open_tree(tmp_path, split, labels="folders", verify=False)
        assert part.classes == dataset.classes
        names = [part.sample_id(i) for i in range(len(part))]
        assert [part[i]["labels"] for i in range(len(part))] == [found[name] for name in names]


def test_pictures_stand_still(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    for name in ("cat/a.png", "dog/b.JPG", "dog/c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            Image.fromarray(pixels).save(file, "PNG" if name.endswith("png") else "JPEG")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    dataset = open_tree(tmp_path, media="images", labels="folders")
    assert [dataset.sample_id(i) for i in range(3)] == ["cat/a.png", "dog/b.JPG", "dog/c.jpeg"]
    assert dataset.coverage.ignored == 1
    example = dataset.clip(0, 5)
    assert example["labels"] == {"class": 0}
    assert example["video"].shape == (3, 5, 16, 16)
    expected = to_float(torch.from_numpy(pixels[:, 4:20])).permute(2, 0, 1)  # the central square
    assert all(torch.equal(frame, expected) for frame in example["video"].unbind(1))
    (tmp_path / "dog" / "c.jpeg").write_bytes(b"no picture")
    broken = open_tree(tmp_path, media="images", on_error="skip")[2]
    assert (broken["sample_id"], "is no JPEG" in broken["problem"]) == ("dog/c.jpeg", True)


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
        ({"media": "sounds"}, "videos, images"),
        ({"labels": "names"}, "'none' or 'folders'"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_bad_arguments(tmp_path: Path, mp4: Path, options: dict[str, Any], message: str):
    (tmp_path / "a.mp4").write_bytes(mp4.read_bytes())
    with pytest.raises(ValueError, match=message):
        open_tree(tmp_path, **options)


def test_only_existing_videos_can_be_asked_for(tree: Path):
    dataset = open_tree(tree)
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match="outside the split of 12 samples"):
            dataset[index]
