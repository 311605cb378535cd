"""The shape of the code: who may import whom, what may happen where, and how large a file gets.

The layers are a picture of the program, from the door to the disk. Each module stands in one, under
its own name or that of its package, and imports only from layers below.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "itemstore"

LAYERS = (
    ("__main__",),
    ("cli",),  # commands
    ("keys", "moving"),  # commands that ask a server or its database
    ("doctor", "indexes", "report", "web"),  # what a person and what a client gets
    ("check",),
    ("asking", "finding"),  # how a person's commands ask, and how they tell
    ("surroundings",),  # and over what it stands on
    ("metrics", "terminal", "__init__"),  # over a running store; __init__ is the library's door
    ("bulk",),  # streams over it
    ("store",),  # the one object the outside knows
    ("batch",),
    ("reader", "recorder"),
    (
        "persister",
        "quarantine",
        "succession",
    ),  # its parts that wait; first those that rest on the lease
    (
        *("admission", "allocator", "audit", "journaling", "keeper", "keyring", "lease", "lister"),
        *("loader", "quotas", "repetitions", "watcher"),
    ),
    ("packer",),
    ("issuer",),
    ("access", "deployment"),
    ("database", "settings"),
    ("deadlines", "forms"),
    ("accepted", "descriptors", "log", "memory", "options", "process", "tasks"),
    ("redaction",),
    ("storage",),  # talks to PostgreSQL
    ("core",),  # decides
    ("errors",),
)

FILE_LINES_MAX = 600

#: core/ gets time and chance as arguments, and does no I/O.
CORE_FORBIDDEN_MODULES = {
    "asyncio",
    "concurrent",
    "io",
    "logging",
    "os",
    "pathlib",
    "psycopg",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "uuid",
}
CORE_FORBIDDEN_CALLS = {"open", "print", "input", "now", "utcnow", "today", "sleep"}

#: Who sends statements to a server.
EXECUTING = {
    "moving/sqlite.py",  # SQLite's, on a file of somebody's
    "moving/tables.py",  # of another database, where it is no store's
    "storage/embedded.py",
    "storage/indexing.py",
    "storage/journal_file.py",  # SQLite's, on a file of its own
    "storage/postgres.py",
    "storage/session.py",
}

#: Texts that look like SQL outside storage/statements.py, by file: how many, and why.
SQL_ELSEWHERE = {
    "moving/sqlite.py": 5,  # SQLite's, on a file of somebody's
    "storage/embedded.py": 2,  # looks for the database, and makes it
    "storage/journal_file.py": 3,  # SQLite's, on a file of its own
    "indexes.py": 1,  # advice to a person who types it into psql
    "check.py": 1,  # advice to a person who types it into psql
}
SQL = re.compile(
    r"\s*(SELECT\s|INSERT\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|WITH\s+\w+\s+AS\s|TRUNCATE\s"
    r"|(CREATE|ALTER|DROP)\s+(TABLE|INDEX|DATABASE|SYSTEM|SCHEMA|ROLE|FUNCTION|TRIGGER)\s|LISTEN\s)"
)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"), str(file))


TREES = {file.relative_to(ROOT).as_posix(): parse(file) for file in sorted(ROOT.rglob("*.py"))}


def module_of(file: str) -> str:
    """``web/app.py`` → ``itemstore.web.app``; ``web/__init__.py`` → ``itemstore.web``."""
    return ".".join(["itemstore", *file.removesuffix(".py").split("/")]).removesuffix(".__init__")


MODULES = {module_of(file) for file in TREES}


def imports(file: str) -> set[str]:
    """The modules of ours that this one imports, in functions too."""
    found: set[str] = set()
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            # ``from itemstore import errors`` imports the module; of a name, its module.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES


def room_of(module: str) -> str:
    """The name under which a module stands in the layers."""
    return module.split(".")[1] if "." in module else "__init__"


def layer_of(module: str) -> int:
    [found] = [number for number, layer in enumerate(LAYERS) if room_of(module) in layer]
    return found


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls, each with the last part of the name it goes by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    yield name, node


def docstrings(tree: ast.Module) -> set[int]:
    """Where the docstrings begin: strings that are no data."""
    return {
        node.body[0].lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    }


def test_layers_are_complete() -> None:
    """Every module stands in exactly one layer, and every name in the layers is a module's."""
    named = [room for layer in LAYERS for room in layer]
    assert len(named) == len(set(named))
    assert {room_of(module) for module in MODULES} == set(named)


@pytest.mark.parametrize("file", TREES)
def test_imports_point_down(file: str) -> None:
    """A module imports only from layers below its own, or from its own package."""
    module = module_of(file)
    upwards = {
        other
        for other in imports(file)
        if layer_of(other) <= layer_of(module) and room_of(other) != room_of(module)
    }
    assert set() == upwards


def test_no_circle() -> None:
    """No module imports itself by way of others."""
    graph = {module_of(file): imports(file) for file in TREES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" → ".join(error.args[1])) from None


@pytest.mark.parametrize("file", [file for file in TREES if file.startswith("core/")])
def test_core_only_decides(file: str) -> None:
    """Nothing in core/ awaits, looks at a clock, draws a random number or touches a disk."""
    tree = TREES[file]
    waiting = ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith
    assert [] == [node for node in ast.walk(tree) if isinstance(node, waiting)]
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
    }
    assert set() == imported & CORE_FORBIDDEN_MODULES
    assert set() == {name for name, _ in calls(tree)} & CORE_FORBIDDEN_CALLS


@pytest.mark.parametrize("file", [file for file in TREES if file != "storage/statements.py"])
def test_sql_stands_in_one_file(file: str) -> None:
    """Every statement stands in storage/statements.py or schema.sql."""
    tree = TREES[file]
    statements = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if SQL.match(node.value) and node.lineno not in docstrings(tree)
    ]
    assert SQL_ELSEWHERE.get(file, 0) == len(statements), statements
    executed = [name for name, _ in calls(tree) if name.startswith(("execute", "copy_"))]
    assert file in EXECUTING or [] == executed


@pytest.mark.parametrize("file", [file for file in TREES if file != "storage/statements.py"])
def test_no_statement_is_put_together(file: str) -> None:
    """Outside storage/statements.py nothing that is executed is put together from parts."""
    for name, call in calls(TREES[file]):
        for argument in call.args[:1] if name.startswith("execute") else ():
            formatted = {each for each, _ in calls(argument)} & {"format", "join", "replace"}
            parts = [n for n in ast.walk(argument) if isinstance(n, ast.JoinedStr | ast.BinOp)]
            assert not parts, ast.unparse(call)
            assert not formatted, ast.unparse(call)


@pytest.mark.parametrize("file", TREES)
def test_files_are_short(file: str) -> None:
    """A file is short enough to be read in one go."""
    assert len((ROOT / file).read_text("utf-8").splitlines()) <= FILE_LINES_MAX


@pytest.mark.parametrize("file", TREES)
def test_nothing_prints(file: str) -> None:
    """What a person is told goes through the log, a console or standard error, never ``print``."""
    printing = [
        call.lineno
        for name, call in calls(TREES[file])
        if name == "print" and isinstance(call.func, ast.Name)
    ]
    assert [] == printing


def undocumented(body: Iterable[ast.stmt]) -> list[str]:
    """The public classes and functions without a docstring."""
    return [
        node.name
        for node in body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
    ]


@pytest.mark.parametrize("file", TREES)
def test_public_names_are_documented(file: str) -> None:
    """Every module, and every public class and function in it, says what it is."""
    assert ast.get_docstring(TREES[file]) is not None
    assert [] == undocumented(TREES[file].body)
