"""The denoiser: windowed-attention latent transformer, video and image twin.

Axes: b batch, l noise levels, c latent channels, t h w latent grid, s text tokens, e text width,
d width.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from walt_core.blocks import WindowBlock, modulate
from walt_core.conditions import Conditions
from walt_core.config import WaltConfig
from walt_core.diffusion import NoiseSchedule, sample_noise
from walt_core.layers import CrossAttention, LowRankModulation, TimestepEmbedding
from walt_core.ops.attention import resolve_attention
from walt_core.ops.linear import Linear
from walt_core.positions import AxialPositionBias, JointPositionBias, PositionEmbedding
from walt_core.pretrained import PretrainedModel

Mode = Literal["video", "image"]
"""How clips are seen: whole, or each latent frame as an image of its own."""


class Walt(PretrainedModel):
    """Predicts v from noisy latents; its residual stream is what readouts are trained on.

    Layers alternate spatial and spatio-temporal windows (V-WALT); with `windows="spatial"` every
    layer attends within one latent frame (I-WALT), with the same parameters but for the bias
    tables, whose size follows the window. `latent_mean` and `latent_std` record the tokenizer's
    statistics, by which the latents it takes are normalised.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3; From Image to Video, Sec. 3.2 and 3.3.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: WaltConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.schedule = NoiseSchedule()
        self.gradient_checkpointing = False
        impl = resolve_attention(config.attention)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))
        self.patch_embed = Linear(config.input_channels, width)
        self.positions = PositionEmbedding(config.latent_size, width)
        self.timestep = TimestepEmbedding(width)
        self.classes = nn.Embedding(config.num_classes + 1, width) if config.num_classes else None
        self.text = Linear(config.text_width, width) if config.text_width else None
        self.modulation = Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            WindowBlock(config, layer, impl) for layer in range(1, config.depth + 1)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = Linear(width, 2 * width)
        self.proj_out = Linear(width, config.latent_channels)
        if not self.proj_out.weight.is_meta:  # where drawing means nothing and takes seconds
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; what is added to the stream starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, PositionEmbedding):
                nn.init.normal_(module.space, std=0.02)
                nn.init.normal_(module.time, std=0.02)
            elif isinstance(module, (JointPositionBias, AxialPositionBias)):
                for table in module.parameters():
                    nn.init.zeros_(table)
        for module in self.modules():
            if isinstance(module, LowRankModulation):
                nn.init.zeros_(module.up.weight)
            elif isinstance(module, CrossAttention):
                nn.init.zeros_(module.proj.weight)
        for linear in (self.modulation, self.modulation_out, self.proj_out):
            nn.init.zeros_(linear.weight)

    def forward(
        self,
        latents: Float[Tensor, "b c t h w"],
        timestep: Int[Tensor, " b"],
        conditions: Conditions | None = None,
        estimate: Float[Tensor, "b c t h w"] | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """The v prediction for noisy latents.

        Args:
            latents: noisy normalised latents.
            timestep: integer noise level of each sample, 0 = almost clean.
            conditions: class, text and past frames; None: all of them null.
            estimate: an estimate of the clean latents, for self-conditioning; None: zeros.

        Raises:
            ValueError: if the windows do not divide the latent grid, a timestep is out of range,
                or the conditions do not fit model or latents.
        """
        self.schedule.check(timestep)
        conditions = conditions or Conditions()
        conditions.check(self.config, latents)
        x = self.embed(latents, conditions, estimate)
        condition = self.condition(timestep, conditions)
        for stream in self.stream(x, condition, conditions, self.config.depth):
            x = stream
        scale, shift = self.modulation_out(F.silu(condition)).chunk(2, dim=-1)
        v = self.proj_out(modulate(self.norm_out(x), scale, shift))
        return rearrange(v, "b t h w c -> b c t h w")

    def embed(
        self,
        latents: Float[Tensor, "b c t h w"],
        conditions: Conditions,
        estimate: Float[Tensor, "b c t h w"] | None,
    ) -> Float[Tensor, "b t h w d"]:
        """Block 0: patch embedding of latents, estimate and past frames, plus positions.

        Raises:
            ValueError: for the wrong number of channels, another dtype than the weights', or an
                estimate of another shape or given to a model that has no use for it.
        """
        config, dtype = self.config, self.patch_embed.weight.dtype
        if latents.dtype != dtype and not torch.is_autocast_enabled(latents.device.type):
            raise ValueError(
                f"latents are {latents.dtype} but the weights are {dtype}; convert one of them, or "
                "use torch.autocast"
            )
        if latents.shape[1] != config.latent_channels:
            raise ValueError(
                f"latents have {latents.shape[1]} channels, expected {config.latent_channels}: use "
                "the tokenizer this model was trained with"
            )
        parts = [latents]
        if estimate is not None:
            if not config.self_conditioning:
                raise ValueError("estimate is given to a model without self_conditioning")
            if estimate.shape != latents.shape:
                raise ValueError(
                    f"estimate {tuple(estimate.shape)} must be of the shape of the latents "
                    f"{tuple(latents.shape)}"
                )
        if config.self_conditioning:
            parts.append(torch.zeros_like(latents) if estimate is None else estimate.to(latents))
        if config.frame_conditioning:
            known = torch.zeros_like(latents[:, :1])
            past = torch.zeros_like(latents)
            if conditions.past is not None and conditions.past_frames is not None:
                frames = torch.arange(latents.shape[2], device=latents.device)
                known = rearrange(frames < conditions.past_frames[:, None], "b t -> b 1 t 1 1")
                known = known.to(latents).expand(-1, -1, -1, *latents.shape[3:])
                past = conditions.past.to(latents) * known
            parts += [past, known]
        x = self.patch_embed(rearrange(torch.cat(parts, dim=1), "b c t h w -> b t h w c"))
        return x + self.positions((x.shape[1], x.shape[2], x.shape[3]))

    def condition(
        self, timestep: Int[Tensor, " b"], conditions: Conditions
    ) -> Float[Tensor, "b d"]:
        """Embedding of the timestep plus that of the class."""
        condition = self.timestep(timestep)
        if self.classes is None:
            return condition
        classes = conditions.classes
        if classes is None:
            classes = torch.full_like(timestep, -1)
        return condition + self.classes(classes % self.classes.num_embeddings)

    def stream(
        self,
        x: Float[Tensor, "b t h w d"],
        condition: Float[Tensor, "b d"],
        conditions: Conditions,
        depth: int,
    ) -> Iterator[Tensor]:
        """The residual stream after each of the first `depth` layers."""
        shared = self.modulation(F.silu(condition))
        text = valid = None
        if self.text is not None:
            states = conditions.text
            if states is None:
                states = x.new_zeros(x.shape[0], 1, self.config.text_width)
            valid = conditions.text_valid
            if valid is not None:
                # Weights of 0 do not hide NaN, which padding may hold.
                states = states.masked_fill(~valid[..., None], 0.0)
            text = self.text(states.to(x))
        for block in self.blocks[:depth]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, shared, text, valid, use_reentrant=False)
            else:
                x = block(x, condition, shared, text, valid)
            yield x

    def features(
        self,
        latents: Float[Tensor, "b c t h w"],
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int],
        noise: Float[Tensor, "b c t h w"] | None = None,
        seed: int | None = None,
        sample_ids: Sequence[str] | None = None,
        text: Float[Tensor, "b s e"] | None = None,
        text_valid: Bool[Tensor, "b s"] | None = None,
        mode: Mode = "video",
        dtype: torch.dtype | None = None,
    ) -> dict[int, Float[Tensor, "*l b t h w d"]]:
        """Residual stream after the asked blocks, from one pass that stops after the deepest.

        Reference: From Image to Video, Sec. 3.4: noise is added at `timestep`, then one forward
            pass with the null text, without self- or frame-conditioning. Block 0 is the patch
            embedding with positions, block k the stream after layer k, unnormalised.

        Args:
            latents: clean normalised latents.
            blocks: which blocks, each 0 .. depth.
            timestep: noise level, 0 (almost clean) .. 999 (pure noise); several go through the
                model as one batch.
            noise: unit Gaussian noise, the same at every level; or, in its place:
            seed: noise seed, with
            sample_ids: one name per sample; noise depends on (seed, name, timestep) alone, so it
                is the same in any batch and order.
            text: states of the text encoder; None: the null text.
            text_valid: which of its tokens count; None: all.
            mode: `image` shows the model each latent frame as an image of its own.
            dtype: type to compute in under autocast, such as `torch.bfloat16`; None: the
                weights' own.

        Returns:
            The features of each asked block, in the weights' type, without gradients; where
            `timestep` is a sequence, with a first axis of levels.

        Raises:
            ValueError: for a block, timestep or mode out of range, neither or both of noise and
                seed with ids, a number of ids that is not the batch size, or latents or noise
                that are not finite.
        """
        levels = [timestep] if isinstance(timestep, int) else list(timestep)
        depth = self.config.depth
        if not blocks or any(not 0 <= block <= depth for block in blocks):
            raise ValueError(f"blocks {list(blocks)} must name blocks 0 to {depth} of this model")
        if not levels:
            raise ValueError("timestep names no noise level; give at least one")
        if mode not in ("video", "image"):
            raise ValueError(f"mode {mode!r} must be 'video' or 'image'")
        noises = noise_of_levels(latents, levels, noise, seed, sample_ids)
        for name, values in (("latents", latents), ("noise", noises)):
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} hold NaN or infinite values; check the clip or tokenizer")
        weight = self.patch_embed.weight
        kind = weight.device.type
        with torch.inference_mode(), contextlib.ExitStack() as stack:
            if dtype is not None and dtype != weight.dtype:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            features = self._read(
                latents.to(weight.device),
                noises,
                levels,
                set(blocks),
                Conditions(text=text, text_valid=text_valid),
                mode,
            )
        # Ordinary tensors, which a readout may be trained on.
        grids = {block: grid.to(weight.dtype, copy=True) for block, grid in features.items()}
        return grids if not isinstance(timestep, int) else {k: v[0] for k, v in grids.items()}

    def _read(
        self,
        latents: Float[Tensor, "b c t h w"],
        noise: Float[Tensor, "l b c t h w"],
        levels: list[int],
        blocks: set[int],
        conditions: Conditions,
        mode: Mode,
    ) -> dict[int, Float[Tensor, "l b t h w d"]]:
        """`features` after its checks."""
        b, t = latents.shape[0], latents.shape[2]
        steps = repeat(torch.tensor(levels, device=latents.device), "l -> (l b)", b=b)
        clean = repeat(latents, "b c t h w -> (l b) c t h w", l=len(levels))
        noise = rearrange(noise.to(clean), "l b c t h w -> (l b) c t h w")
        x_t = self.schedule.add_noise(clean, noise, steps)
        grid, sizes = "(l b) t h w d -> l b t h w d", {"b": b}
        conditions = conditions.to(latents).repeat(outer=len(levels))
        if mode == "image":
            x_t = rearrange(x_t, "b c t h w -> (b t) c 1 h w")
            steps, conditions = repeat(steps, "b -> (b t)", t=t), conditions.repeat(inner=t)
            grid, sizes = "(l b t) 1 h w d -> l b t h w d", {"b": b, "t": t}
        x_t = x_t.to(self.patch_embed.weight.dtype)
        conditions.check(self.config, x_t)
        x = self.embed(x_t, conditions, None)
        wanted = {0: rearrange(x, grid, **sizes)} if 0 in blocks else {}
        condition = self.condition(steps, conditions)
        streams = self.stream(x, condition, conditions, max(blocks))
        for number, stream in enumerate(streams, start=1):
            if number in blocks:
                wanted[number] = rearrange(stream, grid, **sizes)
        return wanted

    def compile_blocks(self, **options: object) -> None:
        """Compiles every block in place, for shapes that stay as they are.

        The first pass at each shape then takes as long as the compiler does. All blocks of one
        kind share one graph.

        Args:
            options: for `torch.compile`, such as `mode="reduce-overhead"` for CUDA graphs.
        """
        for rearranging in (rearrange, repeat):  # Tracing their bodies takes most of the time.
            torch.compiler.allow_in_graph(rearranging)
        for block in self.blocks:
            block.compile(**{"dynamic": False, **options})


def noise_of_levels(
    latents: Float[Tensor, "b c t h w"],
    levels: Sequence[int],
    noise: Float[Tensor, "b c t h w"] | None,
    seed: int | None,
    sample_ids: Sequence[str] | None,
) -> Float[Tensor, "l b c t h w"]:
    """The noise of every level: as given, or drawn for (seed, sample id, timestep).

    Raises:
        ValueError: for neither or both, noise of another shape, or the wrong number of ids.
    """
    if (noise is None) == (seed is None) or (seed is None) != (sample_ids is None):
        raise ValueError("give either noise, or both seed and sample_ids")
    if noise is not None:
        if noise.shape != latents.shape:
            raise ValueError(
                f"noise {tuple(noise.shape)} must be of the shape of latents {tuple(latents.shape)}"
            )
        return repeat(noise, "b c t h w -> l b c t h w", l=len(levels))
    assert seed is not None
    assert sample_ids is not None
    if len(sample_ids) != latents.shape[0]:
        raise ValueError(
            f"{len(sample_ids)} sample ids for {latents.shape[0]} samples; pass one per sample"
        )
    return torch.stack(
        [sample_noise(latents.shape[1:], sample_ids, seed=seed, timestep=t) for t in levels]
    )


def num_parameters(config: WaltConfig) -> int:
    """Number of parameters of a model, counted without allocating it."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Walt(config).parameters())
