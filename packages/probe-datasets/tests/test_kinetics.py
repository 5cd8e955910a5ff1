"""Tables and folders written here from the format's description, and a real clip."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.files import DataError
from probe_datasets.kinetics import SPEC_400, SPEC_700, Kinetics400, Kinetics700
from probe_datasets.transforms import to_float
from probe_datasets.video_io import read_frames

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
ROWS = {
    "train": [
        ("zumba", "-dash567890", 12),
        ("passing American football (in game)", "abcdefghijk", 5),
        ("abseiling", "not_on_disk", 7),
    ],
    "val": [("zumba", "under_score", 0)],
}
SMALL = ClipConfig(num_frames=5, size=32)


def stem(row: tuple[str, str, int]) -> str:
    return f"{row[1]}_{row[2]:06d}_{row[2] + 10:06d}"


def write_tables(folder: Path, rows: dict[str, list] = ROWS, header: str = HEADER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, entries in rows.items():
        lines = [
            f'"{label}",{name},{start},{start + 10},{split},0' for label, name, start in entries
        ]
        (folder / f"{split}.csv").write_text(header + "\n".join(lines) + "\n")


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@pytest.fixture
def root(tmp_path: Path, mp4: Path) -> Path:
    write_tables(tmp_path / "annotations")
    for split, rows in ROWS.items():
        for row in rows:
            if row[1] != "not_on_disk":
                put(mp4, tmp_path / split / f"{stem(row)}.mp4")
    return tmp_path


def open_clips(root: Path, split: str = "train", **options: Any) -> Kinetics400:
    return Kinetics400(root, split, **{"clip": SMALL, "workers": 1, **options})


def ids(dataset: Kinetics400) -> list[str]:
    return [dataset.sample_id(i) for i in range(len(dataset))]


def test_rows_with_a_file_are_samples_and_the_others_missing(root: Path):
    train = open_clips(root)
    assert ids(train) == [stem(row) for row in ROWS["train"][:2]]
    assert train.classes == {
        "action": ("abseiling", "passing American football (in game)", "zumba")
    }
    assert [train[i]["labels"] for i in range(2)] == [{"action": 2}, {"action": 1}]
    coverage = train.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 2, 1, 0)
    assert coverage.reasons == (("not_on_disk_000007_000017", "there is no file of this sample"),)


def test_an_index_means_the_same_class_in_all_splits(root: Path):
    """The validation table lacks two classes, which the train table has."""
    validation = open_clips(root, "validation")
    assert validation.classes == open_clips(root).classes
    assert validation[0]["labels"] == {"action": 2}


@pytest.mark.parametrize(
    ("folder", "tables", "extension"),
    [
        ("train/passing American football (in game)", "annotations", "mp4"),
        ("train/passing_American_football_(in_game)", ".", "mp4"),
        ("train_256", "annotations", "mkv"),
        ("videos_train/part_3", ".", "mp4"),
        (".", ".", "mp4"),
    ],
)
def test_every_layout(tmp_path: Path, mp4: Path, folder: str, tables: str, extension: str):
    write_tables(tmp_path / tables)
    put(mp4, tmp_path / folder / f"{stem(ROWS['train'][1])}.{extension}")
    dataset = open_clips(tmp_path)
    assert ids(dataset) == [stem(ROWS["train"][1])]
    assert dataset.coverage.missing == 2


def test_replacements_come_first(root: Path, mp4: Path, write_video: Callable[..., Path]):
    (root / "train" / f"{stem(ROWS['train'][0])}.mp4").write_bytes(b"corrupt")
    with pytest.raises(DataError, match="-dash567890"):
        open_clips(root)
    name = f"replacement/replacement_for_corrupted_k400/{stem(ROWS['train'][0])}.mp4"
    put(mp4, root / name)
    dataset = open_clips(root)
    assert dataset.row(0)["path"] == name
    assert len(dataset) == 2


def test_clips_are_neighbouring_frames(root: Path):
    every = to_float(read_frames(root / "val" / f"{stem(ROWS['val'][0])}.mp4", range(40)))[
        ..., 16:48
    ]
    video = open_clips(root, "validation").clip(0, 3)["video"]
    assert torch.equal(video, every[17:22].transpose(0, 1))  # 17 frames before it, 18 after it
    train = open_clips(root)
    clips = [train.clip(0, draw)["video"] for draw in range(8)]
    starts = [next(s for s in range(40) if torch.equal(every[s], c[:, 0])) for c in clips]
    assert len(set(starts)) > 3
    assert torch.equal(clips[0], every[starts[0] : starts[0] + 5].transpose(0, 1))
    assert torch.equal(open_clips(root)[0]["video"], clips[0])
    for spec in (SPEC_400, SPEC_700):
        assert (spec.clip.num_frames, spec.clip.stride, spec.clip.size) == (17, 1, 256)


def test_damaged_and_short_videos(root: Path, mp4: Path, write_video: Callable[..., Path]):
    first, second = (root / "train" / f"{stem(row)}.mp4" for row in ROWS["train"][:2])
    first.write_bytes(mp4.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"1 of 3 samples of split 'train' cannot be used"):
        open_clips(root)
    dataset = open_clips(root, on_error="skip")
    coverage = dataset.coverage
    assert (coverage.expected, coverage.found, coverage.missing, coverage.failed) == (3, 1, 1, 1)
    write_video(second, num_frames=4)
    with pytest.raises(DataError, match="1 are missing and 2 unreadable"):
        open_clips(root, on_error="skip")
    put(mp4, first)
    reasons = dict(open_clips(root, on_error="skip").coverage.reasons)
    assert "has 4 frames, a clip spans 5" in reasons[second.stem]


def test_a_table_from_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """Such as that of 2019 with the videos of 2020."""
    folder = tmp_path_factory.mktemp("lists")
    rows = [("zumba", "abcdefghijk", 5), ("yoga", "-dash567890", 13)]
    write_tables(folder, {"train": rows, "val": [("knitting", "abcdefghijk", 0)]})
    dataset = Kinetics700(root, "train", clip=SMALL, annotations=folder / "train.csv", workers=1)
    assert ids(dataset) == [stem(rows[0])]
    assert dataset.classes["action"] == ("knitting", "yoga", "zumba")
    ((name, why),) = dataset.coverage.reasons
    assert name == stem(rows[1])
    assert why == "there is no file of these seconds, though there is one of the video"
    assert (dataset.coverage.missing, dataset.coverage.failed) == (1, 0)
    write_tables(folder, {"val": [("abseiling", "abcdefghijk", 0)]})
    dataset = Kinetics700(root, "train", clip=SMALL, annotations=folder / "train.csv", workers=1)
    assert dataset.classes["action"] == ("abseiling", "yoga", "zumba")


def test_more_classes_than_there_are_are_refused(root: Path):
    rows = [(f"class {i}", "abcdefghijk", 5 + i) for i in range(401)]
    write_tables(root / "annotations", {"train": rows})
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=r"names 40\d classes.*the 400 of kinetics400"):
            open_clips(root, split)


def test_rows_that_come_twice_have_two_names(root: Path):
    rows = [ROWS["train"][0], ROWS["train"][1], ("abseiling", *ROWS["train"][0][1:])]
    write_tables(root / "annotations", {"train": [*rows, rows[0]]})
    dataset = open_clips(root)
    name = stem(rows[0])
    assert ids(dataset) == [name, stem(rows[1]), f"{name}#2", f"{name}#3"]
    assert [dataset[i]["labels"]["action"] for i in (0, 2, 3)] == [2, 0, 2]


def test_tables_that_do_not_serve(root: Path):
    (root / "annotations" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"holds no table of split 'train'.*train\.csv there or in"):
        open_clips(root)
    text = "youtube_id,time_start,time_end,split\nabcdefghijk,5,15,test\n"
    (root / "annotations" / "test.csv").write_text(text)
    with pytest.raises(DataError, match="has no column 'label'"):
        open_clips(root, "test")
    (root / "annotations" / "train.csv").write_text(HEADER + "a,../../../ab,5,15,train,0\n")
    with pytest.raises(DataError, match="no YouTube id"):
        open_clips(root)
    with pytest.raises(ValueError, match="train, validation, test"):
        open_clips(root, "val")


MEASURE = """
import resource, sys, time
from probe_datasets.clips import ClipConfig
from probe_datasets.kinetics import Kinetics700
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
dataset = Kinetics700(sys.argv[1], "train", clip=ClipConfig(num_frames=5, size=32), workers=1)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(dataset.coverage.missing, len(dataset), grown, time.perf_counter() - start)
"""


@pytest.mark.slow
def test_memory_grows_slowly_with_the_table(tmp_path: Path, mp4: Path):
    """Measured on fewer rows, as a million take a minute: at 250 bytes a row those take 250 MB."""
    count = 50_000
    with (tmp_path / "train.csv").open("w") as file:
        file.write(HEADER)
        for i in range(count):
            file.write(f"class {i % 700:03d},{i:011d},{i % 300},{i % 300 + 10},train,0\n")
    put(mp4, tmp_path / "train" / "00000000005.mp4")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    missing, found, kilobytes, _ = map(float, done.stdout.split())
    assert (missing, found) == (count - 1, 1)
    # 12 MB for the rows and twice that for what does not depend on their number.
    assert kilobytes < 37_000


def test_the_real_clip_and_the_label_maps(shared: Path, tmp_path: Path):
    for spec, number in ((SPEC_400, 400), (SPEC_700, 700)):
        names = tuple((shared / "kinetics" / f"label_map_k{number}.txt").read_text().splitlines())
        rows = [(name, f"{i:011d}", 0) for i, name in reversed(list(enumerate(names)))]
        rows.append(("arm wrestling", "SOX5yA1l24A", 1))
        write_tables(tmp_path, {"val": rows})
        shutil.copyfile(shared / "kinetics" / "SOX5yA1l24A.mp4", tmp_path / "SOX5yA1l24A.mp4")
        dataset = spec.load_builder()(tmp_path, "validation", clip=ClipConfig(size=256), workers=1)
        assert dataset.classes["action"] == names
        assert dataset.coverage.missing == spec.num_classes["action"] == number
        example = dataset[0]
        assert example["labels"] == {"action": names.index("arm wrestling")}
        # The central square of 256 x 340, frames 157 to 173 of 332.
        frames = read_frames(tmp_path / "SOX5yA1l24A.mp4", range(157, 174))
        assert frames.shape == (17, 3, 256, 340)
        frames = frames[..., 42 : 42 + 256]
        assert torch.equal(example["video"], to_float(frames).transpose(0, 1))
