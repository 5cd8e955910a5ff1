"""Depth readout against its formulas; its grids of pixels, chunks and memory."""

from collections.abc import Callable

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from probe_readouts.depth import DepthReadout, PixelGrid
from probe_readouts.positional import fourier_features
from probe_readouts.time import resize_time

# Double precision, and sums of some hundred terms in another order.
EXACT = {"atol": 1e-11, "rtol": 1e-10}


def small(**changes: object) -> DepthReadout:
    torch.manual_seed(0)
    sizes = {"num_heads": 2, "qkv_width": 8, "hidden_width": 12, "num_octaves": 4, **changes}
    return DepthReadout(6, **sizes).double()


def draw(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def places(*shape: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(*shape, 2, generator=generator, dtype=torch.float64) - 1


def gradients(readout: DepthReadout, features: Tensor, coordinates: Tensor) -> list[Tensor]:
    depth = readout(features, coordinates)
    weight = draw(*depth.shape, seed=7)
    return list(torch.autograd.grad((depth * weight).sum(), [features, *readout.parameters()]))


# --- Pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 24), (13, 9), (5, 1)])
@pytest.mark.parametrize("stride", [1, 4])
def test_coordinates_are_those_of_the_pixels(size: tuple[int, int], stride: int) -> None:
    grid = PixelGrid(size, stride, (min(2, size[0] - 1), 0))
    y = torch.linspace(-1, 1, size[0])[grid.offset[0] :: stride]
    x = torch.linspace(-1, 1, size[1])[::stride]
    coordinates = grid.coordinates()
    assert coordinates.shape == (len(y), len(x), 2)
    for i in range(len(y)):
        for j in range(len(x)):
            assert coordinates[i, j].tolist() == [y[i].item(), x[j].item()]


def test_subsampling_takes_the_pixels_of_the_coordinates() -> None:
    size = (21, 18)
    everywhere = PixelGrid(size, 1).coordinates()
    image = rearrange(everywhere, "h w yx -> yx h w")
    for grid in (
        PixelGrid.evaluation(size),
        PixelGrid.training(size, torch.Generator().manual_seed(3)),
        PixelGrid(size, 5, (20, 17)),
    ):
        expected = rearrange(grid.coordinates(), "h w yx -> yx h w")
        assert torch.equal(grid.subsample(image), expected)
        assert torch.equal(grid.subsample(image > 0), expected > 0)


def test_evaluation_is_every_fourth_pixel_from_the_first() -> None:
    assert PixelGrid.evaluation((256, 256)).coordinates().shape == (64, 64, 2)
    assert PixelGrid.evaluation((9, 7)).coordinates().shape == (3, 2, 2)


def test_training_offsets_are_all_those_of_a_stride_of_8() -> None:
    generator = torch.Generator().manual_seed(0)
    grids = [PixelGrid.training((32, 40), generator) for _ in range(600)]
    # Each of the 64 is missed by 600 draws with a probability of 8e-5; the seed is fixed.
    assert {grid.offset for grid in grids} == {(y, x) for y in range(8) for x in range(8)}
    assert {tuple(grid.coordinates().shape) for grid in grids} == {(4, 5, 2)}


def test_training_offset_is_that_of_the_generator() -> None:
    first, again = (
        [PixelGrid.training((32, 32), torch.Generator().manual_seed(s)) for s in range(9)]
        for _ in range(2)
    )
    assert first == again
    assert len(set(first)) > 1


def test_training_offset_lies_in_a_small_image() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = {PixelGrid.training((3, 1), generator).offset for _ in range(50)}
    assert offsets == {(0, 0), (1, 0), (2, 0)}


def test_grids_that_are_refused() -> None:
    with pytest.raises(ValueError, match="stride 0 must be at least 1"):
        PixelGrid((8, 8), 0)
    for offset in [(8, 0), (0, -1)]:
        with pytest.raises(ValueError, match=r"offset \(.*\) must be a pixel of the image, .* \(8"):
            PixelGrid((8, 8), 4, offset)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 9\) must end in rows and columns \(8, 8"):
        PixelGrid((8, 8), 4).subsample(torch.zeros(1, 8, 9))


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_values_and_gradients_are_those_of_the_formulas(
    num_blocks: int, dense_block: Callable, layer_norm: Callable, randomize: Callable
) -> None:
    readout = small(num_blocks=num_blocks)
    randomize(readout)
    features, coordinates = draw(2, 3, 2, 2, 6).requires_grad_(), places(5)
    position = fourier_features(coordinates, 4)
    query = torch.cat([torch.zeros(5, 6), position], dim=-1)
    frames = []
    for frame in range(3):
        x = query.expand(2, -1, -1)
        for block in readout.blocks:
            x = dense_block(block, x, rearrange(features[:, frame], "b h w c -> b (h w) c"))
        x = layer_norm(x, readout.norm.weight) @ readout.output.weight.T + readout.output.bias
        frames.append(x[..., 0])
    expected = torch.stack(frames, dim=1)
    torch.testing.assert_close(readout(features, coordinates), expected, **EXACT)
    inputs = [features, *readout.parameters()]
    grads = torch.autograd.grad((expected * draw(2, 3, 5, seed=7)).sum(), inputs)
    ours = gradients(readout, features, coordinates)
    torch.testing.assert_close(ours, list(grads), **EXACT)


def test_one_place_is_its_entry_of_the_grid() -> None:
    readout, features = small(), draw(2, 3, 2, 2, 6)
    coordinates = PixelGrid((8, 12), 4, (1, 2)).coordinates().double()
    depth = readout(features, coordinates)
    assert depth.shape == (2, 3, 2, 3)
    for i in range(2):
        for j in range(3):
            alone = readout(features, coordinates[i, j][None])
            torch.testing.assert_close(alone[..., 0], depth[:, :, i, j], **EXACT)


def test_places_of_each_frame_equal_shared_ones() -> None:
    readout, features, shared = small(), draw(2, 3, 2, 2, 6), places(5)
    each = readout(features, shared.expand(2, 3, -1, -1))
    torch.testing.assert_close(each, readout(features, shared), **EXACT)
    own = places(2, 3, 5)
    depth = readout(features, own)
    for sample in range(2):
        for frame in range(3):
            alone = readout(features[sample, frame][None, None], own[sample, frame])
            torch.testing.assert_close(alone[0, 0], depth[sample, frame], **EXACT)


def test_places_of_each_frame_of_resized_features() -> None:
    readout, features, own = small(), draw(2, 5, 2, 2, 6), places(2, 17, 3)
    expected = readout(resize_time(features, 17), own)
    torch.testing.assert_close(readout(features, own, num_frames=17), expected, **EXACT)


def test_a_frame_changes_only_its_own_depth() -> None:
    readout, features, coordinates = small(), draw(2, 4, 2, 2, 6), places(5)
    depth = readout(features, coordinates)
    changed = features.clone()
    changed[:, 2] = draw(2, 2, 2, 6, seed=3)
    difference = (readout(changed, coordinates) - depth).abs().amax(dim=(0, 2))
    assert (difference[[0, 1, 3]] < 1e-12).all()
    assert difference[2] > 1e-3


def test_y_comes_before_x() -> None:
    readout, features = small(), draw(1, 1, 2, 2, 6)
    depth = readout(features, PixelGrid((3, 5), 1).coordinates().double())
    for y, x in [(0, 4), (2, 1)]:
        place = torch.tensor([[y - 1.0, x / 2 - 1.0]], dtype=torch.float64)
        torch.testing.assert_close(readout(features, place)[0, 0, 0], depth[0, 0, y, x], **EXACT)


# --- Chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_queries", [1, 7, 12, 10**6])
@pytest.mark.parametrize("shared", [True, False])
def test_chunks_equal_the_whole(max_queries: int, shared: bool) -> None:
    features, coordinates = draw(2, 3, 2, 2, 6), places(11) if shared else places(2, 3, 11)
    whole = small()(features, coordinates)
    with torch.no_grad():
        chunks = small(max_queries=max_queries)(features, coordinates)
    torch.testing.assert_close(chunks, whole, **EXACT)


def test_checkpoints_change_no_gradient() -> None:
    features, coordinates = draw(2, 3, 2, 2, 6).requires_grad_(), places(2, 3, 11)
    whole = gradients(small(), features, coordinates)
    chunks = gradients(small(max_queries=12, checkpoint=True), features, coordinates)
    torch.testing.assert_close(chunks, whole, **EXACT)


class LargestTensor(TorchDispatchMode):
    """Records the number of values of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.numel = max([self.numel, *(x.numel() for x in tensors)])
        return result


@pytest.mark.usefixtures("unchecked_shapes")
def test_memory_of_decoding_does_not_grow_with_the_number_of_places() -> None:
    features = draw(2, 3, 2, 2, 6)

    def largest(num_places: int, **changes: object) -> int:
        with LargestTensor() as record:
            small(**changes)(features, places(num_places))
        return record.numel

    with torch.no_grad():
        sizes = {largest(n, max_queries=60) for n in (10, 40, 100)}
    # 10 places of 6 frames at a time, 22 channels each. The 100 places and the depths that are
    # returned, at most 600 values, stay below that.
    assert sizes == {10 * 6 * 22}
    assert largest(100) == 100 * 6 * 22


def test_training_with_checkpoints_keeps_no_activations() -> None:
    features = draw(2, 3, 2, 2, 6)

    def kept(**changes: object) -> int:
        numel = []
        readout = small(**changes)

        def pack(x: Tensor) -> Tensor:
            numel.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            readout(features, places(200)).sum()
        return sum(numel)

    assert kept(max_queries=60, checkpoint=True) < kept() / 20


# --- What it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.01, -1.01, float("nan"), float("inf")])
def test_places_outside_the_image(value: float) -> None:
    coordinates = places(5)
    coordinates[3, 1] = value
    with pytest.raises(ValueError, match=r"coordinates must be \(y, x\) in \[-1, 1\], .*, got "):
        small()(draw(1, 1, 2, 2, 6), coordinates)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("shape", [(2,), (5, 3), (0, 2), (1, 1, 1, 5, 2)])
def test_places_of_the_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"coordinates of shape \(.*\) must be \(q, 2\) or"):
        small()(draw(1, 1, 2, 2, 6), torch.zeros(shape).double())


@pytest.mark.parametrize("leading", [(2, 2), (1, 3)])
def test_places_of_each_frame_must_match_the_frames(leading: tuple[int, int]) -> None:
    message = rf"shape \({leading[0]}, {leading[1]}, 5, 2\) must begin with .* frames \(2, 3\)"
    with pytest.raises(ValueError, match=message):
        small()(draw(2, 3, 2, 2, 6), places(*leading, 5))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="num_heads 3 must divide qkv_width 8"):
        small(num_heads=3)
