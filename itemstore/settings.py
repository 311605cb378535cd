"""Every environment variable, in one table: the fields of ``Settings``.

docs/settings.md describes each, which a test compares. A value that is not allowed stops the
start with the name, the value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from itemstore.core.address import trust
from itemstore.core.rate import Rate
from itemstore.errors import StartupError
from itemstore.memory import CACHE_BYTES_MIN
from itemstore.options import MIB, Durability, Options, Preload
from itemstore.redaction import Redaction

_DEFAULTS: Final = Options()
_UNITS_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)")
#: Shown as set or not set, never in full.
SECRET: Final = frozenset(
    {"DATABASE_URL", "DATABASE_UNPOOLED_URL", "API_KEY", "JWT_SECRET", "REDIS_URL"}
)
#: Of an origin, as browsers write it (RFC 6454, section 6.2).
_ORIGIN: Final = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def seconds(value: Any) -> float:
    """The time, as settings write it: 90d. Raises ValueError."""
    match = _DURATION.fullmatch(str(value).strip().lower())
    if match is None:
        raise ValueError("not a time")
    return float(match[1]) * _UNITS_S[match[2]]


def _origins(value: Any) -> Any:
    if value is None:
        return None
    origins = [each.strip().lower() for each in str(value).split(",")]
    if origins != ["*"] and not all(_ORIGIN.fullmatch(each) for each in origins):
        raise ValueError("not a list of origins")
    return ",".join(origins)


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _compact(value: Any) -> Any:
    return "".join(value.lower().split()) if isinstance(value, str) else value


def _rate(value: Any) -> Any:
    return Rate.parse(str(value))


def _redis(value: Any) -> Any:
    if not str(value).startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("not a Redis")
    return value


ARate = Annotated[Rate, BeforeValidator(_rate)]
_RATE: Final = "a rate: 100/s, 600/m, 1000/h or 1000/d, with or without a burst, as 600/m burst 50"
Seconds = Annotated[float, BeforeValidator(seconds)]


def _setting(default: Any, description: str, allowed: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"allowed": allowed}, **limits)


_COMPRESSION: Final = {"auto": None, "zstd": True, "off": False}


class Settings(BaseSettings):
    """One field a variable, by its name in lower case."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    database_url: str | None = _setting(
        None,
        "The PostgreSQL database. Unset: an embedded server in DATA_DIR.",
        "postgresql://user:password@host:port/database, or postgres://…",
        repr=False,
    )
    database_unpooled_url: str | None = _setting(
        None,
        "The same database around a pooler such as PgBouncer, for writing and the preload.",
        "as DATABASE_URL",
        repr=False,
    )
    host: str | None = _setting(
        None,
        "The address to listen on. Unset: all, IPv4 and IPv6, if AUTH or API_KEY is set; else this "
        "machine only.",
        "an address or a host name",
    )
    port: int = _setting(
        8080, "The port to listen on; 0 for any free one.", "0 to 65535", ge=0, le=65535
    )
    data_dir: Path | None = _setting(
        None,
        "Where the embedded database and the journal lie. Unset: RAILWAY_VOLUME_MOUNT_PATH; else, "
        "for the embedded database, /var/lib/itemstore for root and ~/.local/share/itemstore for "
        "others, and with DATABASE_URL no journal.",
        "a directory",
    )
    auth: Annotated[
        Literal["none", "keys", "jwt", "keys,jwt", "jwt,keys"] | None, BeforeValidator(_compact)
    ] = _setting(
        None,
        "By what callers show who they are: API keys, JSON Web Tokens, both, or nothing. Unset: "
        "keys if API_KEY is set, else nothing, which only callers on this machine get.",
        "none, keys, jwt or keys,jwt",
    )
    api_key: str | None = _setting(
        None,
        "A key with the role admin, to begin with.",
        "32 characters or more of A-Z a-z 0-9 . _ ~ + / = -",
        repr=False,
    )
    jwt_secret: str | None = _setting(
        None,
        "What tokens are signed with, for HS256 and its like.",
        "32 bytes or more",
        repr=False,
    )
    jwt_jwks_url: str | None = _setting(
        None,
        "Where the issuer of tokens publishes its keys, for RS256, ES256 and their like.",
        "an address that begins with https://",
    )
    jwt_algorithms: str | None = _setting(
        None,
        "The algorithms that are accepted. Unset: HS256 with JWT_SECRET, RS256 with JWT_JWKS_URL.",
        "names such as RS256,ES256: HS… with JWT_SECRET, RS…, PS…, ES… and EdDSA with JWT_JWKS_URL",
    )
    jwt_audience: str | None = _setting(
        None, "What a token's aud must name: this store.", "a text, as the issuer writes it"
    )
    jwt_issuer: str | None = _setting(
        None, "What a token's iss must be.", "a text, as the issuer writes it"
    )
    jwt_role_claim: str = _setting(
        "role",
        "The claim that names the role: read, write or admin; of several the highest counts.",
        "the name of a claim",
    )
    jwt_prefix_claim: str | None = _setting(
        None,
        "The claim with the prefix of the ids that the caller is confined to. If set, every token "
        "must have it.",
        "the name of a claim",
    )
    skip_items_preload: Annotated[Preload, BeforeValidator(_lower)] = _setting(
        _DEFAULTS.skip_items_preload,
        "Whether the cache is filled at start (false) or on demand (true). auto fills it if the "
        "items are estimated to fit in CACHE_MAX_BYTES.",
        "false, true or auto",
    )
    durability: Annotated[
        Literal["auto", "memory", "journal", "commit"], BeforeValidator(_lower)
    ] = _setting(
        "auto",
        "What an OK to a write means, unless the request says otherwise. auto is journal where "
        "there is a directory for data that lasts, else commit.",
        "auto, memory, journal or commit",
    )
    journal_max_bytes: ByteSize = _setting(
        ByteSize(_DEFAULTS.journal_bytes_max),
        "What the journal may hold; beyond it writes at journal get 503.",
        "a size from 4MiB, such as 256MiB",
        ge=4 * MIB,
    )
    lease_time: Seconds = _setting(
        _DEFAULTS.lease_s,
        "How long an instance that is not heard of any more keeps the writer lease.",
        "a time from 2s to 5m, such as 10s",
        ge=2,
        le=300,
    )
    cache_max_bytes: ByteSize | None = _setting(
        None,
        "The memory of the cache; beyond it, the items used least leave it. Unset: the container's "
        "memory less what the server and the queue need.",
        "a size from 4MiB, such as 512MiB",
        ge=CACHE_BYTES_MIN,
    )
    cache_compression: Annotated[Literal["auto", "zstd", "off"], BeforeValidator(_lower)] = (
        _setting(
            "auto",
            "Whether the cache keeps data compressed, with a dictionary trained on it. auto does "
            "if the items are estimated to take more than half of CACHE_MAX_BYTES without.",
            "auto, zstd or off",
        )
    )
    queue_max_items: int = _setting(
        _DEFAULTS.queue_items_max,
        "Items that may wait to be written; above three quarters writes wait, above all they "
        "get 503.",
        "a number from 1",
        ge=1,
    )
    queue_max_bytes: ByteSize = _setting(
        ByteSize(_DEFAULTS.queue_bytes_max),
        "The same in bytes.",
        "a size from 2MiB, such as 64MiB",
        ge=2 * MIB,
    )
    batch_max_items: int = _setting(
        _DEFAULTS.batch_items_max,
        "Items written in one statement.",
        "a number from 1 to 10000",
        ge=1,
        le=10_000,
    )
    batch_max_bytes: ByteSize = _setting(
        ByteSize(_DEFAULTS.batch_bytes_max),
        "The same in bytes.",
        "a size from 1MiB to 64MiB",
        ge=MIB,
        le=64 * MIB,
    )
    commit_timeout: Seconds = _setting(
        _DEFAULTS.commit_timeout_s,
        "How long a write at commit, and a list, wait for PostgreSQL before they get 503.",
        "a time, such as 10s",
        gt=0,
    )
    query_timeout: Seconds = _setting(
        _DEFAULTS.query_timeout_s,
        "How long PostgreSQL may take for a page of a list, and as long again for its count; then "
        "the answer is 422.",
        "a time from 100ms to 10m, such as 10s",
        ge=0.1,
        le=600,
    )
    tombstone_retention: Seconds = _setting(
        _DEFAULTS.tombstone_retention_s,
        "How long deletes are remembered in the table tombstones.",
        "a time from 1h, such as 7d",
        ge=3600,
    )
    audit: bool = _setting(
        _DEFAULTS.audit,
        "Whether each accepted write leaves a row in the table audit: who changed what.",
        "true or false",
    )
    audit_retention: Seconds = _setting(
        _DEFAULTS.audit_retention_s,
        "How long these rows are kept; nothing removes one earlier.",
        "a time from 1h, such as 90d",
        ge=3600,
    )
    idempotency_retention: Seconds = _setting(
        _DEFAULTS.idempotency_retention_s,
        "How long a request with an Idempotency-Key is remembered.",
        "a time from 10m, such as 24h",
        ge=600,
    )
    shutdown_timeout: Seconds = _setting(
        _DEFAULTS.shutdown_timeout_s,
        "How long stopping may take: finishing requests and emptying the write queue. Must be "
        "less than the platform's time between SIGTERM and SIGKILL.",
        "a time, such as 25s",
        gt=0,
    )
    connections_max: int = _setting(
        2_048,
        "Connections of callers at a time; beyond it they get 503.",
        "a number from 1",
        ge=1,
    )
    connections_max_per_address: int | None = _setting(
        None,
        "The same of one IPv4 address, or one IPv6 network of 64 bits. Unset: no limit, because "
        "behind a proxy all callers have the proxy's address.",
        "a number from 1",
        ge=1,
    )
    bodies_max_bytes: ByteSize = _setting(
        ByteSize(64 * MIB),
        "What the bodies of requests under way may take together; beyond it those of more than 64 "
        "KiB get 503.",
        "a size from 8MiB, such as 64MiB",
        ge=8 * MIB,
    )
    cors_origins: Annotated[str | None, BeforeValidator(_origins)] = _setting(
        None,
        "The origins of pages that may use the store from a browser. Unset: none but its own.",
        "such as https://app.example.org,http://localhost:3000, or * for all",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], BeforeValidator(_lower)
    ] = _setting(
        "info",
        "The least that is logged. A line a request and one a batch are debug.",
        "debug, info, warning, error or critical",
    )
    log_format: Annotated[Literal["auto", "json", "console"], BeforeValidator(_lower)] = _setting(
        "auto",
        "How: auto is console on a terminal and json elsewhere.",
        "auto, json or console",
    )

    rate_limit_read: ARate | None = _setting(
        None, "How many items one caller may read, one a request. Unset: as many as will be.", _RATE
    )
    rate_limit_write: ARate | None = _setting(
        None,
        "How many items one caller may change, one a request. Unset: as many as will be.",
        _RATE,
    )
    rate_limit_heavy: ARate | None = _setting(
        None,
        "How many lists, batches, imports, exports and the like one caller may ask for. Unset: as "
        "many as will be.",
        _RATE,
    )
    rate_limit_failures: ARate = _setting(
        "30/m", "How often authentication may fail from one address.", _RATE
    )
    trust_proxy: Annotated[str | int | None, BeforeValidator(trust)] = _setting(
        "none",
        "Whose word is taken for a caller's address: none but the connection's, railway for "
        "X-Real-IP, or so many proxies that append to X-Forwarded-For.",
        "none, railway or a number from 1 to 10",
    )
    redis_url: Annotated[str, BeforeValidator(_redis)] | None = _setting(
        None,
        "The Redis in which all instances count for the rate limits. Unset: each by itself.",
        "redis://user:password@host:port/0, or rediss://…",
        repr=False,
    )

    event_loop: Annotated[Literal["auto", "asyncio", "uvloop"], BeforeValidator(_lower)] = _setting(
        "auto",
        "What runs the server: auto is uvloop where it is installed.",
        "auto, asyncio or uvloop",
    )
    fast_lane: bool = _setting(
        True,
        "Whether hot requests are answered before aiohttp parses them. The answers are the same.",
        "true or false",
    )

    docs: bool = _setting(
        True,
        "Whether the API is described at /openapi.json and /docs, to anybody.",
        "true or false",
    )

    # What Railway says about itself; not settings of ours.
    railway_volume_mount_path: Path | None = Field(default=None, exclude=True)
    railway_deployment_draining_seconds: str | None = Field(default=None, exclude=True)
    railway_environment_name: str | None = Field(default=None, exclude=True)

    def redaction(self) -> Redaction:
        """What takes these settings' secrets out of a text."""
        given = (getattr(self, name.lower()) for name in SECRET)
        return Redaction(str(each) for each in given if each is not None)

    @property
    def embedded_dir(self) -> Path | None:
        """Where the embedded database is to lie; None for its own default."""
        return self.data_dir or self.railway_volume_mount_path

    def options(self, journal_dir: Path | None = None) -> Options:
        return Options(
            durability=None if self.durability == "auto" else Durability(self.durability),
            journal_dir=journal_dir,
            journal_bytes_max=self.journal_max_bytes,
            lease_s=self.lease_time,
            skip_items_preload=self.skip_items_preload,
            cache_bytes_max=self.cache_max_bytes,
            cache_compression=_COMPRESSION[self.cache_compression],
            queue_items_max=self.queue_max_items,
            queue_bytes_max=self.queue_max_bytes,
            batch_items_max=self.batch_max_items,
            batch_bytes_max=self.batch_max_bytes,
            commit_timeout_s=self.commit_timeout,
            query_timeout_s=self.query_timeout,
            tombstone_retention_s=self.tombstone_retention,
            audit=self.audit,
            audit_retention_s=self.audit_retention,
            idempotency_retention_s=self.idempotency_retention,
            shutdown_timeout_s=self.shutdown_timeout,
        )


def table() -> dict[str, tuple[Any, str, str]]:
    """Variable → (default, what is allowed, what it does)."""
    return {
        name.upper(): (field.default, _allowed(name), field.description or "")
        for name, field in Settings.model_fields.items()
        if not field.exclude
    }


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings from the environment, or from the given one.

    Raises StartupError that names every value that is not allowed.
    """
    try:
        if environment is None:
            return _checked(Settings())
        given = {name.lower(): value for name, value in environment.items() if value}
        known = {name: given[name] for name in Settings.model_fields if name in given}
        return _checked(Settings.model_validate(known))
    except ValidationError as error:
        raise StartupError("\n".join(_complaint(each) for each in error.errors())) from None


def _checked(settings: Settings) -> Settings:
    if settings.database_unpooled_url and not settings.database_url:
        raise StartupError(
            "DATABASE_UNPOOLED_URL is set without DATABASE_URL: set both, or neither."
        )
    return settings


def _complaint(error: Any) -> str:
    name = str(error["loc"][0])
    variable = name.upper()
    shown = "(hidden)" if variable in SECRET else repr(error["input"])
    return f"{variable}={shown} is not allowed: give {_allowed(name)}."


def _allowed(name: str) -> str:
    extra = Settings.model_fields[name].json_schema_extra
    return str(extra["allowed"]) if isinstance(extra, dict) else "another value"
