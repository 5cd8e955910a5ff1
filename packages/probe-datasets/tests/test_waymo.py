import io
import os
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from probe_datasets import waymo
from probe_datasets.clips import ClipConfig
from probe_datasets.formats import waymo as waymo_format
from probe_datasets.formats.files import DataError
from probe_datasets.formats.tfrecord import read_record, record_index
from probe_datasets.formats.waymo import parse_frame
from probe_datasets.schema import Coverage
from probe_datasets.waymo import Waymo

WRITE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "record_writers.py")))

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "waymo_writers.py")))
objects, frame, write_v1, write_v2 = MADE.objects, MADE.frame, MADE.write_v1, MADE.write_v2

FRAMES = MADE.FRAMES
CLIP = ClipConfig(num_frames=5, stride=2, size=64)
SEGMENTS = {"training": ["1_a", "2_b"], "validation": ["3_c"]}


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both releases of three segments."""
    root = tmp_path_factory.mktemp("waymo")
    for split, contexts in SEGMENTS.items():
        for context in contexts:
            name = f"segment-{context}_with_camera_labels.tfrecord"
            write_v1(root / "v1" / split / name, context)
            write_v2(root / "v2" / split, context)
    return root


@pytest.fixture(params=["v1", "v2"])
def root(originals: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of one release."""
    for path in (originals / request.param).rglob("*.*"):
        target = tmp_path / request.param / path.relative_to(originals / request.param)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target) if path.is_file() else None
    return tmp_path / request.param


def stripe(example: dict) -> list[int]:
    """Numbers of the frames, by the level of their stripes."""
    return (
        ((example["video"][:, :, 58:62].mean(dim=(0, 2, 3)) + 1) * 127.5 / 8).round().int().tolist()
    )


# ----------------------------------------------------------------------------------- what is there


def test_both_releases_are_recognised(root: Path):
    for split, folder in (("train", "training"), ("validation", "validation")):
        dataset = Waymo(root, split, clip=CLIP)
        names = [dataset.sample_id(i) for i in range(len(dataset))]
        assert names == SEGMENTS[folder]
        assert dataset.index.layout == f"{root.name}, {folder}"
        expected = {"train": 798, "validation": 202}[split]
        assert dataset.coverage == Coverage(
            expected=expected, found=len(names), missing=expected - len(names)
        )


@pytest.mark.parametrize("name", ["train", "individual_files/training", "training/training_0001"])
def test_other_names_of_the_folders(originals: Path, tmp_path: Path, name: str):
    folder = tmp_path / "data" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(originals / "v1" / "training")
    dataset = Waymo(tmp_path / "data", "train", clip=CLIP)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == SEGMENTS["training"]
    assert dataset[0]["video"].shape == (3, 5, 64, 64)


def test_a_choice_between_releases_is_asked_for(originals: Path, tmp_path: Path):
    folder = tmp_path / "training"
    write_v1(folder / "segment-1_a_with_camera_labels.tfrecord", "1_a")
    write_v2(folder, "1_a")
    with pytest.raises(DataError, match=r"files of v1 and of v2.*layout="):
        Waymo(tmp_path, "train")
    a, b = (Waymo(tmp_path, "train", layout=name, clip=CLIP, seed=1) for name in ("v1", "v2"))
    assert (a.sample_id(0), a.row(0)["path"]) != (b.sample_id(0), b.row(0)["path"])
    for name, value in a[0].items():
        assert value == b[0][name] if isinstance(value, str) else torch.equal(value, b[0][name])
    with pytest.raises(DataError, match="no files of split 'validation'; expected validation/"):
        Waymo(tmp_path, "validation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera": "BACK"}, "camera 'BACK' must be one of FRONT, "),
        ({"layout": "v3"}, "layout 'v3' must be one of auto, v1, v2"),
        ({"max_boxes": 0}, "max_boxes 0"),
        ({"min_area": 1.5}, "min_area 1.5"),
    ],
)
def test_wrong_options_are_refused(originals: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Waymo(originals / "v1", "train", **options)


# ---------------------------------------------------------------------------------------- examples


def test_evaluation_takes_every_second_frame_from_the_first(root: Path):
    example = Waymo(root, "validation", clip=CLIP).clip(0, draw=7)
    assert stripe(example) == [0, 2, 4, 6, 8]
    assert example["boxes"].shape == (25, 5, 4)
    valid, boxes = example["boxes_valid"], example["boxes"]
    assert valid.any(dim=1).tolist() == [True] * 2 + [False] * 23
    assert valid[0].all()
    assert valid[1].tolist() == [True, True, False, True, True]  # gone in frame 4
    assert not boxes[~valid].any()
    for t, place in zip(range(0, 10, 2), boxes[0], strict=True):
        x0, y0, x1, y1 = objects(t)["mover"]
        assert place.tolist() == [(x0 - 16) / 64, y0 / 64, (x1 - 16) / 64, y1 / 64]
    assert boxes[1, 0].tolist() == [0, 40 / 64, 12 / 64, 60 / 64]  # cut at the left edge


def test_boxes_lie_on_what_they_are_of(root: Path):
    """In training, at another size than the files'; the objects are those of the first frame."""
    dataset = Waymo(root, "train", clip=ClipConfig(num_frames=5, stride=2, size=128))
    starts, late = set(), 0
    for draw in range(16):
        example = dataset.clip(draw % 2, draw)
        again = dataset.clip(draw % 2, draw)
        assert all(torch.equal(example[n], again[n]) for n in ("video", "boxes", "boxes_valid"))
        frames = ((example["video"][:, :, 118:126].mean(dim=(0, 2, 3)) + 1) * 127.5 / 8).round()
        first = int(frames[0])
        starts.add(first)
        assert frames.tolist() == [first + 2 * t for t in range(5)]
        (white,) = [
            i
            for i in range(25)
            if example["boxes_valid"][i, 0] and abs(example["boxes"][i, 0, 1] - 20 / 64) < 1e-6
        ]
        for t in range(5):
            bright = (example["video"][:, t, :110] > 0.2).all(dim=0)
            rows, columns = bright.any(dim=1).nonzero()[:, 0], bright.any(dim=0).nonzero()[:, 0]
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            drawn = torch.tensor([float(v) for v in found]) / 128
            assert (drawn - example["boxes"][white, t]).abs().max() <= 1.5 / 128
        count = int(example["boxes_valid"][:, 0].sum())
        assert count == 2 + (first >= 12) - (first == 4)
        late += first >= 12
    assert starts <= set(range(0, 16, 2))
    assert len(starts) > 4
    assert late


def test_small_boxes_go_and_the_largest_stay(root: Path):
    def count(**options: float) -> int:
        example = Waymo(root, "validation", clip=CLIP, **options)[0]
        return int(example["boxes_valid"].any(dim=1).sum())

    assert count(min_area=0.0) == 3
    assert count(min_area=20 / 4096) == 3
    assert count(min_area=20.5 / 4096) == 2
    assert count(min_area=0.05) == 1
    example = Waymo(root, "validation", clip=CLIP, max_boxes=1)[0]
    assert example["boxes"].shape == (1, 5, 4)
    assert example["boxes"][0, 0, 1] == 40 / 64  # of 240 pixels, not the mover's 160


def test_a_clip_of_another_camera_is_not_labelled(root: Path):
    match = "not labelled for the camera 'FRONT_LEFT'"
    if root.name == "v1":
        with pytest.raises(DataError, match=match):
            Waymo(root, "train", clip=CLIP, camera="FRONT_LEFT")
        with pytest.raises(DataError, match="gives no sample of split 'train'"):
            Waymo(root, "train", clip=CLIP, camera="FRONT_LEFT", on_error="skip")
    else:
        dataset = Waymo(root, "train", clip=CLIP, camera="FRONT_LEFT", on_error="skip")
        assert match in dataset[0]["problem"]
    with pytest.raises(DataError, match="SIDE_LEFT"):
        Waymo(root, "train", clip=CLIP, camera="SIDE_LEFT")[0]


def test_frames_without_labels_begin_no_clip(tmp_path: Path):
    """They differ from frames without objects; within a clip nothing is valid in them."""
    path = tmp_path / "training" / "segment-1_a_with_camera_labels.tfrecord"
    write_v1(path, "1_a", unlabelled=(0, 1, 2, 6, 12))
    dataset = Waymo(tmp_path, "train", clip=CLIP, augment=False)
    example = dataset[0]
    assert stripe(example) == [4, 6, 8, 10, 12]
    assert example["boxes_valid"].any(dim=0).tolist() == [True, False, True, True, False]
    training = Waymo(tmp_path, "train", clip=CLIP)
    assert {stripe(training.clip(0, draw))[0] for draw in range(24)} == {4, 8, 10, 14}
    write_v1(path, "1_a", unlabelled=tuple(range(20)))
    late = Waymo(tmp_path, "train", clip=CLIP, on_error="skip")
    assert "where a clip could begin" in late[0]["problem"]


def test_fingerprints_tell_what_decides_examples(root: Path):
    def opened(**options: object) -> str:
        return Waymo(root, "train", **{"clip": CLIP, **options}).fingerprint

    found = [opened(), opened(max_boxes=3), opened(min_area=0.1), opened(seed=2)]
    assert len(set(found)) == 4
    assert opened() == found[0]


# ------------------------------------------------------------------------------- what is read when


def test_v1_is_walked_once_and_then_read_by_offset(
    originals: Path, monkeypatch: pytest.MonkeyPatch
):
    dataset = Waymo(originals / "v1", "train", clip=CLIP)
    read: list[int] = []

    def counted(path: Path, offset: int, length: int, **options: bool) -> memoryview:
        read.append(offset)
        return read_record(path, offset, length, **options)

    def walked(*args: object) -> None:
        raise AssertionError("the file is walked again")

    monkeypatch.setattr(waymo_format, "read_record", counted)
    monkeypatch.setattr(waymo_format, "record_index", walked)
    monkeypatch.setattr(waymo_format, "_skimmed", walked)
    for _ in range(2):
        again = Waymo(originals / "v1", "train", clip=CLIP)
        again[0]
    assert len(read) == 10
    assert len(dataset.row(0)["places"]) == 2 * FRAMES


def test_only_the_pictures_of_the_clip_are_decoded(root: Path, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    decode = waymo.decode_rgb

    def counted(data: bytes, *args: object, **options: object) -> np.ndarray:
        decoded.append(len(data))
        return decode(data, *args, **options)

    monkeypatch.setattr(waymo, "decode_rgb", counted)
    Waymo(root, "validation", clip=CLIP)[0]
    assert len(decoded) == 5


def test_records_beside_the_clip_may_be_damaged(tmp_path: Path):
    """Of records as large as real ones, neither scan nor clip reads what it does not need."""
    path = tmp_path / "validation" / "segment-1_a_with_camera_labels.tfrecord"
    write_v1(path, "1_a", lasers=70_000)
    order = np.random.default_rng(0).permutation(FRAMES)
    content = bytearray(path.read_bytes())
    index = record_index(path)
    whole = Waymo(tmp_path, "validation", clip=CLIP)[0]
    for rank, (offset, length) in enumerate(index.tolist()):
        if order[rank] not in (0, 2, 4, 6, 8):
            content[offset + 12 + length - 10_000] ^= 1  # of the lasers
    path.write_bytes(content)
    assert torch.equal(Waymo(tmp_path, "validation", clip=CLIP)[0]["video"], whole["video"])
    clip = ClipConfig(num_frames=6, stride=2, size=64)
    with pytest.raises(DataError, match="does not match its checksum"):
        Waymo(tmp_path, "validation", clip=clip)[0]


# ------------------------------------------------------------------------------------------ damage


def first_file(root: Path) -> Path:
    names = {"v1": "training/*1_a*.tfrecord", "v2": "training/camera_image/1_a.parquet"}
    (path,) = root.glob(names[root.name])
    content = path.read_bytes()
    path.unlink()  # it is a link to the original
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("left", [0, 10, 20_000])
def test_a_file_that_is_cut_is_counted(root: Path, left: int):
    os.truncate(first_file(root), left)
    with pytest.raises(DataError, match="1 of 2 samples"):
        Waymo(root, "train", clip=CLIP)
    dataset = Waymo(root, "train", clip=CLIP, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.failed) == (798, 1, 1)
    assert [name for name, _ in coverage.reasons] == ["1_a"]
    assert dataset[0]["sample_id"] == "2_b"


def test_tables_without_boxes(originals: Path, tmp_path: Path):
    write_v2(tmp_path / "training", "1_a", boxes=False)
    write_v2(tmp_path / "training", "2_b")
    dataset = Waymo(tmp_path, "train", clip=CLIP, on_error="skip")
    assert (dataset.coverage.found, dataset.coverage.failed) == (1, 1)
    ((name, why),) = dataset.coverage.reasons
    assert name == "1_a"
    assert "camera_box/1_a.parquet: there is no such file" in why
    write_v2(tmp_path / "training", "1_a")  # and then they are there
    assert len(Waymo(tmp_path, "train", clip=CLIP)) == 2


def test_short_segments(tmp_path: Path):
    path = tmp_path / "training" / "segment-1_a_with_camera_labels.tfrecord"
    write_v1(path, "1_a", count=7)
    with pytest.raises(DataError, match="1_a: has 7 frames, a clip spans 9"):
        Waymo(tmp_path, "train", clip=CLIP)
    clip = ClipConfig(num_frames=5, stride=2, size=64, short="clamp")
    assert stripe(Waymo(tmp_path, "train", clip=clip)[0]) == [0, 2, 4, 6, 6]


def test_a_file_of_two_segments_is_refused(tmp_path: Path):
    path = tmp_path / "training" / "segment-1_a_with_camera_labels.tfrecord"
    WRITE.write_tfrecord(path, [frame("1_a" if t < 20 else "2_b", t) for t in range(FRAMES)])
    with pytest.raises(DataError, match="has frames of 2 segments"):
        Waymo(tmp_path, "train", clip=CLIP)


# --------------------------------------------------------------------------------------- real data


def test_a_real_frame(shared: Path, tmp_path: Path):
    """Its boxes, by their definition, in the central square of 1280 x 1920 pixels."""
    source = shared / "waymo" / "v1" / "pvps_data_one_frame.tfrecord"
    target = tmp_path / "validation" / source.name
    target.parent.mkdir()
    target.symlink_to(source)
    clip = ClipConfig(num_frames=17, stride=2, size=256, short="clamp")
    example = Waymo(tmp_path, "validation", clip=clip)[0]
    record = read_record(source, *record_index(source)[0].tolist())
    labels = parse_frame(record, "here").labels
    cut = np.clip((labels.boxes - [320, 0, 320, 0]) / 1280, 0, 1)
    area = np.prod(cut[:, 2:] - cut[:, :2], axis=1)
    expected = cut[area >= 0.005]
    assert 0 < len(expected) < len(cut)
    valid = example["boxes_valid"]
    assert valid.sum(dim=0).tolist() == [len(expected)] * 17
    np.testing.assert_allclose(example["boxes"][valid[:, 0], 5].numpy(), expected, atol=1e-6)
    assert example["video"].shape == (3, 17, 256, 256)
    assert torch.equal(example["video"][:, 0], example["video"][:, 16])
    picture = Image.open(io.BytesIO(bytes(parse_frame(record, "here").image)))
    small = picture.resize((384, 256), Image.Resampling.BILINEAR).crop((64, 0, 320, 256))
    shown = (example["video"][:, 0].permute(1, 2, 0).numpy() + 1) * 127.5
    # Whole bytes after each of two passes; at the sides, the picture saw beyond the square.
    assert np.abs(shown - np.asarray(small))[:, 2:-2].max() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_skimming_random_damage_ends(tmp_path: Path, seed: int, index_cache: Callable[[], Path]):
    """Damage before its checksum is looked at is refused, or leaves what is found as it was."""
    path = tmp_path / "training" / "segment-1_a_with_camera_labels.tfrecord"
    write_v1(path, "1_a", count=9)
    content = path.read_bytes()
    rng = np.random.default_rng(seed)
    for position in rng.integers(0, len(content), 20).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            dataset = Waymo(tmp_path, "train", clip=CLIP)
            assert dataset.row(0)["num_frames"] == 9
            example = dataset[0]
        except DataError:
            continue
        assert stripe(example) == [0, 2, 4, 6, 8]


def test_damage_that_looks_like_missing_labels_is_found(tmp_path: Path):
    """A changed number of a camera, in a record as large as real ones."""
    path = tmp_path / "training" / "segment-1_a_with_camera_labels.tfrecord"
    write_v1(path, "1_a", count=9, lasers=70_000)
    content = bytearray(path.read_bytes())
    place = content.index(b"mover")
    camera = content.rindex(b"\x08\x01", place - 200, place - 40)
    content[camera + 1] = 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        Waymo(tmp_path, "train", clip=CLIP)
