"""Writers of TFRecord files, protocol buffers and PNGs, made from the descriptions of the formats.

Nothing here comes from the package, so that its readers are tested against something else.
"""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

CRC_TABLE = []
for value in range(256):
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    CRC_TABLE.append(value)


def masked_crc(data: bytes) -> bytes:
    """The checksum of a TFRecord, byte by byte."""
    state = 0xFFFFFFFF
    for byte in data:
        state = state >> 8 ^ CRC_TABLE[(state ^ byte) & 0xFF]
    state ^= 0xFFFFFFFF
    return struct.pack("<I", ((state >> 15 | state << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_tfrecord(path: Path, records: Iterable[bytes]) -> Path:
    """One TFRecord file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + masked_crc(length) + record + masked_crc(record))
    return path


def varint(number: int) -> bytes:
    """A variable-length integer; negative ones take ten bytes."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number: int, value: int | float | bytes | str) -> bytes:
    """A field: an integer as varint, a float as double, the rest with its length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 1) + struct.pack("<d", value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values: list, *, packed: bool = True) -> bytes:
    """A Feature of tf.Example: of bytes, floats or integers, as the first value is."""
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, v) for v in values))
    if isinstance(values[0], float):
        cells = [struct.pack("<f", v) for v in values]
        single = b"".join(varint(1 << 3 | 5) + cell for cell in cells)
        return field(2, field(1, b"".join(cells)) if packed else single)
    single = b"".join(field(1, int(v)) for v in values)
    return field(3, field(1, b"".join(varint(int(v)) for v in values)) if packed else single)


def example(features: dict[str, list], *, packed: bool = True) -> bytes:
    """A tf.Example."""
    entries = (
        field(1, field(1, name) + field(2, feature(values, packed=packed)))
        for name, values in features.items()
    )
    return field(1, b"".join(entries))


def png(pixels: np.ndarray) -> bytes:
    """A PNG of 8 or 16 bits, (H, W) or (H, W, 3), whose rows take the five filters in turn."""
    height, width = pixels.shape[:2]
    depth, channels = pixels.dtype.itemsize, pixels.size // (height * width)
    step = depth * channels
    raw = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">")))
    rows = np.frombuffer(raw.tobytes(), np.uint8).reshape(height, width * step).astype(int)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    left = np.hstack([np.zeros((height, step), int), rows[:, :-step]])
    corner = np.hstack([np.zeros((height, step), int), above[:, :-step]])
    guess = left + above - corner
    near = [np.abs(guess - other) for other in (left, above, corner)]
    paeth = np.where(
        (near[0] <= near[1]) & (near[0] <= near[2]),
        left,
        np.where(near[1] <= near[2], above, corner),
    )
    predictions = [np.zeros_like(rows), left, above, (left + above) // 2, paeth]
    lines = b"".join(
        bytes([i % 5]) + ((rows[i] - predictions[i % 5][i]) % 256).astype(np.uint8).tobytes()
        for i in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, depth * 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    data = zlib.compress(lines)
    half = len(data) // 2  # the data may be cut anywhere into chunks
    chunks = [(b"IHDR", head), (b"IDAT", data[:half]), (b"IDAT", data[half:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def movi_features(seed: int = 0, frames: int = 3, height: int = 10, width: int = 12) -> dict:
    """A MOVi-E example with random content and two objects, and its arrays by name."""
    rng = np.random.default_rng(seed)
    objects = 2
    wide = {"high": 65536, "dtype": np.uint16}
    arrays = {
        "video": rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8),
        "segmentations": rng.integers(0, objects + 1, (frames, height, width), dtype=np.uint8),
        "depth": rng.integers(0, size=(frames, height, width), **wide),
        "normal": rng.integers(0, size=(frames, height, width, 3), **wide),
        "object_coordinates": rng.integers(0, size=(frames, height, width, 3), **wide),
        "forward_flow": rng.integers(0, size=(frames, height, width, 2), **wide),
        "positions": rng.normal(size=(objects, frames, 3)).astype(np.float32),
        "bboxes_3d": rng.normal(size=(objects, frames, 8, 3)).astype(np.float32),
        "camera/positions": rng.normal(size=(frames, 3)).astype(np.float32),
        "yxyx": rng.random((frames + 1, 4)).astype(np.float32),  # one box of object 0, all of 1
    }
    turns = rng.normal(size=(objects + 1, frames, 4))
    turns = (turns / np.linalg.norm(turns, axis=-1, keepdims=True)).astype(np.float32)
    arrays["quaternions"], arrays["camera/quaternions"] = turns[:objects], turns[objects]

    def numbers(name: str) -> list:
        return arrays[name].ravel().tolist()

    features = {
        name: [png(picture) for picture in arrays[name]]
        for name in ("video", "segmentations", "depth", "normal", "object_coordinates")
    }
    features |= {
        "forward_flow": numbers("forward_flow"),
        "metadata/video_name": [b"scene"],
        "metadata/depth_range": [2.0, 30.5],
        "metadata/forward_flow_range": [-3.0, 4.0],
        "camera/focal_length": [35.0],
        "camera/sensor_width": [32.0],
        "camera/field_of_view": [0.8576],
        "camera/positions": numbers("camera/positions"),
        "camera/quaternions": numbers("camera/quaternions"),
        "instances/positions": numbers("positions"),
        "instances/quaternions": numbers("quaternions"),
        "instances/bboxes_3d": numbers("bboxes_3d"),
        "instances/visibility": list(range(objects * frames)),
        "instances/category": [3, 13],
        "instances/is_dynamic": [1, 0],
        "instances/asset_id": [b"cube", b"sphere"],
        "instances/bboxes/ragged_flat_values": numbers("yxyx"),
        "instances/bboxes/ragged_row_lengths_0": [1, frames],
        "instances/bbox_frames/ragged_flat_values": [frames - 1, *range(frames)],
        "instances/bbox_frames/ragged_row_lengths_0": [1, frames],
    }
    return {"features": features, "arrays": arrays}
