"""The convolution seam: one valid 3D convolution, several ways to compute it.

Axes: b batch, c channels in, o channels out, t h w input grid, p q r output grid. All tensors are
channels last in memory.
"""

import functools
import logging
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, is_autocast_enabled
from torch.amp import is_autocast_available

logger = logging.getLogger(__name__)

ConvImpl = Literal["auto", "direct", "winograd"]

# Below these a convolution gains nothing from the transforms; measured by
# benchmarks/tokenizer.py on two AVX2 cores.
WINOGRAD_CHANNELS = 64
WINOGRAD_POSITIONS = 4096


def conv3d(
    x: Float[Tensor, "b c t h w"],
    weight: Float[Tensor, "o c kt kh kw"],
    bias: Float[Tensor, " o"] | None,
    stride: tuple[int, int, int],
    impl: ConvImpl = "auto",
) -> Float[Tensor, "b o p q r"]:
    """Convolution without padding.

    `direct` is `torch.nn.functional.conv3d`, the reference. `winograd` computes 3 x 3 x 3 kernels
    of stride 1 with a quarter of the multiplications, in fp32, to within a few times the rounding
    of a direct fp32 convolution; it has no gradient. `auto` takes it on a CPU where it is faster,
    and elsewhere `direct`. CPUs without bf16 units compute bf16 in fp32 and round the result. Under
    autocast, inputs and result are of its type, as those of PyTorch's convolution are.

    Raises:
        ValueError: if `impl` is unknown, or is `winograd` for a kernel or stride that it does not
            compute.
    """
    if impl not in ("auto", "direct", "winograd"):
        raise ValueError(f"unknown convolution {impl!r}; known: auto, direct, winograd")
    possible = tuple(weight.shape[2:]) == (3, 3, 3) and stride == (1, 1, 1)
    if impl == "winograd" and not possible:
        raise ValueError(
            f"winograd computes 3 x 3 x 3 kernels of stride 1, got kernel "
            f"{tuple(weight.shape[2:])} and stride {stride}; use 'auto' or 'direct'"
        )
    device = x.device.type
    if x.dtype != torch.float64 and is_autocast_available(device) and is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        # The transforms need the precision that autocast would take from their matrix products.
        with torch.autocast(device, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return conv3d(x.to(dtype), weight.to(dtype), bias, stride, impl)
    dtype = x.dtype
    if device == "cpu" and dtype == torch.bfloat16 and not cpu_has_bf16():
        x, weight = x.float(), weight.float()
        bias = None if bias is None else bias.float()
    if impl == "winograd" or (impl == "auto" and possible and winograd_pays(x, weight)):
        from walt_tokenizer.ops.winograd import winograd_conv3d

        out = winograd_conv3d(x.float(), weight.float())
        if bias is not None:
            out += rearrange(bias, "o -> 1 o 1 1 1")
    else:
        out = F.conv3d(x, weight, bias, stride)
    return out.to(dtype)


def winograd_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the transforms are likely to cost less than what they save."""
    positions = x.shape[0] * (x.shape[2] - 2) * (x.shape[3] - 2) * (x.shape[4] - 2)
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and min(weight.shape[:2]) >= WINOGRAD_CHANNELS
        and positions >= WINOGRAD_POSITIONS
    )


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether oneDNN has bf16 kernels for this CPU; logged once."""
    known = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    logger.info("bf16 convolutions on the CPU: %s", "native" if known else "computed in fp32")
    return known
