"""python -m tests.faults.bugs [NAME …]: puts each bug in, and expects its scenario or test to fail.

Exit code 1 if a bug was not noticed, or its patch does not fit any more.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson

from tests.faults.bench import ROOT
from tests.faults.runner import run
from tests.faults.scenarios import BY_NAME

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bug:
    """A patch and what its header says."""

    patch: Path
    about: str
    scenario: str
    rounds: int
    seed: int
    environment: dict[str, str]
    test: str  #: instead of a scenario: what pytest is told to run

    @property
    def judge(self) -> str:
        return self.scenario or self.test

    @classmethod
    def read(cls, patch: Path) -> Bug:
        header = {}
        for line in patch.read_text().splitlines():
            if not line.startswith("#"):
                break
            name, _, value = line.lstrip("# ").partition(":")
            header[name] = value.strip()
        settings = header.get("environment", "").split()
        return cls(
            patch,
            header["bug"],
            header.get("scenario", ""),
            int(header.get("rounds", 1)),
            int(header.get("seed", 1)),
            dict(setting.split("=", 1) for setting in settings),
            header.get("test", ""),
        )


def put_in(bug: Bug, source: Path, place: Path) -> str:
    """A copy of the tree with the bug in it. Returns why not, if so."""
    shutil.copytree(
        source / "itemstore", place / "itemstore", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(source / "schema.sql", place)
    done = subprocess.run(
        ["patch", "-p1", "--batch", "--no-backup-if-mismatch", "-i", bug.patch],
        cwd=place,
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else f"the patch does not fit: {done.stdout.strip()}"


async def notice(bug: Bug, source: Path) -> tuple[bool, str]:
    """Whether the scenario failed, and by what."""
    place = Path(tempfile.mkdtemp(prefix="itemstore-bug-"))
    try:
        if problem := put_in(bug, source, place):
            return False, problem
        if bug.test:
            return await asyncio.to_thread(_fails, bug, place)
        outcome = await run(
            BY_NAME[bug.scenario](),
            rounds=bug.rounds,
            source=place,
            seed=bug.seed,
            environment=bug.environment,
            until_failure=True,
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if outcome.skipped:
        return False, f"skipped: {outcome.skipped}"
    if not outcome.failed_rounds:
        return False, f"not noticed in {outcome.rounds} rounds"
    broke_off = "the round broke off: " in outcome.violations[0]  # that notices nothing
    return not broke_off, f"{outcome.violations[0]} ({len(outcome.violations)} findings)"


def _fails(bug: Bug, place: Path) -> tuple[bool, str]:
    """Whether the test fails in the tree with the bug."""
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*pytest, *shlex.split(bug.test)], cwd=place, capture_output=True, text=True
    )
    return done.returncode == 1, (done.stdout + done.stderr).strip().splitlines()[-1]


def bugs() -> list[Bug]:
    return [Bug.read(patch) for patch in sorted(HERE.glob("*.patch"))]


def _write(found: list[dict[str, object]], json: Path) -> None:
    json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


async def _main(names: list[str], source: Path, json: Path | None) -> int:
    found: list[dict[str, object]] = []
    for bug in bugs():
        if names and bug.patch.stem not in names:
            continue
        noticed, what = await notice(bug, source)
        name = bug.patch.stem
        print(f"{'noticed' if noticed else 'MISSED '}  {name} by {bug.judge}: {what}", flush=True)
        found.append({"name": name, "about": bug.about, "judge": bug.judge, "noticed": noticed})
        if json:
            _write(found, json)
    return 0 if all(each["noticed"] for each in found) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.bugs", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *(bug.patch.stem for bug in bugs())])
    parser.add_argument("--source", type=Path, default=ROOT, help="the tree with itemstore/")
    parser.add_argument("--json", type=Path, help="writes the outcome there too")
    given = parser.parse_args()
    sys.exit(asyncio.run(_main(given.names, given.source.resolve(), given.json)))
