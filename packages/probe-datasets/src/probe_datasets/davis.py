"""DAVIS: videos whose objects are outlined in every frame."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Unpack

import pyarrow as pa
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from probe_datasets.clips import ClipConfig
from probe_datasets.formats.davis import VOID, find_sequence, read_mask, read_sequences
from probe_datasets.formats.files import DataError, data_error, file_size
from probe_datasets.formats.still_images import read_rgb
from probe_datasets.index import Listing
from probe_datasets.indexed import IndexedDataset, OpenOptions
from probe_datasets.scan import Row
from probe_datasets.schema import SegmentationExample
from probe_datasets.spec import DatasetSpec
from probe_datasets.transforms import crop_nearest, crop_resize
from probe_datasets.windows import central_window

__all__ = ["SPEC", "Davis"]

_SPLITS = {"train": "train", "validation": "val", "all": "all"}
RESOLUTIONS = ("480p", "Full-Resolution")
YEARS = (2016, 2017)

SPEC = DatasetSpec(
    name="davis",
    summary="DAVIS 2017 and 2016: short videos with the outline of every object in every frame",
    builder="probe_datasets.davis:Davis",
    task="segmentation",
    splits=("train", "validation", "all"),
    clip=ClipConfig(num_frames=17, stride=1, size=256),
    expected={"train": 60, "validation": 30},
    layouts=(
        "{JPEGImages,Annotations}/{480p,Full-Resolution}/<sequence>/<number>.{jpg,png} with "
        "ImageSets/{2017,2016}/{train,val}.txt, there or in DAVIS/",
        "the same without lists, for split 'all'",
    ),
    obtain="DAVIS-2017-trainval-480p.zip or -Full-Resolution.zip from https://davischallenge.org",
    licence="BSD",
    citation="Pont-Tuset et al., The 2017 DAVIS Challenge on Video Object Segmentation, 2017",
)


class Davis(IndexedDataset):
    """Neighbouring frames of a sequence with the masks of its objects; for evaluation.

    The central square is kept, of frames and masks alike; of masks each pixel takes the value at
    its centre. Frames without a mask are void, 255, all over.

    The masks of 2016 as they were first published know one object, which is written 255. So, with
    `year=2016`, 255 is object 1 where the masks of a clip have no other index than 0.

    Args:
        root: the folder `DAVIS`, or the one that holds it.
        split: "train", "validation", or "all" for every folder of pictures.
        year: 2017, or 2016, whose lists have 30 and 20 sequences.
        resolution: "480p" or "Full-Resolution".
        common: see `IndexedDataset`; nothing is random unless `augment` is true.

    Raises:
        DataError: the folder is not as expected, or a sample is bad under "raise".
        ValueError: an argument is out of range.
    """

    spec: ClassVar[DatasetSpec] = SPEC
    training_splits = ()
    listed = pa.schema(
        [
            ("pictures", pa.list_(pa.string())),  # below the root
            ("masks", pa.list_(pa.string())),  # of the same frames; null where there is none
            ("num_bytes", pa.int64()),  # of all of them
        ]
    )
    # Known without a scan; here so that sequences that are too short are counted.
    scanned = pa.schema([("num_frames", pa.int32())])

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        *,
        year: int = 2017,
        resolution: str = "480p",
        **common: Unpack[OpenOptions],
    ) -> None:
        if year not in YEARS:
            raise ValueError(f"year {year} must be one of {', '.join(map(str, YEARS))}")
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution {resolution!r} must be one of {', '.join(RESOLUTIONS)}")
        self.year, self.resolution = year, resolution
        super().__init__(root, split, **common)

    def listing_options(self) -> Mapping[str, Any]:
        """Which sequences, and of which size."""
        return {"year": self.year, "resolution": self.resolution}

    def list_samples(self) -> Listing:
        """Every sequence of the split's list, whether its pictures are there or not.

        Raises:
            DataError: there is no folder of pictures, or the list is missing or damaged.
        """
        folder = f"JPEGImages/{self.resolution}"
        places = [self.root, self.root / "DAVIS"]
        base = next((place for place in places if (place / folder).is_dir()), None)
        if base is None:
            expected = f"{folder} there or in DAVIS/"
            fix = "unpack the archive there, or choose another resolution"
            raise data_error(self.root, "holds no folder of pictures", expected, fix)
        names = read_sequences(base, _SPLITS[self.split], self.year, self.resolution)
        return Listing(
            layout=f"{folder} with the lists of {self.year}"
            if self.split != "all"
            else f"{folder} without lists",
            rows=self._sequences(base, names),
            classes={},
            total=len(names),
        )

    def read(self, row: Row, chance: torch.Generator) -> SegmentationExample:
        """The clip of a sequence with its masks.

        Args:
            row: its row.
            chance: decides the first frame where it is random.

        Raises:
            DataError: a picture or mask is damaged or of another size than the first.
        """
        indices = self.clip_frames(row["num_frames"], chance)
        size: tuple[int, int] | None = None
        frames, segments = {}, {}
        for i in sorted(set(indices)):
            picture = torch.from_numpy(read_rgb(self.root / row["pictures"][i], size=size))
            height, width = size = (picture.shape[0], picture.shape[1])
            window = central_window(height, width)
            frames[i] = crop_resize(
                rearrange(picture, "H W c -> 1 c H W"), window, self.config.size
            )
            mask = self._mask(row["masks"][i], size)
            segments[i] = crop_nearest(mask, window, self.config.size)
        masks = torch.stack([segments[i] for i in indices])
        if self.year == 2016 and not ((masks != 0) & (masks != VOID)).any():
            masks[masks == VOID] = 1
            unknown = torch.tensor([row["masks"][i] is None for i in indices])
            masks[unknown] = VOID
        return SegmentationExample(
            video=torch.cat([frames[i] for i in indices], dim=1),
            segments=masks,
            sample_id=row["sample_id"],
        )

    def _mask(self, name: str | None, size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
        if name is None:
            return torch.full(size, VOID, dtype=torch.uint8)
        objects, valid = read_mask(self.root / name, size=size)
        objects[~valid] = VOID
        return torch.from_numpy(objects)

    def _sequences(self, base: Path, names: tuple[str, ...]) -> Iterator[Row]:
        for name in names:
            folder = base / "JPEGImages" / self.resolution / name
            row: Row = {"sample_id": name, "path": None, "num_frames": 0}
            if folder.is_dir() and any(folder.iterdir()):
                row["path"] = self._below(folder)
                try:
                    found = find_sequence(base, name, self.resolution)
                    files = [*found.frames, *(path for path in found.masks if path is not None)]
                    row["num_bytes"] = sum(file_size(path, "a picture") for path in files)
                except DataError as error:
                    yield {**row, "problem": str(error)}
                    continue
                row["pictures"] = [self._below(path) for path in found.frames]
                row["masks"] = [p if p is None else self._below(p) for p in found.masks]
                row["path"], row["num_frames"] = row["pictures"][0], len(found.frames)
            yield row

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()
