"""What a denoiser is worth on held-out latents, and what it generates.

Axes: b batch, c channels, t h w latent grid, T H W pixels.
"""

from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import default_collate

import walt_tokenizer
from probe_eval.distributed import gather_ordered, share
from probe_eval.harness import Batch, Row, stream
from probe_eval.pretrain.denoising import conditions_of
from probe_eval.pretrain.latents import Latents
from probe_eval.report.grids import write_clips
from probe_eval.sampling import Request, generate_together
from probe_eval.text import TextStates
from walt_core import Rates, Walt, denoising_loss, draw

LEVELS = 4
GOLDEN = 0.618033988749895
BATCH = 16


class HeldOutLoss:
    """The denoising loss on held-out samples, with draws that are the same at every step.

    Each sample is taken at `LEVELS` noise levels, which all samples together spread evenly over the
    timesteps. Nothing is known of it but its noisy latents, class and text: no estimate, no past
    frames, nothing dropped.

    Beside it stands the loss of the best constant predictor: one that knows the timestep and the
    mean of the training latents at every place and channel, `v = -sqrt(1 - gamma) mean(x_0)`.

    Args:
        samples: held-out samples, as the objective's.
        mean: mean of the training latents.
        text: states of the prompts.
        seed: seed of the noise.
        accelerator: processes, which share the work.
    """

    def __init__(
        self,
        samples: Latents,
        mean: Float[Tensor, "c t h w"],
        text: TextStates | None,
        *,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self.samples, self.mean, self.text = samples, mean, text
        self.seed, self.accelerator = seed, accelerator

    @torch.no_grad()
    def __call__(self, model: Walt) -> Row:
        """Numbers by name, equal on all processes and for any number of them."""
        number = len(self.samples) * LEVELS
        done = []
        starts = range(0, number, BATCH)
        for start in share(self.accelerator, starts):
            draws = range(start, min(start + BATCH, number))
            samples = default_collate([self.samples[place // LEVELS] for place in draws])
            batch = {name: value.to(self.accelerator.device) for name, value in samples.items()}
            losses = self.measure(model, batch, draws)
            done.append((start, [loss * len(draws) for loss in losses]))
        parts = gather_ordered(self.accelerator, done)
        loss, constant = (sum(values) / number for values in zip(*parts, strict=True))
        return {"validation_loss": loss, "constant_loss": constant, "factor": constant / loss}

    def measure(self, model: Walt, batch: Batch, places: range) -> tuple[float, float]:
        """Mean loss of the model and of the constant on some of the draws."""
        latents = batch["latents"]
        generators = [stream(self.seed, "validation", place) for place in places]
        draws = draw(latents, generators, model.config, Rates(estimate=0.0, past=0.0, drop=0.0))
        total = model.schedule.num_timesteps
        levels = [int(total * ((place + 0.5) * GOLDEN % 1)) for place in places]
        draws.timestep.copy_(torch.tensor(levels))
        with self.accelerator.autocast():
            loss = denoising_loss(model, latents, draws, conditions_of(batch, self.text))
        target = model.schedule.v_target(latents, draws.noise, draws.timestep)
        mean = self.mean.to(latents).expand_as(latents)
        constant = model.schedule.v_target(mean, torch.zeros_like(mean), draws.timestep)
        return float(loss), float((target - constant).square().mean())


class Samples:
    """Clips that a denoiser generates, always from the same noise, as pictures and videos.

    Args:
        request: how they are sampled, and under which conditions.
        tokenizer: decodes them.
        folder: where `step-<step>.png` and `.mp4` go.
        accelerator: processes, which share the work.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: walt_tokenizer.VideoTokenizer,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.request, self.tokenizer = request, tokenizer
        self.folder, self.accelerator = folder, accelerator

    def __call__(self, model: Walt, step: int) -> None:
        """Writes the samples of a step."""
        clips = generate_together(model, self.tokenizer, self.request, self.accelerator)
        if self.accelerator.is_main_process:
            write_clips(self.folder, f"step-{step:08d}", clips)
        self.accelerator.wait_for_everyone()
