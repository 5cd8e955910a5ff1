"""Which container a file is and whether all of it is there, told from a few bytes of its headers.

Decoders are lenient: a WebM that was cut at 60 % opens and plays to the cut without an error. Both
families of container say how long they are, so a cut can be seen exactly: an MP4 is a row of boxes
with their sizes, a WebM one Segment with its size. Only headers are read, a few bytes each, and
nothing is allocated by a size that the file claims.

Reference:
    ISO/IEC 14496-12, 4.2 (boxes); RFC 8794, sections 4 to 6 (EBML variable-size integers and
    unknown sizes); RFC 9559, section 5 (Matroska elements).
"""

import os
import stat
from typing import BinaryIO

from probe_datasets.formats.files import FETCH_AGAIN, DataError, data_error

__all__ = ["VIDEO_CONTAINERS", "VideoError", "container_of", "file_size", "video_error"]

VIDEO_CONTAINERS = ("mp4", "mov", "webm", "mkv")
"""Names that `container_of` returns; also the extensions that a folder is searched for."""

CONVERT = "convert it, for example: ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4"
PASS_VIDEO = "pass a video file"
_EXPECTED = "an mp4, mov, webm or mkv video"
_HEAD_BYTES = 4096

_FIRST_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"styp"}
_KNOWN_BOXES = _FIRST_BOXES | {b"moof", b"mfra", b"sidx", b"ssix", b"udta", b"meta", b"emsg"}
_IMAGE_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"jpeg"}

_EBML, _DOC_TYPE = 0x1A45DFA3, 0x4282
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675

_AVI_REASON = (
    "is an AVI file, which stores no frame times: with packed B-frames, common in AVI, the frame "
    "count and the frames themselves come out wrong"
)
_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (8, b"AVI ", _AVI_REASON, CONVERT),
    (8, b"WEBP", "is a WebP image", PASS_VIDEO),
    (8, b"WAVE", "is WAV audio", PASS_VIDEO),
    (0, b"\xff\xd8\xff", "is a JPEG image", PASS_VIDEO),
    (0, b"\x89PNG\r\n\x1a\n", "is a PNG image", PASS_VIDEO),
    (0, b"GIF8", "is a GIF image", PASS_VIDEO),
    (0, b"II*\0", "is a TIFF image", PASS_VIDEO),
    (0, b"MM\0*", "is a TIFF image", PASS_VIDEO),
    (0, b"FLV\x01", "is a Flash video (flv)", CONVERT),
    (0, b"\x00\x00\x01\xba", "is an MPEG program stream (mpg, vob)", CONVERT),
    (0, b"\x00\x00\x01\xb3", "is an MPEG video stream without a container", CONVERT),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "is a Windows Media file (wmv, asf)", CONVERT),
    (0, b"OggS", "is an Ogg file (ogv, ogg)", CONVERT),
    (0, b".RMF", "is a RealMedia file", CONVERT),
    (0, b"YUV4MPEG2", "is a raw YUV4MPEG2 stream", CONVERT),
    (0, b"DKIF", "is an IVF stream", CONVERT),
    (0, b"\x06\x0e\x2b\x34", "is an MXF file", CONVERT),
    (0, b"ID3", "is MP3 audio", PASS_VIDEO),
    (0, b"fLaC", "is FLAC audio", PASS_VIDEO),
    (0, b"%PDF", "is a PDF document", PASS_VIDEO),
    (0, b"PK\x03\x04", "is a zip archive", PASS_VIDEO),
    (0, b"\x1f\x8b", "is a gzip archive", PASS_VIDEO),
    (
        0,
        b"version https://git-lfs",
        "is a Git LFS pointer, not the video",
        "run: git lfs pull",
    ),
    (0, b"\0" * 16, "begins with zeros, as an interrupted copy does", FETCH_AGAIN),
)


class VideoError(DataError):
    """A file that cannot serve as a video, in one line: path, what is wrong, expected, way out."""


def video_error(path: str | os.PathLike[str], problem: str, expected: str, fix: str) -> VideoError:
    """The VideoError of one file, on one line whatever characters its name holds.

    Args:
        path: the file.
        problem: what is wrong with it, as a verb phrase.
        expected: what would have been right.
        fix: what to do.
    """
    return VideoError(*data_error(path, problem, expected, fix).args)


def container_of(path: str | os.PathLike[str]) -> str:
    """Name of the container of a complete video file, judged by content and not by extension.

    Args:
        path: the file.

    Returns:
        One of `VIDEO_CONTAINERS`.

    Raises:
        VideoError: missing, a folder, empty, not a video container, or cut short.
    """
    size = file_size(path)
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if head[4:8] in _FIRST_BOXES:
                return _walk_boxes(file, size, head, path)
            if head[:4] == _EBML.to_bytes(4):
                return _walk_elements(file, size, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise video_error(
            path, f"cannot be read ({reason})", "a readable file", "see to its permissions"
        ) from error
    what, fix = _what_is(head)
    raise video_error(path, what, _EXPECTED, fix)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes in a regular, non-empty file.

    Raises:
        VideoError: missing, a folder, a device, pipe or socket, or empty.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "there is no such file" if missing else f"cannot be read ({error})"
        raise video_error(path, problem, _EXPECTED, "check the path and its permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise video_error(path, "is a folder", "a video file", "open a folder with FolderDataset")
    if not stat.S_ISREG(status.st_mode):
        raise video_error(
            path, "is a device, pipe or socket", "a regular file", "save it to a file first"
        )
    if status.st_size == 0:
        raise video_error(path, "is empty (0 bytes)", _EXPECTED, FETCH_AGAIN)
    return status.st_size


def _what_is(head: bytes) -> tuple[str, str]:
    """What a file that is no video container is, as a verb phrase, and what to do about it."""
    for offset, signature, what, fix in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return what, fix
    if any(head[i : i + 189 : 188] == b"GG" for i in (0, 4)):
        return "is an MPEG transport stream (ts, m2ts)", CONVERT
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0":
        return "is a BMP image", PASS_VIDEO
    text = head.decode("utf-8", "ignore")
    # A character that the end of `head` cuts is dropped by "ignore", at most three bytes.
    if len(text.encode()) >= len(head) - 3 and all(c.isprintable() or c.isspace() for c in text):
        if text.lstrip().lower().startswith(("<!doctype html", "<html")):
            return "is a web page, as a failed download leaves", FETCH_AGAIN
        return "is a text file", PASS_VIDEO
    return f"is of an unknown kind (first bytes {head[:8].hex(' ')})", CONVERT


def _cut(path: str | os.PathLike[str], what: str, end: int, size: int) -> VideoError:
    problem = f"is cut short: {what} ends at byte {end}, but the file has {size}"
    return video_error(path, problem, "the whole file", FETCH_AGAIN)


def _walk_boxes(file: BinaryIO, size: int, head: bytes, path: str | os.PathLike[str]) -> str:
    """Check that the top-level boxes of an MP4 or MOV fill the file and hold an index and data."""
    brand = head[8:12] if head[4:8] == b"ftyp" else b"qt  "
    if brand in _IMAGE_BRANDS:
        raise video_error(path, "is a HEIF or AVIF image", _EXPECTED, PASS_VIDEO)
    seen: set[bytes] = set()
    position = 0
    while position < size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4]), header[4:8]
        if length == 0:
            length = size - position
        elif length == 1:
            length = int.from_bytes(header[8:16])
        plausible = len(header) >= 8 and length >= 8 and (kind in _KNOWN_BOXES or kind.isalnum())
        fits = plausible and position + length <= size
        # Some writers leave bytes after the last box. Nothing is lost when index and data are
        # there, unless the file is a row of fragments (moof) and the next one has just begun.
        complete = b"moov" in seen and b"mdat" in seen
        fragment = b"moof" in seen and len(header) < 8
        if complete and not fits and not fragment and kind not in _KNOWN_BOXES:
            break
        if len(header) < 8:
            raise _cut(path, "a box header", position + 8, size)
        if not plausible:
            problem = f"is damaged: there is no box at byte {position}"
            raise video_error(path, problem, "a row of mp4 boxes", FETCH_AGAIN)
        if not fits:
            raise _cut(path, f"the box {kind.decode('latin-1')!r}", position + length, size)
        seen.add(kind)
        position += length
    if b"moov" not in seen:
        problem = "has no index (moov box): its recording or download stopped early"
        raise video_error(path, problem, "a finished mp4 or mov file", FETCH_AGAIN)
    if not seen & {b"mdat", b"moof"}:
        problem = "has an index but no frames (mdat box)"
        raise video_error(path, problem, "a finished mp4 or mov file", FETCH_AGAIN)
    return "mov" if brand == b"qt  " else "mp4"


def _walk_elements(file: BinaryIO, size: int, path: str | os.PathLike[str]) -> str:
    """Check that the Segment of a WebM or MKV ends within the file; return the name by DocType."""
    _, start, length = _element(file, 0)
    if length is None or length > _HEAD_BYTES or start + length > size:
        raise video_error(path, "has a damaged EBML header", _EXPECTED, FETCH_AGAIN)
    doc_type = _doc_type(file, start, start + length)
    if doc_type not in ("webm", "matroska"):
        raise video_error(path, f"is an EBML file of type {doc_type!r}", _EXPECTED, CONVERT)
    name = "webm" if doc_type == "webm" else "mkv"
    position, live = start + length, False
    while position < size:
        identity, start, length = _element(file, position)
        if start > size:
            raise _cut(path, "an element header", start, size)
        if length is None and identity in (_SEGMENT, _CLUSTER):
            live = True  # a live recording: the size was not known, so go by what is inside
            position = start
            continue
        if identity == 0 or length is None:
            break  # no element: damage, which decoding will show
        if start + length > size:
            what = {_SEGMENT: "the Segment", _CLUSTER: "a Cluster"}.get(identity, "an element")
            raise _cut(path, what, start + length, size)
        if identity == _SEGMENT:
            return name
        position = start + length
    if not live:
        problem = "has no Segment: its recording or download stopped early"
        raise video_error(path, problem, "a finished webm or mkv file", FETCH_AGAIN)
    return name


def _doc_type(file: BinaryIO, position: int, end: int) -> str:
    """DocType of an EBML header whose body lies between two positions; Matroska by default."""
    while position < end:
        identity, start, length = _element(file, position)
        if identity == 0 or length is None or start + length > end:
            break
        if identity == _DOC_TYPE:
            file.seek(start)
            return file.read(length).rstrip(b"\0").decode("ascii", "replace")
        position = start + length
    return "matroska"


def _element(file: BinaryIO, position: int) -> tuple[int, int, int | None]:
    """Identity (0 when there is none), start of the body and its length (None when unknown)."""
    file.seek(position)
    header = file.read(12)
    id_bytes = 9 - header[0].bit_length()
    if id_bytes > 4:
        return 0, position, None
    if len(header) <= id_bytes:
        return 1, position + id_bytes + 1, 0
    identity = int.from_bytes(header[:id_bytes])
    size_bytes = 9 - header[id_bytes].bit_length()
    if size_bytes > 8:
        return 0, position, None
    start = position + id_bytes + size_bytes
    mask = (1 << 7 * size_bytes) - 1
    length = int.from_bytes(header[id_bytes : id_bytes + size_bytes]) & mask
    return identity, start, None if length == mask else length
