"""Metrics of 1, 2 and 3 real processes, which share padded batches: equal to the bit."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

SAMPLES = 11
IDS = [f"video/{number:02d}" for number in range(SAMPLES)]


def batches() -> dict[str, dict[str, torch.Tensor]]:
    """Inputs of every metric, of all samples."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(SAMPLES, *shape, generator=generator)

    points, boxes = rand(6, 5, 2), rand(6, 5, 4).sort(dim=-1).values
    return {
        "accuracy": {"pred": rand(7), "target": (7 * rand()).long()},
        "depth": {"pred": rand(3, 9, 8), "target": rand(3, 9, 8), "valid": rand(3, 9, 8) > 0.3},
        "pose": {"pred": rand(3, 4), "target": torch.eye(3, 4).expand(SAMPLES, 3, 4)},
        "tracks": {
            "pred": points + 0.05 * rand(6, 5, 2),
            "pred_visible": rand(6, 5) > 0.4,
            "target": points,
            "target_visible": rand(6, 5) > 0.4,
            "query_frames": (4 * rand(5)).long(),
        },
        "boxes": {"pred": boxes + 0.05, "target": boxes, "valid": rand(6, 5) > 0.2},
        "frechet": {"features": rand(4)},
    }


def measure(folder: Path, batch_size: int) -> None:
    """What one process does; writes its results to a file."""
    torch.set_num_threads(1)  # threads do not survive a fork
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    results = {
        name: {key: value.hex() for key, value in found.items()}
        for name, found in gathered(accelerator, batch_size).items()
    }
    world, rank = accelerator.num_processes, accelerator.process_index
    (folder / f"{rank}-of-{world}.json").write_text(json.dumps(results))
    accelerator.end_training()


def gathered(accelerator: Accelerator, batch_size: int) -> dict[str, dict[str, float]]:
    """All metrics of all samples. The last process wraps around to the first samples."""
    from probe_eval.distributed import gather_items
    from probe_eval.metrics.features import FeatureState
    from probe_eval.metrics.frechet import frechet_distance
    from probe_eval.metrics.functional.accuracy import accuracy_metrics
    from probe_eval.metrics.functional.boxes import box_metrics
    from probe_eval.metrics.functional.depth import depth_metrics
    from probe_eval.metrics.functional.pose import pose_metrics
    from probe_eval.metrics.functional.tracks import track_metrics
    from probe_eval.metrics.kernel import kernel_distance
    from probe_eval.metrics.state import ReadoutState

    metrics = {
        "accuracy": accuracy_metrics,
        "depth": depth_metrics,
        "pose": pose_metrics,
        "tracks": track_metrics,
        "boxes": box_metrics,
    }
    world, rank = accelerator.num_processes, accelerator.process_index
    padded = [row % SAMPLES for row in range(math.ceil(SAMPLES / world) * world)]
    mine = padded[rank::world]
    results: dict[str, dict[str, float]] = {}
    for name, batch in batches().items():
        states: list[Any] = []
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            ids = [IDS[row] for row in rows]
            part = {key: value[rows] for key, value in batch.items()}
            if name == "frechet":
                states.append(FeatureState.of(ids, part["features"]))
            else:
                states.append(ReadoutState.of(ids, metrics[name](**part, sample_ids=ids)))
        merged = gather_items(accelerator, [states[0].merge(*states[1:])])
        whole = merged[0].merge(*merged[1:])
        if name == "frechet":
            other = FeatureState.of(IDS, torch.ones(SAMPLES, 4) / 2 + torch.eye(SAMPLES, 4))
            kernel = kernel_distance(whole, other, subset_size=5, num_subsets=3)
            results[name] = {
                "frechet": frechet_distance(whole.moments(), other.moments()),
                "kernel": kernel.value,
                "error": kernel.standard_error,
            }
        else:
            results[name] = whole.compute()
    return results


@pytest.fixture(scope="module")
def alone(accelerator: Accelerator) -> dict[str, dict[str, str]]:
    """One process, one batch."""
    found = gathered(accelerator, SAMPLES)
    return {name: {key: value.hex() for key, value in one.items()} for name, one in found.items()}


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batches_of_one_process(
    accelerator: Accelerator, alone: dict[str, dict[str, str]], batch_size: int
) -> None:
    found = gathered(accelerator, batch_size)
    assert {
        name: {key: value.hex() for key, value in one.items()} for name, one in found.items()
    } == alone


@pytest.mark.parametrize("world", [2, 3])
def test_processes(alone: dict[str, dict[str, str]], tmp_path: Path, world: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        debug_launcher(measure, (tmp_path, 3), num_processes=world)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"{rank}-of-{world}.json" for rank in range(world)]
    assert all(json.loads(file.read_text()) == alone for file in files)
