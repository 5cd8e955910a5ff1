"""Temporal resize: golden matrices, causal placement, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

from probe_readouts import resize_time, temporal_matrix

METHODS = ("paper", "causal", "nearest")
with np.load(Path(__file__).parent / "golden" / "temporal_cubic.npz", allow_pickle=False) as _data:
    GOLDEN = {name: torch.from_numpy(_data[name]) for name in _data.files}


@pytest.mark.parametrize("name", GOLDEN)
def test_cubic_matrix_matches_the_reference(name: str) -> None:
    num_in, num_out = (int(n) for n in name.split("_")[1:])
    ours = temporal_matrix(num_in, num_out, "paper")
    # 1e-6: the reference is computed in float32.
    torch.testing.assert_close(ours, GOLDEN[name].double(), atol=1e-6, rtol=0)


def test_cubic_is_not_torch_bicubic() -> None:
    row = torch.eye(5)[None, None]
    theirs = torch.nn.functional.interpolate(row, size=(17, 5), mode="bicubic")[0, 0].double()
    assert (theirs - temporal_matrix(5, 17)).abs().amax() > 1e-2


def test_causal_places_every_latent_on_the_frames_it_holds() -> None:
    matrix = temporal_matrix(5, 17, "causal")
    frames = {k: matrix[:, k].nonzero().flatten().tolist() for k in range(5)}
    assert frames == {0: [0]} | {k: list(range(4 * k - 3, 4 * k + 1)) for k in range(1, 5)}


def test_nearest_takes_the_interval_of_the_frame_centre() -> None:
    features = torch.arange(5.0)[None, :, None, None, None]
    ours = resize_time(features, 17, "nearest").flatten()
    theirs = torch.nn.functional.interpolate(
        torch.arange(5.0)[None, None], size=17, mode="nearest-exact"
    )
    assert torch.equal(ours, theirs.flatten())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("num_in", "num_out"), [(5, 17), (5, 5), (3, 9), (2, 7), (1, 1), (6, 11)])
def test_rows_sum_to_one(method: str, num_in: int, num_out: int) -> None:
    matrix = temporal_matrix(num_in, num_out, method)
    assert matrix.shape == (num_out, num_in)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(num_out).double())


@pytest.mark.parametrize("method", ["paper", "nearest"])
@pytest.mark.parametrize(("num_in", "num_out"), [(17, 5), (24, 17), (4, 1), (1, 17)])
def test_rows_sum_to_one_when_frames_are_removed_or_repeated(
    method: str, num_in: int, num_out: int
) -> None:
    matrix = temporal_matrix(num_in, num_out, method)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(num_out).double())


def test_every_frame_counts_when_the_cubic_kernel_removes_frames() -> None:
    assert (temporal_matrix(24, 5).abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_same_number_of_frames_changes_nothing(method: str) -> None:
    features = torch.randn(2, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize_time(features, 5, method), features)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resize_keeps_grid_and_dtype(method: str, dtype: torch.dtype) -> None:
    features = torch.randn(2, 5, 2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    resized = resize_time(features, 17, method)
    assert resized.shape == (2, 17, 2, 3, 4)
    assert resized.dtype == dtype
    column = temporal_matrix(5, 17, method) @ features[1, :, 0, 2, 3].double()
    # 0.03: bfloat16 keeps 8 bits of the weights and of the sums.
    atol = 0.03 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(resized[1, :, 0, 2, 3].double(), column, atol=atol, rtol=0)


def test_paper_is_the_default() -> None:
    features = torch.randn(1, 5, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_time(features, 17), resize_time(features, 17, "paper"))


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="unknown method 'cubic'; choose 'paper', 'causal' or"):
        temporal_matrix(5, 17, "cubic")


@pytest.mark.parametrize(("num_in", "num_out"), [(0, 17), (5, 0)])
def test_no_frames(num_in: int, num_out: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        temporal_matrix(num_in, num_out)


@pytest.mark.parametrize("num_out", [16, 18, 4, 1])
def test_causal_refuses_counts_that_no_latents_hold(num_out: int) -> None:
    with pytest.raises(ValueError, match=r"valid counts are 1 \+ s \* 4 .* \[5, 9, 13, 17\]"):
        temporal_matrix(5, num_out, "causal")


def test_causal_refuses_to_repeat_an_image() -> None:
    with pytest.raises(ValueError, match="one latent holds one frame, not 17"):
        temporal_matrix(1, 17, "causal")
