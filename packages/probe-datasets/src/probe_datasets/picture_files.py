"""Datasets whose samples are single pictures with a class.

Axes: `T` equal frames, `H W` pixels.
"""

from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.still_images import read_rgb
from probe_datasets.indexed import IndexedDataset
from probe_datasets.scan import Row
from probe_datasets.schema import LabelledVideoExample
from probe_datasets.transforms import crop_resize, flip
from probe_datasets.windows import central_window, inception_window

__all__ = ["PictureFiles", "still_clip"]


class PictureFiles(IndexedDataset):
    """Pictures as clips that stand still: every frame is the picture.

    In training a random part of the picture is scaled to the clip's size and turned about its
    vertical axis half of the time; else its central square is kept.

    Reference: From Image to Video, App. D.1 (image classification).
    """

    def read(self, row: Row, chance: torch.Generator) -> LabelledVideoExample:
        """The picture of a row.

        Args:
            row: its row.
            chance: decides part and turn, in training.

        Raises:
            DataError: the file is no JPEG or PNG, or damaged.
        """
        (label,) = self.classes
        path, augmenting = self.root / row["path"], chance if self.augment else None
        return LabelledVideoExample(
            video=still_clip(path, self.config, augmenting),
            labels={label: row["label"]},
            sample_id=row["sample_id"],
        )


def still_clip(
    path: Path, config: ClipConfig, chance: torch.Generator | None
) -> Float[Tensor, "3 T H W"]:
    """A picture as a clip.

    Args:
        path: a JPEG or PNG.
        config: size of the clip and number of its frames, which share their memory.
        chance: decides part and turn; None for the central square as it is.

    Raises:
        DataError: the file is no such picture, or damaged.
    """
    frame = rearrange(torch.from_numpy(read_rgb(path)), "H W c -> 1 c H W")
    height, width = frame.shape[-2:]
    if chance is None:
        video = crop_resize(frame, central_window(height, width), config.size)
    else:
        video = crop_resize(frame, inception_window(height, width, chance), config.size)
        if torch.rand((), generator=chance) < 0.5:
            video = flip(video)
    return repeat(video, "c 1 H W -> c T H W", T=config.num_frames)
