"""Numbers as text, for the terminal and for the report."""

from __future__ import annotations

import math

MISSING = "–"
"""The text of a number that does not exist."""


def format_percent(fraction: float) -> str:
    """Return a fraction in percent with one decimal; "–" for NaN and infinity.

    Example:
        >>> format_percent(0.4561), format_percent(math.nan)
        ('45.6 %', '–')
    """
    return f"{100 * fraction:.1f} %" if math.isfinite(fraction) else MISSING


def format_two_decimals(value: float) -> str:
    """Return a number with two decimals; "–" for NaN.

    Example:
        >>> format_two_decimals(2.346), format_two_decimals(math.inf), format_two_decimals(math.nan)
        ('2.35', 'inf', '–')
    """
    return MISSING if math.isnan(value) else f"{value:.2f}"


def format_count(count: int) -> str:
    """Return an integer with a comma between groups of three digits.

    Example:
        >>> format_count(12345)
        '12,345'
    """
    return f"{count:,}"


def format_duration(seconds: float) -> str:
    """Return a duration in milliseconds, seconds, minutes or hours, whichever fits.

    Example:
        >>> [format_duration(seconds) for seconds in (0.0004, 0.273, 4.21, 42, 75, 3720)]
        ['0.4 ms', '273 ms', '4.2 s', '42 s', '1 min 15 s', '1 h 2 min']
    """
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        milliseconds = 1000 * seconds
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(size: float) -> str:
    """Return a number of bytes in MB or GB (powers of 1000), whichever fits.

    Example:
        >>> format_bytes(12_300_000), format_bytes(4_560_000_000)
        ('12 MB', '4.6 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
