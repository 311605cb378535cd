"""The settings of limits: what they become, and what is refused without telling a secret."""

from __future__ import annotations

import pytest

from itemstore import settings
from itemstore.core.caller import ANYBODY
from itemstore.core.rate import Rate
from itemstore.errors import StartupError
from itemstore.log import library_logger
from itemstore.web import server
from itemstore.web.traffic import Kind


def test_rates_and_proxies_are_read() -> None:
    """Each into its own value; unset, there is no limit and no trust."""
    given = settings.load({"RATE_LIMIT_READ": "5/s burst 9", "TRUST_PROXY": "2"})
    assert Rate(5, 1, 9) == given.rate_limit_read
    assert given.rate_limit_write is None
    assert 2 == given.trust_proxy
    assert settings.load({}).trust_proxy is None
    assert Rate(30, 60, 30) == settings.load({}).rate_limit_failures


@pytest.mark.parametrize(
    ("name", "value"),
    [("RATE_LIMIT_HEAVY", "fast"), ("RATE_LIMIT_FAILURES", "0/s"), ("TRUST_PROXY", "all")],
)
def test_what_is_not_understood_stops_the_start(name: str, value: str) -> None:
    """With the variable, the value, and what is allowed."""
    with pytest.raises(StartupError, match=f"{name}='{value}' is not allowed: give "):
        settings.load({name: value})


def test_a_wrong_redis_is_not_told() -> None:
    """Its password is in it."""
    with pytest.raises(StartupError, match="REDIS_URL") as refusal:
        settings.load({"REDIS_URL": "http://user:hunter2@host"})
    assert "hunter2" not in str(refusal.value)


def test_the_server_has_the_limits_of_its_settings() -> None:
    """Each class its own; a Redis is of no use without any of them."""
    given = {"RATE_LIMIT_WRITE": "7/s", "TRUST_PROXY": "railway"}
    limits = server._limits(settings.load(given), library_logger())
    assert limits.take_now(Kind.READ, ANYBODY, "") is None
    verdict = limits.take_now(Kind.WRITE, ANYBODY, "")
    assert verdict is not None
    assert 6 == verdict.remaining
    assert "railway" == limits.trust
    unlimited = settings.load({"REDIS_URL": "redis://localhost"})
    assert server._limits(unlimited, library_logger()).shared is None
