"""What is trained on, what is measured, and whole probes on untrained twins."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from probe_datasets import ClipConfig
from probe_datasets.moving_shapes import SHAPES, MovingShapes
from probe_eval import probe
from probe_eval.backbones.walt import load
from probe_eval.config import DataConfig, FeatureConfig, OptimConfig, ProbeConfig, ReadoutConfig
from probe_eval.data import open_split
from probe_eval.features import FeatureStore, FeatureTable
from probe_eval.probe import FeatureSamples, check_classes, evaluate, identify, run_probe
from probe_eval.records import read_record
from probe_eval.tasks import TASKS
from probe_readouts import BackboneIdentity, load_readout, weights_hash

TASK = TASKS["action"]


@pytest.fixture
def table() -> FeatureTable:
    """40 samples whose only feature is their number."""
    numbers = torch.arange(40.0)
    return FeatureTable(
        features=numbers[:, None, None, None, None].expand(40, 2, 1, 1, 1).clone(),
        examples=tuple({"sample_id": f"s{i}", "labels": {"action": i % 6}} for i in range(40)),
        failed={},
    )


def labels(samples: FeatureSamples) -> list[int]:
    return [int(samples[index]["label"]) for index in range(len(samples))]


def test_samples_carry_their_own_labels(table: FeatureTable) -> None:
    samples = FeatureSamples(table, TASK)
    assert labels(samples) == [index % 6 for index in range(40)]
    assert samples[7]["features"].unique().tolist() == [7]


def test_shuffled_labels_are_a_permutation(table: FeatureTable) -> None:
    true, shuffled = FeatureSamples(table, TASK), FeatureSamples(table, TASK, shuffle_seed=3)
    assert labels(shuffled) != labels(true)
    assert sorted(labels(shuffled)) == sorted(labels(true))
    assert labels(shuffled) == labels(FeatureSamples(table, TASK, shuffle_seed=3))
    assert labels(shuffled) != labels(FeatureSamples(table, TASK, shuffle_seed=4))
    assert [float(shuffled[i]["features"].max()) for i in range(40)] == list(range(40))


class Known(torch.nn.Module):
    """Logits that are right for even samples only."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        number = features.mean(dim=(1, 2, 3, 4)).round().long()
        answer = torch.where(number % 2 == 0, number % 6, (number + 1) % 6)
        return torch.nn.functional.one_hot(answer, 6).float()


@pytest.mark.parametrize("batch", [1, 7, 40, 64])
def test_every_sample_is_measured_once(
    table: FeatureTable,
    config: ProbeConfig,
    accelerator: Accelerator,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "EVALUATION_BATCH", batch)
    scores = evaluate(Known(), TASK, FeatureSamples(table, TASK), config, accelerator)
    assert scores.scores == {f"s{i}": float(i % 2 == 0) for i in range(40)}
    assert scores.compute() == 0.5


# --- Whole probes --------------------------------------------------------------------------------


@pytest.fixture
def small(twins: Path, tmp_path: Path) -> ProbeConfig:
    """Twelve clips, twelve steps."""
    return ProbeConfig(
        task="shape",
        data=DataConfig(size=16, num_frames=5, limit=12),
        features=FeatureConfig(pretrained=str(twins), block=2, batch_size=5),
        readout=ReadoutConfig(width=8, num_heads=2),
        optim=OptimConfig(steps=12, batch_size=4, peak_lr=1e-2, warmup_steps=2),
        checkpoint_every=5,
        output=str(tmp_path / "run"),
    )


Probe = Callable[[ProbeConfig], dict]


@pytest.fixture
def probe_once() -> Probe:
    """Function that probes as a new process would."""
    return lambda config: run_probe(config, Accelerator(cpu=True))


def test_a_probe_leaves_record_readout_and_losses(small: ProbeConfig, probe_once: Probe) -> None:
    record = probe_once(small)
    folder = Path(small.output)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["losses.json", "readout.safetensors", "record.json", "run.json"]
    assert read_record(folder / "record.json") == record
    assert record["task"] == "shape"
    assert record["dataset"]["validation"]["evaluated"] == 12
    assert record["metric"]["chance"] == 1 / len(SHAPES)
    assert (record["features"]["block"], record["features"]["timestep"]) == (2, 200)
    identity = BackboneIdentity(
        name="v-walt",
        weights=record["backbone"]["weights_hash"],
        block=2,
        timestep=200,
        time_method="paper",
    )
    readout = load_readout(folder / "readout.safetensors", identity)
    assert sum(p.numel() for p in readout.parameters()) == record["readout"]["num_parameters"]
    assert readout(torch.zeros(1, 2, 2, 2, 16), num_frames=5).shape == (1, len(SHAPES))
    other = dataclasses.replace(identity, block=3)
    with pytest.raises(ValueError, match="block is 2 in the file and 3 here"):
        load_readout(folder / "readout.safetensors", other)


def test_a_readout_can_be_loaded_for_a_backbone_in_memory(
    small: ProbeConfig, probe_once: Probe, twins: Path
) -> None:
    small = dataclasses.replace(small, readout=dataclasses.replace(small.readout, time="causal"))
    record = probe_once(small)
    backbone = load("v-walt", str(twins))
    identity = BackboneIdentity(
        name=backbone.name,
        weights=weights_hash(backbone.tokenizer, backbone.denoiser),
        block=2,
        timestep=200,
        time_method="causal",
    )
    assert identity == identify(backbone, small)
    readout = load_readout(Path(small.output) / "readout.safetensors", identity)
    data = open_split(small.data, "validation")
    table = FeatureStore(Accelerator(cpu=True)).get(backbone, data, small.features, title="")
    logits = readout(table.features, num_frames=small.data.num_frames)
    labels = torch.tensor([example["labels"]["shape"] for example in table.examples])
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    assert accuracy == pytest.approx(record["metric"]["value"])


def test_equal_settings_give_equal_numbers(
    small: ProbeConfig, probe_once: Probe, tmp_path: Path
) -> None:
    first = probe_once(small)
    torch.manual_seed(99)
    second = probe_once(dataclasses.replace(small, output=str(tmp_path / "again")))
    assert first["metric"] == second["metric"]
    assert first["final_loss"] == second["final_loss"]
    one, two = (load_file(tmp_path / name / "readout.safetensors") for name in ("run", "again"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    third = probe_once(dataclasses.replace(small, seed=1, output=str(tmp_path / "other")))
    assert third["final_loss"] != first["final_loss"]


def test_shuffled_labels_train_another_readout(
    small: ProbeConfig, probe_once: Probe, tmp_path: Path
) -> None:
    plain = probe_once(small)
    shuffled = probe_once(
        dataclasses.replace(small, shuffle_labels=True, output=str(tmp_path / "shuffled"))
    )
    assert (plain["shuffled_labels"], shuffled["shuffled_labels"]) == (False, True)
    assert plain["final_loss"] != shuffled["final_loss"]


def test_the_whole_noise_of_the_last_timestep_is_recorded(
    small: ProbeConfig, probe_once: Probe
) -> None:
    """Its signal-to-noise ratio is 0, whose logarithm JSON cannot hold."""
    features = dataclasses.replace(small.features, timestep=999)
    record = probe_once(dataclasses.replace(small, features=features))
    assert (record["features"]["alpha"], record["features"]["sigma"]) == (0.0, 1.0)
    assert record["features"]["log_snr"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "depth"}, "unknown task 'depth'"),
        ({"data": {"dataset": "shapes"}}, "'shapes'"),
        pytest.param({"data": {"num_frames": 6}}, "6"),
        pytest.param({"data": {"size": 20}}, "20"),
        ({"features": {"backbone": "dino"}}, "unknown backbone 'dino'"),
        ({"features": {"block": 9}}, "block 9"),
        ({"features": {"block": -1}}, "block -1"),
        ({"features": {"timestep": 1000}}, "timestep 1000"),
        ({"features": {"timestep": -1}}, "timestep -1"),
        pytest.param({"features": {"memory_gb": 0.0}}, "memory_gb"),
        ({"readout": {"num_heads": 3}}, "num_heads"),
        pytest.param({"optim": {"accumulate": 3}}, "batch_size 4"),
    ],
    ids=str,
)
def test_what_cannot_run_leaves_nothing_behind(
    small: ProbeConfig, probe_once: Probe, change: dict, message: str
) -> None:
    """So that the same command with the mistake mended is not told that the folder is taken."""
    changes = {
        name: dataclasses.replace(getattr(small, name), **value)
        if isinstance(value, dict)
        else value
        for name, value in change.items()
    }
    with pytest.raises(ValueError, match=message):
        probe_once(dataclasses.replace(small, **changes))
    assert not Path(small.output).exists()


def test_splits_must_mean_the_same_by_an_index() -> None:
    clip = ClipConfig(num_frames=1, size=16)
    train, held_out = (MovingShapes(split, clip=clip) for split in ("train", "validation"))
    check_classes({"train": train, "validation": held_out})
    held_out.classes = {**train.classes, "shape": ("square", "disc")}  # type: ignore[misc]
    with pytest.raises(
        ValueError, match=r"'shape' differ between train \(6\) and validation \(2\)"
    ):
        check_classes({"train": train, "validation": held_out})
