"""The commands from end to end, tiny: what they leave, and that they do nothing twice."""

import csv
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file

from probe_eval.pretrain import tokenizer, twins
from probe_eval.probing import training
from probe_eval.records import read_record

MODELS = ("tokenizer", "i-walt", "v-walt")
Words = Callable[..., list[str]]
Main = Callable[..., int]


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file below a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_equal_weights(one: Path, two: Path) -> None:
    """Every tensor of two safetensors files is equal to the bit."""
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and extraction of features are errors."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this was there already")

    for module, name in (
        (tokenizer, "train"),
        (twins, "train"),
        (twins, "encode_clips"),
        (training, "train"),
        (training, "extract_split"),
    ):
        monkeypatch.setattr(module, name, fail)


# --- Pretraining ---------------------------------------------------------------------------------


def test_pretraining_leaves_three_models_and_what_made_them(pretrained: Path) -> None:
    names = sorted(path.name for path in pretrained.iterdir())
    assert names == sorted(["run.json", *MODELS])
    for name in MODELS:
        model = json.loads((pretrained / name / "model.json").read_text())
        weights = load_file(pretrained / name / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in weights.values())
        assert model["losses"][-1][0] == model["optim"]["steps"] == 4
        assert model["data"]["limit"] == 36
        assert {path.name for path in (pretrained / name).iterdir()} == {
            *("config.json", "model.safetensors", "README.md", "model.json")
        }
    made, first, second = (load_file(pretrained / n / "model.safetensors") for n in MODELS)
    assert first.keys() == second.keys()
    for name in ("latent_mean", "latent_std"):
        assert torch.equal(first[name], made[name])
        assert torch.equal(second[name], made[name])


@pytest.mark.usefixtures("no_training")
def test_finished_pretraining_is_not_repeated(
    pretrained: Path, main: Main, pretrain_words: Words
) -> None:
    before = snapshot(pretrained)
    assert main(*pretrain_words(pretrained)) == 0
    assert snapshot(pretrained) == before


def test_a_given_tokenizer_is_used(
    pretrained: Path, main: Main, pretrain_words: Words, tmp_path: Path
) -> None:
    words = pretrain_words(tmp_path / "out", "--tokenizer-from", pretrained / "tokenizer")
    assert main(*words) == 0
    for name in MODELS:
        assert_equal_weights(
            *(folder / name / "model.safetensors" for folder in (tmp_path / "out", pretrained))
        )
    claim = json.loads((tmp_path / "out" / "run.json").read_text())
    made = json.loads((pretrained / "tokenizer" / "model.json").read_text())
    assert claim["config"]["tokenizer_from"] == made["weights_hash"]
    model = json.loads((tmp_path / "out" / "tokenizer" / "model.json").read_text())
    assert (model["losses"], model["psnr"]) == ([], made["psnr"])


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("tokenizer", "tiny: 2,188,595 parameters"),
        ("twins", "tiny-norm: 2,190,211 parameters"),
    ],
)
def test_a_dry_run_trains_nothing(
    main: Main,
    pretrain_words: Words,
    tokenizer_words: Words,
    tmp_path: Path,
    kind: str,
    model: str,
    capsys: pytest.CaptureFixture,
) -> None:
    words = {"tokenizer": tokenizer_words, "twins": pretrain_words}[kind](tmp_path / "out")
    assert main(*words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert model in out
    assert "4 x 4 = 1 processes x 1 micro-batches x 4 clips of 5 x" in out
    assert str(tmp_path / "out") in out
    assert list(tmp_path.iterdir()) == []


# --- Probes --------------------------------------------------------------------------------------


def test_a_probe_leaves_a_valid_record(finished: Path) -> None:
    names = sorted(path.name for path in finished.iterdir())
    assert names == [
        *("losses.json", "readout.safetensors", "record.json", "run.json", "tensorboard")
    ]
    record = read_record(finished / "record.json")
    assert (record["task"], record["backbone"]["name"]) == ("action", "v-walt")
    assert record["dataset"]["train"]["evaluated"] == 36
    assert record["dataset"]["test"]["evaluated"] == record["metric"]["samples"] == 36
    assert record["split"] == "test"
    assert record["time"]["forwards"] == 72
    digest = hashlib.sha256((finished / "readout.safetensors").read_bytes()).hexdigest()
    assert record["readout"]["sha256"] == digest
    # A mean over 36 clips.
    assert (36 * record["metric"]["value"]) == pytest.approx(round(36 * record["metric"]["value"]))
    assert record["config"]["optim"]["steps"] == 4
    assert record["environment"]["processes"] == 1


def test_both_twins_are_probed(
    main: Main, run_words: Words, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = run_words(tmp_path / "run", "--features.backbone", "i-walt")
    assert main(*words) == 0
    record, other = (read_record(path / "record.json") for path in (tmp_path / "run", finished))
    assert record["backbone"]["name"] == "i-walt"
    assert record["backbone"]["weights_hash"] != other["backbone"]["weights_hash"]
    value = record["metric"]["value"]
    assert f"action on i-walt: top1 {value:.4f} (chance " in capsys.readouterr().out


@pytest.mark.usefixtures("no_training")
def test_a_finished_probe_is_read_back(main: Main, run_words: Words, finished: Path) -> None:
    before = snapshot(finished)
    assert main(*run_words(finished)) == 0
    assert snapshot(finished) == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        ("--seed 1", "seed is 0 there, 1 here"),
        ("--optim.peak-lr 0.5", "optim.peak_lr is 0.01 there, 0.5 here"),
        ("--features.backbone i-walt", "features.backbone is 'v-walt' there, 'i-walt' here"),
        ("--shuffle-labels", "shuffle_labels is False there, True here"),
    ],
)
def test_the_folder_of_another_probe_is_left_alone(
    main: Main,
    run_words: Words,
    finished: Path,
    flags: str,
    difference: str,
    capsys: pytest.CaptureFixture,
) -> None:
    before = snapshot(finished)
    assert main(*run_words(finished, *flags.split())) == 2
    err = capsys.readouterr().err
    assert f"results folder {finished} already holds another run" in err
    assert difference in err
    assert snapshot(finished) == before


@pytest.mark.usefixtures("no_training")
def test_the_folder_of_another_kind_of_run_is_left_alone(
    main: Main, run_words: Words, pretrain_words: Words, pretrained: Path, finished: Path
) -> None:
    before = snapshot(pretrained), snapshot(finished)
    assert main(*pretrain_words(pretrained, "--seed", "1")) == 2
    assert main(*pretrain_words(finished)) == 2
    assert main(*run_words(pretrained)) == 2
    assert main("demo", "--output", finished) == 2
    assert (snapshot(pretrained), snapshot(finished)) == before


def test_shuffled_labels_are_trained_on_and_true_ones_measured(
    main: Main, run_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[str, int]]] = {}

    class Watched(training.TableSource):
        def __init__(self, tables: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(tables, *args, **kwargs)
            (labels,) = (v for k, v in self.rows(range(len(self))).items() if k.endswith("/label"))
            seen["train"] = list(zip(tables.targets.sample_ids, labels.tolist(), strict=True))

    def measure(heads: Any, tables: Any, *args: Any, **kwargs: Any) -> Any:
        found = tables.targets.rows(range(len(tables.targets.sample_ids)), ["action/label"])
        labels = found["action/label"].tolist()
        seen["measure"] = list(zip(tables.targets.sample_ids, labels, strict=True))
        return measured(heads, tables, *args, **kwargs)

    measured = training.measure
    monkeypatch.setattr(training, "TableSource", Watched)
    monkeypatch.setattr(training, "measure", measure)
    assert main(*run_words(tmp_path / "true")) == 0
    true = dict(seen)
    assert main(*run_words(tmp_path / "shuffled", "--shuffle-labels")) == 0

    assert seen["measure"] == true["measure"]
    assert [name for name, _ in seen["train"]] == [name for name, _ in true["train"]]
    assert seen["train"] != true["train"]
    labels = [sorted(label for _, label in run["train"]) for run in (seen, true)]
    assert labels[0] == labels[1]
    assert read_record(tmp_path / "shuffled" / "record.json")["shuffled_labels"] is True


def test_a_probe_is_listed_and_reported(
    main: Main, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = snapshot(finished)
    record = read_record(finished / "record.json")
    assert main("ls", finished) == 0
    assert f"{record['metric']['value']:.4f}" in capsys.readouterr().out
    assert main("report", finished, "--output", tmp_path / "report") == 0
    with (tmp_path / "report" / "tables" / "summary-test.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["mean"]) == record["metric"]["value"]
    assert (row["task"], row["backbone"], row["seeds"]) == ("moving-shapes-action", "v-walt", "1")
    assert snapshot(finished) == before


# --- Pictures and the demo -----------------------------------------------------------------------


def test_show_draws_every_video(
    main: Main, pretrained: Path, write_video: Callable[..., Path], tmp_path: Path
) -> None:
    videos = [write_video(tmp_path / name) for name in ("one.mp4", "two.webm", "sub/one.mp4")]
    words = ["--pretrained", pretrained, "--size", 32, "--output", tmp_path / "pictures"]
    assert main("show", *videos, *words) == 0
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 3
    for path in pictures:
        assert path.suffix == ".png"
        assert matplotlib.image.imread(path)[..., :3].std() > 0.02


@pytest.mark.slow
def test_the_demo_makes_everything_and_then_nothing(
    main: Main,
    pretrain_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture,
) -> None:
    folder = tmp_path / "demo"
    words = pretrain_words(folder, "--seeds", "0", under="pretrain.", limit=12)
    words += ["--optim.steps", "4", "--optim.batch-size", "8", "--optim.warmup-steps", "1"]
    assert main("demo", *words) == 0
    table = capsys.readouterr().out

    records = [read_record(path) for path in sorted(folder.glob("probes/*/record.json"))]
    assert len(records) == 8
    what = {(r["task"], r["backbone"]["name"], r["shuffled_labels"]) for r in records}
    assert len(what) == 8
    html = (folder / "index.html").read_text()
    # Those of the table of all rows, one seed each.
    details = html[html.index("<details>") : html.index("</details>")]
    means = re.findall(r">(?:<strong>)?([\d.]+) \(1\)", details)
    assert sorted(means) == sorted(f"{record['metric']['value']:.3f}" for record in records)
    assert all(f"{record['metric']['value']:.4g}" in table for record in records)
    pictures = list(folder.rglob("*.png"))
    assert {path.parent.name for path in pictures} == {"figures", "show"}
    assert len(re.findall(r'src="data:image/png;base64,', html)) == len(pictures)
    assert not list(folder.rglob("checkpoints"))
    assert not list(folder.glob("work*"))
    forwards = {(r["backbone"]["name"], r["time"]["forwards"]) for r in records}
    assert len(forwards) == 2
    assert not list(folder.rglob("*partial*"))

    request.getfixturevalue("no_training")
    before = snapshot(folder)
    assert main("demo", *words) == 0
    after = snapshot(folder)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
