"""Label Studio's run-length code of brush masks, which is the bit-packed format of the JavaScript package "rle-pack".

The coded array has four bytes per pixel (RGBA), row by row. The code is a header (32 bits: number of words; 5 bits:
size of a word; 4 × 4 bits: four sizes of counts) and a sequence of blocks: 1 bit: whether it is a run; 2 bits: which
size the count has; the count; one word for a run, or `count` words. Counts and sizes are stored minus 1.
"""

from __future__ import annotations

import itertools

import numpy as np

from tagmask.errors import DataError

_CHANNELS = 4
_COUNT_BITS = (3, 4, 8, 16)
_OPAQUE, _TRANSPARENT = f"{255:08b}", f"{0:08b}"


def encode_brush_mask(mask: np.ndarray) -> list[int]:
    """Return the code of a mask [H, W] bool as a list of bytes."""
    bits = [f"{mask.size * _CHANNELS:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _COUNT_BITS)]
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    for length, end in zip(np.diff(ends, prepend=0).tolist(), ends.tolist(), strict=True):
        word = _OPAQUE if flat[end - 1] else _TRANSPARENT
        left = length * _CHANNELS
        while left:
            count = min(left, 1 << _COUNT_BITS[-1])
            number, size = next((i, size) for i, size in enumerate(_COUNT_BITS) if count <= 1 << size)
            bits.append(f"1{number:02b}{count - 1:0{size}b}{word}")
            left -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush_mask(code: list[int], size: tuple[int, int]) -> np.ndarray:
    """Return the mask of a code: [H, W] bool, True where the pixel is not fully transparent.

    Args:
        code: bytes as numbers.
        size: (H, W) of the image.

    Raises:
        DataError: the code is damaged, or belongs to an image of another size.
    """
    try:
        bits = "".join(map("{:08b}".format, bytes(code)))
        num_words, word_size = int(bits[:32], 2), int(bits[32:37], 2) + 1
        count_bits = [int(bits[i : i + 4], 2) + 1 for i in range(37, 53, 4)]
        if num_words != size[0] * size[1] * _CHANNELS:
            raise DataError(f"a brush mask has {num_words // _CHANNELS} pixels, not {size[1]}×{size[0]} as its image.")
        words = np.zeros(num_words, np.uint32)
        position, filled = 53, 0
        while filled < num_words:
            is_run, width = bits[position] == "1", count_bits[int(bits[position + 1 : position + 3], 2)]
            count = int(bits[position + 3 : position + 3 + width], 2) + 1
            position += 3 + width
            num_values = 1 if is_run else count
            end = position + num_values * word_size
            starts = itertools.takewhile(lambda start: start < len(bits), range(position, end, word_size))
            words[filled : filled + count] = [int(bits[start : start + word_size], 2) for start in starts]
            position, filled = end, filled + count
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise DataError(f"a brush mask is damaged ({error}).") from error
    return words.reshape(*size, _CHANNELS)[..., -1] > 0
