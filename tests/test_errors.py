"""Messages of errors."""

from __future__ import annotations

import pickle

from tagmask.errors import DataError


def test_a_long_message_is_shortened_in_its_middle() -> None:
    assert str(DataError("a" * 1000)) == "a" * 1000
    message = str(DataError(f"x.csv has no image {'a' * 5000}; remove the line."))
    assert len(message) <= 1000
    assert message.startswith("x.csv has no image aaa")
    assert message.endswith("aaa; remove the line.")


def test_an_error_survives_the_way_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(DataError("x is bad; correct it.")))
    assert (type(error), str(error)) == (DataError, "x is bad; correct it.")
