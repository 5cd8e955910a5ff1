"""Tables and folders written here from the format's description."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from probe_datasets.formats.files import DataError
from probe_datasets.formats.kinetics import find_clips, find_table, read_table

HEADER = "label,youtube_id,time_start,time_end,split,is_cc\n"
ROWS = (
    '"zumba",-dash567890,12,22,train,0\n'
    "abseiling,under_score,0,10,train,0\n"
    '"passing American football (in game)",abcdefghijk,5,15,train,1\n'
    "zumba,not_on_disk,7,17,train,0\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(HEADER + ROWS)
    return tmp_path / "train.csv"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_table(table: Path):
    found = read_table(table)
    assert found.classes == ("abseiling", "passing American football (in game)", "zumba")
    assert found.labels.tolist() == [2, 0, 1, 2]
    assert found.ids.tolist() == [b"-dash567890", b"under_score", b"abcdefghijk", b"not_on_disk"]
    assert found.stem(0) == "-dash567890_000012_000022"


def test_a_table_without_labels(tmp_path: Path):
    (tmp_path / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\nabcdefghijk,5,15,test\n"
    )
    found = read_table(tmp_path / "test.csv")
    assert (found.classes, found.labels.tolist()) == ((), [-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "no column time_end, time_start, youtube_id"),
        (HEADER, "holds no rows"),
        (HEADER + "a,abcdefghijk,1\n", "3 columns instead of 6 in line 2"),
        (HEADER + "a,../../../ab,1,2,train,0\n", "no YouTube id, in line 2"),
        (HEADER + "a,abcdefghij,1,2,train,0\n", "no YouTube id"),
        (HEADER + "a,abcdefghijk,2,1,train,0\n", "a clip from 2.0 s to 1.0 s"),
        (HEADER + "a,abcdefghijk,nan,1,train,0\n", "a clip from nan"),
        (HEADER + "a,abcdefghijk,one,2,train,0\n", "in line 2"),
        (HEADER + '"a,abcdefghijk,1,2,train,0\n', "in line 2"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "train.csv")


@pytest.mark.parametrize(
    "folders",
    [
        ("train/zumba", "train/abseiling"),
        ("train/a_class_with_underscores", "train"),
        ("videos_train", "videos_train/deep/er"),
        ("train_256", "train_256"),
        ("", ""),
    ],
)
def test_every_layout_is_found_by_id(tmp_path: Path, table: Path, folders: tuple[str, str]):
    root = tmp_path / "k400"
    first = f"{folders[0]}/-dash567890_000012_000022.mp4".lstrip("/")
    second = f"{folders[1]}/under_score.webm".lstrip("/")
    touch(root, first, second, f"{folders[0]}/short.mp4".lstrip("/"), "val/abcdefghijk.mp4.txt")
    assert find_clips(root, "train", read_table(table)).paths == [first, second, None, None]


def test_replacements_and_times_decide_between_files(tmp_path: Path, table: Path):
    root = tmp_path / "k400"
    replaced = "replacement/replacement_for_corrupted_k400/under_score.mp4"
    touch(root, "train/under_score_000000_000010.mp4", replaced)
    touch(root, "train/a/-dash567890_000001_000011.mp4", "train/b/-dash567890_000012_000022.mp4")
    # Another part of the video is not the clip of the list.
    touch(root, "train/abcdefghijk_000006_000016.mp4", "train/not_on_disk_640x360.mp4")
    found = find_clips(root, "train", read_table(table))
    expected = ["train/b/-dash567890_000012_000022.mp4", replaced, None]
    assert found.paths == [*expected, "train/not_on_disk_640x360.mp4"]
    assert found.elsewhere.tolist() == [False, False, True, False]


def test_clips_of_one_video_keep_their_files(tmp_path: Path):
    rows = "b,abcdefghijk,0,10,train,0\na,abcdefghijk,10,20,train,0\n"
    (tmp_path / "train.csv").write_text(HEADER + rows)
    table = read_table(tmp_path / "train.csv")
    second = "train/abcdefghijk_000010_000020.mp4"
    touch(tmp_path, "train/abcdefghijk.mp4", second, "replacement/abcdefghijk.mp4")
    assert find_clips(tmp_path, "train", table).paths == [None, second]


def test_tables_are_found_under_their_published_names(tmp_path: Path):
    assert find_table(tmp_path, "val") is None
    for name in ("kinetics_val.csv", "validate.csv", "annotations/val.csv"):
        touch(tmp_path, name)
        assert find_table(tmp_path, "val") == tmp_path / name or name == "validate.csv"


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path, table: Path):
    rows = read_table(table)
    with pytest.raises(DataError, match=r"holds no videos of split 'val'.*videos_val"):
        find_clips(tmp_path, "val", rows)
    with pytest.raises(DataError, match="no folder"):
        find_clips(tmp_path / "none", "val", rows)
    touch(tmp_path, "validation/abcdefghijk.mp4")
    expected = [None, None, "validation/abcdefghijk.mp4", None]
    assert find_clips(tmp_path, "val", rows).paths == expected


def write_rows(path: Path, count: int) -> None:
    with path.open("w") as file:
        file.write(HEADER)
        for i in range(count):
            file.write(f"class {i % 700:03d},{i:011d},{i % 300},{i % 300 + 10},train,0\n")


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path):
    count, path = 1_000_000, tmp_path / "train.csv"
    write_rows(path, count)
    found = read_table(path)
    assert (len(found), len(found.classes)) == (count, 700)
    columns = (found.ids, found.labels, found.starts, found.ends)
    assert sum(column.nbytes for column in columns) == 23 * count
    np.testing.assert_array_equal(found.labels, np.arange(count) % 700)
    np.testing.assert_array_equal(found.ids[[0, 999_999]], [b"00000000000", b"00000999999"])


@pytest.mark.slow
def test_reading_takes_little_more_than_its_columns(tmp_path: Path):
    """Measured on fewer rows, as measuring is slow: at 100 bytes a row a million take 100 MB."""
    write_rows(tmp_path / "train.csv", 50_000)
    tracemalloc.start()
    try:
        found = read_table(tmp_path / "train.csv")
        assert tracemalloc.get_traced_memory()[1] < 100 * len(found)
    finally:
        tracemalloc.stop()


def test_the_label_maps(shared: Path, tmp_path: Path):
    for number in (400, 600, 700):
        names = tuple((shared / "kinetics" / f"label_map_k{number}.txt").read_text().splitlines())
        assert len(names) == number
        assert list(names) == sorted(names)
    names = tuple((shared / "kinetics" / "label_map_k400.txt").read_text().splitlines())
    assert names.index("arm wrestling") == 6
    (tmp_path / "val.csv").write_text(HEADER + "arm wrestling,SOX5yA1l24A,1,11,val,0\n")
    table = read_table(tmp_path / "val.csv")
    assert find_clips(shared / "kinetics", "val", table).paths == ["SOX5yA1l24A.mp4"]
