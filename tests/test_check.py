"""``itemstore check`` says before a start what would be wrong after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import psycopg
import pytest

from itemstore.check import check
from itemstore.settings import load
from tests.web.callers import API_KEY


class Said(NamedTuple):
    """What a person gets."""

    code: int
    text: str


Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def with_settings(**variables: str) -> Said:
        code = check(load(variables))
        return Said(code, capsys.readouterr().out)

    return with_settings


def test_a_database_that_can_be_used(dsn: str, run: Run) -> None:
    """It makes the tables, and warns of what a power loss could destroy; that stops no start."""
    said = run(DATABASE_URL=dsn)
    assert 0 == said.code
    assert "warn  fsync is off: a power loss can destroy the whole database\n" in said.text
    assert "      → ALTER SYSTEM SET fsync = on\n" in said.text
    assert "FAIL" not in said.text
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT count(*) FROM items").fetchone() == (0,)


def test_a_database_that_is_not_there(run: Run) -> None:
    """It fails, with PostgreSQL's own words and without the password."""
    said = run(DATABASE_URL="postgresql://somebody:secret@127.0.0.1:1/none")
    assert 1 == said.code
    assert "FAIL  PostgreSQL: " in said.text
    assert "→ check that it runs" in said.text
    assert "secret" not in said.text


def test_what_railway_says(dsn: str, run: Run) -> None:
    """A drain time that is too short is a warning with the variable to set."""
    on_railway = {"DATABASE_URL": dsn, "API_KEY": API_KEY, "RAILWAY_ENVIRONMENT_NAME": "production"}
    said = run(**on_railway)
    assert 0 == said.code
    assert "RAILWAY_DEPLOYMENT_DRAINING_SECONDS to a number of 30 or more" in said.text
    said = run(**on_railway, RAILWAY_DEPLOYMENT_DRAINING_SECONDS="30")
    assert 0 == said.code
    assert "ok  Railway's drain time: 30 s" in said.text
    assert API_KEY not in said.text


def test_nobody_said_who_may_call_on_railway(dsn: str, run: Run) -> None:
    """Where others reach the port, neither API_KEY nor AUTH is a failure; AUTH=none a warning."""
    said = run(DATABASE_URL=dsn, RAILWAY_ENVIRONMENT_NAME="production")
    assert 1 == said.code
    assert "FAIL  nothing good says who may call\n      → On Railway the store can be" in said.text
    assert "openssl rand -hex 32" in said.text
    said = run(DATABASE_URL=dsn, RAILWAY_ENVIRONMENT_NAME="production", AUTH="none")
    assert 0 == said.code
    assert "warn  AUTH=none: whoever reaches all addresses may do everything" in said.text
