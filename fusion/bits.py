"""Whole numbers below a bound, side by side in as few bits as the bound needs; each row begins at a byte of its own."""

import numpy as np
from jaxtyping import Int, UInt8


def width(bound: int) -> int:
    """The bits that a number from 0 to bound - 1 takes: ceil(log2(bound)), and at least 1."""
    return max(1, (bound - 1).bit_length())


def row_bytes(count: int, bits: int) -> int:
    """The bytes of a row of `count` numbers."""
    return -(-count * bits // 8)


def pack(numbers: Int[np.ndarray, "n count"], bits: int) -> UInt8[np.ndarray, "n bytes"]:
    """Rows of numbers below 2**bits (at most 32 bits), the lowest bits first."""
    n, count = numbers.shape
    packed = np.zeros((row_bytes(count, bits), n), np.uint8)
    for column in range(count):
        first, shift = divmod(column * bits, 8)
        value = numbers[:, column].astype(np.uint64) << np.uint64(shift)
        for byte in range(first, row_bytes(column + 1, bits)):
            packed[byte] |= (value & np.uint64(0xFF)).astype(np.uint8)
            value >>= np.uint64(8)
    return np.ascontiguousarray(packed.T)


def unpack(packed: UInt8[np.ndarray, "n bytes"], count: int, bits: int) -> Int[np.ndarray, "n count"]:
    """The `count` numbers of each row."""
    columns = np.ascontiguousarray(packed.T)
    numbers = np.empty((count, len(packed)), np.int64)
    for column in range(count):
        first, shift = divmod(column * bits, 8)
        value = columns[first].astype(np.int64)
        for byte in range(first + 1, row_bytes(column + 1, bits)):
            value |= columns[byte].astype(np.int64) << (8 * (byte - first))
        numbers[column] = value >> shift & ((1 << bits) - 1)
    return np.ascontiguousarray(numbers.T)
