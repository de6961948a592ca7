"""A parser of HTML pages."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}  # elements without an end tag
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"  # must be escaped


class Page(HTMLParser):
    """Checks that tags are balanced, and collects the content of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> is not HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.replace("\u00a0", " "))
        if "style" not in self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data.strip()

    def row(self, name: str) -> list[str]:
        """Return the cells of the first row whose first cell is `name`, without the empty ones (bars)."""
        return next([cell for cell in row if cell] for row in self.rows if row and row[0] == name)
