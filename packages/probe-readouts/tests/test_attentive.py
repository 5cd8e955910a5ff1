"""Attentive readout: its pooling, its frames, its first weights, and that it learns."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from probe_readouts import AttentiveReadout, classification_loss
from probe_readouts.attention import AttentionPooling, init_linear


def small(num_frames: int = 5, **kwargs: int) -> AttentiveReadout:
    torch.manual_seed(0)
    return AttentiveReadout(12, 4, width=16, num_heads=4, num_frames=num_frames, **kwargs)


def random_features(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("width", "num_heads"), [(768, 12), (1024, 16), (256, 4)])
def test_default_heads_are_64_wide(width: int, num_heads: int) -> None:
    with torch.device("meta"):
        assert AttentiveReadout(8, 2, width=width).pooling.num_heads == num_heads


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


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"num_heads 5 must divide width 16; pick one of \[1, 2,"):
        AttentiveReadout(8, 2, width=16, num_heads=5)
    with pytest.raises(ValueError, match="width 96 is not a multiple of 64"):
        AttentiveReadout(8, 2, width=96)
    with pytest.raises(ValueError, match="num_heads 0 must divide"):
        AttentiveReadout(8, 2, width=16, num_heads=0)


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
