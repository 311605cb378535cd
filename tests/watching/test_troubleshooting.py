"""docs/troubleshooting.md leaves out no error a caller gets, and none that stops a start."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from itemstore import errors
from tests.test_documents import DOCS, ROOT, error_codes, rows, words

DOCUMENT = DOCS / "troubleshooting.md"

#: Raised with somebody else's sentence, which the document has too.
PASSED_ON = ("is not allowed: give", "DATABASE_URL is not a connection string")


def test_each_error_code_has_its_row() -> None:
    """Each code that can be an answer stands in one row, with its status and what to do."""
    found = rows(DOCUMENT, "code", "status")
    assert sorted(error_codes()) == sorted(words(row[0]) for row in found)
    statuses = {each.code: each.status for each in _tree(errors.ItemStoreError)}
    assert {words(row[0]): statuses[words(row[0])] for row in found} == {
        words(row[0]): int(row[1]) for row in found
    }
    assert all(row[3].endswith(".") for row in found)


def _tree(error: type[errors.ItemStoreError]) -> Iterator[type[errors.ItemStoreError]]:
    yield error
    for each in error.__subclasses__():
        yield from _tree(each)


def startup_errors() -> dict[str, str]:
    """Where one is raised → its sentence, with … for what is filled in."""
    found = {}
    for file in sorted((ROOT / "itemstore").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id="StartupError"), args=[sentence]):
                    found[_place(file, node)] = _text(sentence)
    return found


def _place(file: Path, node: ast.Call) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno}"


def _text(sentence: ast.expr) -> str:
    match sentence:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(_text(part) for part in parts)
        case _:
            return "…"


SAYS = [words(row[0]) for row in rows(DOCUMENT, "says", "cause")]


@pytest.mark.parametrize(("place", "sentence"), startup_errors().items(), ids=str)
def test_each_startup_error_has_its_row(place: str, sentence: str) -> None:
    """What is said when a start fails can be found in the document."""
    assert sentence == "…" or any(says in sentence for says in SAYS), place


def test_no_row_is_of_an_error_that_is_gone() -> None:
    """Each row is of a sentence in the code."""
    sentences = startup_errors().values()
    gone = [says for says in SAYS if not any(says in sentence for sentence in sentences)]
    assert set() == set(gone) - set(PASSED_ON)
