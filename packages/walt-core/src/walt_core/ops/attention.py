"""One seam for attention: a reference and the kernels that must agree with it.

Axes: b batch, m heads, n queries, s keys, k head width.
"""

import logging
from collections.abc import Callable

import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

logger = logging.getLogger(__name__)
IMPLEMENTATIONS = ("math", "sdpa", "flash")


def attention(
    q: Float[Tensor, "b m n k"],
    k: Float[Tensor, "b m s k"],
    v: Float[Tensor, "b m s k"],
    bias: Float[Tensor, "m n s"] | None = None,
    *,
    impl: str = "math",
) -> Float[Tensor, "b m n k"]:
    """Softmax attention with an optional additive bias, scaled by 1 / sqrt(head width).

    Reference: Vaswani et al., 2017, Eq. 1; bias as in Swin (Liu et al., 2021), Eq. 4.

    Args:
        q: queries.
        k: keys.
        v: values.
        bias: added to the logits, the same for every batch entry.
        impl: `math` is the reference, two matrix products around a softmax; `sdpa` is
            `torch.nn.functional.scaled_dot_product_attention`; `flash` is the flash-attn package,
            which takes half precision on a GPU and no bias.

    Raises:
        ValueError: for an unknown `impl`, or a bias with `flash`.
        ImportError: if `flash` is asked for and flash-attn is not installed.
    """
    if impl == "flash":
        if bias is not None:
            raise ValueError("attention 'flash' takes no additive bias; use 'sdpa' or 'math'")
        heads_inside = [rearrange(x, "b m n k -> b n m k") for x in (q, k, v)]
        return rearrange(load_flash()(*heads_inside), "b n m k -> b m n k")
    if impl == "sdpa":
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if impl == "math":
        logits = einsum(q * q.shape[-1] ** -0.5, k, "b m n k, b m s k -> b m n s")
        if bias is not None:
            logits = logits + bias
        return einsum(logits.softmax(dim=-1), v, "b m n s, b m s k -> b m n k")
    raise ValueError(f"unknown attention {impl!r}; known: {', '.join(IMPLEMENTATIONS)}")


def load_flash() -> Callable[..., Tensor]:
    """The kernel of the flash-attn package.

    Raises:
        ImportError: if it is not installed, saying how to install it.
    """
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise ImportError(
            "attention 'flash' needs the flash-attn package: pip install 'walt-core[flash]'"
        ) from error
    return flash_attn_func


def resolve_attention(impl: str) -> str:
    """The implementation that `impl` stands for; only `auto` chooses, and logs its choice.

    Raises:
        ValueError: for an unknown name.
    """
    if impl == "auto":
        logger.info("attention 'auto' uses 'sdpa'")
        return "sdpa"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown attention {impl!r}; known: auto, {', '.join(IMPLEMENTATIONS)}")
    return impl
