"""Reconstruction loss."""

import torch

from walt_tokenizer import reconstruction_loss


def test_is_the_mean_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 2, 3, 5, 8, 8, generator=generator).unbind()
    expected = ((pred - target) ** 2).sum() / pred.numel()
    torch.testing.assert_close(reconstruction_loss(pred, target), expected)
    assert reconstruction_loss(target, target) == 0


def test_low_precision_is_summed_in_float32() -> None:
    pred = torch.full((1, 3, 17, 32, 32), 0.5, dtype=torch.bfloat16)
    loss = reconstruction_loss(pred, torch.zeros_like(pred))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, torch.tensor(0.25))
