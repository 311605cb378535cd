"""The alarms: each fires when it should and only then, and each says what to do and where."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_documents import DOCS, anchors, rows, words
from tests.watching.prometheus import DEPLOY, Rule, needs_promtool, rules
from tests.web.conftest import make
from tests.web.test_system import everything

RULES = rules()


def promtool(*arguments: str, text: bytes | None = None) -> str:
    """What it says; it must be content."""
    run = subprocess.run(
        ["promtool", *arguments], input=text, cwd=DEPLOY, capture_output=True, timeout=60
    )
    said = (run.stdout + run.stderr).decode()
    assert run.returncode == 0, said
    return said


@needs_promtool
def test_prometheus_takes_the_files(tmp_path: Path) -> None:
    """The rules and the scrape configuration are valid, and no alarm is overlooked here."""
    said = promtool("check", "rules", "alerts.yml")
    assert f"{len(RULES)} rules found" in said
    for file in DEPLOY.glob("*.yml"):
        shutil.copy(file, tmp_path)
    (tmp_path / "itemstore.key").write_text("a key")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_promtool
def test_each_alarm_fires_when_it_should_and_only_then() -> None:
    """promtool's tests pass: below and above each bound, and before and after its time."""
    promtool("test", "rules", "alerts_test.yml")


def test_each_alarm_is_tested() -> None:
    """Each has a test in which it does not fire yet, and fires then."""
    text = (DEPLOY / "alerts_test.yml").read_text("utf-8")
    tests = re.split(r"^  - name: ", text, flags=re.MULTILINE)[1:]
    assert [rule.name for rule in RULES] == [test.partition("\n")[0] for test in tests]
    for rule, test in zip(RULES, tests, strict=True):
        asked = f'ALERTS{{alertname="{rule.name}",alertstate="firing"'
        assert test.count(f"expr: {asked}}}") == 2
        assert test.count("exp_samples: []") == 1
        assert test.count(f"labels: '{asked}") >= 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_each_alarm_says_what_to_do(rule: Rule) -> None:
    """It has a severity, a summary, a description, and a link to a heading that exists."""
    assert rule.severity in {"critical", "warning"}
    summary, description = re.findall(
        r"(?:summary|description): (.+?)(?=\n {10}\w|\Z)", rule.annotations, re.DOTALL
    )
    assert len(summary) < 100
    assert len(re.split(r"\.\s", description)) > 1
    assert rule.heading in anchors(DOCS / "operations.md")


def test_the_alarms_are_described() -> None:
    """docs/operations.md has each alarm with its severity and a link to its heading, no other."""
    documented = [
        (words(name), severity, re.search(r"\(#([\w-]+)\)", where))
        for name, severity, _, where in rows(DOCS / "operations.md", "alarm", "severity")
    ]
    assert [(name, severity, link and link[1]) for name, severity, link in documented] == [
        (rule.name, rule.severity, rule.heading) for rule in RULES
    ]


@needs_promtool
async def test_the_names_are_as_prometheus_wants_them(dsn: str, tmp_path: Path) -> None:
    """``promtool check metrics`` has nothing to say of a scrape."""
    async with everything(dsn, tmp_path) as service:
        await make(service.api, "a", durability="commit")
        await service.api("GET", "/items/none")
        scraped = (await service.api("GET", "/metrics")).body
    assert b"itemstore_postgres_connections" in scraped
    assert "" == promtool("check", "metrics", text=scraped)
