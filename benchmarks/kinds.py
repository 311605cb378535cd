"""What is compared: itemstore and what people would pick instead; what each does, and needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Final, NamedTuple

from benchmarks import charts
from benchmarks.charts import Look

MEMORY: Final = "itemstore-memory"
COMMIT: Final = "itemstore-commit"
EVERYSEC: Final = "redis-everysec"

READS: Final = frozenset({"get", "miss", "304"})
WRITES: Final = frozenset({"put", "post", "mixed"})
ALL: Final = READS | WRITES
BY_KEY: Final = frozenset({"get", "miss", "put", "post"})  #: what redis-benchmark can do
NO_IDS: Final = ALL - {"post"}  #: what Redis can be asked over HTTP
ONLY_PUT: Final = frozenset({"put"})  #: all else is the same with any AOF


class Kind(NamedTuple):
    """One row of the comparison, and what it needs."""

    title: str
    works: frozenset[str]
    look: Look
    commands: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    strays: float = 0.0  #: the share of its answers that may be to another request


#: Webdis 0.1.9 now and then gives a connection what one before it was to get, which had ended.
STRAYS: Final = 0.01

_REDIS: Final = ("redis-server", "redis-benchmark", "redis-cli")
_WEBDIS: Final = (*_REDIS, "webdis")
_LOOP: Final = ("uvloop", "httptools")
_SERVICE: Final = (*_LOOP, "fastapi", "uvicorn", "asyncpg")

KINDS: Final = {
    MEMORY: Kind("itemstore, memory", ALL, Look(charts.BLUE)),
    COMMIT: Kind("itemstore, commit", WRITES, Look(charts.BLUE, "--")),
    "redis-off": Kind("Redis, no AOF", ONLY_PUT, Look(charts.ORANGE, ":"), _REDIS),
    EVERYSEC: Kind("Redis, AOF everysec", BY_KEY, Look(charts.ORANGE), _REDIS),
    "redis-always": Kind("Redis, AOF always", ONLY_PUT, Look(charts.ORANGE, "--"), _REDIS),
    "webdis": Kind("Webdis, Redis everysec", NO_IDS, Look(charts.PURPLE), _WEBDIS, (), STRAYS),
    "fastapi": Kind("FastAPI + asyncpg", ALL, Look(charts.GREEN), (), _SERVICE),
    "aiohttp": Kind("aiohttp over a dict", ALL, Look(charts.GREY), (), ("uvloop",)),
    "bare": Kind("uvloop + httptools", ALL, Look(charts.GREY, "--"), (), _LOOP),
}

_PACKAGES: Final = {"redis-benchmark": "redis-tools", "redis-cli": "redis-tools"}


def missing(kinds: Sequence[str]) -> dict[str, list[str]]:
    """What the kinds need and this machine has not, by the command that installs it."""
    commands = {each for kind in kinds for each in KINDS[kind].commands} | {"wrk"}
    modules = {each for kind in kinds for each in KINDS[kind].modules}
    debian = {_PACKAGES.get(each, each) for each in commands if not shutil.which(each)}
    python = {each for each in modules if not find_spec(each)}
    found = {"apt-get install": sorted(debian), "pip install --group bench": sorted(python)}
    return {how: what for how, what in found.items() if what}


def is_installed(kind: str) -> bool:
    needs = KINDS[kind]
    return all(map(shutil.which, needs.commands)) and all(map(find_spec, needs.modules))


def versions() -> dict[str, str]:
    """Of what itemstore is compared with, as far as it tells and is installed."""
    python = {each for kind in KINDS.values() for each in kind.modules}
    told = [f"{name} {version(name)}" for name in sorted(python) if find_spec(name)]
    for command, option in (("redis-server", "--version"), ("wrk", "--version")):
        if shutil.which(command):
            done = subprocess.run([command, option], capture_output=True, text=True, check=False)
            told += [f"{command} {found[0]}" for found in [_VERSION.search(done.stdout)] if found]
    return {"peers": ", ".join(told)}


_VERSION: Final = re.compile(r"\d+(\.\d+)+")
