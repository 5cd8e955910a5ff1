"""Tasks: what they need of a data set, what they train and what they measure."""

import pytest
import torch

from probe_datasets import ClipConfig, ClipDataset
from probe_datasets.moving_shapes import MovingShapes
from probe_eval.config import ReadoutConfig
from probe_eval.data import FirstClips
from probe_eval.tasks import TASKS, load_task
from probe_eval.tasks.base import Task


@pytest.fixture
def shapes() -> MovingShapes:
    return MovingShapes(split="train", clip=ClipConfig(num_frames=5, size=16), num_clips=6)


class Unlabelled(FirstClips):
    classes = {}  # noqa: RUF012 - a property in the class above


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_measures(name: str, shapes: MovingShapes) -> None:
    task = load_task(name, shapes)
    assert isinstance(task, Task)
    assert task.metric
    assert task.direction in ("up", "down")
    assert 0 <= task.chance(shapes) <= 1
    torch.manual_seed(0)
    config = ReadoutConfig(width=8, num_heads=2)
    readout = task.create_readout(shapes, config, feature_dim=6, num_frames=5)
    features = torch.randn(3, 5, 2, 2, 6, generator=torch.Generator().manual_seed(0))
    targets = [task.targets(shapes[index]) for index in range(3)]
    batch = {key: torch.stack([target[key] for target in targets]) for key in targets[0]}
    loss = task.loss(readout, features, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in readout.parameters())
    score = task.score(readout, features, batch)
    assert score.shape == (3,)
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("name", TASKS)
def test_a_readout_is_drawn_from_the_default_generator(name: str, shapes: MovingShapes) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        config = ReadoutConfig(width=8, num_heads=2)
        readout = TASKS[name].create_readout(shapes, config, feature_dim=6, num_frames=5)
        return list(readout.state_dict().values())

    same = zip(weights(0), weights(0), strict=True)
    assert all(torch.equal(one, two) for one, two in same)
    other = zip(weights(0), weights(1), strict=True)
    assert not all(torch.equal(one, two) for one, two in other)


def test_chance_is_one_class_in_all(shapes: MovingShapes) -> None:
    for name, classes in shapes.classes.items():
        assert TASKS[name].chance(shapes) == 1 / len(classes)


def test_an_unknown_task_lists_the_known_ones(shapes: MovingShapes) -> None:
    with pytest.raises(ValueError, match=r"unknown task 'acton'; known: action, shape"):
        load_task("acton", shapes)


@pytest.mark.parametrize("name", TASKS)
def test_a_data_set_without_the_label_is_refused(name: str, shapes: MovingShapes) -> None:
    dataset = Unlabelled(shapes, 3)
    assert isinstance(dataset, ClipDataset)
    with pytest.raises(ValueError, match=rf"no label '{name}' \(its labels: none\)"):
        load_task(name, dataset)
