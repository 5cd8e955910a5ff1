"""The linear maps of the model, in a precision that the machine has units for.

Axes: d channels in, e channels out.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, is_autocast_enabled, nn
from torch.amp import is_autocast_available

CPU_HAS_BF16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def cpu_has_bf16() -> bool:
    """Whether oneDNN has bf16 kernels for this CPU; a constant to torch.compile."""
    return CPU_HAS_BF16


def detour(x: Tensor) -> bool:
    """Whether a product with `x` is bf16 on a CPU that would compute it element by element."""
    if x.device.type != "cpu":
        return False
    dtype = x.dtype
    if dtype == torch.float32 and is_autocast_available("cpu") and is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    return dtype == torch.bfloat16 and not cpu_has_bf16()


def linear(
    x: Float[Tensor, "*b d"], weight: Float[Tensor, "e d"], bias: Float[Tensor, " e"] | None
) -> Float[Tensor, "*b e"]:
    """`torch.nn.functional.linear`; bf16 on a CPU without bf16 units is computed in fp32.

    There the result is rounded to bf16 once, as hardware does.
    """
    if not detour(x):
        return F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), bias).bfloat16()


class Linear(nn.Linear):
    """`torch.nn.Linear` through `linear`."""

    def forward(self, input: Float[Tensor, "*b d"]) -> Float[Tensor, "*b e"]:
        return linear(input, self.weight, self.bias)
