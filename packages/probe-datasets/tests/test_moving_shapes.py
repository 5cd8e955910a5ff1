"""The rendered data set: what can be read from a frame, and what cannot."""

from collections import Counter

import pytest
import torch

from probe_datasets import ClipConfig, open_dataset
from probe_datasets.moving_shapes import ACTIONS, SHAPES, MovingShapes, motion, render


def shapes(**settings: int) -> MovingShapes:
    frames = {name: settings.pop(name) for name in ("num_frames", "stride") if name in settings}
    clip = ClipConfig(size=settings.pop("size", 32), **frames)
    return MovingShapes(**{"split": "train", "num_clips": 60, "clip": clip, **settings})


def test_a_clip_is_a_function_of_seed_split_and_index() -> None:
    first, again = shapes()[7]["video"], shapes()[7]["video"]
    assert torch.equal(first, again)
    assert not torch.equal(first, shapes(seed=1)[7]["video"])
    assert not torch.equal(first, shapes()[8]["video"])
    assert not torch.equal(first, shapes(split="validation")[7]["video"])


def test_the_number_of_clips_changes_no_clip() -> None:
    assert torch.equal(shapes(num_clips=8)[7]["video"], shapes()[7]["video"])


def test_examples_fit_the_schema() -> None:
    dataset = shapes(num_frames=5)
    for index in range(len(dataset)):
        example = dataset[index]
        assert example["video"].shape == (3, 5, 32, 32)
        assert example["video"].dtype == torch.float32
        assert example["video"].abs().max() <= 1
        assert example["sample_id"] == dataset.sample_id(index)
        assert example["labels"] == dataset.labels(index)
    assert len({dataset.sample_id(index) for index in range(len(dataset))}) == len(dataset)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_are_balanced_over_every_combination(split: str) -> None:
    dataset = MovingShapes(split=split)
    counts = Counter(
        (dataset.labels(i)["action"], dataset.labels(i)["shape"]) for i in range(len(dataset))
    )
    assert len(counts) == len(ACTIONS) * len(SHAPES)
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize(("action", "reverse"), [("left", "right"), ("up", "down")])
def test_time_reversed_is_the_opposite_action(action: str, reverse: str) -> None:
    time = torch.arange(17.0)

    def half(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.full(shape, (low + high) / 2)

    there, back = motion(action, time, half), motion(reverse, time, half)
    assert torch.allclose(there.flip(0) - there[-1], back, atol=1e-6)
    assert there[-1].abs().max() > 0.3


def test_still_clips_do_not_change() -> None:
    dataset = shapes()
    video = dataset[ACTIONS.index("still")]["video"]
    assert torch.equal(video, video[:, :1].expand_as(video))


@pytest.mark.slow
def test_no_single_frame_tells_the_action() -> None:
    """A linear classifier on a whole frame is at chance; whether anything moves is easy to see."""
    dataset = shapes(num_clips=1200, size=16, num_frames=3, stride=8)
    clips = [dataset[index] for index in range(len(dataset))]
    labels = torch.tensor([clip["labels"]["action"] for clip in clips])
    for frame in range(3):
        frames = torch.stack([clip["video"][:, frame].flatten() for clip in clips])
        assert accuracy(frames, labels) < 1 / len(ACTIONS) + 0.07
    change = torch.stack(
        [(clip["video"][:, 1] - clip["video"][:, 0]).abs().mean((1, 2)) for clip in clips]
    )
    still = (labels == ACTIONS.index("still")).long()
    assert accuracy(change, still) > 0.95


def test_every_frame_tells_the_shape() -> None:
    """Rendered alone, in the middle of the canvas, no two shapes look alike."""
    looks = []
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(0)
        video = render(shape, "still", torch.zeros(1), size=32, num_objects=1, generator=generator)
        looks.append(video)
    for i, one in enumerate(looks):
        for other in looks[:i]:
            assert (one - other).abs().mean() > 0.01


def accuracy(inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Held-out accuracy of ridge regression on one-hot labels, trained on two thirds."""
    inputs = (inputs - inputs.mean(0)).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    targets = torch.nn.functional.one_hot(labels).double()
    gram = inputs[train].T @ inputs[train] + torch.eye(inputs.shape[1]).double()
    weights = torch.linalg.solve(gram, inputs[train].T @ targets[train])
    return float(((inputs[test] @ weights).argmax(1) == labels[test]).double().mean())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "test"}, "unknown split 'test'; known: train, validation"),
        ({"size": 8}, "size 8 must be at least 16"),
        ({"num_frames": 0}, "num_frames 0 must be at least 1"),
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"num_objects": 0}, "num_objects 0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shapes(**settings)


@pytest.mark.parametrize("index", [-1, 60])
def test_an_index_outside_the_split_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match="outside the split of 60"):
        shapes()[index]


def test_the_fingerprint_follows_everything_that_decides_pixels() -> None:
    changed = [{}, {"seed": 1}, {"size": 48}, {"num_frames": 5}, {"stride": 2}, {"num_clips": 61}]
    assert len({shapes(**settings).fingerprint for settings in changed}) == len(changed)
    assert shapes().fingerprint == shapes().fingerprint


def test_the_registry_opens_it() -> None:
    dataset = open_dataset("moving_shapes", split="validation", clip=ClipConfig(size=32))
    assert dataset.classes == {"action": ACTIONS, "shape": SHAPES}
    assert dataset.coverage.found == len(dataset) == 600
