"""The denoiser as a whole: what sees what, features, and training."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from walt_core import WALT_SIZES, Walt, WaltConfig, sample_noise, v_prediction_loss

CONFIG = WaltConfig(
    width=32,
    depth=4,
    num_heads=4,
    latent_channels=4,
    latent_size=(5, 4, 4),
    spatial_window=(1, 4, 4),
    spatiotemporal_window=(5, 2, 2),
)
IDS = ["a", "b"]


def build(**fields: Any) -> Walt:
    """A model in which every parameter is random, also those that start at zero."""
    torch.manual_seed(0)
    model = Walt(dataclasses.replace(CONFIG, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def video() -> Walt:
    return build()


@pytest.fixture(scope="module")
def image() -> Walt:
    return build(windows="spatial")


def random_latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ask(model: Walt, latents: Tensor, blocks: Sequence[int], **fields: Any) -> dict[int, Tensor]:
    fields = {"timestep": 200, "seed": 0, "sample_ids": IDS} | fields
    return model.features(latents, blocks=blocks, **fields)


@contextmanager
def watched(model: Walt) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect input and output of every block that runs, by hooks."""
    calls: list[tuple[Tensor, Tensor]] = []

    def watch(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((args[0], output))

    handles = [block.register_forward_hook(watch) for block in model.blocks]
    yield calls
    for handle in handles:
        handle.remove()


def frames_seen(model: Walt) -> Tensor:
    """Which output frames (rows) change, to the bit, with which input frames (columns)."""
    latents = random_latents(1, 4, 5, 4, 4)
    timestep = torch.tensor([300])
    with torch.inference_mode():
        output = model(latents, timestep)
        columns = []
        for frame in range(5):
            changed = latents.clone()
            changed[:, :, frame] = random_latents(1, 4, 4, 4, seed=1)
            columns.append((model(changed, timestep) != output).any(dim=4).any(dim=3)[0].any(0))
    return torch.stack(columns, dim=1)


def test_image_twin_never_mixes_frames(image: Walt) -> None:
    assert torch.equal(frames_seen(image), torch.eye(5, dtype=torch.bool))


def test_video_model_mixes_all_frames(video: Walt) -> None:
    assert frames_seen(video).all()


def test_image_twin_treats_frames_as_images_but_for_their_time_slot(image: Walt) -> None:
    model = build(windows="spatial")
    with torch.no_grad():
        model.positions.time.copy_(model.positions.time[:1].expand(5, -1))
    latents = random_latents(2, 4, 5, 4, 4)
    timestep = torch.tensor([0, 700])
    with torch.inference_mode():
        output = model(latents, timestep)
        frames = [model(latents[:, :, t : t + 1], timestep) for t in range(5)]
    # 1e-5: other batch sizes may be blocked in another way.
    torch.testing.assert_close(torch.cat(frames, dim=2), output, atol=1e-5, rtol=1e-5)


def test_image_in_the_video_model_attends_in_spatial_layers_alone() -> None:
    """Without the spatial layers' attention, no place of an image sees another."""
    model = build()
    with torch.no_grad():
        for block in model.blocks[::2]:
            nn.init.zeros_(block.attention.proj.weight)
    latents = random_latents(1, 4, 1, 4, 4)
    changed = latents.clone()
    changed[..., 1, 2] += 1
    with torch.inference_mode():
        timestep = torch.tensor([300])
        differs = (model(changed, timestep) != model(latents, timestep)).any(dim=1)[0, 0]
        expected = torch.zeros(4, 4, dtype=torch.bool)
        expected[1, 2] = True
        assert torch.equal(differs, expected)
        assert model(latents, timestep).shape == latents.shape


@pytest.mark.parametrize("windows", ["spatiotemporal", "spatial"])
def test_implementations_agree_in_the_whole_model(windows: str) -> None:
    latents, timestep = random_latents(2, 4, 5, 4, 4), torch.tensor([10, 900])
    outputs = [
        build(windows=windows, attention=name)(latents, timestep) for name in ("math", "sdpa")
    ]
    # 1e-5: sums in another order.
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-4)


def test_a_new_model_predicts_zero() -> None:
    torch.manual_seed(0)
    latents = random_latents(1, 4, 5, 4, 4)
    assert not Walt(CONFIG)(latents, torch.tensor([500])).any()


@pytest.mark.parametrize("name", WALT_SIZES)
def test_named_sizes_run(name: str) -> None:
    config = WALT_SIZES[name]
    model = Walt(config)
    latents = random_latents(1, config.latent_channels, *config.latent_size)
    assert model(latents, torch.tensor([0])).shape == latents.shape


@pytest.mark.parametrize("grid", [(5, 8, 4), (10, 4, 8), (1, 8, 8)])
def test_any_grid_that_the_windows_divide(video: Walt, grid: tuple[int, int, int]) -> None:
    latents = random_latents(1, 4, *grid)
    assert video(latents, torch.tensor([300])).shape == latents.shape


@pytest.mark.parametrize("grid", [(3, 4, 4), (5, 6, 4), (1, 4, 6)])
def test_grids_that_the_windows_do_not_divide(video: Walt, grid: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"window .* must divide the latent grid \(t, h, w\)="):
        video(random_latents(1, 4, *grid), torch.tensor([300]))


def test_wrong_latent_channels(video: Walt) -> None:
    with pytest.raises(ValueError, match="latents have 8 channels, expected 4"):
        video(random_latents(1, 8, 5, 4, 4), torch.tensor([300]))


def test_features_are_the_residual_stream(video: Walt) -> None:
    latents = random_latents(2, 4, 5, 4, 4)
    features = ask(video, latents, range(5))
    noise = sample_noise((4, 5, 4, 4), IDS, seed=0, timestep=200)
    level = video.schedule.level(200)
    noisy = level["alpha"] * latents + level["sigma"] * noise
    with torch.inference_mode(), watched(video) as calls:
        video(noisy, torch.tensor([200, 200]))
        embedded = video.patch_embed(noisy.movedim(1, -1)) + video.positions((5, 4, 4))
    assert sorted(features) == [0, 1, 2, 3, 4]
    # 1e-5: noise is added in another order here.
    torch.testing.assert_close(features[0], embedded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[0], calls[0][0], atol=1e-5, rtol=1e-5)
    for block in range(1, 5):
        torch.testing.assert_close(features[block], calls[block - 1][1], atol=1e-5, rtol=1e-5)
        assert features[block].shape == (2, 5, 4, 4, 32)


@pytest.mark.parametrize("blocks", [[0], [1], [3, 1], [0, 2], [4]])
def test_features_cost_one_pass_to_the_deepest_block(video: Walt, blocks: list[int]) -> None:
    with watched(video) as calls:
        features = ask(video, random_latents(2, 4, 5, 4, 4), blocks)
    assert len(calls) == max(blocks)
    assert sorted(features) == sorted(blocks)


def test_features_do_not_depend_on_the_blocks_asked_for(video: Walt) -> None:
    latents = random_latents(2, 4, 5, 4, 4)
    assert torch.equal(ask(video, latents, [2])[2], ask(video, latents, [4, 2, 0])[2])


def test_features_are_the_same_in_any_batch_and_order(video: Walt) -> None:
    latents, ids = random_latents(3, 4, 5, 4, 4), ["x", "y", "z"]
    together = ask(video, latents, [3], sample_ids=ids)[3]
    swapped = ask(video, latents[[2, 0, 1]], [3], sample_ids=["z", "x", "y"])[3]
    alone = ask(video, latents[1:2], [3], sample_ids=["y"])[3]
    # 1e-5: other batches may be blocked in another way.
    torch.testing.assert_close(swapped, together[[2, 0, 1]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=1e-5)


def test_features_repeat_exactly_and_follow_seed_and_timestep(video: Walt) -> None:
    latents = random_latents(2, 4, 5, 4, 4)
    features = ask(video, latents, [2])[2]
    torch.manual_seed(99)
    assert torch.equal(ask(video, latents, [2])[2], features)
    for other in ({"seed": 1}, {"timestep": 201}, {"sample_ids": ["a", "c"]}):
        assert not torch.equal(ask(video, latents, [2], **other)[2], features)


def test_features_of_an_image(video: Walt) -> None:
    assert ask(video, random_latents(2, 4, 1, 4, 4), [4])[4].shape == (2, 1, 4, 4, 32)


def test_readouts_can_be_trained_on_features(video: Walt) -> None:
    features = ask(video, random_latents(2, 4, 5, 4, 4), [0, 2])
    readout = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 3))
    for block in (0, 2):
        assert not features[block].requires_grad
        readout(features[block]).sum().backward()
    assert all(parameter.grad is not None for parameter in readout.parameters())
    assert all(parameter.grad is None for parameter in video.parameters())


@pytest.mark.parametrize("blocks", [[-1], [5], [2, 9], []])
def test_blocks_out_of_range(video: Walt, blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must name blocks 0 to 4"):
        ask(video, random_latents(2, 4, 5, 4, 4), blocks)


@pytest.mark.parametrize("timestep", [-1, 1000])
def test_timesteps_out_of_range(video: Walt, timestep: int) -> None:
    with pytest.raises(ValueError, match=f"timestep {timestep} must be 0 .* to 999"):
        ask(video, random_latents(2, 4, 5, 4, 4), [1], timestep=timestep)


def test_one_id_per_sample(video: Walt) -> None:
    with pytest.raises(ValueError, match="2 sample ids for 3 samples"):
        ask(video, random_latents(3, 4, 5, 4, 4), [1])


def test_latents_that_are_not_finite(video: Walt) -> None:
    latents = random_latents(2, 4, 5, 4, 4)
    latents[1, 3, 4, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="latents hold NaN or infinite"):
        ask(video, latents, [1])


def test_every_parameter_gets_a_gradient() -> None:
    model = build()
    latents, noise = random_latents(2, 4, 5, 4, 4), random_latents(2, 4, 5, 4, 4, seed=1)
    v_prediction_loss(model, model.schedule, latents, torch.tensor([9, 500]), noise).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("windows", ["spatiotemporal", "spatial"])
def test_overfits_one_batch(windows: str) -> None:
    torch.manual_seed(0)
    model = Walt(dataclasses.replace(CONFIG, windows=windows))
    latents, noise = random_latents(2, 4, 5, 4, 4), random_latents(2, 4, 5, 4, 4, seed=1)
    timestep = torch.tensor([200, 600])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = v_prediction_loss(model, model.schedule, latents, timestep, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
