"""One seam for attention: a reference and the kernels that must agree with it.

Axes: b batch, m heads, n queries, s keys, k head width.
"""

import itertools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.compiler import is_compiling

from walt_core.ops.linear import cpu_has_bf16, detour

logger = logging.getLogger(__name__)
IMPLEMENTATIONS = ("math", "sdpa", "cpu", "flash")
# A CPU that needs no gradient computes this many logits at a time, which its cache holds: 16 heads
# of 256 tokens. 1.4 times as fast at 5 such windows in fp32, 2.4 times at 20 (on an AVX2 core).
LOGITS_AT_ONCE = 2**20


def attention(
    q: Float[Tensor, "b m n k"],
    k: Float[Tensor, "b m s k"],
    v: Float[Tensor, "b m s k"],
    bias: Float[Tensor, "m n s"] | None = None,
    valid: Bool[Tensor, "b s"] | None = None,
    *,
    impl: str = "math",
    scale: float | None = None,
) -> Float[Tensor, "b m n k"]:
    """Softmax attention with an optional additive bias.

    Reference: Vaswani et al., 2017, Eq. 1; bias as in Swin (Liu et al., 2021), Eq. 4.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the logits, the same for every batch entry.
        valid: which keys count, at least one for each batch entry; None: all.
        impl: `math` is the reference, two matrix products around a softmax; `sdpa` is
            `torch.nn.functional.scaled_dot_product_attention`; `cpu` is the one of them that CPUs
            are faster with; `flash` is the flash-attn package, which takes half precision on a
            GPU, no bias and no `valid`.
        scale: factor of the products of queries and keys; None: 1 / sqrt(head width).

    Raises:
        ValueError: for an unknown `impl`, or what `flash` does not take.
        ImportError: if `flash` is asked for and flash-attn is not installed.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if impl == "flash":
        if bias is not None or valid is not None:
            raise ValueError("attention 'flash' takes neither bias nor mask; use 'sdpa' or 'math'")
        # Under autocast the norms of queries and keys leave fp32.
        heads_inside = [rearrange(x.to(v.dtype), "b m n k -> b n m k") for x in (q, k, v)]
        out = load_flash()(*heads_inside, softmax_scale=scale)
        return rearrange(out, "b n m k -> b m n k")
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {impl!r}; known: {', '.join(IMPLEMENTATIONS)}")
    mask = None if bias is None else rearrange(bias.to(q.dtype), "m n s -> 1 m n s")
    if valid is not None:
        hidden = torch.zeros(valid.shape, dtype=q.dtype, device=q.device)
        hidden = hidden.masked_fill(~valid, -torch.inf)
        hidden = rearrange(hidden, "b s -> b 1 1 s")
        mask = hidden if mask is None else mask + hidden
    if impl == "cpu":
        impl = fastest_on_cpu(q)
    if detour(q):  # the products would be computed in fp32; so is the rest, and rounded once
        with torch.autocast("cpu", enabled=False):
            mask = None if mask is None else mask.float()
            full = attend(q.float(), k.float(), v.float(), mask, scale, impl)
        return full.bfloat16()
    return attend(q, k, v, mask, scale, impl)


def attend(
    q: Float[Tensor, "b m n k"],
    k: Float[Tensor, "b m s k"],
    v: Float[Tensor, "b m s k"],
    mask: Float[Tensor, "#b #m #n s"] | None,
    scale: float,
    impl: str,
) -> Float[Tensor, "b m n k"]:
    """`math` or `sdpa`, with bias and `valid` as one mask."""
    if impl == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return math_attention(q * scale, k, v, mask)


def fastest_on_cpu(q: Float[Tensor, "b m n k"]) -> str:
    """`sdpa`, or `math` where a gradient is wanted or the CPU computes bf16 itself.

    On an AVX2 core and windows of 256 tokens SDPA takes 0.7 times as long in fp32, also for bf16
    that is computed in fp32 (benchmarks/walt.py). It has no fast kernel for a bias with a gradient,
    nor for bf16, where CPUs that have units for it are 2.3 times faster with `math`.
    """
    low = q.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    native = low and not detour(q)
    return "math" if native or torch.is_grad_enabled() else "sdpa"


def math_attention(
    q: Float[Tensor, "b m n k"],
    k: Float[Tensor, "b m s k"],
    v: Float[Tensor, "b m s k"],
    mask: Float[Tensor, "#b #m #n s"] | None,
) -> Float[Tensor, "b m n k"]:
    """Two matrix products around a softmax, for queries that are scaled."""
    b, m, n, s = *q.shape[:3], k.shape[2]
    part = max(1, LOGITS_AT_ONCE // (m * n * s))
    if b > part and q.device.type == "cpu" and not (torch.is_grad_enabled() or is_compiling()):
        masks = itertools.repeat(None) if mask is None else mask.expand(b, -1, -1, -1).split(part)
        parts = zip(q.split(part), k.split(part), v.split(part), masks, strict=False)
        return torch.cat([math_attention(*each) for each in parts])
    logits = torch.matmul(q, rearrange(k, "b m s k -> b m k s"))
    if mask is not None:
        logits = logits + mask
    return torch.matmul(logits.softmax(dim=-1), v)


def load_flash() -> Callable[..., Tensor]:
    """The kernel of the flash-attn package.

    Raises:
        ImportError: if it is not installed, saying how to install it.
    """
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ImportError(
            "attention 'flash' needs the flash-attn package, version 2 (flash-attn-4 has another "
            "interface): pip install 'walt-core[flash]', or take attention 'auto'"
        ) from error
    return flash_attn_func


def resolve_attention(impl: str) -> str:
    """The implementation that `impl` stands for; only `auto` chooses, and logs its choice.

    `auto` is `sdpa` where there is a GPU, and else `cpu`.

    Raises:
        ValueError: for an unknown name.
        ImportError: for `flash`, if flash-attn is not installed.
    """
    if impl == "auto":
        impl = "sdpa" if torch.cuda.is_available() else "cpu"
        logger.info("attention 'auto' uses %r", impl)
        units = "native" if cpu_has_bf16() else "computed in fp32"
        logger.info("bf16 matrix products on the CPU: %s", units)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {impl!r}; known: auto, {', '.join(IMPLEMENTATIONS)}")
    if impl == "flash":
        load_flash()
    return impl
