"""A plot inside a page: SVG without what only a file needs, under ids that no other plot has."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

_LEFT_OUT = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_ROOT = re.compile(r"<svg\b[^>]*>")
_VIEW = re.compile(r'viewBox="[^"]*"')
_PATH = re.compile(r'(?<=\bd=")[^"]*')
_DIGITS = re.compile(r"(\d\.\d\d)\d+")  # a hundredth of a pixel is enough


def inline_svg(text: str, prefix: str, title: str) -> str:
    """SVG as matplotlib writes it, to stand in HTML.

    Args:
        text: of the file.
        prefix: put before all ids, which are unique in one file only.
        title: what a screen reader says.

    >>> inline_svg('<svg width="1pt" viewBox="0 0 1 1"><g id="a" href="#b" fill="url(#c)"/></svg>', "p", "A plot")
    '<svg viewBox="0 0 1 1" role="img" aria-label="A plot"><g id="p-a" href="#p-b" fill="url(#p-c)"/></svg>'
    """
    text = _LEFT_OUT.sub("", text).strip()
    view = _VIEW.search(text)
    root = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(title)}">'
    text = _ROOT.sub(lambda _: root, text, count=1)
    text = text.replace("xlink:href=", "href=")
    text = _PATH.sub(lambda found: _DIGITS.sub(r"\1", found[0]), text)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", text)


def plot_title(path: Path) -> str:
    """A plot's name for readers: that of its file.

    >>> plot_title(Path("plots/recall_by_size.png"))
    'Recall by size'
    """
    return path.stem.replace("_", " ").capitalize()
