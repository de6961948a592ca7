"""Whether the classes of a data set are everyday nouns, which a model that takes words as prompts would know."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_LEMMAS = Path("data", "_info", "imagenet_synset_to_lemma.txt")  # in timm: the nouns of ImageNet's 21,841 classes


def are_everyday_nouns(names: Iterable[str]) -> bool:
    """Return whether all names are nouns of ImageNet's 21,841 classes (WordNet), in the singular or with an -s.

    Example:
        >>> are_everyday_nouns(["dog", "Polar_Bear", "sheep"]), are_everyday_nouns(["dog", "M4x20 DIN 912"])
        (True, False)
    """
    known, words = _everyday_nouns(), [name.lower().replace("_", " ").strip() for name in names]
    return bool(words) and all(word in known or word.removesuffix("s") in known for word in words)


@cache
def _everyday_nouns() -> frozenset[str]:
    """Read the nouns from timm's file, without importing timm, which takes seconds; empty if there is none."""
    spec = find_spec("timm")
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / _LEMMAS if folders else _LEMMAS
    if not path.is_file():
        return frozenset()
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(word.strip().lower() for line in lines for word in line.partition("\t")[2].split(","))
