"""Fixtures of the tests of methods."""

from tests.methods.contract import earlier_stages  # noqa: F401
