"""Canaries: secrets put wherever a caller or a setting can put one come out nowhere.

``SECRET_HEADERS`` and ``SECRET_SETTINGS`` are where a new secret is added.
"""

from __future__ import annotations

import io
from typing import Any, Final
from urllib.parse import quote, unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from itemstore import check, cli, indexes
from itemstore.errors import ItemStoreError, StartupError
from itemstore.finding import Finding, Verdict
from itemstore.log import server_logger
from itemstore.moving.tables import database_name
from itemstore.redaction import HIDDEN, KNOWN_MIN, Redaction
from itemstore.settings import SECRET, load
from itemstore.storage import StorageBroken
from itemstore.storage.postgres import Postgres
from itemstore.web import server
from itemstore.web.app import ROUTES
from tests.web.conftest import CODES, head, service_over

CANARY: Final = "c4n4ry-s3cr3t"

#: A header in which a caller sends a secret.
SECRET_HEADERS: Final = (
    f"Authorization: Bearer {CANARY}",
    f"Authorization: Basic {CANARY}",
    f"Proxy-Authorization: Bearer {CANARY}",
    f"Cookie: session={CANARY}",
    f"X-Api-Key: {CANARY}",
    f"Api-Key: {CANARY}",
    f"Referer: https://user:{CANARY}@example.org/?token={CANARY}",
)
#: The query in which it should not.
SECRET_QUERIES: Final = (f"token={CANARY}", f"access_token={CANARY}&api_key={CANARY}")

#: A setting → a value with a secret that is none.
SECRET_SETTINGS: Final[dict[str, tuple[str, ...]]] = {
    "DATABASE_URL": (
        f"postgresql://user:{CANARY}@[::1/database",
        f"postgresql://user:{CANARY}@localhost:port/database",
        f"postgresql://user:{CANARY}%zz@localhost/database",
        f"postgresql://user:{CANARY}@localhost/database?{CANARY}=1",
        f"mysql://user:{CANARY}@localhost/database",
        f"user:{CANARY}@localhost",
        f"host=localhost password={CANARY} x",
        f"host=localhost password='{CANARY}",
    ),
}
LONG: Final = f"{CANARY}-0123456789-abcdefghij"
SECRET_SETTINGS["API_KEY"] = (CANARY, LONG + "\u00e4", LONG)
SECRET_SETTINGS["JWT_SECRET"] = (CANARY, LONG)
SECRET_SETTINGS["REDIS_URL"] = (f"redis://user:{CANARY}@localhost:port/0",)
SECRET_SETTINGS["DATABASE_UNPOOLED_URL"] = SECRET_SETTINGS["DATABASE_URL"]


def is_clean(text: str | bytes) -> bool:
    """Whether the canary is nowhere in it, however it is encoded."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return CANARY not in text and CANARY not in unquote(text)


# --- callers


@pytest.mark.parametrize("broken", [False, True])
async def test_no_callers_secret_comes_out(
    dsn: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """On every route, right and wrong, and where the server makes a mistake: in no answer, no log
    at debug, no number."""
    stream = io.StringIO()
    async with service_over(Postgres(dsn), stream=stream) as service:
        if broken:
            _break(monkeypatch, service.store)
        for route in ROUTES:
            target = route.path.replace("{id:(?s:.+)}", "some-id")
            for line in SECRET_HEADERS:
                await _send(service, head(route.method, target, line, "Connection: close"))
            for query in SECRET_QUERIES:
                await _send(service, head(route.method, f"{target}?{query}", "Connection: close"))
            absolute = f"http://user:{CANARY}@example.org{target}"
            await _send(service, head(route.method, absolute, "Connection: close"))
        for each in ("/stats", "/metrics", "/readyz"):
            assert is_clean((await service.api("GET", each)).body)
        log = [event for event in service.events() if event["message"] == "internal_error"]
        service.mistakes = len(log)
        assert bool(log) == broken
    assert stream.getvalue()
    assert is_clean(stream.getvalue())


async def _send(service: Any, sent: bytes) -> None:
    raw = await service.raw()
    await raw.send(sent)
    received = await raw._reader.read()
    assert received
    assert is_clean(received), received
    await raw.close()


def _break(monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"at postgresql://user:{CANARY}@localhost/database: Bearer {CANARY}")

    for name in ("get", "write", "delete", "list", "flush"):
        monkeypatch.setattr(type(store), name, fail)


@pytest.mark.parametrize("error", CODES.values(), ids=CODES)
async def test_no_exception_tells_one(
    dsn: str, monkeypatch: pytest.MonkeyPatch, error: type[ItemStoreError]
) -> None:
    """Whatever is raised, and whatever PostgreSQL said before, the answer and the log are clean."""
    stream = io.StringIO()
    async with service_over(Postgres(dsn), stream=stream) as service:

        async def fail(*_: Any, **__: Any) -> None:
            try:
                raise StorageBroken(f'FATAL: password "{CANARY}", password={CANARY}')
            except StorageBroken as cause:
                raise error from cause

        monkeypatch.setattr(type(service.store), "get", fail)
        answer = await service.api("GET", "/items/a?", te="trailers", check=False)
        assert is_clean(answer.body)
    assert is_clean(stream.getvalue())


# --- settings

BAD_SETTINGS: Final = [(name, each) for name in SECRET_SETTINGS for each in SECRET_SETTINGS[name]]


def test_every_secret_setting_has_a_canary() -> None:
    """A setting that is secret is tried here."""
    assert set(SECRET_SETTINGS) == SECRET


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_no_settings_secret_comes_out(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    """A start that fails, and each command that needs the database, tell no secret."""
    unknown = "mysql://nobody@localhost/nothing"
    environment = {"DATABASE_URL": unknown, name: value, "PORT": "0", "HOST": "127.0.0.1"}
    settings = load(environment)
    assert is_clean(repr(settings))
    monkeypatch.setenv(name, value)
    assert server.main(settings) == 1
    if name == "DATABASE_URL":
        assert check.check(settings) == 1
        assert indexes.index_list(settings) == 1
    said = capfd.readouterr()
    assert "itemstore cannot start: " in said.err
    assert is_clean(said.out + said.err)


@pytest.mark.parametrize("value", SECRET_SETTINGS["DATABASE_URL"])
def test_no_source_of_an_import_tells_one(value: str) -> None:
    """The database that an import reads from is named without its password."""
    try:
        said = database_name(value)
    except ItemStoreError as error:
        said = error.detail
    assert is_clean(said)


def test_a_setting_that_is_not_allowed_is_hidden() -> None:
    """The complaint names the variable, and no value that is secret."""
    for name in SECRET:
        with pytest.raises(StartupError) as raised:
            load({name: CANARY, "PORT": "x"})
        assert is_clean(raised.value.detail)


def test_a_finding_that_quotes_one(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command ``check`` finds is filtered, whoever wrote it."""
    url = f"postgresql://user:{CANARY}@localhost:port/database"
    finding = Finding(Verdict.FAIL, f"at {url}", f"mend {CANARY}")
    monkeypatch.setattr(check, "_settings_found", lambda: finding)
    assert check.check(load({"DATABASE_URL": url})) == 1
    said = capfd.readouterr()
    assert "at (hidden)\n" in said.out
    assert "give postgresql://user:password@host:port/database" in said.out
    assert is_clean(said.out + said.err)


def test_the_command_says_so_too(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the command line's own start is as clean."""
    monkeypatch.setenv("DATABASE_UNPOOLED_URL", f"postgresql://user:{CANARY}@localhost/database")
    with pytest.raises(SystemExit):
        cli.app(["check"])
    said = capfd.readouterr()
    assert is_clean(said.out + said.err)


# --- redaction itself

PASSWORD: Final = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=KNOWN_MIN, max_size=20
)


@given(password=PASSWORD, form=st.sampled_from(["plain", "quoted"]))
def test_a_known_password_is_found_however_it_is_written(password: str, form: str) -> None:
    """As it stands, and percent-encoded."""
    hide = Redaction([f"postgresql://user:{quote(password, safe='')}@localhost/database"])
    written = {
        "plain": password,
        "quoted": quote(password, safe=""),
    }[form]
    assume(written not in HIDDEN)
    assert written not in hide(f"before <{written}> after")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("at postgres://u:p@h/d.", "at postgres://u:(hidden)@h/d."),
        ("at postgres://u:p@ss@h/d.", "at postgres://u:(hidden)@h/d."),
        ("host=h password=p user=u", "host=h password=(hidden) user=u"),
        ("password='a \\' b' user=u", "password=(hidden) user=u"),
        ("Authorization: Bearer abc.def, more", "Authorization: Bearer (hidden), more"),
        ("redis://:p@h", "redis://:(hidden)@h"),
        ("give postgresql://user:password@host/database",) * 2,
        ("https://example.org:8080/a", "https://example.org:8080/a"),
        ('{"url":"http://localhost:8080","data":"a@b"}',) * 2,
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, hidden: str) -> None:
    """By its form, whatever it is; and nothing else."""
    assert Redaction()(text) == hidden


def test_the_log_hides_what_it_is_told() -> None:
    """A field, a message and an exception."""
    stream = io.StringIO()
    log, writer = server_logger("debug", "json", stream, hide=Redaction([CANARY]))
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        log.exception(f"it is {CANARY}", value=[CANARY, {"a": CANARY}])
    writer.close()
    assert stream.getvalue().count("(hidden)") >= 4
    assert is_clean(stream.getvalue())
