"""The command line. Settings come from the environment; ``itemstore check`` shows them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from itemstore import __version__, settings
from itemstore.errors import StartupError

if TYPE_CHECKING:
    from itemstore.asking import Server

E = TypeVar("E", bound=StrEnum)

app = typer.Typer(
    help="A JSON item store with memory-speed reads and writes and plain PostgreSQL underneath.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_ServerUrl = Annotated[
    str, typer.Option("--url", envvar="ITEMSTORE_URL", help="The running server.")
]
_Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="ITEMSTORE_TOKEN",
        help="The key or token for that server; better in ITEMSTORE_TOKEN, which no list of "
        "processes shows.",
    ),
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
def stats(url: _ServerUrl = "", token: _Token = "") -> None:
    """Show the numbers of a running server."""
    from itemstore import report

    sys.exit(report.stats(_server(url, token)))


@app.command()
def check() -> None:
    """Check settings, database and platform, and say what to do."""
    from itemstore import check

    sys.exit(check.check(_settings()))


@app.command()
def doctor(url: _ServerUrl = "", token: _Token = "") -> None:
    """Look at a running deployment: what is wrong, why it matters, what to type."""
    from itemstore import doctor

    sys.exit(doctor.doctor(_settings(), _server(url, token)))


quarantine = typer.Typer(
    help="Accepted writes that PostgreSQL refused: kept, served, and to be seen to.",
    no_args_is_help=True,
)
app.add_typer(quarantine, name="quarantine")

_ItemId = Annotated[str, typer.Argument(help="The item's id.")]


@quarantine.command("list")
def list_parked(url: _ServerUrl = "", token: _Token = "") -> None:
    """Show what is in quarantine, and why."""
    from itemstore import report

    sys.exit(report.quarantine_list(_server(url, token)))


@quarantine.command()
def show(item_id: _ItemId, url: _ServerUrl = "", token: _Token = "") -> None:
    """Show one of them with its data."""
    from itemstore import report

    sys.exit(report.quarantine_show(_server(url, token), item_id))


@quarantine.command()
def retry(item_id: _ItemId, url: _ServerUrl = "", token: _Token = "") -> None:
    """Write it again, once the reason is gone."""
    from itemstore import report

    sys.exit(report.quarantine_retry(_server(url, token), item_id))


@quarantine.command()
def discard(
    item_id: _ItemId,
    url: _ServerUrl = "",
    token: _Token = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give the write up: the item is again as PostgreSQL has it."""
    from itemstore import report

    if not yes:
        typer.confirm(f"Give up the accepted write of {item_id!r} for good?", abort=True)
    sys.exit(report.quarantine_discard(_server(url, token), item_id))


_Format = Annotated[
    str, typer.Option("--format", help="ndjson, json, csv, sqlite, postgres or itemstore.")
]
_Server = Annotated[
    str, typer.Option("--server", help="A running server, instead of its database: http://…")
]


@app.command("import")
def import_items(
    source: Annotated[str, typer.Argument(help="A file, an address, or - for standard input.")],
    what: _Format = "",
    table: Annotated[str, typer.Option(help="Of a SQLite file or a PostgreSQL database.")] = "",
    query: Annotated[str, typer.Option(help="The same, by a SELECT.")] = "",
    id_column: Annotated[
        str | None, typer.Option("--id", help="The column with the id; by default id.")
    ] = None,
    created_at: Annotated[
        str | None, typer.Option(help="The column with the time of creation; '' for none.")
    ] = None,
    updated_at: Annotated[
        str | None, typer.Option(help="The column with the time of the last change; '' for none.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="The column that holds the whole data, as JSON.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="a,b,c: the columns that become the data; by default all others.")
    ] = "",
    parse: Annotated[
        bool, typer.Option("--parse", help="Text that is JSON, such as 12, becomes its value.")
    ] = False,
    delimiter: Annotated[str, typer.Option(help="Of CSV; by default found out.")] = "",
    conflict: Annotated[
        str, typer.Option(help="Of an item that is there: newer (replaces it), skip or replace.")
    ] = "newer",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, write nothing.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="The file for rejected rows and the reasons, NDJSON.")
    ] = None,
    server: _Server = "",
    token: _Token = "",
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew instead of going on.")
    ] = False,
) -> None:
    """Put the rows of a file, a database or another itemstore into the store."""
    from itemstore.core.operation import Conflict
    from itemstore.moving import command
    from itemstore.moving.mapping import Columns
    from itemstore.moving.sources import Choice, Format

    options = command.ImportOptions(
        choice=Choice(
            name=source,
            format=_one_of(Format, what, "--format"),
            table=table or None,
            query=query or None,
            id_column=id_column,
            delimiter=delimiter or None,
        ),
        columns=Columns(
            id=id_column,
            created_at=created_at,
            updated_at=updated_at,
            data=data,
            kept=tuple(columns.split(",")) if columns else (),
            parse=parse,
        ),
        conflict=_one_of(Conflict, conflict, "--conflict") or Conflict.NEWER,
        server=server,
        token=token,
        dry_run=dry_run,
        restart=restart,
        rejects=rejects,
    )
    sys.exit(command.run_import(_settings(), options))


@app.command("export")
def export_items(
    target: Annotated[str, typer.Argument(help="A file, or - for standard output.")],
    what: _Format = "",
    prefix: Annotated[str, typer.Option(help="Only items whose ids begin so.")] = "",
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", help="Only items that match, such as data.price=gte.10."),
    ] = None,
    fields: Annotated[
        str, typer.Option(help="The columns of CSV: id,created_at,data.name; by default all.")
    ] = "",
    keep_formulas: Annotated[
        bool, typer.Option("--keep-formulas", help="CSV: what a spreadsheet may run, as it is.")
    ] = False,
    server: _Server = "",
    token: _Token = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists.")
    ] = False,
) -> None:
    """Write all items to an NDJSON, CSV or SQLite file, in order of the id."""
    from itemstore.moving import command
    from itemstore.moving.exporting import ExportOptions
    from itemstore.moving.sources import Format

    options = ExportOptions(
        target=target,
        format=_one_of(Format, what, "--format"),
        prefix=prefix,
        filters=tuple(_condition(each) for each in filters or ()),
        fields=fields or None,
        formulas=keep_formulas,
        server=server,
        token=token,
        overwrite=overwrite,
    )
    sys.exit(command.run_export(_settings(), options))


keys = typer.Typer(
    help="API keys: who may call. Straight in the database, or through a running server by --url.",
    no_args_is_help=True,
)
app.add_typer(keys, name="keys")


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, for people.")],
    role: Annotated[str, typer.Option(help="read, write or admin.")] = "read",
    prefix: Annotated[
        str, typer.Option(help="Confine it to ids that begin so; not for an admin.")
    ] = "",
    expires: Annotated[str, typer.Option(help="When it is over: a time from now, as 90d.")] = "",
    max_items: Annotated[
        int | None, typer.Option(help="With how many items under its prefix it adds no more.")
    ] = None,
    max_bytes: Annotated[str, typer.Option(help="The same in bytes of their data, as 10MiB.")] = "",
    url: _ServerUrl = "",
    token: _Token = "",
) -> None:
    """Make a key and show it, this once."""
    from itemstore import keys as commands

    wanted = commands.Wanted(name, role, prefix, expires, max_items, max_bytes)
    sys.exit(commands.create(_settings(), wanted, url, token))


@keys.command("list")
def list_keys(url: _ServerUrl = "", token: _Token = "") -> None:
    """Show the keys there are, without what they are."""
    from itemstore import keys as commands

    sys.exit(commands.show(_settings(), url, token))


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="As the list shows it.")],
    url: _ServerUrl = "",
    token: _Token = "",
) -> None:
    """Let the key in no more; every instance knows within five seconds."""
    from itemstore import keys as commands

    sys.exit(commands.revoke(_settings(), key_id, url, token))


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


def _condition(text: str) -> tuple[str, str]:
    field, equals, condition = text.partition("=")
    if not equals:
        _fail(f"--filter {text} is no filter: give one such as data.price=gte.10.")
    return field, condition


def _one_of(kind: type[E], given: str, option: str) -> E | None:
    """None for none given."""
    if given and given not in list(kind):
        _fail(f"{option} {given} is not allowed: give {', '.join(kind)}.")
    return kind(given) if given else None


def _server(url: str, token: str) -> Server:
    from itemstore.asking import Server

    return Server(url or f"http://localhost:{_settings().port}", token)


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
