"""Look-up-free quantisation: each latent channel is one bit of a code.

The code of a latent z is +1 where z > 0 and -1 elsewhere, so zero gives -1; channel i is bit i of
the index, lowest first, and +1 is a set bit.

Reference: MAGVIT-v2 (Yu et al., ICLR 2024, arXiv 2310.05737), Sec. 3.1.

Axes: b batch, c channels = bits, t h w latent grid, n positions, g groups of k bits.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int, Int64
from torch import Tensor

from walt_tokenizer.losses import widen

MAX_BITS = 62
"""Bits of an index: those of a non-negative int64, less one."""
MAX_JOINT_BITS = 20
"""Bits whose joint distribution `entropy_loss` holds: 2^20 fp32 numbers are 4 MiB."""


def quantize(latents: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """Codes of exactly -1 and +1, through which gradients pass unchanged.

    Reference: MAGVIT-v2, Sec. 3.1, with the straight-through gradient of VQ-VAE
        (van den Oord et al., NeurIPS 2017, arXiv 1711.00937).

    Args:
        latents: finite; a NaN or an infinity gives NaN.

    Returns:
        Codes in the dtype of `latents`.
    """
    one = torch.ones((), dtype=latents.dtype, device=latents.device)
    # The difference is exactly zero, so that the codes are exact in every dtype.
    return torch.where(latents > 0, one, -one) + (latents - latents.detach())


def codes_to_indices(codes: Float[Tensor, "b c t h w"]) -> Int64[Tensor, "b t h w"]:
    """Index of the code at each position: the sum of 2^i over the channels i that are +1.

    Reference: MAGVIT-v2, Sec. 3.1.

    Args:
        codes: -1 and +1, as `quantize` returns them.

    Returns:
        Indices from 0 to 2^c - 1, such as 262,143 for 18 channels.

    Raises:
        ValueError: if a value is neither -1 nor +1, or there are no or more than 62 channels.
    """
    _check_num_bits(codes.shape[1])
    wrong = codes.detach().abs() != 1
    if wrong.any():
        raise ValueError(
            f"codes hold {codes[wrong][0].item():.6g} and {int(wrong.sum()) - 1} more values that "
            "are neither -1 nor +1: pass latents through quantize first"
        )
    return ((codes > 0) * _powers(codes.shape[1], codes.device)).sum(dim=1)


def indices_to_codes(indices: Int[Tensor, "b t h w"], num_bits: int) -> Float[Tensor, "b c t h w"]:
    """The inverse of `codes_to_indices`.

    Args:
        indices: whole numbers from 0 to 2^num_bits - 1.
        num_bits: channels of a code, from 1 to 62.

    Returns:
        Codes of -1 and +1 in fp32.

    Raises:
        ValueError: if an index is out of range, `indices` are not whole numbers, or `num_bits` is
            out of range.
    """
    _check_num_bits(num_bits)
    if indices.dtype == torch.bool or indices.is_floating_point() or indices.is_complex():
        raise ValueError(
            f"indices of dtype {indices.dtype} must be whole numbers: pass the int64 that "
            "codes_to_indices returns"
        )
    indices = indices.long()
    wrong = (indices < 0) | (indices >= 2**num_bits)
    if wrong.any():
        raise ValueError(
            f"indices hold {int(indices[wrong][0])}, expected 0 to {2**num_bits - 1} for "
            f"{num_bits} bits: they come from a tokenizer with more channels, or are damaged"
        )
    bits = rearrange(indices, "b t h w -> b 1 t h w") & _powers(num_bits, indices.device) != 0
    return bits.float() * 2 - 1


def entropy_loss(
    latents: Float[Tensor, "b c t h w"], *, temperature: float = 0.01, groups: int = 1
) -> Float[Tensor, ""]:
    """Mean entropy of each position's code less the entropy of the mean code, in nats.

    Low where each position is sure of its code and all codes are in use. The distribution of a
    position is the softmax of -|z - code|^2 / temperature over all codes. Its bits are independent,
    each +1 with probability sigmoid(4 z / temperature), so the first term is exact as a sum over
    bits. The mean over positions does not factorise: the second term needs all 2^c codes, but
    no more than 2^(c/2) numbers for each position, as the mean is a product of two matrices.

    More than one group is cheaper and needs fewer positions: consecutive bits are split into
    groups, and the second term becomes the sum of the groups' entropies, an upper bound of the
    entropy of the mean code, which does not see the dependence between groups. Under several
    processes the mean is over the positions of each process.

    Reference: MAGVIT-v2, Sec. 3.1; the temperature is that of MaskBit (Weber et al., TMLR 2024,
        arXiv 2409.16211), App. B.1.

    Args:
        latents: before `quantize`.
        temperature: of the soft assignment, positive; towards zero it becomes the hard one.
        groups: number of groups, which divides the channels and leaves at most 20 in each.

    Raises:
        ValueError: if `temperature` or `groups` is out of range.
    """
    channels = latents.shape[1]
    if not temperature > 0:
        raise ValueError(f"temperature {temperature} must be positive; 0.01 is usual")
    valid = [
        n for n in range(1, channels + 1) if not channels % n and channels // n <= MAX_JOINT_BITS
    ]
    if groups not in valid:
        raise ValueError(
            f"groups {groups} must divide the {channels} channels into groups of at most "
            f"{MAX_JOINT_BITS} bits: pick one of {valid}"
        )
    # Autocast would cast the matrix product.
    with torch.autocast(latents.device.type, enabled=False):
        latents = widen(latents)
        logits = rearrange(latents, "b (g k) t h w -> g (b t h w) k", g=groups) * (4 / temperature)
        positive, negative = torch.sigmoid(logits), torch.sigmoid(-logits)
        # Entropy of a bit, as a sum of positive terms that are exact far from zero.
        distance = logits.abs()
        per_bit = F.softplus(-distance) + distance * torch.sigmoid(-distance)
        per_position = per_bit.sum(dim=(0, 2)).mean()
        half = logits.shape[2] // 2
        low = _joint(negative[..., :half], positive[..., :half])
        high = _joint(negative[..., half:], positive[..., half:])
        mean = einsum(high, low, "g n i, g n j -> g i j") / logits.shape[1]
        tiny = torch.finfo(mean.dtype).tiny
        return per_position + (mean * mean.clamp_min(tiny).log()).sum()


def commitment_loss(
    latents: Float[Tensor, "b c t h w"], codes: Float[Tensor, "b c t h w"]
) -> Float[Tensor, ""]:
    """Mean squared distance of the latents to their codes, with a gradient for the latents only.

    Reference: VQ-VAE (van den Oord et al., 2017), Eq. 3, last term.

    Args:
        latents: before `quantize`.
        codes: after it.
    """
    return (widen(latents) - widen(codes.detach())).square().mean()


def _joint(negative: Float[Tensor, "g n k"], positive: Float[Tensor, "g n k"]) -> Tensor:
    """Probability of each of 2^k codes: g n 2^k, bit i of the code's number for channel i."""
    joint = torch.ones_like(negative[..., :0].sum(dim=-1, keepdim=True))
    for i in range(negative.shape[2]):
        joint = torch.cat([joint * negative[..., i : i + 1], joint * positive[..., i : i + 1]], -1)
    return joint


def _powers(num_bits: int, device: torch.device) -> Int64[Tensor, "c 1 1 1"]:
    return rearrange(2 ** torch.arange(num_bits, device=device), "c -> c 1 1 1")


def _check_num_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_BITS:
        raise ValueError(f"codes of {num_bits} bits have no int64 index: expected 1 to {MAX_BITS}")
