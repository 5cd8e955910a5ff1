"""Records come back as they were written, and anything else is refused by name."""

import importlib.resources
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from probe_eval import records
from probe_eval.record_schema import SCHEMA_FILE, record_hash
from probe_eval.records import (
    comparable_key,
    differences,
    environment,
    find_records,
    rank,
    read_record,
    replicate_key,
    write_record,
)
from probe_eval.runs import write_json

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema that the package carries."""
    return json.loads((importlib.resources.files("probe_eval") / SCHEMA_FILE).read_text())


def places(group: dict[str, Any], schema: dict[str, Any], above: str = "") -> list[str]:
    """The places of all fields of a record that a part of the schema requires."""
    if "$ref" in group:
        group = schema["$defs"][group["$ref"].rsplit("/", 1)[1]]
    found = []
    for name in group.get("required", ()):
        place = f"{above}.{name}".removeprefix(".")
        found += [place, *places(group["properties"][name], schema, place)]
    return found


def remove(record: dict[str, Any], place: str) -> None:
    *groups, name = place.split(".")
    for group in groups:
        record = record[group]
    del record[name]


def test_round_trip(make_record: Make, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    written = write_record(path, make_record())
    assert read_record(path) == written
    assert written == make_record() | {"sha256": written["sha256"]}
    assert path.read_text().endswith("}\n")
    assert list(path.parent.iterdir()) == [path]


def test_tuples_come_back_as_they_are_read(make_record: Make, tmp_path: Path) -> None:
    record = make_record()
    record["dataset"]["train"]["reasons"] = (("clip 3", "no such file"),)
    assert write_record(tmp_path / "record.json", record) == read_record(tmp_path / "record.json")


def test_fields_may_be_added(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", make_record(note="why not"))
    assert read_record(tmp_path / "record.json")["note"] == "why not"


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    Draft202012Validator.check_schema(schema)
    assert len(places(schema, schema)) > 60


def test_every_required_field_is_missed(
    schema: dict[str, Any], make_record: Make, tmp_path: Path
) -> None:
    for place in places(schema, schema):
        if place in ("schema_version", "sha256"):
            continue
        record = make_record()
        remove(record, place)
        group, _, name = place.rpartition(".")
        with pytest.raises(ValueError, match=rf"record\.json: .*{group}.* lacks .* '{name}'"):
            write_record(tmp_path / "record.json", record)
    assert list(tmp_path.iterdir()) == []


def test_every_required_field_has_a_type(
    schema: dict[str, Any], make_record: Make, tmp_path: Path
) -> None:
    for place in places(schema, schema):
        if place in ("schema_version", "sha256"):
            continue
        with pytest.raises(ValueError, match=rf"record\.json: {place}.* is .*, expected"):
            write_record(tmp_path / "record.json", make_record({place: ["x", 7]}))


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("features.timestep", 1000, "features.timestep is 1000, expected at most 999"),
        ("features.timestep", -1, "features.timestep is -1, expected at least 0"),
        ("features.timestep", 1.5, "features.timestep is 1.5, expected a whole number"),
        ("features.block", -1, "features.block is -1, expected at least 0"),
        ("features.dtype", "int8", "features.dtype is 'int8', expected one of 'float32'"),
        ("metric.direction", "sideways", "metric.direction is 'sideways', expected one of 'up',"),
        ("metric.value", True, "metric.value is True, expected a number"),
        ("metric.typo", 1, "metric has unknown fields typo; known: name, variant, direction"),
        ("split", "validation", "split is 'validation', expected one of 'test', 'held-out'"),
        ("split", "held-out", "split is 'held-out', but held_out is 0"),
        ("held_out", 1.0, "held_out is 1.0, expected below 1"),
        ("dataset.test.failed", -1, "dataset.test.failed is -1, expected at least 0"),
        ("dataset.test.failed", 1, "dataset.test: evaluated 8 + missing 1 + failed 1 must be at"),
        ("dataset.train.evaluated", 0, "dataset.train.evaluated is 0, expected at least 1"),
        ("metric.samples", 9, "metric.samples is 9, expected at most dataset.test.evaluated, 8"),
        ("metrics.top1", 0.25, "metric.value is 0.5, but metrics.top1 0.25"),
        ("readout.sha256", "abc", "readout.sha256 is 'abc', expected 64 hexadecimal digits"),
        ("backbone.weights_hash", "", "backbone.weights_hash is '', expected some text"),
        ("final_loss", float("nan"), "final_loss is nan, expected a finite number"),
        ("metric.value", float("inf"), "metric.value is inf, expected a finite number"),
    ],
)
def test_what_cannot_be_is_never_written(
    make_record: Make, tmp_path: Path, place: str, value: Any, expected: str
) -> None:
    record = make_record()
    *groups, name = place.split(".")
    group = record
    for part in groups:
        group = group[part]
    group[name] = value
    with pytest.raises(ValueError, match=r"record\.json: ") as refusal:
        write_record(tmp_path / "record.json", record)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (1, "it is of probe-eval 0.3 or older: run the probe again"),
        (3, "it is of a newer probe-eval: update this one"),
        ("2", "it is no record of a probe"),
        (None, "it is no record of a probe"),
    ],
)
def test_another_version_is_told_what_to_do(
    make_record: Make, tmp_path: Path, version: Any, advice: str
) -> None:
    write_json(tmp_path / "record.json", make_record(schema_version=version))
    with pytest.raises(ValueError, match=rf"has schema version {version!r}, expected 2; {advice}"):
        read_record(tmp_path / "record.json")


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


# --- Edits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('"value": 0.5', '"value": 0.9', r"was edited after it was written: its sha256 is"),
        ('"seed": 0,\n  "order', '"seed": 1,\n  "order', r"was edited after it was written"),
        ('"git_commit": ""', '"git_commit": "abc"', r"was edited after it was written"),
        ('"value": 0.5', '"value": "0.9"', r"edited .*\(metric.value is '0.9', expected a number"),
        ('"direction"', '"way"', r"edited .*\(metric lacks the field 'direction'\)"),
        ('"value": 0.5', '"value": NaN', r"not valid JSON \(NaN is no number"),
    ],
)
def test_an_edited_file_is_named(
    make_record: Make, tmp_path: Path, old: str, new: str, named: str
) -> None:
    path = tmp_path / "record.json"
    write_record(path, make_record())
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"record\.json.*{named}"):
        read_record(path)


def test_every_value_is_under_the_hash(make_record: Make) -> None:
    def edits(value: Any) -> list[Any]:
        """The value with one leaf changed, for each of its leaves."""
        if isinstance(value, dict):
            return [{**value, name: new} for name, part in value.items() for new in edits(part)]
        if isinstance(value, list) and value:
            return [[*value[:-1], new] for new in edits(value[-1])]
        return [f"{value} too" if isinstance(value, str) else "changed"]

    record = make_record()
    changed = edits(record)
    assert len(changed) > 80
    hashes = {record_hash(each) for each in changed}
    assert len(hashes) == len(changed)
    assert record_hash(record) not in hashes


def test_the_layout_of_the_json_is_no_edit(make_record: Make, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    written = write_record(path, make_record(final_loss=2.0, task="ação"))
    text = json.dumps(dict(reversed(written.items())), ensure_ascii=False).replace("2.0,", "2,")
    path.write_text(text, encoding="utf-8")
    assert read_record(path) == written


def test_a_hash_that_is_none_is_refused(make_record: Make, tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", make_record())
    with pytest.raises(ValueError, match=r"record\.json: the record lacks the field 'sha256'"):
        read_record(tmp_path / "record.json")


# --- Comparing -----------------------------------------------------------------------------------

SEEDS = {"seed": 3, "order_seed": 4, "final_loss": 0.1, "metric.value": 0.75}
NOT_RANKED = {
    "task": "shape",
    "split": "held-out",
    "metric.name": "top5",
    "metric.variant": "strided",
    "metric.direction": "down",
    "dataset.name": "ssv2",
    "dataset.test_name": "ssv2",
    "dataset.clip.stride": 2,
    "dataset.train.fingerprint": "g",
    "dataset.train.evaluated": 7,
    "dataset.test.fingerprint": "g",
    "dataset.test.evaluated": 7,
    "readout.name": "DepthReadout",
    "config.readout.width": 128,
    "config.readout.time": "nearest",
    "optim.steps": 5,
    "optim.batch_size": 8,
    "optim.weight_decay": 0.5,
    "config.data.draws": 2,
    "held_out": 0.1,
    "shuffled_labels": True,
}
NOT_AVERAGED = {
    "backbone.name": "i-walt",
    "backbone.weights_hash": "abd",
    "features.block": 2,
    "features.timestep": 100,
    "features.noise_seed": 1,
    "features.average_time": True,
    "features.dtype": "bfloat16",
    "optim.peak_lr": 0.125,
}
NEITHER = {
    "optim.accumulate": 2,
    "readout.num_parameters": 8,
    "readout.sha256": "1" * 64,
    "backbone.num_parameters": 8,
    "config.output": "elsewhere",
    "config.data.workers": 3,
    "environment.processes": 2,
    "time.total": 9.0,
    "recipe": "ssv2",
}


@pytest.mark.parametrize("place", NOT_RANKED)
def test_what_keeps_two_records_from_being_ranked(make_record: Make, place: str) -> None:
    one, other = make_record(), make_record({place: NOT_RANKED[place]})
    assert comparable_key(one) != comparable_key(other)
    assert replicate_key(one) != replicate_key(other)
    name = place.removeprefix("config.").removeprefix("data.")
    (difference,) = differences(one, other)
    assert difference.startswith(f"{name} is ")
    assert difference.endswith(f"{NOT_RANKED[place]!r} in the other")
    with pytest.raises(ValueError, match=rf"cannot be ranked: {name} is "):
        rank([one, one, other])


@pytest.mark.parametrize("place", NOT_AVERAGED)
def test_what_is_ranked_but_not_averaged(make_record: Make, place: str) -> None:
    one, other = make_record(), make_record({place: NOT_AVERAGED[place]})
    assert comparable_key(one) == comparable_key(other)
    assert differences(one, other) == []
    assert replicate_key(one) != replicate_key(other)
    assert len(differences(one, other, replicates=True)) == 1


@pytest.mark.parametrize("place", [*SEEDS, *NEITHER])
def test_what_may_differ(make_record: Make, place: str) -> None:
    one, other = make_record(), make_record({place: (SEEDS | NEITHER)[place]})
    assert replicate_key(one) == replicate_key(other)
    assert differences(one, other, replicates=True) == []


@pytest.mark.parametrize(("direction", "best"), [("up", [3, 2, 0, 1]), ("down", [0, 1, 2, 3])])
def test_the_best_comes_first(make_record: Make, direction: str, best: list[int]) -> None:
    records = [
        make_record({"metric.value": value, "metric.direction": direction, "seed": seed})
        for seed, value in enumerate((0.1, 0.1, 0.2, 0.9))
    ]
    assert [record["seed"] for record in rank(records)] == best
    assert rank([]) == []


# --- Finding -------------------------------------------------------------------------------------


def test_records_are_found_and_others_passed_over(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path / "b" / "record.json", make_record(seed=1))
    write_record(tmp_path / "b" / "test.json", make_record(seed=2))
    write_record(tmp_path / "a" / "deep" / "record.json", make_record(seed=3))
    write_json(tmp_path / "walt" / "record.json", {"schema_version": 2, "kind": "pretrain-walt"})
    write_json(tmp_path / "made" / "record.json", {"schema_version": 2, "task": "generate"})
    found = find_records([tmp_path, tmp_path / "b", tmp_path / "b" / "record.json"])
    assert [item.record["seed"] for item in found] == [3, 1, 2]
    assert not any(item.problem for item in found)


def test_a_damaged_record_is_found_with_its_reason(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", make_record())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "record.json").write_text("{")
    write_json(tmp_path / "c" / "record.json", make_record(schema_version=1))
    damaged, old, whole = find_records([tmp_path])
    assert "is not valid JSON" in damaged.problem
    assert "has schema version 1" in old.problem
    assert (damaged.record, old.record, whole.problem) == ({}, {}, "")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        find_records([tmp_path / "nothing"])


def test_environment_fits_a_record(make_record: Make, tmp_path: Path) -> None:
    found = environment(2, "cpu", "bf16")
    write_record(tmp_path / "record.json", make_record(environment=found))
    assert (found["processes"], found["device"], found["precision"]) == (2, "cpu", "bf16")
    assert found["packages"]["torch"][0].isdigit()


def test_a_commit_is_of_the_checkout_of_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not of one that an installed package merely lies in."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")

    def git(*words: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    file = tmp_path / "records.py"
    file.write_text("")
    git("init")
    git("commit", "--allow-empty", "-m", "another project")
    monkeypatch.setattr(records, "__file__", str(file))
    assert records.git_commit() == ""
    git("add", "records.py")
    assert len(records.git_commit()) == 40
