"""Sphinx extension: an index page's lists of links are its table of contents.

The pages of these docs are plain Markdown, without toctree directives. An index page lists the pages of its folder as
links at the start of list items or table rows; this extension appends hidden toctree directives for them. The heading
above a list becomes the caption of its part of the sidebar.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LISTED = re.compile(r"^(?:- |\| )\[[^\]]+\]\(([\w/-]+)\.md\)", re.MULTILINE)
SECTION = re.compile(r"^## (.+)\n", re.MULTILINE)


def toctrees(text: str, captions: bool) -> str:
    """Return the toctree directives of an index page.

    Args:
        text: The page in Markdown.
        captions: Whether headings become captions, which only the top level of the sidebar shows.
    """
    parts = ["", *SECTION.split(text)]  # a heading and the text below it in turns; the first text has no heading
    directives, listed = [], set[str]()
    for heading, body in zip(parts[::2], parts[1::2], strict=True):
        pages = [page for page in dict.fromkeys(LISTED.findall(body)) if page not in listed]
        listed.update(pages)
        if pages:
            caption = [f":caption: {heading}"] if captions and heading else []
            directives.append("\n".join(["```{toctree}", ":hidden:", *caption, "", *pages, "```"]))
    return "\n\n".join(directives)


def append_toctrees(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the toctree directives to a page named index before it is parsed."""
    if docname.rpartition("/")[2] == "index":
        source[0] += f"\n\n{toctrees(source[0], captions=docname == 'index')}\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the extension to Sphinx."""
    app.connect("source-read", append_toctrees)
    return {"parallel_read_safe": True}
