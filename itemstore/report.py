"""What the commands ``stats`` and ``quarantine`` ask a running server, and tell."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from itemstore import finding
from itemstore.asking import NoAnswer, Server, ask
from itemstore.check import mib


def _told(tell: Callable[[Console], None]) -> int:
    """Runs it; 1 if the server did not do its part."""
    console = finding.console()
    try:
        tell(console)
    except NoAnswer as reason:
        console.print(str(reason), style="red", markup=False)
        return 1
    except (KeyError, TypeError, AttributeError):
        console.print("What answers there is not an itemstore, or not this version.", style="red")
        return 1
    return 0


def stats(server: Server) -> int:
    """Prints the numbers of a running server. Returns 1 if there is none."""

    def tell(console: Console) -> None:
        shown = Table("what", "now", box=None)
        for name, value in ask(server, "/stats").items():
            shown.add_row(name.removeprefix("itemstore_"), _number(name, value))
        console.print(shown)

    return _told(tell)


def quarantine_list(server: Server) -> int:
    """Prints what is in quarantine. Returns 1 if the server does not answer."""

    def tell(console: Console) -> None:
        parked = ask(server, "/quarantine")["items"]
        if not parked:
            console.print("Nothing is in quarantine.")
            return
        shown = Table("id", "version", "at", "what PostgreSQL said", box=None)
        for each in parked:
            shown.add_row(
                *map(escape, (each["id"], str(each["version"]), each["at"], each["error"]))
            )
        console.print(shown)
        console.print("Correct an item with PUT, or see: itemstore quarantine --help")

    return _told(tell)


def quarantine_show(server: Server, item_id: str) -> int:
    """Prints one of them in full. Returns 1 if it is not there."""

    def tell(console: Console) -> None:
        console.print_json(data=ask(server, f"/quarantine/{quote(item_id, safe='')}"))

    return _told(tell)


def quarantine_retry(server: Server, item_id: str) -> int:
    """Has it written again. Returns 1 if PostgreSQL refuses it again, or it is not there."""

    def tell(console: Console) -> None:
        ask(server, f"/quarantine/{quote(item_id, safe='')}", "POST")
        console.print(f"{item_id} is written.", markup=False)

    return _told(tell)


def quarantine_discard(server: Server, item_id: str) -> int:
    """Has it given up. Returns 1 if it is not there."""

    def tell(console: Console) -> None:
        ask(server, f"/quarantine/{quote(item_id, safe='')}", "DELETE")
        console.print(f"{item_id} is again as PostgreSQL has it.", markup=False)

    return _told(tell)


def _number(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return f"{value:,.0f} ({mib(int(value))})"
    return f"{value:,.3f}" if "seconds" in name else f"{value:,.0f}"
