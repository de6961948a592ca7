"""The Jinja templates of the report. They escape everything that they insert."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tagmask.formatting import format_count, format_duration, format_percent, format_two_decimals


def relative_link(path: str) -> str:
    """Return the link to a relative path: escaped, and with "./", so that no part of it is taken for a scheme."""
    return f"./{quote(path, errors='surrogateescape')}" if path else ""


@cache
def load_template(name: str) -> Template:
    """Return a template of this folder, with the filters percent, number, count, duration and relative_link.

    Args:
        name: the name of the file.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=format_percent,
        number=format_two_decimals,
        count=format_count,
        duration=format_duration,
        relative_link=relative_link,
    )
    return environment.get_template(name)
