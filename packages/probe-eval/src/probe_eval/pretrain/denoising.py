"""What a denoiser is trained for: v of clips and of frames, from latents with noise.

Axes: b batch, k images of each clip, c channels, t h w latent grid, s text tokens, e text width.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import Accelerator
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from probe_eval.harness import Batch, Loss, Objective, Row
from probe_eval.pretrain.averages import Averages
from probe_eval.text import TextStates
from walt_core import Conditions, Draws, Rates, Walt, denoising_loss, draw

Evaluate = Callable[[Walt, int], Row]
Keep = Callable[[Walt, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Clips, or images, of one step: clean latents, what chance decided, what is known of them."""

    latents: Float[Tensor, "b c t h w"]
    draws: Draws
    conditions: Conditions


class Denoiser(nn.Module):
    """A denoiser whose one forward pass computes the loss of clips, and of images with them.

    One pass, since distributed training follows one forward pass per backward pass, and images
    alone leave weights of V-WALT unused.
    """

    _no_split_modules = ("WindowBlock",)
    """What FSDP shards by itself."""

    def __init__(self, model: Walt, accelerator: Accelerator) -> None:
        super().__init__()
        self.model, self.accelerator = model, accelerator

    def forward(
        self, clips: Part, images: Part | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The mean loss of all samples, and where there are images also those of the two kinds."""
        # Accelerate's own autocast does not reach a model that FSDP has sharded.
        with self.accelerator.autocast():
            loss = denoising_loss(self.model, clips.latents, clips.draws, clips.conditions)
            if images is None:
                return loss, {}
            other = denoising_loss(self.model, images.latents, images.draws, images.conditions)
        b, k = len(clips.latents), len(images.latents)
        return (b * loss + k * other) / (b + k), {"clips": loss, "images": other}


class WaltObjective(Objective):
    """Denoising of latents with the v target, at uniformly drawn timesteps.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3.1 to 3.4.

    Args:
        title: name of the model, also beside the progress bar.
        model: what is trained.
        dataset: samples with `latents`; optionally `images`, `classes`, and `prompts`, the row of
            a prompt in `text`.
        accelerator: device, processes and precision.
        rates: how often a sample is trained with each condition.
        images_per_step: images that each clip brings to a step, of those it has.
        text: states of the prompts.
        ema_decay: of the moving average of the weights; 0 for none.
        evaluate: measures a model at a step.
        keep_every: steps between calls of `keep`; 0 for none.
        keep: keeps a model of a step.
    """

    shards = True

    def __init__(
        self,
        title: str,
        model: Walt,
        dataset: Dataset[Batch],
        *,
        accelerator: Accelerator,
        rates: Rates | None = None,
        images_per_step: int = 0,
        text: TextStates | None = None,
        ema_decay: float = 0.0,
        evaluate: Evaluate | None = None,
        keep_every: int = 0,
        keep: Keep | None = None,
    ) -> None:
        self.title, self.dataset = title, dataset
        self.config, self.rates, self.text = model.config, rates or Rates(), text
        self.images_per_step = images_per_step
        denoiser = Denoiser(model, accelerator)
        self.models = {title: denoiser}
        self.averages = Averages(denoiser.model, ema_decay, accelerator.device)
        self.measure, self.keep_every, self.keep = evaluate, keep_every, keep

    def losses(
        self,
        models: Mapping[str, nn.Module],
        batch: Batch,
        generators: Sequence[torch.Generator],
        step: int,
    ) -> Iterator[Loss]:
        """Mean squared error of v; all that is drawn comes from each sample's own generator."""
        latents, conditions = batch["latents"], conditions_of(batch, self.text)
        clips = Part(
            latents=latents,
            draws=draw(latents, generators, self.config, self.rates),
            conditions=conditions,
        )
        images = None
        if self.images_per_step:
            images = self.draw_images(batch["images"], generators, conditions)
        loss, parts = models[self.title](clips, images)
        yield Loss(self.title, loss, parts)

    def draw_images(
        self,
        images: Float[Tensor, "b k c 1 h w"],
        generators: Sequence[torch.Generator],
        conditions: Conditions,
    ) -> Part:
        """Images of each clip, drawn without repetition, with the class and text of the clip."""
        number = self.images_per_step
        order = [torch.randperm(images.shape[1], generator=g)[:number] for g in generators]
        picked = torch.stack([row[i.to(row.device)] for row, i in zip(images, order, strict=True)])
        latents = rearrange(picked, "b k c t h w -> (b k) c t h w")
        repeated = [generator for generator in generators for _ in range(number)]
        return Part(
            latents=latents,
            draws=draw(latents, repeated, self.config, self.rates),
            conditions=conditions.repeat(inner=number),
        )

    @property
    def result(self) -> Walt:
        """The model that is measured and kept, whole: the averages where there are any."""
        return self.averages.gather()

    def after_step(self, step: int) -> None:
        """Moves the averages of the weights, and keeps what is to be kept."""
        self.averages.update(step)
        if self.keep is not None and self.keep_every and step % self.keep_every == 0:
            self.keep(self.result, step)

    def evaluate(self, step: int) -> Row:
        """Measures the averages where there are any."""
        return {} if self.measure is None else self.measure(self.result, step)

    def state_tensors(self) -> dict[str, Tensor]:
        """Averages of the weights."""
        return {f"ema.{name}": value for name, value in self.averages.tensors().items()}

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`."""
        self.averages.load({name.removeprefix("ema."): t for name, t in tensors.items()})


def conditions_of(batch: Batch, text: TextStates | None) -> Conditions:
    """Class and text of the samples of a batch."""
    like = batch["latents"]
    states = valid = None
    if text is not None:
        rows = batch["prompts"].to(text.states.device)
        states, valid = text.states[rows].to(like), text.valid[rows].to(like.device)
    return Conditions(classes=batch.get("classes"), text=states, text_valid=valid)
