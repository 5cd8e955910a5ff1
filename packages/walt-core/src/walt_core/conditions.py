"""What a denoiser can be told beside noisy latents: class, text, and the frames before.

Axes: b batch, c latent channels, t h w latent grid, s text tokens, e text width.
"""

import dataclasses
from collections.abc import Callable

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from walt_core.config import WaltConfig


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Conditions of a batch; what is None is null for every sample.

    The null text is one token of zero states, so that what a model sees of it is the learned bias
    of its text projection.

    Reference: WALT, Sec. 3.3 and 3.4; From Image to Video, Sec. 3.4 (the null text).
    """

    classes: Int[Tensor, " b"] | None = None
    """Class of each sample, from 0; -1 is the null class."""
    text: Float[Tensor, "b s e"] | None = None
    """States of a text encoder."""
    text_valid: Bool[Tensor, "b s"] | None = None
    """Which tokens count, at least one in each sample; None: all."""
    past: Float[Tensor, "b c t h w"] | None = None
    """Clean latents on the grid of the noisy ones, of which the first frames are read."""
    past_frames: Int[Tensor, " b"] | None = None
    """How many latent frames of `past` each sample may know; 0 for none."""

    def check(self, config: WaltConfig, latents: Float[Tensor, "b c t h w"]) -> None:
        """Checks that a model takes these conditions, and that they fit its latents.

        Raises:
            ValueError: naming what does not fit.
        """
        b, _, t = latents.shape[:3]
        for name in ("classes", "text", "text_valid", "past", "past_frames"):
            value = getattr(self, name)
            if value is not None and value.shape[0] != b:
                raise ValueError(f"{name} is of {value.shape[0]} samples, the latents are of {b}")
        if self.classes is not None:
            if not config.num_classes:
                raise ValueError("classes are given to a model without: its num_classes is 0")
            if bool(((self.classes < -1) | (self.classes >= config.num_classes)).any()):
                raise ValueError(
                    f"classes {self.classes.tolist()} must be 0 to {config.num_classes - 1}, "
                    "or -1, the null class"
                )
        if self.text is not None:
            if not config.text_width:
                raise ValueError("text is given to a model without: its text_width is 0")
            if self.text.shape[2] != config.text_width or not self.text.shape[1]:
                raise ValueError(
                    f"text states (s, e)={tuple(self.text.shape[1:])} must be at least one token "
                    f"of width {config.text_width}, that of the model's text encoder"
                )
        if self.text_valid is not None:
            if self.text is None or self.text_valid.shape != self.text.shape[:2]:
                raise ValueError("text_valid must have one value for each token of text")
            if not bool(self.text_valid.any(dim=1).all()):
                raise ValueError(
                    "text_valid leaves a sample without a token; drop its text instead"
                )
        if (self.past is None) != (self.past_frames is None):
            raise ValueError("past and past_frames must be given together")
        if self.past is None or self.past_frames is None:
            return
        if not config.frame_conditioning:
            raise ValueError("past is given to a model without frame_conditioning")
        if self.past.shape != latents.shape:
            raise ValueError(
                f"past {tuple(self.past.shape)} must be on the grid of the latents "
                f"{tuple(latents.shape)}; fill the frames that are not known with zeros"
            )
        if bool(((self.past_frames < 0) | (self.past_frames >= t)).any()):
            raise ValueError(
                f"past_frames {self.past_frames.tolist()} must be 0 to {t - 1}: fewer than the "
                f"{t} latent frames of the clip"
            )

    def drop(self, dropped: Bool[Tensor, " b"]) -> "Conditions":
        """These conditions with class and text null where `dropped` is true."""
        classes, text, valid = self.classes, self.text, self.text_valid
        if classes is not None:
            classes = classes.masked_fill(dropped.to(classes.device), -1)
        if text is not None:
            mask = dropped.to(text.device)[:, None]
            text = text.masked_fill(mask[..., None], 0.0)
            valid = torch.ones_like(text[..., 0], dtype=torch.bool) if valid is None else valid
            first = torch.zeros_like(valid)
            first[:, 0] = True
            valid = torch.where(mask, first, valid)
        return dataclasses.replace(self, classes=classes, text=text, text_valid=valid)

    def repeat(self, *, outer: int = 1, inner: int = 1) -> "Conditions":
        """These conditions for a batch that was repeated.

        Args:
            outer: how often the whole batch comes, one after the other.
            inner: how often each sample comes in a row.
        """
        pattern = "b ... -> (outer b inner) ..."
        return self._map(lambda value: repeat(value, pattern, outer=outer, inner=inner))

    def without_content(self) -> "Conditions":
        """These conditions with class and text null for every sample."""
        return dataclasses.replace(self, classes=None, text=None, text_valid=None)

    def without_past(self) -> "Conditions":
        """These conditions with no known frames."""
        return dataclasses.replace(self, past=None, past_frames=None)

    def to(self, like: Tensor) -> "Conditions":
        """These conditions on the device of `like`, states and latents in its type."""
        return self._map(
            lambda value: value.to(like) if value.is_floating_point() else value.to(like.device)
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditions":
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Conditions(
            **{name: None if value is None else change(value) for name, value in values.items()}
        )
