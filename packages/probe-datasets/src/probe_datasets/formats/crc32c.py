"""The CRC-32C checksum of bytes, in plain numpy at gigabytes a second.

A long message is first folded: a CRC is the remainder of a polynomial over GF(2), and the one below
divides x^5275 + x^4508 + x^2751 + 1. Squaring that any number of times keeps it a multiple, so with
n = 64 s, s a power of two, x^(5275 n) is congruent to x^(4508 n) + x^(2751 n) + 1: the leading
64-bit words of a message may be added, by XOR, to three later places and dropped. That is done for
whole stretches at once. What is left, about 42 kB, goes through tables.

Reference:
    RFC 3720, appendix B.4 (the checksum and its test values).
"""

import numpy as np
from einops import rearrange

__all__ = ["crc32c"]

_POLYNOMIAL = 0x82F63B78  # bits reversed: the least significant bit is the highest power
_EXPONENTS = (5275, 4508, 2751)
_KEPT = 5280  # words left by folding: at least the first exponent, and whole blocks
_SCALES = (64, 16, 4, 1)
_BLOCK = 64  # bytes


def _position_tables() -> np.ndarray:
    """Remainder of each byte value when 0 to 63 zero bytes follow it, (64, 256)."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ _POLYNOMIAL, table >> 1).astype(np.uint32)
    tables = [table]
    for _ in range(_BLOCK - 1):
        tables.append((tables[-1] >> 8 ^ table[tables[-1] & 0xFF]).astype(np.uint32))
    return np.stack(tables)


_TABLES = _position_tables()
_BY_PLACE = _TABLES[::-1].copy()  # of the first byte of a block first
_BYTE: list[int] = _TABLES[0].tolist()
_STATE: list[list[int]] = [_BY_PLACE[i].tolist() for i in range(4)]
_PLACES = np.arange(_BLOCK)


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """The CRC-32C (Castagnoli) of some bytes, from 0 to 2^32 - 1.

    Args:
        data: the bytes; a long message is copied once.
    """
    if len(data) < _BLOCK:
        state = 0xFFFFFFFF
        for byte in bytes(data):
            state = state >> 8 ^ _BYTE[(state ^ byte) & 0xFF]
        return state ^ 0xFFFFFFFF
    padding = -len(data) % _BLOCK  # zeros in front change nothing once the start value is added
    message = np.zeros(padding + len(data), np.uint8)
    message[padding:] = np.frombuffer(data, np.uint8)
    message[padding : padding + 4] ^= 0xFF
    words = message.view(np.uint64)
    for scale in _SCALES:
        words = _fold(words, scale)
    blocks = rearrange(words.view(np.uint8), "(n place) -> n place", place=_BLOCK)
    state, (first, second, third, fourth) = 0, _STATE
    for remainder in np.bitwise_xor.reduce(_BY_PLACE[_PLACES, blocks], axis=1).tolist():
        state = (
            remainder
            ^ first[state & 0xFF]
            ^ second[state >> 8 & 0xFF]
            ^ third[state >> 16 & 0xFF]
            ^ fourth[state >> 24]
        )
    return state ^ 0xFFFFFFFF


def _fold(words: np.ndarray, scale: int) -> np.ndarray:
    """The end of a message, congruent to all of it; overwrites the message."""
    shifts = [(_EXPONENTS[0] - e) * scale for e in (*_EXPONENTS[1:], 0)]
    start, excess = 0, len(words) - _KEPT * scale
    while start < excess:
        stop = min(start + shifts[0], excess)  # so that no word is added before it is complete
        for shift in shifts:
            words[start + shift : stop + shift] ^= words[start:stop]
        start = stop
    return words[start:]
