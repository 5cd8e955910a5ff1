"""Losses of the readouts, one pure function per task.

Axes: `b` batch, `k` classes.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def classification_loss(
    logits: Float[Tensor, "b k"],
    labels: Int[Tensor, " b"],
    valid: Bool[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Softmax cross-entropy in nats, averaged over the valid samples.

    Reference:
        Velez et al., From Image to Video (2025), App. D.1.

    Args:
        logits: unnormalised class scores.
        labels: class index of every sample, in [0, k); ignored where not valid.
        valid: which samples count; None counts all. Samples that do not count change neither the
            loss nor a gradient, as long as their logits are finite.

    Returns:
        The mean loss.

    Raises:
        ValueError: shapes differ, no sample is valid, or a valid label is not a class.
    """
    num_samples, num_classes = logits.shape
    if valid is None:
        valid = torch.ones_like(labels, dtype=torch.bool)
    if labels.shape != (num_samples,) or valid.shape != (num_samples,):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need labels and valid of shape "
            f"({num_samples},); labels have {tuple(labels.shape)}, valid {tuple(valid.shape)}"
        )
    if not bool(valid.any()):
        raise ValueError(
            f"none of the {num_samples} samples is valid, so the mean loss has no value; skip "
            "this batch"
        )
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if bool(wrong.any()):
        values = labels[wrong].unique().tolist()
        raise ValueError(
            f"labels {values} must be in [0, {num_classes}), the number of logits; check "
            "num_outputs of the readout against the dataset's classes"
        )
    losses = F.cross_entropy(logits, torch.where(valid, labels, 0).long(), reduction="none")
    return torch.where(valid, losses, 0.0).sum() / valid.sum()
