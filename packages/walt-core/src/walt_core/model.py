"""The denoiser: windowed-attention latent transformer, video and image twin.

Axes: b batch, c latent channels, t h w latent grid, d width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from walt_core.blocks import WindowBlock, modulate
from walt_core.config import WaltConfig
from walt_core.diffusion import NoiseSchedule, sample_noise
from walt_core.layers import (
    LowRankModulation,
    PositionEmbedding,
    RelativePositionBias,
    TimestepEmbedding,
)
from walt_core.ops.attention import resolve_attention


class Walt(nn.Module):
    """Predicts v from noisy latents; its residual stream is what readouts are trained on.

    Layers alternate spatial and spatio-temporal windows (V-WALT); with `windows="spatial"` every
    layer attends within one latent frame (I-WALT), with the same parameters but for the bias
    tables, whose size follows the window.

    Reference: WALT (Gupta et al., ECCV 2024), Sec. 3; From Image to Video, Sec. 3.2 and 3.3.
    """

    def __init__(self, config: WaltConfig) -> None:
        super().__init__()
        self.config = config
        self.schedule = NoiseSchedule()
        impl = resolve_attention(config.attention)
        self.patch_embed = nn.Linear(config.latent_channels, config.width)
        self.positions = PositionEmbedding(config.latent_size, config.width)
        self.timestep = TimestepEmbedding(config.width)
        self.modulation = nn.Linear(config.width, 6 * config.width)
        self.blocks = nn.ModuleList(
            WindowBlock(
                config.width,
                config.num_heads,
                config.mlp_ratio,
                config.window(layer),
                config.adaln_rank,
                impl,
            )
            for layer in range(1, config.depth + 1)
        )
        self.norm_out = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.modulation_out = nn.Linear(config.width, 2 * config.width)
        self.proj_out = nn.Linear(config.width, config.latent_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases; modulations and the output start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, PositionEmbedding):
                nn.init.normal_(module.space, std=0.02)
                nn.init.normal_(module.time, std=0.02)
            elif isinstance(module, RelativePositionBias):
                nn.init.zeros_(module.table)
        for module in self.modules():
            if isinstance(module, LowRankModulation):
                nn.init.zeros_(module.up.weight)
        for linear in (self.modulation, self.modulation_out, self.proj_out):
            nn.init.zeros_(linear.weight)

    def forward(
        self, latents: Float[Tensor, "b c t h w"], timestep: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c t h w"]:
        """The v prediction for noisy latents.

        Args:
            latents: noisy normalised latents.
            timestep: integer noise level of each sample, 0 = almost clean.

        Raises:
            ValueError: if the windows do not divide the latent grid, or a timestep is out of
                range.
        """
        self.schedule.check(timestep)
        x = self.embed(latents)
        condition = self.timestep(timestep)
        shared = self.modulation(F.silu(condition))
        for block in self.blocks:
            x = block(x, condition, shared)
        scale, shift = self.modulation_out(F.silu(condition)).chunk(2, dim=-1)
        v = self.proj_out(modulate(self.norm_out(x), scale, shift))
        return rearrange(v, "b t h w c -> b c t h w")

    def embed(self, latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b t h w d"]:
        """Block 0: patch embedding plus positions.

        Raises:
            ValueError: for the wrong number of channels or another dtype than the weights'.
        """
        if latents.dtype != self.patch_embed.weight.dtype and not torch.is_autocast_enabled(
            latents.device.type
        ):
            raise ValueError(
                f"latents are {latents.dtype} but the weights are {self.patch_embed.weight.dtype}; "
                "convert one of them, or use torch.autocast"
            )
        if latents.shape[1] != self.config.latent_channels:
            raise ValueError(
                f"latents have {latents.shape[1]} channels, expected "
                f"{self.config.latent_channels}: use the tokenizer this model was trained with"
            )
        x = self.patch_embed(rearrange(latents, "b c t h w -> b t h w c"))
        return x + self.positions((x.shape[1], x.shape[2], x.shape[3]))

    @torch.no_grad()
    def features(
        self,
        latents: Float[Tensor, "b c t h w"],
        *,
        blocks: Sequence[int],
        timestep: int,
        seed: int,
        sample_ids: Sequence[str],
    ) -> dict[int, Float[Tensor, "b t h w d"]]:
        """Residual stream after the asked blocks, from one pass that stops after the deepest.

        Reference: From Image to Video, Sec. 3.4: noise is added at `timestep`, then one forward
            pass. Block 0 is the patch embedding, block k the stream after layer k, unnormalised.

        Args:
            latents: clean normalised latents.
            blocks: which blocks, each 0 .. depth.
            timestep: noise level, 0 (almost clean) .. 999 (pure noise).
            seed: noise seed.
            sample_ids: one name per sample; noise depends on (seed, name, timestep) alone, so it
                is the same in any batch and order.

        Returns:
            The features of each asked block.

        Raises:
            ValueError: for a block or timestep out of range, no block at all, a number of ids
                that is not the batch size, or latents that are not finite.
        """
        depth = self.config.depth
        wrong = [block for block in blocks if not 0 <= block <= depth]
        if wrong or not blocks:
            raise ValueError(f"blocks {list(blocks)} must name blocks 0 to {depth} of this model")
        if len(sample_ids) != latents.shape[0]:
            raise ValueError(
                f"{len(sample_ids)} sample ids for {latents.shape[0]} samples; pass one per sample"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ValueError("latents hold NaN or infinite values; check the clip and tokenizer")
        noise = sample_noise(latents.shape[1:], sample_ids, seed=seed, timestep=timestep)
        steps = torch.full((latents.shape[0],), timestep, device=latents.device)
        x = self.embed(self.schedule.add_noise(latents, noise.to(latents), steps))
        condition = self.timestep(steps)
        shared = self.modulation(F.silu(condition))
        wanted = {0: x} if 0 in blocks else {}
        for number, block in enumerate(self.blocks[: max(blocks)], start=1):
            x = block(x, condition, shared)
            if number in blocks:
                wanted[number] = x
        return wanted
