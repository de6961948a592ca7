"""Classes that a model with text prompts would know."""

from __future__ import annotations

import pytest

from tagmask.data import everyday_nouns
from tagmask.data.everyday_nouns import are_everyday_nouns


@pytest.mark.parametrize("names", [["cat", "cow", "dog", "horse", "person", "sheep"], ["Owls", "polar_bear", "bee"]])
def test_everyday_nouns(names: list[str]) -> None:
    assert are_everyday_nouns(names)


@pytest.mark.parametrize("names", [[], ["cat", "defect 3"], ["M4x20 DIN 912"], ["gut, leicht beschädigt"]])
def test_other_names(names: list[str]) -> None:
    assert not are_everyday_nouns(names)


def test_without_the_file_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    everyday_nouns._everyday_nouns.cache_clear()
    monkeypatch.setattr(everyday_nouns, "find_spec", lambda name: None)
    assert not are_everyday_nouns(["cat"])
    everyday_nouns._everyday_nouns.cache_clear()
