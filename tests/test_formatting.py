from __future__ import annotations

import math

import pytest

from tagmask.formatting import format_count, format_duration, format_percent, format_two_decimals


def test_missing_numbers_are_dashes() -> None:
    assert format_percent(math.nan) == format_percent(math.inf) == format_two_decimals(math.nan) == "–"


def test_numbers() -> None:
    assert format_percent(0.4561) == "45.6 %"
    assert format_two_decimals(2.346) == "2.35"
    assert format_two_decimals(math.inf) == "inf"
    assert format_count(1234567) == "1,234,567"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0004, "0.4 ms"), (0.273, "273 ms"), (0.9996, "1.0 s"), (9.94, "9.9 s"), (9.96, "10 s"),
        (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3599.6, "1 h 0 min"), (3720, "1 h 2 min"),
    ],
)  # fmt: skip
def test_durations_do_not_round_up_to_60(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
