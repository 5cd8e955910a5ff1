"""Classification accuracy.

Axes: b samples, k classes.
"""

from jaxtyping import Float, Int
from torch import Tensor


def top1(pred: Float[Tensor, "b k"], target: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 for each sample whose highest logit is its class, else 0; ties go to the lower class.

    Reference: From Image to Video, Sec. 3.4 (top-1 classification accuracy).

    Args:
        pred: logits.
        target: class indices in [0, k).

    Raises:
        ValueError: if there are NaN logits or a class is out of range.
    """
    if bool(pred.isnan().any()):
        raise ValueError("logits hold NaN; the readout or its features are broken")
    if bool(((target < 0) | (target >= pred.shape[1])).any()):
        raise ValueError(f"a class is outside [0, {pred.shape[1]}), the range of the logits")
    return (pred.argmax(dim=1) == target).float()
