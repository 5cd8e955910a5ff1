"""pixelSplat's chunks of RealEstate10K: `.torch` files of clips, their poses and their JPEGs.

Axes: `N` frames of a clip. A chunk is loaded once, to check it and to find where in the file each
picture is; single frames are then read from there, since the parts of the archive are stored as
they are.
"""

import hashlib
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int64, UInt8
from numpy import ndarray

from probe_datasets.formats.files import (
    FETCH_AGAIN,
    DataError,
    check_relative,
    data_error,
    file_size,
    read_json,
    safe_path,
)
from probe_datasets.formats.realestate10k import ClipPoses, plain_name, poses_from_rows
from probe_datasets.formats.still_images import decode_rgb

__all__ = [
    "ChunkClip",
    "ChunkPlaces",
    "chunk_places",
    "read_chunk",
    "read_chunk_index",
    "read_chunk_picture",
    "read_chunk_poses",
]

_MAX_PICKLE = 1 << 28
_LOCAL_HEADER = 30  # bytes before the name of a part, see APPNOTE.TXT 4.3.7
_NUMBERS = 18  # of a frame's camera


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChunkClip:
    """One clip of a pixelSplat chunk."""

    poses: ClipPoses
    """Times, intrinsics and poses of its frames."""
    images: tuple[UInt8[ndarray, "_"], ...]
    """The encoded JPEG of each frame."""
    path: Path
    """The chunk."""

    def picture(self, row: int) -> UInt8[ndarray, "H W 3"]:
        """Colour of the frame of a row, bytes 0 to 255.

        Args:
            row: which frame, from 0.

        Raises:
            DataError: the picture is damaged.
        """
        return decode_rgb(self.images[row].tobytes(), self.path, formats=("JPEG", "PNG"))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChunkPlaces:
    """Where one clip is in its chunk."""

    clip: str
    """Name of the clip."""
    cameras: int
    """Byte at which the 18 numbers of each frame begin."""
    number_bytes: int
    """4 or 8 for a number."""
    offsets: Int64[ndarray, " N"]
    """Byte at which the JPEG of each frame begins."""
    lengths: Int64[ndarray, " N"]
    """Bytes of each JPEG."""

    def pack(self) -> bytes:
        """All of it but the name, in twelve bytes a frame."""
        head = struct.pack("<QB", self.cameras, self.number_bytes)
        return head + self.offsets.astype("<i8").tobytes() + self.lengths.astype("<u4").tobytes()

    @staticmethod
    def unpack(clip: str, data: bytes) -> "ChunkPlaces":
        """What `pack` wrote.

        Args:
            clip: name of the clip.
            data: what `pack` returned.
        """
        cameras, number_bytes = struct.unpack_from("<QB", data)
        count = (len(data) - 9) // 12
        return ChunkPlaces(
            clip=clip,
            cameras=cameras,
            number_bytes=number_bytes,
            offsets=np.frombuffer(data, "<i8", count, 9).astype(np.int64),
            lengths=np.frombuffer(data, "<u4", count, 9 + 8 * count).astype(np.int64),
        )


def read_chunk_index(root: str | os.PathLike[str], split: str) -> Mapping[str, Path]:
    """The chunk that holds each clip, from pixelSplat's `<split>/index.json`.

    Args:
        root: the folder that holds `train/` and `test/`.
        split: "train" or "test".

    Raises:
        DataError: missing, no such table, or a chunk outside the folder.
    """
    path = Path(root, plain_name(split, root), "index.json")
    what = "a JSON object {clip: chunk}"
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise data_error(path, "holds no JSON object", what, FETCH_AGAIN)
    for clip, name in content.items():
        if not clip.isprintable():
            raise data_error(path, f"names a clip {clip[:80]!r}", what, FETCH_AGAIN)
        if not (isinstance(name, str) and name.endswith(".torch")):
            problem = f"names {str(name)[:80]!r} as a chunk"
            raise data_error(path, problem, "a .torch file", FETCH_AGAIN)
    folder = path.parent
    chunks = {name: safe_path(folder, name, source=path) for name in set(content.values())}
    return {clip: chunks[name] for clip, name in content.items()}


def read_chunk(path: str | os.PathLike[str]) -> list[ChunkClip]:
    """The clips of a pixelSplat chunk, a list of dictionaries of tensors.

    Only torch's restricted reader is used, which builds tensors and plain containers and refuses
    everything else, and only on archives without compression, so that nothing can unfold. Their
    checksums, which that reader passes over, are compared first.

    Args:
        path: the `.torch` file.

    Raises:
        DataError: missing, no such chunk, or anything in it that is no tensor, text or number.
    """
    return [_chunk_clip(entry, Path(path)) for entry in _load(path)]


def chunk_places(path: str | os.PathLike[str]) -> list[ChunkPlaces]:
    """Where the clips of a chunk are in its file.

    Args:
        path: the `.torch` file.

    Raises:
        DataError: as `read_chunk`; or tensors that are not in the file as they are in memory.
    """
    content = _load(path)
    clips = [_chunk_clip(entry, Path(path)) for entry in content]
    stored: dict[int, bytes] = {}  # many tensors may lie in one part of the archive
    for tensor in (tensor for entry in content for tensor in _tensors(entry)):
        address = tensor.untyped_storage().data_ptr()
        if address not in stored:
            stored[address] = _digest(_whole(tensor))
    with open(path, "rb") as file:
        starts = _starts(file, _parts(file), set(stored.values()))
    found = []
    for clip, entry in zip(clips, content, strict=True):
        places = [_place(tensor, stored, starts, path) for tensor in _tensors(entry)]
        found.append(
            ChunkPlaces(
                clip=clip.poses.clip,
                cameras=places[0],
                number_bytes=entry["cameras"].element_size(),
                offsets=np.array(places[1:], np.int64),
                lengths=np.array([len(image) for image in clip.images], np.int64),
            )
        )
    return found


def read_chunk_poses(path: str | os.PathLike[str], places: ChunkPlaces) -> ClipPoses:
    """Intrinsics and poses of a clip; its timestamps are the numbers of its frames.

    Args:
        path: the chunk.
        places: where the clip is in it.

    Raises:
        DataError: the file changed, or they are none.
    """
    count = len(places.offsets)
    data = _read(path, places.cameras, count * _NUMBERS * places.number_bytes)
    rows = np.frombuffer(data, f"<f{places.number_bytes}").astype(np.float64)
    times = np.arange(count, dtype=np.int64)
    return poses_from_rows(
        times, rearrange(rows, "(N k) -> N k", k=_NUMBERS), clip=places.clip, url="", path=path
    )


def read_chunk_picture(
    path: str | os.PathLike[str],
    places: ChunkPlaces,
    row: int,
    *,
    size: tuple[int, int] | None = None,
) -> UInt8[ndarray, "H W 3"]:
    """Colour of one frame, bytes 0 to 255.

    Args:
        path: the chunk.
        places: where the clip is in it.
        row: which frame, from 0.
        size: (height, width) that it must have.

    Raises:
        DataError: the file changed, or the picture is damaged.
    """
    data = _read(path, int(places.offsets[row]), int(places.lengths[row]))
    return decode_rgb(data, path, size=size, formats=("JPEG", "PNG"))


def _read(path: str | os.PathLike[str], offset: int, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise data_error(path, problem, "a chunk", "see to its permissions") from error
    if len(data) != length:
        raise data_error(path, "changed since it was indexed", "the same file", "index it again")
    return data


def _tensors(entry: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of a clip whose places count: its cameras, then its images."""
    return [entry["cameras"], *entry["images"]]


def _whole(tensor: torch.Tensor) -> bytes:
    """All bytes of what a tensor is stored in, which is one part of the archive."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy().tobytes()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _parts(file: BinaryIO) -> list[tuple[int, int]]:
    """(first byte, bytes) of what the parts of an archive hold."""
    found = []
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            file.seek(member.header_offset)
            name, extra = struct.unpack_from("<2H", file.read(_LOCAL_HEADER), _LOCAL_HEADER - 4)
            found.append((member.header_offset + _LOCAL_HEADER + name + extra, member.file_size))
    return found


def _starts(file: BinaryIO, parts: list[tuple[int, int]], wanted: set[bytes]) -> dict[bytes, int]:
    """First byte of the parts of some contents, by their digests."""
    starts = {}
    for start, length in parts:
        file.seek(start)
        digest = _digest(file.read(length))
        if digest in wanted:
            starts[digest] = start
    return starts


def _place(
    tensor: torch.Tensor,
    stored: dict[int, bytes],
    starts: dict[bytes, int],
    path: str | os.PathLike[str],
) -> int:
    """First byte of a tensor in the file."""
    start = starts.get(stored[tensor.untyped_storage().data_ptr()])
    if start is None or not tensor.is_contiguous():
        problem = "holds a tensor whose bytes are not in the file one after the other"
        raise data_error(path, problem, "contiguous tensors", "write the chunk again")
    return start + int(tensor.storage_offset()) * tensor.element_size()


def _load(path: str | os.PathLike[str]) -> list[Any]:
    """What a chunk holds, not yet checked to be clips."""
    _check_archive(path)
    what = "a chunk of pixelSplat: a list of clips"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # The restricted unpickler lets through whatever malformed input makes its steps raise.
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise data_error(path, f"cannot be read safely ({reason})", what, FETCH_AGAIN) from error
    if not isinstance(content, list):
        problem = f"holds a {type(content).__name__}"
        raise data_error(path, problem, what, FETCH_AGAIN)
    return content


def _check_archive(path: str | os.PathLike[str]) -> None:
    what = "a .torch file as torch.save writes it"
    size = file_size(path, what)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(members, size, path)
            damaged = archive.testzip()
    except DataError:
        raise
    # RuntimeError: a part that claims to be encrypted.
    except (
        *(OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError),
        *(OverflowError, LookupError, struct.error),
    ) as error:
        problem = f"is no zip archive ({error}), or one that is cut short"
        raise data_error(path, problem, what, FETCH_AGAIN) from error
    if damaged is not None:
        problem = f"is damaged: {damaged[:80]!r} does not match its checksum"
        raise data_error(path, problem, "an undamaged file", FETCH_AGAIN)


def _check_members(members: list[zipfile.ZipInfo], size: int, path: str | os.PathLike[str]) -> None:
    what = "a .torch file as torch.save writes it"
    for member in members:
        check_relative(member.filename, source=path, below="the archive")
        pickled = member.filename.endswith(".pkl") and member.file_size > _MAX_PICKLE
        if member.compress_type != zipfile.ZIP_STORED or pickled:
            problem = f"holds a compressed or oversized part {member.filename[:80]!r}"
            raise data_error(path, problem, what, FETCH_AGAIN)
    if sum(member.file_size for member in members) > size:
        problem = f"claims parts of more bytes than its own {size}"
        raise data_error(path, problem, what, FETCH_AGAIN)
    if len({member.filename for member in members}) != len(members):
        raise data_error(path, "holds two parts of one name", what, FETCH_AGAIN)


def _chunk_clip(entry: Any, path: Path) -> ChunkClip:
    expected = "clips of key, url, timestamps, cameras (frames x 18) and images"
    wrong = data_error(path, "holds something that is no clip", expected, FETCH_AGAIN)
    if not isinstance(entry, dict):
        raise wrong
    key, url = entry.get("key"), entry.get("url", "")
    times, cameras, images = (entry.get(name) for name in ("timestamps", "cameras", "images"))
    if not (
        isinstance(key, str)
        and key.isprintable()  # lone surrogates, which cannot be written, are not
        and isinstance(url, str)
        and isinstance(times, torch.Tensor)
        and isinstance(cameras, torch.Tensor)
        and isinstance(images, list)
        and times.dim() == 1
        and times.dtype in (torch.int64, torch.int32)
        and tuple(cameras.shape) == (len(times), 18)
        and cameras.dtype in (torch.float32, torch.float64)
        and len(images) == len(times) > 0
    ):
        raise wrong
    # A few bytes can pose as a large tensor by a stride of zero: nothing is copied before this.
    tensors = [times, cameras, *images]
    for tensor in tensors:
        if not (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided):
            raise wrong
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise wrong
    if any(image.dtype != torch.uint8 or image.dim() != 1 for image in images):
        raise wrong
    plain_name(key, path)
    rows = cameras.double().numpy()
    poses = poses_from_rows(times.long().numpy(), rows, clip=key, url=url, path=path)
    return ChunkClip(poses=poses, images=tuple(image.numpy() for image in images), path=path)
