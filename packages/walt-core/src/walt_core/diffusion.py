"""Noise schedule, targets and noise.

Axes: b batch, c latent channels, t h w latent grid. `gamma` is the fraction of signal variance.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

NUM_TIMESTEPS = 1000


class NoiseSchedule(nn.Module):
    """Variance-preserving schedule with zero terminal signal-to-noise ratio.

    `x_t = sqrt(gamma_t) x_0 + sqrt(1 - gamma_t) eps` for t = 0 .. num_timesteps - 1, with linear
    betas 1e-4 .. 0.02 rescaled so that gamma is exactly 0 at the last timestep. Timestep 0 keeps
    a trace of noise (gamma 0.9999).

    Reference: WALT, Sec. 3.1 and App.; Common Diffusion Noise Schedules (Lin et al., 2024),
        Algorithm 1.
    """

    gamma: Tensor

    def __init__(self, num_timesteps: int = NUM_TIMESTEPS) -> None:
        super().__init__()
        # fp64 on the CPU always, also when the model around it is built on the meta device.
        betas = torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64, device="cpu")
        alpha = torch.cumprod(1 - betas, dim=0).sqrt()
        alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
        self.gammas = tuple(alpha.square().tolist())

    @property
    def num_timesteps(self) -> int:
        """Number of noise levels."""
        return len(self.gammas)

    def level(self, timestep: int) -> dict[str, float]:
        """The noise level of a timestep as values: `alpha`, `sigma`, `log_snr` (-inf at the end).

        Raises:
            ValueError: if `timestep` is out of range.
        """
        if not 0 <= timestep < self.num_timesteps:
            raise ValueError(
                f"timestep {timestep} must be 0 (almost clean) to {self.num_timesteps - 1} "
                "(pure noise)"
            )
        gamma = self.gammas[timestep]
        return {
            "alpha": math.sqrt(gamma),
            "sigma": math.sqrt(1 - gamma),
            "log_snr": math.log(gamma / (1 - gamma)) if gamma else -math.inf,
        }

    def check(self, timestep: Int[Tensor, " b"]) -> None:
        """Checks that every timestep is in range.

        Raises:
            ValueError: naming one that is not.
        """
        low, high = int(timestep.min()), int(timestep.max())
        self.level(low if low < 0 else high)

    def coefficients(
        self, timestep: Int[Tensor, " b"], like: Float[Tensor, "b c t h w"]
    ) -> tuple[Float[Tensor, "b 1 1 1 1"], Float[Tensor, "b 1 1 1 1"]]:
        """sqrt(gamma) and sqrt(1 - gamma) of each sample, in the type of `like`.

        Raises:
            ValueError: if a timestep is out of range.
        """
        self.check(timestep)
        gammas = torch.tensor(self.gammas, dtype=torch.float64, device=timestep.device)
        gamma = rearrange(gammas[timestep], "b -> b 1 1 1 1")
        return gamma.sqrt().to(like), (1 - gamma).sqrt().to(like)

    def add_noise(
        self,
        latents: Float[Tensor, "b c t h w"],
        noise: Float[Tensor, "b c t h w"],
        timestep: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c t h w"]:
        """Noisy latents `sqrt(gamma) x_0 + sqrt(1 - gamma) eps`."""
        alpha, sigma = self.coefficients(timestep, latents)
        return alpha * latents + sigma * noise

    def v_target(
        self,
        latents: Float[Tensor, "b c t h w"],
        noise: Float[Tensor, "b c t h w"],
        timestep: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c t h w"]:
        """The regression target `v = sqrt(gamma) eps - sqrt(1 - gamma) x_0`.

        Reference: Progressive Distillation (Salimans and Ho, 2022), App. D. The formula printed
            in the WALT paper exchanges the coefficients; at the last timestep that form would
            carry no x_0.
        """
        alpha, sigma = self.coefficients(timestep, latents)
        return alpha * noise - sigma * latents

    def denoised(
        self,
        noisy: Float[Tensor, "b c t h w"],
        v: Float[Tensor, "b c t h w"],
        timestep: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c t h w"]:
        """The clean latents that a v stands for: `x_0 = sqrt(gamma) x_t - sqrt(1 - gamma) v`."""
        alpha, sigma = self.coefficients(timestep, noisy)
        return alpha * noisy - sigma * v

    def noise_of(
        self,
        noisy: Float[Tensor, "b c t h w"],
        v: Float[Tensor, "b c t h w"],
        timestep: Int[Tensor, " b"],
    ) -> Float[Tensor, "b c t h w"]:
        """The noise that a v stands for: `eps = sqrt(1 - gamma) x_t + sqrt(gamma) v`."""
        alpha, sigma = self.coefficients(timestep, noisy)
        return sigma * noisy + alpha * v


def sample_noise(
    shape: Sequence[int], sample_ids: Sequence[str], *, seed: int, timestep: int
) -> Float[Tensor, "b c t h w"]:
    """Gaussian noise that depends on (seed, sample id, timestep) alone.

    Args:
        shape: (c, t, h, w) of one sample.
        sample_ids: one name per sample.
        seed: noise seed.
        timestep: noise level that the noise is for.

    Returns:
        fp32 noise on the CPU, the same for any batch order and number of processes.
    """
    noise = []
    for sample_id in sample_ids:
        # Names of files need not be UTF-8.
        name = f"{seed}/{timestep}/{sample_id}".encode(errors="surrogateescape")
        digest = hashlib.blake2b(name, digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        noise.append(torch.randn(*shape, generator=generator))
    return torch.stack(noise)
