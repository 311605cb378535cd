"""docs/security.md names a test for what it claims: each of them exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from tests.test_documents import DOCS, rows, words

TESTS: Final = Path(__file__).parent
NAMED: Final = sorted(
    set(re.findall(r"`(test_\w+\.py)::(\w+)`", (DOCS / "security.md").read_text("utf-8")))
)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_named_tests_exist(file: str, name: str) -> None:
    """A test of this name stands in a file of this name."""
    found = "".join(each.read_text("utf-8") for each in TESTS.rglob(file))
    assert re.search(rf"^(async )?def {name}\(", found, re.M)


@pytest.mark.parametrize("header", ["threat", "risk"])
def test_every_claim_names_a_test(header: str) -> None:
    """A row has a measure and the test that shows it, or says what it waits for."""
    for what, measure, shown in rows(DOCS / "security.md", header, "measure"):
        assert words(measure), what
        assert "*to come" in measure or "test_" in shown, what


def test_all_ten_risks_are_there() -> None:
    """In their order."""
    found = [row[0].split()[0] for row in rows(DOCS / "security.md", "risk", "measure")]
    assert [f"API{number}" for number in range(1, 11)] == found
