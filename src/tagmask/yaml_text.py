"""Reading and writing YAML, limited to what recipes need, so that no text takes long or fails in another way."""

from __future__ import annotations

from typing import Any, ClassVar

import yaml

from tagmask.errors import RecipeError
from tagmask.text import shorten

MAX_FILE_LENGTH = 1_000_000  # characters of a recipe
MAX_VALUE_LENGTH = 10_000  # characters of a --set
MAX_DEPTH = 20  # nested lists and mappings of a recipe
MAX_VALUE_DEPTH = 10  # of the value of a --set, so that the whole recipe stays below MAX_DEPTH
MAX_DIGITS = 18  # of an integer: below 2^63

_TYPES = ("null", "bool", "int", "float")  # besides texts
_NODE_STARTS = (yaml.ScalarEvent, yaml.SequenceStartEvent, yaml.MappingStartEvent)
_COLLECTION_STARTS = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_COLLECTION_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # written in C, where PyYAML was built with libyaml


class _Loader(_Parser):
    """The safe loader without dates and merge keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, Any]]]] = {
        first: [resolver for resolver in resolvers if resolver[0].rpartition(":")[2] in _TYPES]
        for first, resolvers in _Parser.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """The safe dumper without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: Any, node: yaml.ScalarNode) -> int:
    if sum(character.isalnum() for character in node.value) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} digits")
    return loader.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse_yaml(text: str, title: str, *, max_length: int = MAX_FILE_LENGTH, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of a YAML document without anchors, aliases, tags and dates.

    Args:
        text: the document.
        title: the subject of the error message, e.g. "recipe cam.yaml".
        max_length: the largest number of characters.
        max_depth: the largest number of nested lists and mappings.

    Raises:
        RecipeError: the text is not such a document.
    """
    if len(text) > max_length:
        raise RecipeError(f"{title} has more than {max_length:,} characters: shorten it.")
    try:
        _check_events(text, max_depth)
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text.strip() else ""
        raise RecipeError(
            f"{title} is not YAML ({shorten(error.problem or 'wrong syntax')}{line}): correct it."
        ) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML raises ValueError for some numbers
        raise RecipeError(f"{title} is not YAML that a recipe can use ({shorten(str(error))}): correct it.") from error


def dump_yaml(value: Any) -> str:
    """Return a JSON value as YAML that `parse_yaml` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_events(text: str, max_depth: int) -> None:
    """Raise ValueError for what recipes do not need, before any value is built."""
    depth = 0
    for event in yaml.parse(text, _Parser):
        if isinstance(event, yaml.AliasEvent) or (isinstance(event, _NODE_STARTS) and event.anchor is not None):
            raise ValueError("it has anchors or aliases, & and *")
        if isinstance(event, _NODE_STARTS) and event.tag is not None:
            raise ValueError("it has tags such as !!int")
        if isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # half of a surrogate pair is a ValueError
        depth += isinstance(event, _COLLECTION_STARTS) - isinstance(event, _COLLECTION_ENDS)
        if depth > max_depth:
            raise ValueError(f"more than {max_depth} lists and mappings are nested")
