"""Training losses of the tokenizer; each is a pure function of tensors.

Axes: b batch, T H W pixels.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def reconstruction_loss(
    pred: Float[Tensor, "b 3 T H W"], target: Float[Tensor, "b 3 T H W"]
) -> Float[Tensor, ""]:
    """Mean squared error between reconstruction and clip, in fp32.

    Reference: MAGVIT-v2, Sec. 4 (L2 reconstruction term).

    Args:
        pred: reconstruction, pixels around [-1, 1].
        target: clip, pixels in [-1, 1].
    """
    return F.mse_loss(pred.float(), target.float())
