"""What somebody looked at and found, and how a person is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from rich.console import Console

from itemstore.redaction import Redaction


class Verdict(IntEnum):
    """The worse, the larger."""

    OK = 0
    WARN = 1  #: it will be wrong, or is less than it could be
    FAIL = 2  #: it is wrong now


_MARKS: Final = {
    Verdict.OK: "[green]  ok[/]",
    Verdict.WARN: "[yellow]warn[/]",
    Verdict.FAIL: "[red]FAIL[/]",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``advice`` says what to do unless it is ok.

    ``why`` is why it matters, where ``what`` does not say so.
    """

    verdict: Verdict
    what: str
    advice: str = ""
    why: str = ""


def console() -> Console:
    """Where a person is told."""
    return Console(highlight=False, soft_wrap=True)


def tell(to: Console, finding: Finding, hide: Redaction) -> None:
    """Prints it, without secrets."""
    to.print(f"{_MARKS[finding.verdict]}  ", end="")
    to.print(hide(finding.what), markup=False)
    for mark, text in (("·", finding.why), ("→", finding.advice)):
        if text:
            to.print(f"      {mark} {hide(text)}", markup=False)


async def told(findings: AsyncIterator[Finding], hide: Redaction) -> Verdict:
    """Prints each as it comes. Returns the worst verdict."""
    to, worst = console(), Verdict.OK
    async for finding in findings:
        worst = max(worst, finding.verdict)
        tell(to, finding, hide)
    return worst
