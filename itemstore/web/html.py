"""HTML by functions: what is not HTML already is escaped, so that no text becomes an element."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from markdown_it import MarkdownIt

#: Elements without an end (https://html.spec.whatwg.org/multipage/syntax.html#void-elements).
_VOID: Final = frozenset({"link", "meta"})
_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False})


class Html(str):
    """Text that is HTML already."""


def element(name: str, /, *content: str, cls: str = "", **attributes: str) -> Html:
    """An element with its attributes; ``cls`` is its class."""
    if cls:
        attributes["class"] = cls
    given = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(content)}</{name}>")


def joined(parts: Iterable[str], between: str = "") -> Html:
    """The parts that are not empty, one after another."""
    return Html(between.join(_safe(part) for part in parts if part))


def _safe(part: str) -> str:
    return part if isinstance(part, Html) else escape(part)


def markdown(text: str | None) -> Html:
    """What the Markdown says; HTML in it is text."""
    return Html(_MARKDOWN.render(text)) if text else Html()


def code(text: str) -> Html:
    """A word of code."""
    return element("code", text)


def block(text: str) -> Html:
    """Lines of code, which can be scrolled by the keyboard."""
    return element("pre", code(text.rstrip("\n")), tabindex="0")
