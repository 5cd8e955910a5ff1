"""Classification loss: value, mask, gradient, and what it refuses."""

import jaxtyping
import pytest
import torch

from probe_readouts import classification_loss


def random_logits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_is_the_mean_negative_log_probability() -> None:
    logits = random_logits(5, 3)
    labels = torch.tensor([0, 2, 1, 1, 0])
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -probabilities[torch.arange(5), labels].log().mean()
    torch.testing.assert_close(classification_loss(logits, labels), expected)


def test_uniform_logits_cost_log_of_the_classes() -> None:
    loss = classification_loss(torch.zeros(2, 8), torch.tensor([3, 7]))
    torch.testing.assert_close(loss, torch.tensor(8.0).log())


def test_mean_is_over_valid_samples() -> None:
    logits = random_logits(4, 3)
    labels = torch.tensor([0, -1, 2, 1000])
    valid = torch.tensor([True, False, True, False])
    expected = classification_loss(logits[valid], labels[valid])
    torch.testing.assert_close(classification_loss(logits, labels, valid), expected)


def test_masked_samples_have_exactly_no_gradient() -> None:
    logits = random_logits(4, 3).requires_grad_()
    valid = torch.tensor([True, False, True, False])
    classification_loss(logits, torch.tensor([0, -1, 2, 1]), valid).backward()
    assert logits.grad is not None
    assert not logits.grad[~valid].any()
    assert (logits.grad[valid].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_in_double_precision(masked: bool) -> None:
    logits = random_logits(4, 3).requires_grad_()
    labels = torch.tensor([0, 2, 2, 1])
    valid = torch.tensor([True, False, True, True]) if masked else None
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, labels, valid), (logits,))


def test_large_logits_do_not_overflow() -> None:
    loss = classification_loss(torch.tensor([[1e4, -1e4]]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor(2e4))


def test_labels_may_be_narrow_integers() -> None:
    logits = random_logits(2, 3)
    labels = torch.tensor([0, 2])
    narrow = classification_loss(logits, labels.to(torch.int32))
    assert torch.equal(narrow, classification_loss(logits, labels))


def test_no_valid_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of the 2 samples is valid"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2).bool())
    with pytest.raises(ValueError, match="none of the 0 samples is valid"):
        classification_loss(torch.zeros(0, 3), torch.zeros(0).long())


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_must_be_classes(label: int) -> None:
    with pytest.raises(ValueError, match=rf"labels \[{label}\] must be in \[0, 3\)"):
        classification_loss(torch.zeros(2, 3), torch.tensor([0, label]))


def test_shapes_must_agree() -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=r"need labels and valid of shape \(2,\)"):
            classification_loss(torch.zeros(2, 3), torch.tensor([0, 1, 2]))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
