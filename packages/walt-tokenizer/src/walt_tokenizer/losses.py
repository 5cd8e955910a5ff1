"""Training losses of the tokenizer and its discriminator; each is a function of tensors.

All compute in fp32, whatever the dtype of their inputs and also under autocast; fp64 stays fp64.

Axes: b batch, n another batch, T H W pixels. A logit is high where the discriminator takes a clip
for real.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Factors of the terms of the training objective; 0 leaves a term out.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024, arXiv 2310.05737), appendix.

    Raises:
        ValueError: if a weight is negative or not finite.
    """

    reconstruction: float = 5.0
    """Mean squared error of the reconstruction."""
    perceptual: float = 0.1
    """Distance in the features of a network that the user gives."""
    adversarial: float = 0.1
    """`generator_loss`, in the tokenizer's objective."""
    r1: float = 10.0
    """`r1_penalty`, in the discriminator's objective."""
    lecam: float = 0.001
    """`lecam_penalty`, in the discriminator's objective."""
    entropy: float = 0.1
    """`walt_tokenizer.quantize.entropy_loss`, only with quantised latents."""
    commitment: float = 0.25
    """`walt_tokenizer.quantize.commitment_loss`, only with quantised latents."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"loss weight {field.name} {value} must be finite and not negative; "
                    "0 leaves the term out"
                )


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same values in fp32, or in fp64 where they already are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def reconstruction_loss(
    pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]
) -> Float[Tensor, ""]:
    """Mean squared error between reconstruction and clip.

    Reference: MAGVIT-v2, Sec. 4 (L2 reconstruction term).

    Args:
        pred: reconstruction, pixels around [-1, 1].
        target: clip, pixels in [-1, 1].
    """
    return (widen(pred) - widen(target)).square().mean()


def generator_loss(fake_logits: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Non-saturating loss of the tokenizer: mean softplus(-fake).

    Reference: Generative Adversarial Nets (Goodfellow et al., NeurIPS 2014, arXiv 1406.2661),
        Sec. 3.

    Args:
        fake_logits: of reconstructions, with their graph.
    """
    return F.softplus(-widen(fake_logits)).mean()


def discriminator_loss(
    real_logits: Float[Tensor, " b"], fake_logits: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Logistic loss of the discriminator: mean softplus(-real) + mean softplus(fake).

    Reference: Generative Adversarial Nets, Eq. 1.

    Args:
        real_logits: of clips.
        fake_logits: of reconstructions, which the caller has detached.
    """
    return F.softplus(-widen(real_logits)).mean() + F.softplus(widen(fake_logits)).mean()


def r1_penalty(
    discriminator: Callable[[Tensor], Tensor], video: Float[Tensor, "b 3 T H W"]
) -> Float[Tensor, ""]:
    """Mean over clips of the squared norm of the logit's gradient with respect to the pixels.

    There is no factor of one half. It has a graph, for the gradient with respect to the
    discriminator. Biases get zeros from it, not None, so that it can be back-propagated alone, also
    in `DistributedDataParallel` and inside its `no_sync`.

    Reference: Which Training Methods for GANs do actually Converge? (Mescheder et al., ICML 2018,
        arXiv 1801.04406), Eq. 9.

    Args:
        discriminator: clips to one logit each, of which none depends on another clip.
        video: clips, pixels in [-1, 1]; no gradient flows to where they come from.
    """
    video = widen(video).detach().requires_grad_()
    # Autocast would also cast the matrix products of the first derivative.
    with torch.autocast(video.device.type, enabled=False):
        logits = discriminator(video)
        (gradient,) = torch.autograd.grad(logits.sum(), video, create_graph=True)
        penalty = gradient.square().flatten(1).sum(dim=1).mean()
        return penalty + 0 * widen(logits).sum()


class LecamAverages(nn.Module):
    """Moving averages of the discriminator's logits, for `lecam_penalty`.

    They are buffers, saved with a run. They start at zero, where the logits of a new
    discriminator lie.

    Reference: Regularizing GANs under Limited Data (Tseng et al., CVPR 2021, arXiv 2104.03310),
        Sec. 3.

    Args:
        decay: weight of the past in each update, at least 0 and below 1.

    Raises:
        ValueError: if `decay` is out of range.
    """

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay {decay} must be at least 0 and below 1, the weight of the past in each "
                "update; 0.999 is usual"
            )
        self.decay = decay
        self.register_buffer("real", torch.zeros((), dtype=torch.float32))
        self.register_buffer("fake", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def update(self, real_logits: Float[Tensor, " b"], fake_logits: Float[Tensor, " n"]) -> None:
        """Moves the averages towards the means of a batch: once for each discriminator step.

        Args:
            real_logits: of clips. Where several processes train, pass the logits of all, gathered
                or already averaged, or the averages drift apart.
            fake_logits: of reconstructions, likewise.
        """
        self.real.lerp_(real_logits.to(self.real.dtype).mean(), 1 - self.decay)
        self.fake.lerp_(fake_logits.to(self.fake.dtype).mean(), 1 - self.decay)


def lecam_penalty(
    real_logits: Float[Tensor, " b"], fake_logits: Float[Tensor, " n"], averages: LecamAverages
) -> Float[Tensor, ""]:
    """Keeps logits close to the average of the other kind.

    mean relu(real - average of fake)^2 + mean relu(average of real - fake)^2: it holds back a
    discriminator that tells clips and reconstructions far apart.

    Reference: Regularizing GANs under Limited Data (Tseng et al., 2021), Sec. 3, one-sided as in
        its published code.

    Args:
        real_logits: of clips, with their graph.
        fake_logits: of reconstructions, with their graph.
        averages: are read, not updated.
    """
    real = F.relu(widen(real_logits) - averages.fake).square().mean()
    fake = F.relu(averages.real - widen(fake_logits)).square().mean()
    return real + fake
