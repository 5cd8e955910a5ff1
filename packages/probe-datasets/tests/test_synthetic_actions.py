"""Actions differ in time alone, and colours tell nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe_datasets.clips import ClipConfig
from probe_datasets.synthetic import ACTIONS, SyntheticWorld, WorldConfig, opposite
from probe_datasets.synthetic.actions import growth, rotation, shift
from probe_datasets.synthetic.render import render
from probe_datasets.synthetic.scene import moving_instances, torus

DEFAULT = WorldConfig()


def world(
    split: str = "train",
    *,
    num_frames: int = 9,
    stride: int = 1,
    size: int = 24,
    config: WorldConfig = DEFAULT,
) -> SyntheticWorld:
    clip = ClipConfig(num_frames=num_frames, stride=stride, size=size)
    return SyntheticWorld(split, clip=clip, config=config)


def test_opposites_are_pairs() -> None:
    assert len(ACTIONS) >= 12
    for action in ACTIONS:
        assert opposite(action) != action
        assert opposite(opposite(action)) == action
    with pytest.raises(ValueError, match="unknown action 'jump'; known: left, right"):
        opposite("jump")


@pytest.mark.parametrize("action", ACTIONS)
def test_backwards_is_the_opposite_action(action: str) -> None:
    """Exactly: with the camera's way reversed too, the opposite's frames are the same backwards."""
    dataset = world(config=WorldConfig(shadows=True))
    scene, _ = dataset.scene(ACTIONS.index(action))
    camera = replace(scene.camera, rates=-scene.camera.rates)
    motion = replace(scene.motion, action=opposite(action))
    reverse = replace(scene, motion=motion, camera=camera)
    there = render(scene, dataset.times, height=24, width=24)
    back = render(reverse, -dataset.times[::-1], height=24, width=24)
    assert np.allclose(there.video, back.video[:, ::-1], atol=1e-6)
    assert np.allclose(there.depth, back.depth[::-1], atol=1e-6)
    assert np.abs(there.video - there.video[:, ::-1]).max() > 0.1


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_move_what_they_say(action: str) -> None:
    """Seen by a camera that stands still: the middle of an object, or the near side of it."""
    dataset = world()
    scene, _ = dataset.scene(ACTIONS.index(action))
    times = np.linspace(0, 0.1, 3)
    moved = np.diff(shift(scene.motion, times), axis=0)[0]
    turned = rotation(replace(scene.motion, angle=0.0), times)[1]
    front, top = turned @ [0, 0, -1.0], turned @ [0, -1.0, 0]
    grown = np.median(np.diff(growth(scene.motion, times), axis=1))
    expected = {
        "left": moved[0] < 0,
        "rise": moved[1] < 0,
        "approach": moved[2] < 0,
        "turn_left": front[0] < 0,
        "tumble_away": top[2] > 0,
        "roll_cw": top[0] > 0,
        "grow": grown > 0,
        "right": moved[0] > 0,
        "fall": moved[1] > 0,
        "recede": moved[2] > 0,
        "turn_right": front[0] > 0,
        "tumble_towards": top[2] < 0,
        "roll_ccw": top[0] < 0,
        "shrink": grown < 0,
    }
    full = np.linspace(0, 2, 400)
    path = shift(scene.motion, full)
    if action.startswith("circle"):
        (x, y), (dx, dy) = path[:-1, :2].T, np.diff(path[:, :2], axis=0).T
        turn = (x * dy - y * dx).sum()
        assert (turn > 0) == (action == "circle_cw")
    elif action.startswith("orbit"):
        near = path[:, 2].argmin() % 399
        assert (path[near + 1, 0] < path[near, 0]) == (action == "orbit_left")
    else:
        assert expected[action]


@pytest.mark.parametrize("action", ACTIONS)
def test_at_every_time_everything_is_anywhere(action: str) -> None:
    """First and last frame have the same, uniform distribution of places, turns and sizes."""
    places, turns, sizes = [], [], []
    dataset = world(split="validation", config=WorldConfig(num_objects=6))
    times = dataset.times[[0, -1]]
    for index in range(ACTIONS.index(action), len(dataset), len(ACTIONS) * 2):
        scene, _ = dataset.scene(index)
        period = torus(scene.low, scene.high, scene.margin)
        at = scene.movers.centres[:, None] + shift(scene.motion, times)
        places.append(np.remainder(at / period, 1))
        turns.append((rotation(scene.motion, times) @ scene.movers.turns[:, None])[..., 2])
        sizes.append(growth(scene.motion, times))
    places, turns, sizes = (np.concatenate(v) for v in (places, turns, sizes))
    # Four standard errors of the mean of so many uniform numbers.
    slack = 4 / np.sqrt(len(places))
    assert np.abs(places.mean(0) - 0.5).max() < slack * 12**-0.5
    assert np.abs(turns.mean(0)).max() < slack * 3**-0.5
    assert np.abs(turns.var(0) - 1 / 3).max() < slack * 0.3
    assert np.abs(sizes.mean(0) - 0.8).max() < slack * 0.4 * 12**-0.5


def test_what_leaves_by_a_wall_comes_in_as_another_instance() -> None:
    """Instances move without a jump, and are inside of walls when their way begins and ends."""
    dataset = world(num_frames=60, stride=2)
    for index in range(6):
        scene, _ = dataset.scene(index)
        moving = moving_instances(scene, dataset.times)
        assert np.abs(np.diff(moving.centres, axis=1)).max() < 0.3
        assert len(moving.member) > len(set(moving.member.tolist()))


def accuracy(inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Held-out accuracy of ridge regression on one-hot labels, trained on two thirds."""
    inputs = (inputs - inputs.mean(0)).double()
    inputs = inputs / (inputs.std(0) + 1e-6)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[: 2 * len(order) // 3], order[2 * len(order) // 3 :]
    targets = torch.nn.functional.one_hot(labels).double()
    gram = inputs[train].T @ inputs[train] + 10 * torch.eye(inputs.shape[1]).double()
    weights = torch.linalg.solve(gram, inputs[train].T @ targets[train])
    return float(((inputs[test] @ weights).argmax(1) == labels[test]).double().mean())


def histogram(video: torch.Tensor) -> torch.Tensor:
    """Share of 27 colours."""
    level = ((video + 1) * 1.499).floor().long()
    colour = (9 * level[0] + 3 * level[1] + level[2]).flatten()
    return torch.bincount(colour, minlength=27).float() / len(colour)


@pytest.mark.slow
def test_neither_a_frame_nor_colours_tell_the_classes() -> None:
    """Linear classifiers on a frame, or on the colours of a clip, are near chance."""
    dataset = world(num_frames=2, stride=12, size=12, config=WorldConfig(num_points=0))
    clips = [dataset[index] for index in range(0, 3240, 11)]
    labels = {
        name: torch.tensor([clip["labels"][name] for clip in clips]) for name in dataset.classes
    }
    frames = torch.stack([clip["video"][:, 1].flatten() for clip in clips])
    colours = torch.stack([histogram(clip["video"]) for clip in clips])
    # Three standard errors of an accuracy over a third of the clips.
    for name, inputs in (("action", frames), *((name, colours) for name in labels)):
        chance = 1 / len(dataset.classes[name])
        slack = 3 * (chance * (1 - chance) / (len(clips) / 3)) ** 0.5
        assert accuracy(inputs, labels[name]) < chance + slack, name
