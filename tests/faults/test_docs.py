"""docs/durability.md says what the campaign found, no more and no less."""

from __future__ import annotations

from tests.faults.docs import PAGE, render


def test_the_page_has_what_was_found() -> None:
    """The tables are those of docs/faults/*.json; ``python -m tests.faults.docs`` renews them."""
    page = PAGE.read_text("utf-8")
    assert render(page) == page
