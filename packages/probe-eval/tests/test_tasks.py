"""Tasks: what they need of a data set, what they train and what they measure."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from probe_datasets import ClipConfig
from probe_datasets.synthetic import SyntheticWorld, WorldConfig
from probe_eval.config import ReadoutConfig
from probe_eval.metrics.functional.sums import Measured
from probe_eval.metrics.state import ReadoutState
from probe_eval.tasks import TASKS, load_task
from probe_eval.tasks.base import Task
from probe_eval.views import FirstClips
from probe_readouts import (
    Readout,
    Tracks,
    box_track_loss,
    depth_loss,
    point_track_loss,
    pose_loss,
)

FRAMES, CLIPS, SIZE, WIDTH = 5, 4, 20, 8  # 8 does not divide the size
SMALL = ReadoutConfig(width=16, num_heads=2)
PERFECT = {
    "top1": 1.0,
    "abs_rel": 0.0,
    "end_point_error": 0.0,
    "average_jaccard": 1.0,
    "mean_iou": 1.0,
}
REGRESSIONS = [name for name, task in TASKS.items() if task.metric != "top1"]
each_task = pytest.mark.parametrize("name", TASKS)
each_regression = pytest.mark.parametrize("name", REGRESSIONS)
Targets = dict[str, Tensor]
Example = dict[str, Any]


class Pictures(FirstClips):
    """The world, with its shapes under the name that picture data sets use."""

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """One label."""
        return {"class": self.dataset.classes["shape"]}


@pytest.fixture(scope="module")
def world() -> SyntheticWorld:
    clip = ClipConfig(num_frames=FRAMES, size=SIZE)
    return SyntheticWorld("train", clip=clip, num_clips=CLIPS, config=WorldConfig(num_points=16))


@pytest.fixture(scope="module")
def examples(world: SyntheticWorld) -> list[Example]:
    """All that is known of the clips, without their pixels."""
    found = [dict(world[index]) for index in range(CLIPS)]
    for number, example in enumerate(found):
        del example["video"]
        labels = {"action": number, "shape": number, "texture": number}
        example["labels"] = {**labels, "class": number}
    return found


@pytest.fixture
def features() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CLIPS, 2, 2, 2, WIDTH, generator=generator)


def stack(task: Task, examples: list[Example]) -> Targets:
    rows = [task.targets(example) for example in examples]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def sources(first: int = 0, count: int = CLIPS) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(first, first + count)]


def names(count: int = CLIPS) -> list[str]:
    return [f"clip {number}" for number in range(count)]


def create(task: Task, world: SyntheticWorld, config: ReadoutConfig = SMALL) -> Readout:
    torch.manual_seed(0)
    data = world if task != TASKS["image-class"] else Pictures(world, CLIPS)
    return task.create_readout(data, config, feature_dim=WIDTH, num_frames=FRAMES)


def loss_of(task: Task, readout: nn.Module, features: Tensor, targets: Targets) -> Tensor:
    count = len(features)
    return task.loss(readout, features, targets, num_frames=FRAMES, generators=sources(count=count))


def measured(task: Task, readout: nn.Module, features: Tensor, targets: Targets) -> Measured:
    ids = names(len(features))
    with torch.no_grad():
        return task.measure(readout, features, targets, num_frames=FRAMES, sample_ids=ids)


def values(found: Measured) -> dict[str, float]:
    return ReadoutState.of(names(len(next(iter(found.sums.values())).terms)), found).compute()


class Told(nn.Module):
    """In place of a readout: the truth, plus an error."""

    def __init__(self, targets: Targets, error: float = 0.0) -> None:
        super().__init__()
        self.targets, self.error = targets, nn.Parameter(torch.tensor(error))

    def forward(self, features: Tensor, *arguments: Any) -> Any:
        truth = self.targets
        if "label" in truth:
            return 10 * torch.eye(32)[truth["label"]] + self.error
        if "depth" in truth:
            return self.at(truth["depth"], arguments[0]) + self.error
        if "pose" in truth:
            return truth["pose"] + self.error
        if "points" in truth:
            pred = rearrange(truth["points"], "b q T c -> b T q c") + self.error
            visible = rearrange(truth["visible"], "b q T -> b T q").float()
            certain = torch.ones_like(visible)
            return Tracks(pred, 40 * torch.stack([visible - 0.5, certain], -1), pred)
        pred = rearrange(truth["boxes"], "b q T c -> b T q c") + self.error
        return Tracks(pred, pred, pred)

    def at(self, depth: Tensor, places: Tensor) -> Tensor:
        """The pixels at places (y, x) in [-1, 1]."""
        size = torch.tensor(depth.shape[-2:])
        row, column = ((places + 1) / 2 * (size - 1)).round().long().unbind(-1)
        if places.ndim == 3:
            return depth[:, :, row, column]
        index = row * depth.shape[-1] + column
        return rearrange(depth, "b T y x -> b T (y x)").gather(2, index)


def nothing(name: str, targets: Targets) -> Targets:
    """Targets of which nothing counts."""
    empty = {key: value.clone() for key, value in targets.items()}
    if name == "depth":
        empty["depth"] = torch.zeros_like(empty["depth"])
    else:
        empty["valid"] = torch.zeros_like(empty["valid"])
    return empty


# --- Every task ----------------------------------------------------------------------------------


@each_task
def test_a_task_is_one(name: str, world: SyntheticWorld) -> None:
    data = Pictures(world, CLIPS) if name == "image-class" else world
    assert load_task(name, data) is TASKS[name]
    assert isinstance(TASKS[name], Task)
    assert TASKS[name].direction == ("up" if PERFECT[TASKS[name].metric] else "down")


@each_task
def test_targets_are_small_tensors_of_one_shape(name: str, examples: list[Example]) -> None:
    targets = stack(TASKS[name], examples)
    assert all(len(value) == CLIPS for value in targets.values())
    image = FRAMES * SIZE * SIZE * 4
    assert sum(value[0].nbytes for value in targets.values()) <= (image if name == "depth" else 8e3)


@each_task
def test_training_learns_a_batch_by_heart(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout, targets = create(task, world), stack(task, examples)
    optimizer = torch.optim.Adam([p for p in readout.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = loss_of(task, readout, features, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[-1] < 0.9 * losses[0]


@each_task
def test_every_parameter_that_is_trained_is_in_the_graph(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout = create(task, world)
    loss_of(task, readout, features, stack(task, examples)).backward()
    for label, parameter in readout.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, label
    frozen = {label.split(".")[0] for label, p in readout.named_parameters() if not p.requires_grad}
    assert frozen == ({"logit_head"} if name == "boxes" else set())


@each_task
def test_the_truth_has_the_perfect_score(
    name: str, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    targets = stack(task, examples)
    found = measured(task, Told(targets), features, targets)
    assert values(found)[task.metric] == pytest.approx(PERFECT[task.metric], abs=1e-6)
    # 1e-3: the cross-entropy of a logit of 10 or 20 is not quite 0.
    assert loss_of(task, Told(targets), features, targets) < 2e-3
    wrong = {key: value.roll(1, dims=0) for key, value in targets.items()}
    worse = values(measured(task, Told(wrong), features, targets))[task.metric]
    assert (worse < 1) if task.direction == "up" else (worse > 0)


@each_task
def test_a_batch_is_the_sum_of_its_parts(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout, targets = create(task, world), stack(task, examples)
    whole = measured(task, readout, features, targets)
    for start, stop in ((0, 1), (1, CLIPS)):
        rows = {key: value[start:stop] for key, value in targets.items()}
        part = measured(task, readout, features[start:stop], rows)
        assert part.variant == whole.variant
        for key, sums in part.sums.items():
            assert sums.terms == whole.sums[key].terms[start:stop]
            # 1e-4: another batch size sums in another order.
            assert sums.totals == pytest.approx(whole.sums[key].totals[start:stop], rel=1e-4)


@each_task
def test_the_loss_is_the_mean_of_the_samples(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout, targets = create(task, world), stack(task, examples)
    if name in REGRESSIONS:
        empty = nothing(name, targets)
        targets = {key: torch.cat([v[:3], empty[key][3:]]) for key, v in targets.items()}
    alone = [
        task.loss(
            readout,
            features[i : i + 1],
            {key: value[i : i + 1] for key, value in targets.items()},
            num_frames=FRAMES,
            generators=sources(i, 1),
        )
        for i in range(CLIPS)
    ]
    if name in REGRESSIONS:
        assert alone[3] == 0
        assert alone[2] > 0
    together = loss_of(task, readout, features, targets)
    # 1e-5: another batch size sums in another order.
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


@each_regression
def test_where_nothing_counts_nothing_is_learned_or_measured(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout, targets = create(task, world), nothing(name, stack(task, examples))
    loss = loss_of(task, readout, features, targets)
    loss.backward()
    assert loss == 0
    trained = [p.grad for p in readout.parameters() if p.requires_grad]
    assert all(grad is not None and not grad.any() for grad in trained)
    for sums in measured(task, readout, features, targets).sums.values():
        assert sums.terms == [0] * CLIPS
        assert sums.totals == [0.0] * CLIPS


@each_regression
def test_what_does_not_count_may_be_anything(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]

    def spoiled(junk: float) -> Targets:
        found = [{**example} for example in examples]
        for example in found:
            for key in ("points", "boxes", "poses", "depth"):
                example[key] = example[key].clone()
            example["points_valid"] = torch.arange(len(example["points"])) % 3 > 0
            example["points"][~example["points_valid"]] = junk
            example["boxes_valid"] = example["boxes_valid"] & (torch.arange(FRAMES) != 3)
            example["boxes"][~example["boxes_valid"]] = junk
            example["depth_valid"] = example["depth"] < example["depth"].median()
            example["depth"][~example["depth_valid"]] = junk
        found[1]["poses_valid"] = torch.arange(FRAMES) < FRAMES - 1
        found[1]["poses"][-1] = junk
        return stack(task, found)

    readout = create(task, world)
    results = []
    for junk in (0.5, float("nan")):
        readout.zero_grad()
        targets = spoiled(junk)
        loss = loss_of(task, readout, features, targets)
        loss.backward()
        grads = [p.grad.clone() for p in readout.parameters() if p.grad is not None]
        results.append((loss, grads, measured(task, readout, features, targets)))
    (loss, grads, found), (other_loss, other_grads, other_found) = results
    assert torch.equal(loss, other_loss)
    assert all(map(torch.equal, grads, other_grads))
    assert found == other_found
    assert loss > 0


@each_regression
@pytest.mark.parametrize("sample", range(2))
def test_the_loss_of_a_sample_is_the_readouts_own(
    name: str, examples: list[Example], features: Tensor, sample: int
) -> None:
    task = TASKS[name]
    example = {**examples[sample]}
    inside = ((example["points"] >= 0) & (example["points"] <= 1)).all(dim=-1)
    late = inside[:, 2] & (torch.arange(len(inside)) % 2 == 0)
    example["points_visible"] = example["points_visible"].clone()
    example["points_visible"][late] = (inside & (torch.arange(FRAMES) >= 2))[late]
    example["query_frames"] = torch.where(late, 2, example["query_frames"])
    targets = stack(task, [example])
    told = Told(targets, error=0.013)
    loss = loss_of(task, told, features[:1], targets)
    if name == "depth":
        truth = targets["depth"]
        expected = depth_loss(truth + told.error, truth)
    elif name == "pose":
        expected = pose_loss(targets["pose"] + told.error, targets["pose"], targets["valid"])
    elif name == "boxes":
        truth = rearrange(targets["boxes"], "b q T c -> b T q c")
        valid = rearrange(targets["valid"], "b q T -> b T q")
        expected = box_track_loss(truth + told.error, truth, valid)
    else:
        pred = told(features)
        truth = rearrange(targets["points"], "b q T c -> b T q c")
        visible = rearrange(targets["visible"], "b q T -> b T q")
        after = rearrange(torch.arange(FRAMES), "T -> 1 T 1") >= targets["query_frames"][:, None]
        expected = point_track_loss(pred.values, pred.logits, truth, visible, after).total
        assert not after.all()
    torch.testing.assert_close(loss, expected)


@each_task
def test_a_readout_is_drawn_from_the_default_generator(name: str, world: SyntheticWorld) -> None:
    def weights(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        data = Pictures(world, CLIPS) if name == "image-class" else world
        readout = TASKS[name].create_readout(data, SMALL, feature_dim=6, num_frames=FRAMES)
        assert readout.time_method == SMALL.time
        return list(readout.state_dict().values())

    assert all(map(torch.equal, weights(0), weights(0)))
    assert not all(map(torch.equal, weights(0), weights(1)))


@pytest.mark.gpu
@each_task
def test_a_gpu_gives_the_same_numbers(
    name: str, world: SyntheticWorld, examples: list[Example], features: Tensor
) -> None:
    task = TASKS[name]
    readout, targets = create(task, world), stack(task, examples)
    loss, found = (use(task, readout, features, targets) for use in (loss_of, measured))
    there = {key: value.cuda() for key, value in targets.items()}
    readout.cuda()
    # 1e-3: matrices are multiplied in another order and precision.
    other = loss_of(task, readout, features.cuda(), there)
    torch.testing.assert_close(other.cpu(), loss, rtol=1e-3, atol=1e-4)
    terms = {key: sums.terms for key, sums in found.sums.items()}
    other_found = measured(task, readout, features.cuda(), there)
    assert {key: sums.terms for key, sums in other_found.sums.items()} == terms
