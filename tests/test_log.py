"""What is secret does not reach the log, by whatever way it would."""

from __future__ import annotations

import io
import logging
from typing import Any, Final

import orjson
import pytest

from itemstore.core.apikey import compose
from itemstore.log import library_logger, redact, server_logger
from itemstore.redaction import HIDDEN

_, KEY = compose(b"12345678", bytes(range(32)))
TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"

#: A text with a secret in it → what of it must not be seen.
TEXTS: Final = {
    f"no route for {KEY}": KEY[17:],
    f"['{KEY}']": KEY[17:],
    f"{KEY}{KEY}": KEY[17:],
    f"Authorization: Bearer {TOKEN}": TOKEN,
    "authorization: bearer s3cr3t-of-somebody!": "s3cr3t",
    f"{{'jwt': '{TOKEN}'}}": TOKEN[21:],
    'connection to "postgresql://ada:s3cr3t@db.internal:5432/items" failed': "s3cr3t",
    "postgres://ada:s3%25cr3t@[::1]/x and postgres://bob:s3cr4t@b/x": "s3",
    "redis://:s3cr3t@localhost:6379": "s3cr3t",
    "host=a user=b password=s3cr3t dbname=c": "s3cr3t",
    "host=a password='s3c r3t' dbname=c": "r3t",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_secret_inside_a_text_is_hidden(text: str) -> None:
    """In a field, in a list, deep inside, and in the event's own name."""
    secret = TEXTS[text]
    event: dict[str, Any] = {
        "event": text,
        "reason": text,
        "ids": [text],
        "x": {"y": [{"z": text}]},
    }

    told = orjson.dumps(redact(None, "info", event)).decode()

    assert secret not in told
    assert HIDDEN in told


@pytest.mark.parametrize(
    "name", ["authorization", "Authorization", "api_key", "password", "jwt_secret", "access_token"]
)
def test_a_field_with_a_telling_name_is_hidden(name: str) -> None:
    """Whatever it holds."""
    found = redact(None, "info", {"event": "x", name: "harmless", "headers": {name: ["a"]}})

    assert {"event": "x", name: HIDDEN, "headers": {name: HIDDEN}} == found


def test_the_rest_is_left_as_it_is() -> None:
    """Ids, addresses without passwords, numbers."""
    event = {
        "event": "serving",
        "url": "http://localhost:8080",
        "path": "/items/a:b@c",
        "key": "1pvviFaV",
        "ids": ["a", "b"],
        "items": 3,
        "s": 0.5,
        "lost": None,
    }

    assert event == redact(None, "info", dict(event))


def test_a_traceback_in_the_servers_log_is_redacted() -> None:
    """An exception's text is put together by others."""
    stream = io.StringIO()
    log, writer = server_logger("info", "json", stream)
    try:
        raise RuntimeError(f"cannot connect to postgres://ada:s3cr3t@db/x as Bearer {KEY}")
    except RuntimeError:
        log.exception("internal_error")
    writer.close()

    assert "s3cr3t" not in stream.getvalue()
    assert KEY[17:] not in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_a_librarys_host_gets_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    """The library logs through logging."""
    with caplog.at_level(logging.WARNING, "itemstore"):
        library_logger().warning("database_away", reason="postgres://ada:s3cr3t@db/x")

    [record] = caplog.records
    assert f"postgres://ada:{HIDDEN}@db/x" == record.__dict__["reason"]
