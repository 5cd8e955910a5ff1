"""Whole jobs: what they write, what they do only once, and what they refuse."""

import dataclasses
import functools
import gc
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from einops import reduce
from safetensors.torch import load_file
from torch import Tensor

from probe_eval import harness, records
from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.probing import jobs, results, training
from probe_eval.probing.cells import cell_name
from probe_eval.probing.jobs import run_cell, run_job
from probe_eval.records import read_record
from probe_readouts import BackboneIdentity, load_readout

CLIPS, STEPS = 12, 12


class Pixels:
    """Averages of pixels, with a little noise of its own for every clip."""

    name, num_blocks, width, num_parameters, encoder_hash = "pixels", 3, 6, 0, ""
    weights_hash = "0123"

    def __init__(self) -> None:
        self.clips: list[str] = []

    def encode(self, video: Tensor) -> Tensor:
        return video

    def features(
        self,
        inputs: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Tensor]:
        self.clips += sample_ids
        grid = reduce(inputs, "b c (t dt) (h 8) (w 8) -> b t h w c", "mean", t=1)
        spread = reduce(inputs.square(), "b c (t dt) (h 8) (w 8) -> b t h w c", "mean", t=1)
        both = torch.cat([grid, spread], dim=-1)
        return {block: both * (block + 1) for block in blocks}

    def noise_level(self, timestep: int) -> dict[str, float]:
        if not 0 <= timestep < 1000:
            raise ValueError(f"timestep {timestep} must be 0 to 999")
        clean = timestep < 999
        return {"alpha": float(clean), "sigma": 1 - float(clean), "log_snr": float("-inf")}


@pytest.fixture(autouse=True, scope="module")
def frozen_garbage() -> Iterator[None]:
    """Every training collects garbage; what was there before is not gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def backbone(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """What jobs load; it counts the clips."""
    made = Pixels()
    monkeypatch.setattr(jobs, "load_backbone", lambda *_: made)
    return made


def make_cell(
    root: Path,
    task: str = "shape",
    *,
    block: int = 1,
    rate: float = 1e-2,
    where: str = "cells",
    steps: int = STEPS,
    timestep: int = 200,
    **settings: Any,
) -> ProbeConfig:
    """A cell of seconds, in a folder by its name."""
    made = ProbeConfig(
        task=task,
        data=DataConfig(dataset="moving_shapes", size=16, num_frames=5, limit=CLIPS, workers=0),
        features=FeatureConfig(
            backbone="pixels", block=block, batch_size=5, cache="none", timestep=timestep
        ),
        readout=ReadoutConfig(width=8, num_heads=2),
        optim=OptimConfig(steps=steps, batch_size=4, peak_lr=rate, warmup_steps=2),
        checkpoint_every=5,
        trackers=(),
    )
    made = dataclasses.replace(made, **settings)
    return dataclasses.replace(made, output=str(root / where / cell_name(made)))


@pytest.fixture
def cell(tmp_path: Path) -> Callable[..., ProbeConfig]:
    """Function that makes a cell in a folder of this test."""
    return functools.partial(make_cell, tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[ProbeConfig]:
    """The cells of a job that nothing broke."""
    root = tmp_path_factory.mktemp("whole")
    cells = grid(functools.partial(make_cell, root))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "load_backbone", lambda *_: Pixels())
        run_job(cells, Accelerator(cpu=True), folder=root / "job")
    return cells


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Function that runs a job as a new process would."""
    return lambda *cells, folder="job": run_job(
        cells, Accelerator(cpu=True), folder=tmp_path / folder
    )


def grid(cell: Callable[..., ProbeConfig], **settings: Any) -> list[ProbeConfig]:
    """Two tasks on two blocks."""
    return [cell(task, block=block, **settings) for task in ("action", "shape") for block in (1, 2)]


def readout(of: ProbeConfig) -> dict[str, Tensor]:
    return load_file(Path(of.output) / "readout.safetensors")


def assert_equal(one: ProbeConfig, two: ProbeConfig) -> None:
    """The same readout to the bit, and the same numbers."""
    first, second = readout(one), readout(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    found, expected = (read_record(Path(of.output) / "record.json") for of in (one, two))
    for name in ("metric", "metrics", "final_loss", "dataset", "readout"):
        assert found[name] == expected[name]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step that is taken, once for each readout."""
    taken: list[int] = []
    rate = harness.learning_rate
    monkeypatch.setattr(
        harness, "learning_rate", lambda config, step: taken.append(step) or rate(config, step)
    )
    return taken


def die(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Ends the run at a call of a function."""
    real, calls = getattr(module, name), []

    def deadly(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, deadly)


# --- What is written -----------------------------------------------------------------------------


def test_cells_of_a_job_share_one_forward_a_clip(
    cell: Callable, run: Run, backbone: Pixels, tmp_path: Path
) -> None:
    cells = [*grid(cell), cell(rate=1e-3), cell(seed=1)]
    found = run(*cells)
    assert sorted(backbone.clips) == sorted({*backbone.clips})
    assert len(backbone.clips) == 2 * CLIPS
    assert [record["time"]["forwards"] for record in found] == [2 * CLIPS] * len(cells)
    for one, record in zip(cells, found, strict=True):
        folder = Path(one.output)
        assert {path.name for path in folder.iterdir()} == {
            *("losses.json", "readout.safetensors", "record.json", "run.json")
        }
        assert read_record(folder / "record.json") == record
        assert (record["task"], record["seed"]) == (one.task, one.seed)
        assert record["features"]["block"] == one.features.block
        assert record["optim"]["peak_lr"] == one.optim.peak_lr
        assert record["metrics"][record["metric"]["name"]] == record["metric"]["value"]
        assert record["metric"]["samples"] == CLIPS
        assert record["dataset"]["test"]["evaluated"] == CLIPS
        assert json.loads((folder / "losses.json").read_text())[-1] == [STEPS, record["final_loss"]]
    assert not (tmp_path / "job").exists()


def test_a_cell_of_a_job_is_the_cell_alone(
    cell: Callable, run: Run, whole: list[ProbeConfig]
) -> None:
    """To the bit: nothing is shared but the forwards."""
    more = [cell(), cell(seed=1), cell(rate=1e-3)]
    run(*more)
    assert_equal(more[0], whole[2])
    for one, other in ((whole[1], cell("action", block=2)), (more[1], cell(seed=1))):
        alone = dataclasses.replace(other, output=f"{other.output}-alone")
        run_cell(alone, Accelerator(cpu=True))
        assert_equal(one, alone)
        assert not (Path(alone.output) / "work").exists()


def test_cells_of_other_steps_are_trained_after(
    cell: Callable, run: Run, backbone: Pixels, steps: list[int]
) -> None:
    short, long = cell(steps=4), cell()
    first, second = run(short, long)
    assert len(backbone.clips) == 2 * CLIPS
    assert steps == [*range(4), *range(STEPS)]
    assert first["optim"]["steps"] == 4
    assert first["final_loss"] != second["final_loss"]


def test_the_readout_loads_for_its_features_alone(cell: Callable, run: Run) -> None:
    one = cell()
    record = run(one)[0]
    identity = BackboneIdentity(
        name="pixels", weights="0123", block=1, timestep=200, time_method="paper"
    )
    loaded = load_readout(Path(one.output) / "readout.safetensors", identity)
    assert sum(p.numel() for p in loaded.parameters()) == record["readout"]["num_parameters"]
    other = dataclasses.replace(identity, block=3)
    with pytest.raises(ValueError, match="block is 1 in the file and 3 here"):
        load_readout(Path(one.output) / "readout.safetensors", other)


def test_the_whole_noise_of_the_last_timestep_is_recorded(cell: Callable, run: Run) -> None:
    """Its signal-to-noise ratio is 0, whose logarithm JSON cannot hold."""
    record = run(cell(timestep=999))[0]
    assert (record["features"]["alpha"], record["features"]["sigma"]) == (0.0, 1.0)
    assert record["features"]["log_snr"] is None


def test_shuffled_labels_train_another_readout(cell: Callable, run: Run) -> None:
    plain, shuffled = run(cell(), cell(shuffle_labels=True))
    assert (plain["shuffled_labels"], shuffled["shuffled_labels"]) == (False, True)
    assert plain["final_loss"] != shuffled["final_loss"]
    assert plain["dataset"] == shuffled["dataset"]


def test_time_and_chance_are_recorded(cell: Callable, run: Run) -> None:
    record = run(cell())[0]
    assert sum(record["time"]["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert record["time"]["shares"].keys() == {"data", "backbone", "heads"}
    assert all(0 < share < 1 for share in record["time"]["shares"].values())
    assert record["time"]["total"] >= sum(record["time"]["seconds"].values()) - 0.01
    assert 0 < record["metric"]["chance"] < 0.5


# --- Once and no more ----------------------------------------------------------------------------


def test_finished_cells_are_read_back(
    cell: Callable, run: Run, backbone: Pixels, steps: list[int]
) -> None:
    cells = grid(cell)
    before = run(*cells)
    clips, taken = len(backbone.clips), len(steps)
    times = [(Path(one.output) / "record.json").stat().st_mtime_ns for one in cells]
    assert run(*cells) == before
    assert (len(backbone.clips), len(steps)) == (clips, taken)
    assert times == [(Path(one.output) / "record.json").stat().st_mtime_ns for one in cells]
    more = cell(block=3)
    assert run(*cells, more)[:4] == before
    assert len(steps) == taken + STEPS


@pytest.mark.parametrize(
    ("module", "name", "call", "written", "repeated"),
    [
        # In step 4 of 12: four readouts ask for a rate in each.
        (harness, "learning_rate", 15, 0, 12),
        # In step 8, after the checkpoint of step 5.
        (harness, "learning_rate", 31, 0, 7),
        (training, "measure", 1, 0, 0),
        # The blocks are measured one after the other.
        (training, "measure", 2, 2, 0),
        (results, "save_readout", 2, 1, 0),
        (records, "write_record", 1, 0, 0),
        (records, "write_record", 4, 3, 0),
        (training, "finish", 2, 4, 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_broken_job_ends_like_an_unbroken_one(
    cell: Callable,
    run: Run,
    backbone: Pixels,
    steps: list[int],
    whole: list[ProbeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    call: int,
    written: int,
    repeated: int,
) -> None:
    cells = grid(cell)
    with monkeypatch.context() as patch:
        die(patch, module, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(*cells)
    there = [path for one in cells if (path := Path(one.output) / "record.json").is_file()]
    assert len(there) == written
    before, clips = {path: path.stat().st_mtime_ns for path in there}, len(backbone.clips)
    steps.clear()
    run(*cells)
    assert len(backbone.clips) == clips == 2 * CLIPS
    assert len(steps) == 4 * repeated
    assert {path: path.stat().st_mtime_ns for path in there} == before
    for one, other in zip(cells, whole, strict=True):
        assert_equal(one, other)
        assert read_record(Path(one.output) / "record.json")["time"]["forwards"] == 2 * CLIPS
    assert not (tmp_path / "job").exists()


def test_a_broken_checkpoint_is_made_again_beside_finished_cells(
    cell: Callable, run: Run, whole: list[ProbeConfig], tmp_path: Path, monkeypatch: Any
) -> None:
    """Whose features and targets are needed once more."""
    cells = grid(cell)
    with monkeypatch.context() as patch:
        die(patch, records, "write_record", 4)
        with pytest.raises(KeyboardInterrupt):
            run(*cells)
    newest = max((tmp_path / "job" / "checkpoints").glob("step-*"))
    (newest / "manifest.json").write_text("{}")
    run(*cells)
    for one, other in zip(cells, whole, strict=True):
        assert_equal(one, other)


def test_a_job_that_broke_off_while_features_were_made_goes_on(
    cell: Callable, run: Run, backbone: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell()
    with monkeypatch.context() as patch:
        die(patch, training, "extract_split", 2)
        with pytest.raises(KeyboardInterrupt):
            run_cell(one, Accelerator(cpu=True))
    assert {path.name for path in Path(one.output).iterdir()} == {"run.json", "work"}
    run_cell(one, Accelerator(cpu=True))
    assert len(backbone.clips) == len({*backbone.clips}) == 2 * CLIPS
    assert not (Path(one.output) / "work").exists()


def test_cells_that_are_new_wait_for_those_in_training(
    cell: Callable, run: Run, backbone: Pixels, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [cell(), cell("action")], [cell(block=2), cell()]
    with monkeypatch.context() as patch:
        die(patch, harness, "learning_rate", 17)
        with pytest.raises(KeyboardInterrupt):
            run(*first)
    steps.clear()
    run(*second)
    assert steps == [*sorted([*range(5, 12)] * 2), *range(12)]
    for one in (*first, *second):
        assert (Path(one.output) / "record.json").is_file()
    alone = cell("action", where="alone")
    run(alone, folder="alone")
    assert_equal(first[1], alone)


def test_results_that_moved_are_finished_where_they_are(
    cell: Callable, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die(patch, harness, "learning_rate", 7)
        with pytest.raises(KeyboardInterrupt):
            run(cell())
    (tmp_path / "cells").rename(tmp_path / "moved")
    run(cell(where="moved"))
    assert not (tmp_path / "cells").exists()


# --- What fails ----------------------------------------------------------------------------------


def test_a_readout_that_fails_fails_alone(
    cell: Callable, run: Run, steps: list[int], tmp_path: Path
) -> None:
    good, bad = cell(), cell(rate=1e30)
    with pytest.raises(ValueError, match=rf"1 of 2 readouts .*{cell_name(bad)}: loss is nan at st"):
        run(bad, good)
    assert read_record(Path(good.output) / "record.json")["metric"]["samples"] == CLIPS
    assert {path.name for path in Path(bad.output).iterdir()} == {"failed.json", "run.json"}
    assert not (tmp_path / "job").exists()
    alone = cell(where="alone")
    run(alone, folder="alone")
    assert_equal(good, alone)
    taken = len(steps)
    with pytest.raises(ValueError, match=r"could not be trained .*lower --optim.peak-lr"):
        run(good, bad)
    assert len(steps) == taken
    (Path(bad.output) / "failed.json").unlink()
    with pytest.raises(ValueError, match="1 of 1 readouts"):
        run(bad)
    assert len(steps) == taken + STEPS


def test_weights_that_changed_are_named(
    cell: Callable, run: Run, backbone: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = cell(), cell(block=2)
    run(one)
    with monkeypatch.context() as patch:
        die(patch, harness, "learning_rate", 7)
        with pytest.raises(KeyboardInterrupt):
            run(other)
    backbone.weights_hash = "4567"
    says = "weights of backbone 'pixels' have changed: they are 4567 now, and were 0123 for"
    with pytest.raises(ValueError, match=rf"{says} .*record.json"):
        run(one, folder="elsewhere")
    with pytest.raises(ValueError, match=rf"{says} the unfinished work in .*job"):
        run(other)


def test_scratch_of_another_job_is_refused(
    cell: Callable, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        die(patch, harness, "learning_rate", 7)
        with pytest.raises(KeyboardInterrupt):
            run(cell())
    with pytest.raises(ValueError, match="holds the unfinished work of other settings"):
        run(cell(timestep=0))


def test_a_record_of_another_cell_is_refused(cell: Callable, run: Run) -> None:
    one = cell()
    run(one)
    other = dataclasses.replace(cell(seed=5), output=one.output)
    with pytest.raises(ValueError, match=r"already holds another run .*seed is 0 there, 5 here"):
        run(other)


def test_an_edited_record_is_named(cell: Callable, run: Run) -> None:
    one = cell()
    run(one)
    path = Path(one.output) / "record.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    with pytest.raises(ValueError, match=r"record.json was edited"):
        run(one)


def test_what_is_no_job_is_refused(cell: Callable, run: Run) -> None:
    with pytest.raises(ValueError, match="do not share forwards"):
        run(cell(), cell(timestep=0))
    with pytest.raises(ValueError, match="is there twice"):
        run(cell(), dataclasses.replace(cell(), output="elsewhere"))
    with pytest.raises(ValueError, match="is there twice"):
        run(cell(), dataclasses.replace(cell(seed=1), output=cell().output))
    with pytest.raises(ValueError, match="no cells"):
        run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "dreams"}, "unknown task 'dreams'"),
        ({"data": {"dataset": "shapes"}}, "'shapes'"),
        ({"data": {"draws": 0}}, "draws 0"),
        ({"features": {"block": 9}}, "block 9"),
        ({"features": {"timestep": 1000}}, "timestep 1000"),
        ({"features": {"disk_gb": 0.0}}, "disk_gb|disk-gb"),
        ({"readout": {"num_heads": 3}}, "num_heads"),
        ({"optim": {"accumulate": 3}}, "batch_size 4"),
        ({"evaluate_every": 2}, "evaluate_every 2 needs clips that are held out"),
        ({"trackers": ("wand",)}, "unknown tracker 'wand'"),
        ({"data": {"draws": 0}, "shuffle_labels": True}, "'shape' cannot be shuffled .*draws 1"),
    ],
    ids=str,
)
def test_what_cannot_run_leaves_nothing_behind(cell: Callable, change: dict, message: str) -> None:
    """So that the same command with the mistake mended is not told that the folder is taken."""
    one = cell()
    changes = {
        name: dataclasses.replace(getattr(one, name), **value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        run_cell(dataclasses.replace(one, **changes), Accelerator(cpu=True))
    assert not Path(one.output).exists()


# --- Held-out clips, and the test split ----------------------------------------------------------


def test_what_is_held_out_is_measured_in_place_of_the_test_split(
    cell: Callable, run: Run, backbone: Pixels
) -> None:
    one = cell(held_out=0.4, evaluate_every=8)
    record = run(one)[0]
    assert record["split"] == "held-out"
    held, trained = (record["dataset"][split]["evaluated"] for split in ("test", "train"))
    assert held + trained == CLIPS
    assert held > 0
    assert len(backbone.clips) == len({*backbone.clips}) == CLIPS
    rows = json.loads((Path(one.output) / "evaluations.json").read_text())
    assert [row["step"] for row in rows] == [8, 12]
    assert {**record["metrics"], "step": 12} == rows[-1]


def test_the_test_split_is_measured_once(
    cell: Callable, run: Run, backbone: Pixels, tmp_path: Path
) -> None:
    cells = grid(cell, held_out=0.4)
    trained = run(*cells)
    backbone.clips.clear()

    def test(*chosen: ProbeConfig) -> list[dict[str, Any]]:
        return jobs.test_job(chosen, Accelerator(cpu=True), folder=tmp_path / "test")

    found = test(*cells[:3])
    assert len(backbone.clips) == CLIPS
    assert not (tmp_path / "test").exists()
    for before, after, one in zip(trained, found, cells, strict=False):
        assert read_record(Path(one.output) / "test.json") == after
        assert (after["split"], before["split"]) == ("test", "held-out")
        assert after["dataset"]["test"]["evaluated"] == after["metric"]["samples"] == CLIPS
        for name in ("config", "readout", "final_loss", "backbone", "features"):
            assert after[name] == before[name]
    backbone.clips.clear()
    assert test(*cells[:3]) == found
    assert backbone.clips == []
    assert not (Path(cells[3].output) / "test.json").exists()


def test_a_readout_that_cannot_be_tested_stops_no_other(
    cell: Callable, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = cell(held_out=0.4), cell(held_out=0.4, block=2)
    run(bad, good)
    real = jobs.measure
    monkeypatch.setattr(
        jobs,
        "measure",
        lambda heads, *rest, **options: {
            name: "predicted depth is not finite" if name == cell_name(bad) else numbers
            for name, numbers in real(heads, *rest, **options).items()
        },
    )
    with pytest.raises(ValueError, match=rf"1 of 2 readouts .*{cell_name(bad)}: predicted depth"):
        jobs.test_job([bad, good], Accelerator(cpu=True), folder=tmp_path / "test")
    assert read_record(Path(good.output) / "test.json")["split"] == "test"
    assert not (Path(bad.output) / "test.json").exists()
    assert not (tmp_path / "test").exists()


def test_a_test_of_the_test_split_is_the_record(cell: Callable, run: Run, tmp_path: Path) -> None:
    one = cell()
    record = run(one)
    assert jobs.test_job([one], Accelerator(cpu=True), folder=tmp_path / "test") == record


def test_what_was_not_trained_cannot_be_tested(
    cell: Callable, run: Run, backbone: Pixels, tmp_path: Path
) -> None:
    one, other = grid(cell, held_out=0.4)[:2]

    def test(chosen: ProbeConfig) -> None:
        jobs.test_job([chosen], Accelerator(cpu=True), folder=tmp_path / "test")

    with pytest.raises(ValueError, match=r"has no record.json; train it first"):
        test(one)
    run(one, other)
    place = Path(one.output)
    shutil.copy(Path(other.output) / "readout.safetensors", place / "readout.safetensors")
    with pytest.raises(ValueError, match=r"is not the readout that record.json beside it"):
        test(one)
    backbone.weights_hash = "4567"
    with pytest.raises(ValueError, match="have changed: they are 4567 now, and were 0123"):
        test(other)
