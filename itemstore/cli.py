"""The command line. Settings come from the environment; ``itemstore check`` shows them."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from itemstore import __version__, settings
from itemstore.errors import StartupError

app = typer.Typer(
    help="A JSON item store with memory-speed reads and writes and plain PostgreSQL underneath.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_ServerUrl = Annotated[
    str, typer.Option("--url", envvar="ITEMSTORE_URL", help="The running server.")
]


def main() -> None:
    """The command ``itemstore``."""
    app()


@app.command()
def serve() -> None:
    """Serve the HTTP API until SIGTERM or Ctrl-C."""
    from itemstore.web import server

    sys.exit(server.main(_settings()))


@app.command()
def stats(url: _ServerUrl = "") -> None:
    """Show the numbers of a running server."""
    from itemstore import report

    sys.exit(report.stats(_url(url)))


@app.command()
def check() -> None:
    """Check settings, database and platform, and say what to do."""
    from itemstore import report

    sys.exit(report.check(_settings()))


quarantine = typer.Typer(
    help="Accepted writes that PostgreSQL refused: kept, served, and to be seen to.",
    no_args_is_help=True,
)
app.add_typer(quarantine, name="quarantine")

_ItemId = Annotated[str, typer.Argument(help="The item's id.")]


@quarantine.command("list")
def list_parked(url: _ServerUrl = "") -> None:
    """Show what is in quarantine, and why."""
    from itemstore import report

    sys.exit(report.quarantine_list(_url(url)))


@quarantine.command()
def show(item_id: _ItemId, url: _ServerUrl = "") -> None:
    """Show one of them with its data."""
    from itemstore import report

    sys.exit(report.quarantine_show(_url(url), item_id))


@quarantine.command()
def retry(item_id: _ItemId, url: _ServerUrl = "") -> None:
    """Write it again, once the reason is gone."""
    from itemstore import report

    sys.exit(report.quarantine_retry(_url(url), item_id))


@quarantine.command()
def discard(
    item_id: _ItemId,
    url: _ServerUrl = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give the write up: the item is again as PostgreSQL has it."""
    from itemstore import report

    if not yes:
        typer.confirm(f"Give up the accepted write of {item_id!r} for good?", abort=True)
    sys.exit(report.quarantine_discard(_url(url), item_id))


index = typer.Typer(
    help="Indexes over fields of data, for filters and orders. They are made while stores run.",
    no_args_is_help=True,
)
app.add_typer(index, name="index")


@index.command()
def create(
    field: Annotated[str, typer.Argument(help="Such as data.price or data.address.city.")],
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            help="value: for comparing and sorting; json: for contains, and for whole arrays and "
            "objects.",
        ),
    ] = "value",
) -> None:
    """Make an index without holding up anybody; what a failed build left is made anew."""
    from itemstore import indexes

    sys.exit(indexes.index_create(_settings(), field, kind))


@index.command("list")
def list_indexes() -> None:
    """Show them: for what, how large, how often used, and whether they are valid."""
    from itemstore import indexes

    sys.exit(indexes.index_list(_settings()))


@index.command()
def drop(name: Annotated[str, typer.Argument(help="As the list shows it.")]) -> None:
    """Drop an index."""
    from itemstore import indexes

    sys.exit(indexes.index_drop(_settings(), name))


def _url(url: str) -> str:
    return url or f"http://localhost:{_settings().port}"


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def _settings() -> settings.Settings:
    try:
        return settings.load()
    except StartupError as error:
        _fail(error.detail)


def _fail(reason: str) -> NoReturn:
    for line in reason.splitlines():
        typer.secho(line, fg="red", err=True)
    typer.echo("See docs/settings.md, or run: itemstore check", err=True)
    raise SystemExit(2)
