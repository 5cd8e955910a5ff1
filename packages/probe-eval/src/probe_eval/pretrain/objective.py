"""What a tokenizer is trained for: reconstructions that are close, and look real.

Axes: b batch, T H W pixels, c t h w latent grid, n frames of all clips.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from probe_eval.harness import Batch, Loss, Objective, Row
from probe_eval.pretrain.config import LossWeights, TokenizerTrainingConfig
from walt_tokenizer import (
    Discriminator,
    LecamAverages,
    VideoTokenizer,
    commitment_loss,
    discriminator_loss,
    entropy_loss,
    generator_loss,
    lecam_penalty,
    quantize,
    r1_penalty,
    reconstruction_loss,
)

Perceptual = Callable[[Float[Tensor, "n 3 H W"], Float[Tensor, "n 3 H W"]], Tensor]
Evaluate = Callable[[VideoTokenizer, int], Row]


class Autoencoder(nn.Module):
    """A tokenizer in one forward pass that also shows its latents before quantisation."""

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.quantised = tokenizer.config.quantizer == "lfq"

    def forward(
        self, video: Float[Tensor, "b 3 T H W"]
    ) -> tuple[Float[Tensor, "b 3 T H W"], Float[Tensor, "b c t h w"] | None]:
        """Reconstruction, and the latents where they are quantised."""
        if not self.quantised:
            return self.tokenizer(video), None
        latents = self.tokenizer.encoder(video)
        return self.tokenizer.decode(quantize(latents)), latents


class TokenizerObjective(Objective):
    """Reconstruction, perceptual distance and, from a step on, a discriminator.

    Reference: MAGVIT-v2 (Yu et al., ICLR 2024), Sec. 3.2 and App. A; the averages of weights and
        the regularisation LeCAM (Tseng et al., CVPR 2021) as there.

    Args:
        tokenizer: what is trained.
        discriminator: what it is trained against; needed where `training.gan`.
        dataset: samples with a `video`.
        training: weights of the losses, start of the discriminator, decay of the averages.
        accelerator: tells the processes' logits to each other.
        perceptual: distance of frames.
        evaluate: measures a tokenizer at a step.
    """

    title = "tokenizer"

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        discriminator: Discriminator | None,
        dataset: Dataset[Batch],
        training: TokenizerTrainingConfig,
        *,
        accelerator: Accelerator,
        perceptual: Perceptual | None = None,
        evaluate: Evaluate | None = None,
    ) -> None:
        self.dataset, self.training, self.weights = dataset, training, training.weights
        self.accelerator, self.perceptual, self.measure = accelerator, perceptual, evaluate
        self.autoencoder = Autoencoder(tokenizer)
        self.discriminator = discriminator
        models: dict[str, nn.Module] = {"tokenizer": self.autoencoder}
        if discriminator is not None:
            models["discriminator"] = discriminator
        self.models = models
        self.lecam = LecamAverages().to(accelerator.device)
        self.logits: list[tuple[Tensor, Tensor]] = []
        self.ema: AveragedModel | None = None
        if training.ema_decay:
            average = get_ema_multi_avg_fn(training.ema_decay)
            self.ema = AveragedModel(self.autoencoder, accelerator.device, multi_avg_fn=average)
            self.ema.requires_grad_(False)

    @property
    def result(self) -> VideoTokenizer:
        """The tokenizer that is measured and kept: the averages where there are any."""
        kept = self.autoencoder if self.ema is None else self.ema.module
        assert isinstance(kept, Autoencoder)
        return kept.tokenizer

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        """The tokenizer's loss; then the discriminator's, on the same reconstructions."""
        video = batch["video"]
        against = self.discriminator if step >= self.training.gan_start_step else None
        pred, latents = models["tokenizer"](video)
        parts = {"reconstruction": reconstruction_loss(pred, video)}
        if latents is not None:
            parts["entropy"] = entropy_loss(latents)
            parts["commitment"] = commitment_loss(latents, quantize(latents))
        if self.perceptual is not None:
            parts["perceptual"] = perceptual_loss(self.perceptual, pred, video)
        if against is not None:
            against.requires_grad_(False)
            parts["adversarial"] = generator_loss(against(pred))
        yield Loss("tokenizer", weighted(parts, self.weights), parts)
        if against is not None:
            against.requires_grad_(True)
            yield self.discriminator_loss(models["discriminator"], video, pred.detach())

    def discriminator_loss(
        self,
        discriminator: nn.Module,
        video: Float[Tensor, "b 3 T H W"],
        pred: Float[Tensor, "b 3 T H W"],
    ) -> Loss:
        """What the discriminator is trained for; its penalties are on clips in full precision."""
        assert self.discriminator is not None
        # One pass, since distributed training follows one forward pass per backward pass.
        real, fake = discriminator(torch.cat([video, pred.to(video.dtype)])).chunk(2)
        self.logits.append((real.detach(), fake.detach()))
        parts = {
            "discriminator": discriminator_loss(real, fake),
            "r1": r1_penalty(self.discriminator, video),
            "lecam": lecam_penalty(real, fake, self.lecam),
        }
        total = parts["discriminator"]
        total = total + self.weights.r1 * parts["r1"] + self.weights.lecam * parts["lecam"]
        return Loss("discriminator", total, parts)

    def after_step(self, step: int) -> None:
        """Moves the averages of the weights, and those of the logits of the whole batch."""
        if self.ema is not None:
            self.ema.update_parameters(self.autoencoder)
        if self.logits:
            real, fake = (
                self.accelerator.gather(torch.cat(logits))
                for logits in zip(*self.logits, strict=True)
            )
            self.lecam.update(real, fake)
            self.logits.clear()

    def evaluate(self, step: int) -> Row:
        """Measures the averages where there are any."""
        if self.measure is None:
            return {}
        training = self.result.training
        try:
            return self.measure(self.result.eval(), step)
        finally:
            self.result.train(training)

    def state_tensors(self) -> dict[str, Tensor]:
        """Averages of the weights and of the logits."""
        tensors = {f"lecam.{name}": value for name, value in self.lecam.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.state_dict().items()}
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        for prefix, module in (("lecam.", self.lecam), ("ema.", self.ema)):
            if module is not None:
                module.load_state_dict(
                    {
                        name.removeprefix(prefix): value
                        for name, value in tensors.items()
                        if name.startswith(prefix)
                    }
                )


def weighted(parts: Mapping[str, Tensor], weights: LossWeights) -> Float[Tensor, ""]:
    """Sum of losses, each with its weight."""
    values = [getattr(weights, name) * value for name, value in parts.items()]
    return torch.stack(values).sum() if len(values) > 1 else values[0]


def perceptual_loss(
    network: Perceptual, pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]
) -> Float[Tensor, ""]:
    """Mean distance of the frames, in fp32."""
    frames = (rearrange(clips.float(), "b c T H W -> (b T) c H W") for clips in (pred, target))
    return network(*frames).float().mean()
