"""The command line: serve, stats, check. Settings come from the environment; see ``check``."""

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

    sys.exit(report.stats(url or f"http://localhost:{_settings().port}"))


@app.command()
def check() -> None:
    """Check settings, database and platform, and say what to do."""
    from itemstore import report

    sys.exit(report.check(_settings()))


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
