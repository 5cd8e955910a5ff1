"""Records come back as they were written, and anything else is refused by name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from probe_eval.records import FIELDS, environment, read_record, write_record

Make = Callable[..., dict[str, Any]]


def leaves(fields: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every required field, groups included."""
    for name, kind in fields.items():
        yield (*above, name)
        if isinstance(kind, dict):
            yield from leaves(kind, (*above, name))


PATHS = [path for path in leaves(FIELDS) if path != ("schema_version",)]
each_field = pytest.mark.parametrize("path", PATHS, ids=".".join)


def place(record: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The dictionary that holds the last name of a path."""
    for name in path[:-1]:
        record = record[name]
    return record


def test_round_trip(make_record: Make, tmp_path: Path) -> None:
    record, path = make_record(), tmp_path / "new" / "record.json"
    write_record(path, record)
    assert read_record(path) == record
    assert path.read_text().endswith("}\n")
    assert list(path.parent.iterdir()) == [path]


def test_fields_may_be_added(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", make_record(note="later versions add things"))
    assert read_record(tmp_path / "record.json")["note"] == "later versions add things"


@each_field
def test_a_missing_field_is_named(make_record: Make, tmp_path: Path, path: tuple) -> None:
    record = make_record()
    del place(record, path)[path[-1]]
    with pytest.raises(ValueError, match=rf"record\.json.* lacks the field '{path[-1]}'"):
        write_record(tmp_path / "record.json", record)
    assert list(tmp_path.iterdir()) == []


@each_field
@pytest.mark.parametrize("wrong", [None, [], True], ids=repr)
def test_a_wrong_type_is_named(make_record: Make, tmp_path: Path, path: tuple, wrong: Any) -> None:
    record = make_record()
    if type(place(record, path)[path[-1]]) is type(wrong):
        wrong = 7
    place(record, path)[path[-1]] = wrong
    with pytest.raises(ValueError, match=rf"record\.json.*{path[-1]}"):
        write_record(tmp_path / "record.json", record)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(make_record: Make, tmp_path: Path, version: Any) -> None:
    with pytest.raises(ValueError, match=r"record\.json has schema version .*, expected 1"):
        write_record(tmp_path / "record.json", make_record(schema_version=version))


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "{}"])
def test_json_that_is_no_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(ValueError, match=r"record\.json has schema version None"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_cut_file_is_refused(make_record: Make, tmp_path: Path, share: float) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"record\.json is not valid JSON"):
        read_record(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"record\.json is not valid JSON"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"value": 0.5', '"value": "0.9"', "value"),
        ('"value": 0.5', '"value": NaN', "NaN"),
        ('"value": 0.5', '"value": Infinity', "Infinity"),
        ('"processes": 1', '"processes": 1.5', "processes"),
        ('"direction"', '"way"', "direction"),
    ],
)
def test_an_edited_file_is_refused(
    make_record: Make, tmp_path: Path, old: str, new: str, named: str
) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"record\.json.*{named}"):
        read_record(path)


def test_what_is_not_finite_is_never_written(make_record: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whoever notices first
        write_record(tmp_path / "record.json", make_record(final_loss=float("nan")))
    assert list(tmp_path.iterdir()) == []


def test_environment_fits_a_record(make_record: Make, tmp_path: Path) -> None:
    found = environment(2, "cpu")
    write_record(tmp_path / "record.json", make_record(environment=found))
    assert (found["processes"], found["device"]) == (2, "cpu")
    assert found["packages"]["torch"][0].isdigit()
