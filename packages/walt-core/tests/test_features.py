"""Features: which stream they are, what they cost, their noise, and what is refused."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from walt_core import Conditions, Walt, WaltConfig, sample_noise

Random = Callable[..., Tensor]
Build = Callable[..., Walt]
IDS = ["a", "b"]
# Double precision, blocked in another way in other batches.
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(scope="module")
def model(build: Build, small: WaltConfig) -> Walt:
    """A video model that can be told everything, in double precision."""
    return build(dataclasses.replace(small, depth=4)).double()


@pytest.fixture(scope="module")
def twin(build: Build, small: WaltConfig) -> Walt:
    """Its image twin."""
    return build(dataclasses.replace(small, depth=4, windows="spatial")).double()


def ask(model: Walt, latents: Tensor, blocks: Sequence[int], **fields: object) -> dict[int, Tensor]:
    fields = {"timestep": 200, "seed": 0, "sample_ids": IDS} | fields
    return model.features(latents, blocks=blocks, **fields)


@contextmanager
def watched(model: Walt) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects input and output of every block that runs, by hooks."""
    calls: list[tuple[Tensor, Tensor]] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((args[0], output))

    handles = [block.register_forward_hook(watch) for block in model.blocks]
    yield calls
    for handle in handles:
        handle.remove()


# --- Which stream --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_text", [False, True])
def test_features_are_the_residual_stream_of_the_full_pass(
    model: Walt, latents: Tensor, random: Random, with_text: bool
) -> None:
    """With null conditions and no estimate, and unnormalised; block 0 is the embedding."""
    text = random(2, 3, 8, seed=5) if with_text else None
    features = ask(model, latents, range(5), text=text)
    noise = sample_noise((4, 5, 4, 4), IDS, seed=0, timestep=200).double()
    level = model.schedule.level(200)
    noisy = level["alpha"] * latents + level["sigma"] * noise
    with torch.no_grad(), watched(model) as calls:
        model(noisy, torch.tensor([200, 200]), Conditions(text=text))
        embedded = model.embed(noisy, Conditions(), None)
    assert sorted(features) == [0, 1, 2, 3, 4]
    torch.testing.assert_close(features[0], embedded, **CLOSE)
    torch.testing.assert_close(features[0], calls[0][0], **CLOSE)
    for block in range(1, 5):
        torch.testing.assert_close(features[block], calls[block - 1][1], **CLOSE)
        assert features[block].shape == (2, 5, 4, 4, 16)


def test_text_changes_features_beyond_the_embedding(
    model: Walt, latents: Tensor, random: Random
) -> None:
    null = ask(model, latents, [0, 1])
    told = ask(model, latents, [0, 1], text=random(2, 3, 8))
    assert torch.equal(null[0], told[0])
    assert not torch.allclose(null[1], told[1])


@pytest.mark.parametrize("blocks", [[0], [1], [3, 1], [0, 2], [4], [2, 2]])
def test_features_cost_one_pass_to_the_deepest_block(
    model: Walt, latents: Tensor, blocks: list[int]
) -> None:
    everything = ask(model, latents, range(5))
    with watched(model) as calls:
        features = ask(model, latents, blocks)
    assert len(calls) == max(blocks)
    assert sorted(features) == sorted(set(blocks))
    assert all(torch.equal(features[block], everything[block]) for block in blocks)


# --- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", ["spatiotemporal", "spatial"])
def test_no_block_of_an_image_depends_on_another_frame(
    model: Walt, twin: Walt, latents: Tensor, random: Random, windows: str
) -> None:
    """Also with text: in image mode, and in the image twin in both modes."""
    text = random(2, 3, 8, seed=5)
    changed = latents.clone()
    changed[:, :, 2] += 1
    for mode in ("image", "video"):
        asked = model if windows == "spatiotemporal" else twin
        before, after = (ask(asked, x, range(5), text=text, mode=mode) for x in (latents, changed))
        for block in range(5):
            differs = (before[block] != after[block]).flatten(2).any(dim=2)
            mixes = windows == "spatiotemporal" and mode == "video" and block >= 2
            expected = [mixes, mixes, True, mixes, mixes]
            assert differs.tolist() == [expected] * 2, (mode, block)


@pytest.mark.parametrize("with_text", [False, True])
def test_image_mode_is_every_frame_as_a_video_of_its_own(
    model: Walt, latents: Tensor, random: Random, with_text: bool
) -> None:
    noise = random(2, 4, 5, 4, 4, seed=1)
    text = random(2, 3, 8, seed=5) if with_text else None
    together = ask(
        model, latents, [0, 2, 4], noise=noise, mode="image", text=text, seed=None, sample_ids=None
    )
    for frame in range(5):
        one = slice(frame, frame + 1)
        for mode in ("video", "image"):
            alone = ask(
                model,
                latents[:, :, one],
                [0, 2, 4],
                noise=noise[:, :, one],
                mode=mode,
                text=text,
                seed=None,
                sample_ids=None,
            )
            for block in (0, 2, 4):
                torch.testing.assert_close(alone[block], together[block][:, one], **CLOSE)


def test_image_mode_draws_the_noise_of_the_clip(model: Walt, latents: Tensor) -> None:
    """So that the same seed and ids mean the same noisy frames in both modes."""
    video = ask(model, latents, [0])[0]
    image = ask(model, latents, [0], mode="image")[0]
    time = model.positions.time
    slots = (time - time[:1])[:, None, None]
    torch.testing.assert_close(video - slots, image, **CLOSE)


# --- Noise ---------------------------------------------------------------------------------------


def test_several_levels_in_one_batch_are_each_alone(
    model: Walt, latents: Tensor, random: Random
) -> None:
    """With noise of their own where it is drawn, and the same where it is given."""
    levels, text = [200, 0, 999], random(2, 3, 8, seed=5)
    given = {"noise": random(2, 4, 5, 4, 4, seed=1), "seed": None, "sample_ids": None}
    for noise in ({}, given):
        for mode in ("video", "image"):
            fields = {"text": text, "mode": mode, **noise}
            with watched(model) as calls:
                together = ask(model, latents, [0, 3], timestep=levels, **fields)
            assert len(calls) == 3
            for block in (0, 3):
                assert together[block].shape == (3, 2, 5, 4, 4, 16)
            for row, level in enumerate(levels):
                alone = ask(model, latents, [0, 3], timestep=level, **fields)
                for block in (0, 3):
                    torch.testing.assert_close(together[block][row], alone[block], **CLOSE)
    assert ask(model, latents, [1], timestep=[7])[1].shape == (1, 2, 5, 4, 4, 16)


def test_levels_have_noise_of_their_own(model: Walt, latents: Tensor) -> None:
    """Level 999 is noise alone, and 998 nearly so: the same noise would embed nearly equally."""
    features = ask(model, latents, [0], timestep=[998, 999])[0]
    assert (features[0] - features[1]).std() > 0.5 * features[1].std()


def test_noise_can_be_given_or_drawn(model: Walt, latents: Tensor) -> None:
    noise = sample_noise((4, 5, 4, 4), IDS, seed=3, timestep=200)
    given = model.features(latents, blocks=[2], timestep=200, noise=noise.double())
    assert torch.equal(given[2], ask(model, latents, [2], seed=3)[2])


def test_the_last_level_hides_the_latents(model: Walt, latents: Tensor) -> None:
    features = [ask(model, x, [4], timestep=999)[4] for x in (latents, 3 * latents)]
    assert torch.equal(*features)


def test_features_are_the_same_in_any_batch_and_order(model: Walt, random: Random) -> None:
    latents, ids = random(3, 4, 5, 4, 4), ["x", "y", "z"]
    together = ask(model, latents, [3], sample_ids=ids)[3]
    swapped = ask(model, latents[[2, 0, 1]], [3], sample_ids=["z", "x", "y"])[3]
    alone = ask(model, latents[1:2], [3], sample_ids=["y"])[3]
    torch.testing.assert_close(swapped, together[[2, 0, 1]], **CLOSE)
    torch.testing.assert_close(alone, together[1:2], **CLOSE)


def test_features_repeat_exactly_and_follow_seed_and_timestep(model: Walt, latents: Tensor) -> None:
    features = ask(model, latents, [2])[2]
    torch.manual_seed(99)
    assert torch.equal(ask(model, latents, [2])[2], features)
    for other in ({"seed": 1}, {"timestep": 201}, {"sample_ids": ["a", "c"]}):
        assert not torch.equal(ask(model, latents, [2], **other)[2], features)


# --- Types and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_features_are_near_float32(
    build: Build, small: WaltConfig, latents: Tensor, attention: str, weights: torch.dtype
) -> None:
    """In a float32 model under autocast, and in a bfloat16 model."""
    model = build(dataclasses.replace(small, attention=attention)).float()
    latents = latents.float()
    exact = ask(model, latents, [0, 2])
    low = ask(model.to(weights), latents, [0, 2], dtype=torch.bfloat16)
    for block in (0, 2):
        assert low[block].dtype == weights
        assert not torch.equal(low[block].float(), exact[block])
        error = (low[block].float() - exact[block]).norm() / exact[block].norm()
        # 8 bits in weights, sums and softmax.
        assert error < 0.02


def test_features_are_computed_in_the_weights_type(model: Walt, latents: Tensor) -> None:
    assert ask(model, latents.float(), [1])[1].dtype == torch.float64
    assert ask(model, latents, [1], dtype=torch.float64)[1].dtype == torch.float64


def test_readouts_can_be_trained_on_features(model: Walt, latents: Tensor) -> None:
    features = ask(model, latents, [0, 2], timestep=[0, 200])
    readout = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 3)).double()
    for block in (0, 2):
        assert not features[block].requires_grad
        assert not features[block].is_inference()
        readout(features[block]).square().sum().backward()
    assert all(parameter.grad is not None for parameter in readout.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_are_not_switched_off_for_others(model: Walt, latents: Tensor) -> None:
    ask(model, latents, [1])
    assert torch.is_grad_enabled()
    assert model(latents, torch.tensor([1, 2])).requires_grad


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [[-1], [5], [2, 9], []])
def test_blocks_out_of_range(model: Walt, latents: Tensor, blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must name blocks 0 to 4"):
        ask(model, latents, blocks)


@pytest.mark.parametrize("timestep", [-1, 1000, [200, 1000]])
def test_timesteps_out_of_range(model: Walt, latents: Tensor, timestep: int | list[int]) -> None:
    with pytest.raises(ValueError, match=r"timestep -?\d+ must be 0 .* to 999"):
        ask(model, latents, [1], timestep=timestep)


def test_no_timestep(model: Walt, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="timestep names no noise level"):
        ask(model, latents, [1], timestep=[])


@pytest.mark.usefixtures("_unchecked")
def test_unknown_mode(model: Walt, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="mode 'frames' must be 'video' or 'image'"):
        ask(model, latents, [1], mode="frames")


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": None},
        {"sample_ids": None},
        {"seed": None, "sample_ids": None},
        {"noise": torch.zeros(2, 4, 5, 4, 4)},
        {"noise": torch.zeros(2, 4, 5, 4, 4), "seed": None},
    ],
)
def test_noise_is_given_in_one_way(model: Walt, latents: Tensor, fields: dict) -> None:
    with pytest.raises(ValueError, match="give either noise, or both seed and sample_ids"):
        ask(model, latents, [1], **fields)


@pytest.mark.usefixtures("_unchecked")
def test_noise_of_another_shape(model: Walt, latents: Tensor, random: Random) -> None:
    with pytest.raises(ValueError, match=r"noise \(1, 4, 5, 4, 4\) must be of the shape of"):
        ask(model, latents, [1], noise=random(1, 4, 5, 4, 4), seed=None, sample_ids=None)


def test_one_id_per_sample(model: Walt, random: Random) -> None:
    with pytest.raises(ValueError, match="2 sample ids for 3 samples"):
        ask(model, random(3, 4, 5, 4, 4), [1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["latents", "noise"])
def test_values_that_are_not_finite(
    model: Walt, latents: Tensor, random: Random, name: str, value: float
) -> None:
    tensors = {"latents": latents, "noise": random(2, 4, 5, 4, 4, seed=1)}
    tensors[name][1, 3, 4, 3, 3] = value
    with pytest.raises(ValueError, match=f"{name} hold NaN or infinite"):
        model.features(**tensors, blocks=[1], timestep=100)


def test_text_for_a_model_without(small: WaltConfig, latents: Tensor) -> None:
    model = Walt(dataclasses.replace(small, text_width=0)).double()
    with pytest.raises(ValueError, match="text is given to a model without"):
        ask(model, latents, [1], text=torch.zeros(2, 1, 8))


def test_latents_that_the_windows_do_not_divide(model: Walt, random: Random) -> None:
    with pytest.raises(ValueError, match=r"window \(1, 4, 4\) must divide the latent grid"):
        ask(model, random(2, 4, 5, 4, 6), [1])
