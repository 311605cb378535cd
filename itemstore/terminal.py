"""What a person at a terminal sees of a starting server."""

from __future__ import annotations

import asyncio
import sys

from itemstore.store import ItemStore

_REFRESH_S = 0.1


def banner(url: str, data: str, auth: str, reach: str) -> str:
    """Where it is, where the data lies, who may call, and something to paste."""
    said = "" if auth == "none" else " -H 'Authorization: Bearer …'"
    return f"""
  itemstore serves   {url}
  the data lies in   {data}
  who may call       {"anybody" if auth == "none" else f"who has one of: {auth}"}
  who reaches it     {reach}
  try                curl --json '{{"data": {{"name": "Ada"}}}}' -X PUT {url}/items/ada{said}
                     curl {url}/items/ada{said}
"""


async def show_preload(store: ItemStore) -> None:
    """A bar on standard error while the preload runs; nothing where that is no terminal."""
    if not sys.stderr.isatty() or store.loader.estimate == 0:
        return
    # Here, not above: only a terminal pays for the import.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(
        "preload",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("preload", total=store.loader.estimate)
        while not store.cache.hydrated:
            progress.update(task, completed=store.loader.preloaded)
            await asyncio.sleep(_REFRESH_S)
