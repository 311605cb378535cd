"""Nobody is let in by an oversight: what the settings say of callers, and what they leave out."""

from __future__ import annotations

import pytest

from itemstore import settings
from itemstore.access import Access, access
from itemstore.errors import StartupError

GOOD = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
JWT = {"AUTH": "jwt", "JWT_AUDIENCE": "itemstore", "JWT_ISSUER": "https://issuer.test"}


def decided(**environment: str) -> Access:
    return access(settings.load(environment))


def refused(**environment: str) -> str:
    """Why it does not start."""
    with pytest.raises(StartupError) as error:
        decided(**environment)
    return error.value.detail


def test_without_a_word_it_listens_to_this_machine_only() -> None:
    """And says what to set for more."""
    found = decided()

    assert ("127.0.0.1", "none") == (found.host, found.auth)
    assert "API_KEY" in found.reach
    assert "AUTH=none" in found.reach


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost", "LOCALHOST"])
def test_a_loopback_address_needs_no_word(host: str) -> None:
    """Who is on the machine can read the database anyway."""
    assert host == decided(HOST=host).host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "store.internal", "::ffff:10.0.0.1"])
def test_another_address_needs_one(host: str) -> None:
    """The refusal says what to set."""
    said = refused(HOST=host)

    assert f"HOST={host}" in said
    assert "openssl rand -hex 32" in said
    assert "AUTH=none" in said


def test_railway_needs_one() -> None:
    """There the port is reached by others, whatever HOST says."""
    assert "On Railway" in refused(RAILWAY_ENVIRONMENT_NAME="production")
    assert "keys" == decided(RAILWAY_ENVIRONMENT_NAME="production", API_KEY=GOOD).auth
    assert "none" == decided(RAILWAY_ENVIRONMENT_NAME="production", AUTH="none").auth


def test_what_is_said_opens_all_addresses() -> None:
    """A key, or that none is wanted."""
    for found in (decided(API_KEY=GOOD), decided(AUTH="none"), decided(AUTH="keys")):
        assert found.host is None
        assert "all addresses" == found.reach
    assert "0.0.0.0" == decided(AUTH="none", HOST="0.0.0.0").reach
    assert "this machine only" == decided(API_KEY=GOOD, HOST="::1").reach


@pytest.mark.parametrize(
    ("auth", "expected"),
    [("keys", "keys"), (" Keys ", "keys"), ("JWT", "jwt"), ("jwt, keys", "keys,jwt")],
)
def test_auth_is_read_with_some_kindness(auth: str, expected: str) -> None:
    """Order, case and spaces do not matter."""
    more = {**JWT, "JWT_SECRET": GOOD} if "jwt" in expected else {}

    assert expected == decided(**{**more, "AUTH": auth}).auth


@pytest.mark.parametrize("auth", ["yes", "none,keys", "keys,keys", "basic"])
def test_another_auth_is_refused(auth: str) -> None:
    """With what is allowed."""
    assert "none, keys, jwt or keys,jwt" in refused(AUTH=auth)


@pytest.mark.parametrize(
    "key",
    [
        *("short", "a" * 31, "a" * 32, "changeme" * 4, "change-me-" + GOOD, "x" + "secret-key" * 4),
        *("your_api_key_" + GOOD, "password" + GOOD, GOOD + " ", "é" + GOOD, "example" + GOOD),
        "1234567890" * 4,
    ],
)
def test_a_weak_key_is_refused(key: str) -> None:
    """And is not shown."""
    said = refused(API_KEY=key)

    assert "API_KEY" in said
    assert "openssl rand -hex 32" in said
    assert key not in said


def test_a_setting_that_would_mean_nothing_is_refused() -> None:
    """Whoever sets it believes that it does something."""
    assert "API_KEY" in refused(AUTH="none", API_KEY=GOOD)
    assert "API_KEY" in refused(**JWT, JWT_SECRET=GOOD, API_KEY=GOOD)
    assert "AUTH=jwt" in refused(JWT_SECRET=GOOD)
    assert "AUTH=jwt" in refused(AUTH="keys", JWT_JWKS_URL="https://issuer.test/jwks")


def test_tokens_need_all_that_they_are_checked_by() -> None:
    """Without an audience a token for another service would do."""
    assert "one of them only" in refused(**JWT)
    assert "one of them only" in refused(**JWT, JWT_SECRET=GOOD, JWT_JWKS_URL="https://a.test")
    for name in ("JWT_AUDIENCE", "JWT_ISSUER"):
        assert name in refused(**{k: v for k, v in JWT.items() if k != name}, JWT_SECRET=GOOD)
    assert "JWT_SECRET" in refused(**JWT, JWT_SECRET="short")
    assert "JWT_SECRET" in refused(**JWT, JWT_SECRET="your-256-bit-secret-" + GOOD)


def test_an_algorithm_belongs_to_its_key() -> None:
    """A public key must not be taken for a secret to sign with."""
    assert "HS999" in refused(**JWT, JWT_SECRET=GOOD, JWT_ALGORITHMS="HS999")
    assert "RS256" in refused(**JWT, JWT_SECRET=GOOD, JWT_ALGORITHMS="HS256,RS256")
    assert "none" in refused(**JWT, JWT_SECRET=GOOD, JWT_ALGORITHMS="none")
    url = "https://issuer.test/jwks"
    assert "HS256" in refused(**JWT, JWT_JWKS_URL=url, JWT_ALGORITHMS="RS256, HS256")
    found = decided(**JWT, JWT_JWKS_URL=url, JWT_ALGORITHMS="ES256, RS256").issuer
    assert found is not None
    assert ("ES256", "RS256") == found.algorithms


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://issuer.test/jwks",
            "file:///etc/passwd",
            "ftp://issuer.test",
            "data:,{}",
            "https:",
        ),
        *(
            "http://10.0.0.1/",
            "http://localhost.evil.test/",
            "https://a:b@issuer.test/",
            "//a",
            "x[",
        ),
    ],
)
def test_keys_come_over_https(url: str) -> None:
    """Who is on the way could put others in their place."""
    assert "JWT_JWKS_URL must begin with https://" in refused(**JWT, JWT_JWKS_URL=url)
