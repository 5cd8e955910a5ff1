"""Tables on disk: what goes in comes out, in any order, and nothing that was damaged does."""

import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from probe_eval.storage import shards
from probe_eval.storage.shards import DamagedTableError
from probe_eval.storage.tables import (
    INDEX_FILE,
    StoredRows,
    Table,
    TableWriter,
    estimate_bytes,
    join_tables,
    open_table,
    shard_name,
    verify_table,
)

SIZES = (4, 0, 3, 1)
"""Rows of each shard."""
KEY = {"of": "nothing"}


def make_columns(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """A column of every kind that tables are used for."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, 2, 3, generator=generator)
    return {
        "single": values,
        "brain": values.bfloat16(),
        "half": values.half(),
        "label": torch.randint(0, 9, (rows,), generator=generator),
        "index": torch.randint(0, 9, (rows, 5), generator=generator).int(),
        "byte": torch.randint(0, 255, (rows, 3), generator=generator).to(torch.uint8),
        "mask": torch.rand(rows, 7, generator=generator) > 0.5,
        "nothing": torch.zeros(rows, 0),
    }


WHOLE = make_columns(sum(SIZES))
NAMES = [f"clip {row}" for row in range(sum(SIZES))]


def write(folder: Path, numbers: range | None = None, columns: dict[str, Tensor] = WHOLE) -> None:
    writer = TableWriter(folder, KEY, len(SIZES))
    writer.start()
    for number in numbers or range(len(SIZES)):
        rows = slice(sum(SIZES[:number]), sum(SIZES[: number + 1]))
        kept = {name: values[rows] for name, values in columns.items()}
        failed = {} if SIZES[number] else {"bad": "is damaged"}
        writer.write(number, NAMES[rows], kept, failed)
    if numbers is None:
        writer.finish()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "table")
    return tmp_path / "table"


@pytest.mark.parametrize(
    "indices", [[], [0], [7], [3, 4], list(range(8)), [7, 0, 3, 3, 4, 0], range(2, 6)]
)
def test_rows_come_out_as_they_went_in(folder: Path, indices: list[int]) -> None:
    table = open_table(folder)
    rows = table.rows(indices, list(WHOLE))
    assert list(rows) == list(WHOLE)
    for name, values in WHOLE.items():
        assert rows[name].dtype == values.dtype
        assert torch.equal(rows[name], values[list(indices)]), name


def test_a_table_knows_its_rows_and_columns(folder: Path) -> None:
    table = open_table(folder)
    assert len(table) == 8
    assert list(table.sample_ids) == NAMES
    assert [table.sample_ids[row] for row in (0, 3, 4, 7, -1)] == [
        NAMES[row] for row in (0, 3, 4, 7, -1)
    ]
    assert table.sample_ids[2:5] == NAMES[2:5]
    assert table.failed == {"bad": "is damaged"}
    kinds = {name: (values.dtype, tuple(values.shape[1:])) for name, values in WHOLE.items()}
    assert dict(table.columns) == kinds
    assert estimate_bytes(kinds, 8) == sum(values.nbytes for values in WHOLE.values())
    with pytest.raises(IndexError, match="row 8 is outside the table of 8 rows"):
        table.sample_ids[8]
    for index in (8, -1):
        with pytest.raises(IndexError, match=f"row {index} is outside the table of 8 rows"):
            table.rows([0, index], ["label"])
    with pytest.raises(ValueError, match=r"no column 'lable'; it has .*label"):
        table.rows([0], ["lable"])


def test_any_program_reads_a_shard(folder: Path) -> None:
    """It is a file of safetensors."""
    read = load_file(folder / shard_name(2))
    assert all(torch.equal(read[name], values[4:7]) for name, values in WHOLE.items())
    assert load_file(folder / shard_name(1)).keys() == WHOLE.keys()


def test_only_what_is_asked_for_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that follow each other come in one piece; no other is touched."""
    table = open_table(folder)
    calls: list[int] = []
    real = os.preadv

    def count(descriptor: int, views: list, offset: int) -> int:
        calls.append(real(descriptor, views, offset))
        return calls[-1]

    monkeypatch.setattr(os, "preadv", count)
    table.rows([0, 1, 2, 3], ["single"])
    assert calls == [4 * 24]
    calls.clear()
    table.rows([3, 0, 1, 5, 6], ["single"])
    assert sorted(calls) == [24, 48, 48]
    monkeypatch.setattr(shards, "MOST_ROWS_AT_ONCE", 2)
    calls.clear()
    table.rows([0, 1, 2], ["single"])
    assert calls == [48, 24]


def test_a_table_can_be_sent_and_read_by_many_threads(folder: Path) -> None:
    table: Table = pickle.loads(pickle.dumps(open_table(folder)))
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: table.rows(range(8), ["brain"])["brain"], range(64)):
            assert torch.equal(rows, WHOLE["brain"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_row(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"clip 5", b"clip 6", 1))


def swap(path: Path) -> None:
    path.write_bytes(path.with_name(shard_name(0)).read_bytes())


def remake(path: Path) -> None:
    """Another shard, whole, of the same table and size."""
    path.unlink()
    write(path.parent, range(2, 3), {name: values.flip(0) for name, values in WHOLE.items()})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"has \d+ of \d+ bytes"),
        (empty, r"has 0 of \d+ bytes"),
        (Path.unlink, "is missing"),
        (change_row, "has other content in row 2 of 'mask'"),
        (change_header, "has a changed header"),
        (swap, r"has \d+ of \d+ bytes"),
        (remake, "is another than index.json tells"),
    ],
)
def test_a_damaged_shard_is_named(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder / shard_name(2))
    with pytest.raises(
        DamagedTableError, match=rf"{shard_name(2)} {message}; delete that file .* run again"
    ):
        open_table(folder).rows(range(8), [name for name in WHOLE if name != "nothing"])
    assert any(shard_name(2) in problem for problem in verify_table(folder))
    # What lies in other shards is as good as before.
    table = open_table(folder, verify=False)
    assert torch.equal(table.rows([0, 7], ["single"])["single"], WHOLE["single"][[0, 7]])
    # A writer makes that one anew, and no other; a row is only read, and found, later on.
    if damage is not change_row:
        kept = (folder / shard_name(0)).stat().st_ino
        (folder / INDEX_FILE).unlink()
        if damage is remake:
            (folder / shard_name(2)).unlink()
        write(folder)
        assert verify_table(folder) == []
        assert (folder / shard_name(0)).stat().st_ino == kept


def test_a_shard_too_many_is_named(folder: Path) -> None:
    (folder / shard_name(9)).write_bytes(b"")
    with pytest.raises(DamagedTableError, match=f"{shard_name(9)} is not in index.json"):
        open_table(folder)
    assert len(verify_table(folder)) == 1


def test_no_changed_byte_gives_a_wrong_number(tmp_path: Path) -> None:
    """Whichever byte of a shard or of the index changes: it is found, or changes nothing."""
    columns = {"x": torch.arange(6.0).reshape(3, 2), "y": torch.tensor([3, 1, 2])}
    writer = TableWriter(tmp_path, KEY, 1)
    writer.start()
    writer.write(0, ["a", "b", "c"], columns, {"d": "bad"})
    writer.finish()
    harmless = 0
    for name in (shard_name(0), INDEX_FILE):
        path = tmp_path / name
        content = path.read_bytes()
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 7
            path.write_bytes(changed)
            try:
                table = open_table(tmp_path)
                rows = table.rows([0, 1, 2], ["x", "y"])
            except ValueError as error:
                assert str(tmp_path) in str(error)  # noqa: PT017
            else:
                harmless += 1  # such as white space in the index
                assert all(torch.equal(rows[name], columns[name]) for name in columns)
                assert list(table.sample_ids) == ["a", "b", "c"]
                assert table.failed == {"d": "bad"}
        path.write_bytes(content)
    assert verify_table(tmp_path) == []
    assert harmless < 100


def test_verifying_names_all_damage(folder: Path) -> None:
    assert verify_table(folder) == []
    change_row(folder / shard_name(0))
    (folder / shard_name(2)).unlink()
    change_row(folder / shard_name(3))
    problems = "\n".join(verify_table(folder))
    assert all(shard_name(number) in problems for number in (0, 2, 3))
    assert shard_name(1) not in problems
    (folder / INDEX_FILE).unlink()
    assert verify_table(folder) == [f"{folder} holds no finished table: it has no index.json"]


def test_a_writer_that_is_resumed_makes_what_lacks(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    writer = TableWriter(tmp_path, KEY, len(SIZES))
    assert not writer.finished()
    assert [writer.has(number) for number in range(4)] == [True, True, False, False]
    assert writer.count_missing() == 2
    before = [(tmp_path / shard_name(number)).stat().st_ino for number in range(2)]
    with pytest.raises(DamagedTableError, match=f"{shard_name(2)} is missing"):
        writer.finish()
    write(tmp_path)
    assert writer.finished()
    assert [(tmp_path / shard_name(number)).stat().st_ino for number in range(2)] == before
    assert verify_table(tmp_path) == []


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    """What somebody may already rely on is never replaced."""
    write(tmp_path)
    kept = open_table(tmp_path)
    write(tmp_path, columns={name: values.flip(0) for name, values in WHOLE.items()})
    assert torch.equal(kept.rows(range(8), ["single"])["single"], WHOLE["single"])
    assert torch.equal(open_table(tmp_path).rows([0], ["single"])["single"], WHOLE["single"][:1])


@pytest.mark.parametrize("links", [True, False])
def test_a_writer_that_loses_the_race_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path = tmp_path / shard_name(0)

    def late(source: Path, target: Path) -> None:
        if not links:
            raise OSError(1, "no hard links here")
        path.write_bytes(b"theirs")
        raise FileExistsError(target)

    monkeypatch.setattr(os, "link", late)
    shards.publish(path, [b"ours"])
    assert path.read_bytes() == (b"theirs" if links else b"ours")
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_a_shard_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, range(1))
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]


def test_shards_of_another_table_are_not_taken(tmp_path: Path) -> None:
    write(tmp_path)
    other = TableWriter(tmp_path, {"of": "something"}, len(SIZES))
    assert not other.finished()
    assert not other.has(0)
    assert not TableWriter(tmp_path, KEY, len(SIZES) + 1).finished()


def test_columns_must_have_a_row_for_each_sample(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path, KEY, 2)
    with pytest.raises(ValueError, match=r"column 'x' has 3 rows of torch.float32 for 2 samples"):
        writer.write(0, ["a", "b"], {"x": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match=r"torch.complex64 for 2 samples; give one row each, of"):
        writer.write(0, ["a", "b"], {"x": torch.zeros(2, dtype=torch.complex64)}, {})
    writer.write(0, ["a"], {"x": torch.zeros(1)}, {})
    writer.write(1, ["b"], {"x": torch.zeros(1, 2)}, {})
    with pytest.raises(DamagedTableError, match=f"{shard_name(1)} is of another table"):
        writer.finish()


def test_tables_of_the_same_rows_are_joined(tmp_path: Path) -> None:
    for name, names in {"a": "pqr", "b": "pqr", "c": "psr", "d": "pq"}.items():
        writer = TableWriter(tmp_path / name, {"of": name}, 1)
        writer.start()
        writer.write(0, list(names), {name: torch.arange(len(names))}, {})
        writer.finish()
    tables = {name: open_table(tmp_path / name) for name in "abcd"}
    joined = join_tables([tables["a"], tables["b"]])
    assert list(joined.columns) == ["a", "b"]
    rows = joined.rows([2, 0], ["b", "a"])
    assert {name: values.tolist() for name, values in rows.items()} == {"b": [2, 0], "a": [2, 0]}
    for other, message in {"c": r"\(q, s\)", "d": r"\(3 rows, 2 rows\)"}.items():
        with pytest.raises(ValueError, match=rf"a and .*{other} are not of the same .*{message}"):
            join_tables([tables["a"], tables[other]])


def test_the_index_can_be_read_by_people(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    assert index["key"] == KEY
    assert index["rows"] == 8
    assert index["columns"]["brain"] == {"dtype": "BF16", "shape": [2, 3]}
    assert [shard["rows"] for shard in index["shards"]] == list(SIZES)
    assert len(StoredRows(folder).digests) == 4
