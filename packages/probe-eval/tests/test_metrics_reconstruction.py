"""Reconstruction metrics against independent formulas, and states that merge in any order."""

import json
import math
from collections.abc import Iterator
from itertools import permutations

import jaxtyping
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from probe_eval.distributed import gather_items
from probe_eval.metrics import reconstruction as metrics


def clips(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def target() -> torch.Tensor:
    return clips(0, 3, 3, 5, 16, 20)


@pytest.fixture
def pred(target: torch.Tensor) -> torch.Tensor:
    """Noise that differs from clip to clip, so that pooled and averaged scores differ."""
    level = torch.tensor([0.05, 0.2, 0.6])[:, None, None, None, None]
    return target + level * clips(1, *target.shape)


@pytest.fixture
def _unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def reference_ssim(pred: np.ndarray, target: np.ndarray) -> float:
    """Wang et al. 2004 on one channel of bytes, by SciPy's separable filter."""

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5, mode="mirror")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_p, mean_t = blur(pred), blur(target)
    var_p, var_t = blur(pred**2) - mean_p**2, blur(target**2) - mean_t**2
    both = blur(pred * target) - mean_p * mean_t
    luminance = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
    return float((luminance * (2 * both + c2) / (var_p + var_t + c2)).mean())


def test_psnr_is_that_of_the_pooled_error(pred: torch.Tensor, target: torch.Tensor) -> None:
    error = (np.clip(pred.numpy().astype(float), -1, 1) - target.numpy()) ** 2
    pooled = 10 * math.log10(4 / error.mean())
    assert metrics.psnr(pred, target) == pytest.approx(pooled, abs=1e-9)
    averaged = np.mean([10 * math.log10(4 / part.mean()) for part in error])
    assert averaged > pooled + 1


def test_a_known_psnr() -> None:
    target = torch.zeros(1, 3, 1, 8, 8)
    assert metrics.psnr(target + 0.2, target) == pytest.approx(20, abs=1e-5)  # 0.2 is a tenth of 2


def test_equal_clips_score_the_limit_and_can_be_written(target: torch.Tensor) -> None:
    value = metrics.psnr(target, target)
    assert value == metrics.PSNR_LIMIT == 100.0
    assert json.dumps(value, allow_nan=False) == "100.0"
    nearly = metrics.psnr(target * (1 - 1e-3), target)
    assert nearly < metrics.PSNR_LIMIT
    assert metrics.psnr(target * (1 - 1e-7), target) <= metrics.PSNR_LIMIT


def test_reconstructions_are_clamped(target: torch.Tensor) -> None:
    white = torch.ones_like(target)
    assert metrics.psnr(white * 3, white) == metrics.PSNR_LIMIT
    assert metrics.ssim(white * 3, white) == pytest.approx(1.0)


def test_ssim_is_the_paper_s(pred: torch.Tensor, target: torch.Tensor) -> None:
    found = metrics.ssim(pred, target)
    assert found.shape == (3, 5)
    as_bytes = [(x.clamp(-1, 1).double().numpy() + 1) * 127.5 for x in (pred, target)]
    for clip in range(3):
        for frame in range(5):
            expected = np.mean(
                [reference_ssim(*(x[clip, c, frame] for x in as_bytes)) for c in range(3)]
            )
            # float32 here, and variances as differences of two larger numbers
            assert float(found[clip, frame]) == pytest.approx(expected, abs=2e-5)


def test_ssim_of_many_frames_is_that_of_each(
    pred: torch.Tensor, target: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = metrics.ssim(pred, target)
    monkeypatch.setattr(metrics, "_SSIM_PIXELS", 1)
    torch.testing.assert_close(metrics.ssim(pred, target), whole, rtol=0, atol=1e-6)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match=r"10 x 16 pixels are smaller.*11 x 11"):
        metrics.ssim(clips(0, 1, 3, 1, 10, 16), clips(1, 1, 3, 1, 10, 16))
    assert metrics.ssim(clips(0, 1, 3, 1, 11, 11), clips(0, 1, 3, 1, 11, 11)) == pytest.approx(1)


@pytest.mark.parametrize("state", [metrics.PsnrState, metrics.SsimState])
def test_states_merge_to_the_whole_in_any_order(
    state: type, pred: torch.Tensor, target: torch.Tensor
) -> None:
    parts = [state.measure([f"{i}"], pred[i : i + 1], target[i : i + 1]) for i in range(3)]
    values = set()
    for order in permutations([*parts, parts[1]]):  # one twice, as a padded sampler has it
        merged = state()
        for part in order:
            merged = merged.merge(part)
        assert isinstance(merged, state)
        values.add(merged.compute())
    assert len(values) == 1
    whole = state.measure(["0", "1", "2"], pred, target).compute()
    assert values.pop() == pytest.approx(whole, abs=1e-6)


def test_clips_of_other_lengths_weigh_by_their_pixels(
    pred: torch.Tensor, target: torch.Tensor
) -> None:
    long = metrics.PsnrState.measure(["a"], pred[:1], target[:1])
    short = metrics.PsnrState.measure(["b"], pred[2:, :, :1], target[2:, :, :1])
    errors = np.concatenate(
        [
            ((p.clamp(-1, 1) - t).double().numpy() ** 2).ravel()
            for p, t in ((pred[:1], target[:1]), (pred[2:, :, :1], target[2:, :, :1]))
        ]
    )
    assert long.merge(short).compute() == pytest.approx(10 * math.log10(4 / errors.mean()))


def test_states_pass_between_processes(accelerator, pred, target) -> None:
    state = metrics.PsnrState.measure(["0", "1", "2"], pred, target)
    (gathered,) = gather_items(accelerator, [state])
    assert gathered.compute() == state.compute()


def test_two_results_for_one_name_are_refused(pred: torch.Tensor, target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="sample x was measured twice with different results"):
        metrics.PsnrState.measure(["x", "x", "y"], pred, target)


@pytest.mark.parametrize("state", [metrics.PsnrState, metrics.SsimState, metrics.LpipsState])
def test_nothing_measured_is_an_error(state: type) -> None:
    with pytest.raises(ValueError, match="no sample was measured"):
        state().compute()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
def test_pixels_that_are_not_finite_are_refused(measure, bad: float, target: torch.Tensor) -> None:
    broken = target.clone()
    broken[1, 2, 3, 4, 5] = bad
    with pytest.raises(ValueError, match="reconstruction has pixels that are not finite"):
        measure(broken, target)
    with pytest.raises(ValueError, match="original has pixels that are not finite"):
        measure(target, broken)


@pytest.mark.usefixtures("_unchecked_shapes")
def test_originals_out_of_range_and_other_shapes_are_refused(target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"original has pixels in \[.*expected \[-1, 1\]"):
        metrics.psnr(target, target * 127)
    with pytest.raises(ValueError, match="expected equal shapes"):
        metrics.psnr(target[:, :, :4], target)


def test_lpips_is_the_mean_of_what_the_network_says(
    pred: torch.Tensor, target: torch.Tensor
) -> None:
    seen = []

    def network(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen.append((first, second))
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)  # n 1 1 1, as lpips has it

    found = metrics.lpips(pred, target, network=network)
    ((first, second),) = seen
    assert first.shape == second.shape == (15, 3, 16, 20)
    assert float(first.abs().max()) <= 1
    assert torch.equal(second[7], target[1, :, 2])
    expected = (pred.clamp(-1, 1) - target).abs().mean(dim=(1, 3, 4))
    torch.testing.assert_close(found, expected)
    state = metrics.LpipsState.measure("abc", pred, target, network=network)
    assert state.compute() == pytest.approx(float(expected.mean()))
    mean = metrics.lpips(pred, target, network=lambda a, b: network(a, b).mean())
    assert mean.unique().tolist() == pytest.approx([float(expected.mean())])


@pytest.mark.parametrize("wrong", [torch.zeros(14), torch.zeros(15, 2), 0.5])
def test_lpips_refuses_what_is_no_distance_per_frame(
    wrong: object, pred: torch.Tensor, target: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match="for 15 frames; expected a tensor of 15 distances"):
        metrics.lpips(pred, target, network=lambda a, b: wrong)


def test_lpips_refuses_nan(pred: torch.Tensor, target: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="distances that are not finite"):
        metrics.lpips(pred, target, network=lambda a, b: torch.full((15,), float("nan")))
