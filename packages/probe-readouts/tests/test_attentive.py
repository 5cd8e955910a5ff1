"""Attentive readout: published sizes and values, gradients, and what it refuses."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts import AttentiveReadout, classification_loss
from probe_readouts.attention import AttentionPooling, init_linear

GOLDEN = Path(__file__).parent / "golden"

# Outputs, width, feature width, frames in the time table, parameters.
PUBLISHED = {
    "imagenet": (1000, 768, 1024, 17, 7_678_184),
    "places365": (365, 768, 1024, 17, 7_189_869),
    "inat2018": (8142, 768, 1024, 17, 13_170_382),
    "ssv2": (174, 768, 1024, 17, 7_042_990),
    "kinetics-400": (400, 1024, 1024, 17, 11_975_056),
    "kinetics-700": (700, 1024, 1024, 17, 12_282_556),
    "re10k-pose": (12, 256, 2048, 1, 1_650_444),
}


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Turn off jaxtyping's checks, which speak before our errors and cannot be traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def small(num_frames: int = 5, **kwargs: int) -> AttentiveReadout:
    torch.manual_seed(0)
    return AttentiveReadout(12, 4, width=16, num_heads=4, num_frames=num_frames, **kwargs)


def random_features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_from_flax(tree: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Rename a Flax tree of the published module and reorder its axes.

    Dense kernels are [in, out] and become [out, in]; multi-head kernels are [in, heads, head
    width] and their biases [heads, head width], and both are flattened to the readout's width.
    LayerNorm calls its weight `scale`.
    """
    linear = {
        "Dense_0": "attention_output",
        "Dense_1": "output",
        "MLP_0/Dense_0": "mlp.expand",
        "MLP_0/Dense_1": "mlp.project",
    }
    multi_head = {"key_embedding": "pooling.key", "value_embedding": "pooling.value"}
    norm = {"LayerNorm_0": "feature_norm", "LayerNorm_1": "mlp_norm"}
    arrays = {key: torch.from_numpy(array) for key, array in tree.items()}
    state = {
        "pooling.query": rearrange(arrays.pop("query"), "1 h d -> (h d)"),
        "time_embedding": rearrange(arrays.pop("temporal_posenc/embeddings"), "1 t 1 c -> t c"),
    }
    for old, new in linear.items():
        state[f"{new}.weight"] = rearrange(arrays.pop(f"{old}/kernel"), "i o -> o i")
        state[f"{new}.bias"] = arrays.pop(f"{old}/bias")
    for old, new in multi_head.items():
        state[f"{new}.weight"] = rearrange(arrays.pop(f"{old}/kernel"), "i h d -> (h d) i")
        state[f"{new}.bias"] = rearrange(arrays.pop(f"{old}/bias"), "h d -> (h d)")
    for old, new in norm.items():
        state[f"{new}.weight"] = arrays.pop(f"{old}/scale")
        state[f"{new}.bias"] = arrays.pop(f"{old}/bias")
    assert not arrays, f"left over: {sorted(arrays)}"
    return state


def golden_readout() -> tuple[AttentiveReadout, Tensor, Tensor]:
    with np.load(GOLDEN / "attentive.npz", allow_pickle=False) as data:
        tree = {k.removeprefix("param:"): data[k] for k in data.files if k.startswith("param:")}
        # The published module takes space flattened, n = 6 tokens a frame; any h w = 6 will do.
        features = rearrange(torch.from_numpy(data["features"]), "b t (h w) c -> b t h w c", h=2)
        output = torch.from_numpy(data["output"])
        num_heads = int(data["num_heads"])
    state = state_from_flax(tree)
    num_frames, feature_dim = state["time_embedding"].shape
    num_outputs, width = state["output.weight"].shape
    readout = AttentiveReadout(
        feature_dim, num_outputs, width=width, num_heads=num_heads, num_frames=num_frames
    )
    readout.load_state_dict(state)
    return readout, features, output


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_parameter_counts_are_the_published_ones(dataset: str) -> None:
    num_outputs, width, feature_dim, num_frames, expected = PUBLISHED[dataset]
    with torch.device("meta"):
        readout = AttentiveReadout(feature_dim, num_outputs, width=width, num_frames=num_frames)
    assert sum(p.numel() for p in readout.parameters()) == expected


@pytest.mark.parametrize(("width", "num_heads"), [(768, 12), (1024, 16), (256, 4)])
def test_default_heads_are_64_wide(width: int, num_heads: int) -> None:
    with torch.device("meta"):
        assert AttentiveReadout(8, 2, width=width).pooling.num_heads == num_heads


def test_matches_the_published_module() -> None:
    readout, features, expected = golden_readout()
    # 1e-5: float32 sums in another order than the reference's.
    torch.testing.assert_close(readout(features), expected, atol=1e-5, rtol=1e-5)


def test_golden_weights_also_match_in_double_precision() -> None:
    readout, features, expected = golden_readout()
    output = readout.double()(features.double())
    torch.testing.assert_close(output, expected.double(), atol=1e-5, rtol=1e-5)


def test_pooling_equals_attention_with_keys_and_values() -> None:
    torch.manual_seed(0)
    pooling = AttentionPooling(12, 16, 4).double()
    torch.nn.init.normal_(pooling.query)
    torch.nn.init.normal_(pooling.key.bias)
    torch.nn.init.normal_(pooling.value.bias)
    tokens = random_features(3, 10, 12).double()
    query = rearrange(pooling.query, "(h d) -> 1 h 1 d", h=4).expand(3, -1, -1, -1)
    key = rearrange(pooling.key(tokens), "b n (h d) -> b h n d", h=4)
    value = rearrange(pooling.value(tokens), "b n (h d) -> b h n d", h=4)
    attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    expected = rearrange(attended, "b h 1 d -> b (h d)")
    torch.testing.assert_close(pooling(tokens), expected, atol=1e-12, rtol=1e-12)
    # Gradients of the two forms agree too.
    weight = random_features(3, 16).double()
    parameters = list(pooling.parameters())
    folded = torch.autograd.grad((pooling(tokens) * weight).sum(), parameters)
    ordinary = torch.autograd.grad((expected * weight).sum(), parameters)
    for ours, theirs in zip(folded, ordinary, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_every_parameter_gets_a_gradient() -> None:
    readout = small()
    loss = classification_loss(readout(random_features(3, 5, 2, 3, 12)), torch.tensor([0, 1, 3]))
    loss.backward()
    for name, parameter in readout.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A key bias moves all scores of a head alike; softmax does not see it.
        if name != "pooling.key.bias":
            assert parameter.grad.abs().amax() > 0, name
    assert readout.time_embedding.grad is not None
    assert (readout.time_embedding.grad.abs().amax(dim=1) > 0).all()


def test_masked_samples_change_no_gradient() -> None:
    readout = small().double()
    features = random_features(4, 5, 2, 3, 12).double()
    labels = torch.tensor([0, 2, -1, 99])
    valid = torch.tensor([True, True, False, False])

    def gradients(features: Tensor, labels: Tensor, valid: Tensor | None) -> list[Tensor]:
        loss = classification_loss(readout(features), labels, valid)
        return list(torch.autograd.grad(loss, list(readout.parameters())))

    alone = gradients(features[:2], labels[:2], None)
    padded = gradients(features, labels, valid)
    other = features.clone()
    other[2:] = 100 * random_features(2, 5, 2, 3, 12, seed=9)
    for a, b, c in zip(alone, padded, gradients(other, labels, valid), strict=True):
        # 1e-12: double precision; batches of 2 and 4 may be summed in another order.
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)
        assert torch.equal(b, c)


def test_samples_do_not_depend_on_their_batch() -> None:
    readout = small()
    features = random_features(6, 5, 2, 3, 12)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
    outputs = readout(features)
    # 1e-6: matrix products of other batch sizes may be blocked in another way.
    torch.testing.assert_close(readout(features[order]), outputs[order], atol=1e-6, rtol=1e-6)
    alone = torch.cat([readout(sample[None]) for sample in features])
    torch.testing.assert_close(alone, outputs, atol=1e-6, rtol=1e-6)


def test_space_has_no_order_but_time_has() -> None:
    readout = small()
    features = random_features(2, 5, 2, 3, 12)
    outputs = readout(features)
    torch.testing.assert_close(readout(features.flip(2, 3)), outputs, atol=1e-6, rtol=1e-6)
    assert (readout(features.flip(1)) - outputs).abs().amax() > 1e-4


def test_an_image_uses_the_first_time_embedding() -> None:
    readout = small()
    image = random_features(2, 1, 2, 3, 12)
    outputs = readout(image)
    assert outputs.shape == (2, 4)
    with torch.no_grad():
        readout.time_embedding[1:] += 1.0
    assert torch.equal(readout(image), outputs)


@pytest.mark.parametrize("num_frames", range(1, 6))
def test_takes_any_number_of_frames_up_to_the_table(num_frames: int) -> None:
    assert small()(random_features(2, num_frames, 2, 3, 12)).shape == (2, 4)


def test_too_many_frames() -> None:
    message = (
        "features have 6 frames but the time table has 5; build the readout with num_frames=6 "
        "or resize the features in time"
    )
    with pytest.raises(ValueError, match=message):
        small()(random_features(1, 6, 2, 3, 12))


def test_wrong_width() -> None:
    message = "features have 7 channels but the readout was built for feature_dim 12"
    with pytest.raises(ValueError, match=message):
        small()(random_features(1, 5, 2, 3, 7))


def test_empty_grid() -> None:
    with pytest.raises(ValueError, match="empty grid"):
        small()(random_features(1, 0, 2, 3, 12))


@pytest.mark.usefixtures("unchecked_shapes")
def test_missing_time_axis() -> None:
    with pytest.raises(ValueError, match=r"five axes \(b, t, h, w, c\)"):
        small()(random_features(1, 2, 3, 12))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite(value: float) -> None:
    features = random_features(3, 5, 2, 3, 12)
    features[1, 4, 1, 2, 11] = value
    with pytest.raises(ValueError, match=r"1 values that are NaN or infinite, in samples \[1\]"):
        small()(features)


def test_outputs_that_are_not_finite_are_not_blamed_on_the_features() -> None:
    readout = small()
    with torch.no_grad():
        readout.output.bias[0] = float("nan")
    assert readout(random_features(1, 5, 2, 3, 12)).isnan().any()


def test_dtypes() -> None:
    features = random_features(2, 5, 2, 3, 12)
    readout = small()
    with pytest.raises(ValueError, match=r"features are torch.bfloat16 but .* torch.float32"):
        readout(features.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = readout(features.bfloat16())
    # 0.05: bfloat16 keeps 8 bits.
    torch.testing.assert_close(outputs.float(), readout(features), atol=0.05, rtol=0.05)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads 5 must divide width 16; pick one of \[1, 2,"):
        AttentiveReadout(8, 2, width=16, num_heads=5)
    with pytest.raises(ValueError, match="width 96 is not a multiple of 64"):
        AttentiveReadout(8, 2, width=96)
    with pytest.raises(ValueError, match="num_heads 0 must divide"):
        AttentiveReadout(8, 2, width=16, num_heads=0)


@pytest.mark.parametrize("name", ["feature_dim", "num_outputs", "width", "num_frames"])
def test_sizes_must_be_positive(name: str) -> None:
    sizes = {"feature_dim": 8, "num_outputs": 2, "width": 64, "num_frames": 3, name: 0}
    with pytest.raises(ValueError, match=f"{name} 0 must be at least 1"):
        AttentiveReadout(**sizes)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    readout = AttentiveReadout(256, 10, width=128)
    for name, parameter in readout.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    for parameter in (readout.pooling.query, readout.time_embedding):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.25)
    linear = torch.nn.Linear(400, 1000)
    init_linear(linear)
    # 1 / sqrt(400), the variance being that after truncation at two standard deviations.
    assert linear.weight.std().item() == pytest.approx(0.05, rel=0.01)
    assert linear.weight.abs().amax().item() <= 2 * 0.05 / 0.8796


def test_same_seed_same_weights() -> None:
    ours, theirs = small().state_dict(), small().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.usefixtures("unchecked_shapes")
def test_compiles_as_one_graph() -> None:
    readout = small()
    features = random_features(2, 5, 2, 3, 12)
    compiled = torch.compile(readout, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(features), readout(features))
    torch.compiler.reset()


def test_learns_which_frame_is_bright() -> None:
    torch.manual_seed(0)
    readout = AttentiveReadout(12, 3, width=16, num_heads=4, num_frames=3)
    labels = torch.arange(24) % 3
    features = random_features(24, 3, 2, 2, 12)
    features[torch.arange(24), labels] += 2.0
    optimizer = torch.optim.AdamW(readout.parameters(), lr=3e-3)
    for _ in range(150):
        loss = classification_loss(readout(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (readout(features).argmax(dim=1) == labels).float().mean() > 0.9
