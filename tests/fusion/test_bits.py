"""Numbers packed in as few bits as their bound needs."""

import numpy as np
import pytest

from fusion import bits


@pytest.mark.parametrize(
    ("bound", "wide"), [(1, 1), (2, 1), (3, 2), (640, 10), (32_000, 15), (32_768, 15), (32_769, 16), (152_064, 18)]
)
def test_width_is_the_least_that_holds_every_number(bound: int, wide: int) -> None:
    assert bits.width(bound) == wide
    assert (bound - 1) >> wide == 0


@pytest.mark.parametrize("wide", range(1, 33))
@pytest.mark.parametrize("count", [1, 3, 10])
def test_what_is_packed_comes_back(wide: int, count: int) -> None:
    numbers = np.random.default_rng(wide).integers(0, 1 << wide, (50, count))
    numbers[0], numbers[1] = 0, (1 << wide) - 1
    packed = bits.pack(numbers, wide)
    assert packed.shape == (50, bits.row_bytes(count, wide))
    assert (bits.unpack(packed, count, wide) == numbers).all()


def test_the_layout_is_little_endian_bits() -> None:
    """The same bits as one whole number of each row, so that a store can be read by other means."""
    numbers = np.random.default_rng(0).integers(0, 1 << 18, (20, 10))
    for row, packed in zip(numbers.tolist(), bits.pack(numbers, 18), strict=True):
        assert int.from_bytes(packed.tobytes(), "little") == sum(value << 18 * i for i, value in enumerate(row))


def test_no_rows() -> None:
    assert bits.unpack(bits.pack(np.zeros((0, 4), np.int64), 9), 4, 9).shape == (0, 4)
