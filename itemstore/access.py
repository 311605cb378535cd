"""Who is let in, and from where: what the settings and the machine say of it together.

Nobody is let in unasked by an oversight. Without a word about callers the store listens to its own
machine only; where that would be no use, it does not start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

from itemstore.errors import StartupError
from itemstore.settings import Settings

LOOPBACK: Final = "127.0.0.1"
LENGTH_MIN: Final = 32  # characters of API_KEY, bytes of JWT_SECRET: RFC 7518, section 3.2
KINDS_MIN: Final = 8  # of characters: 32 times the same one is no secret
SYMMETRIC: Final = ("HS256", "HS384", "HS512")
ASYMMETRIC: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"),
)

#: What may stand after Bearer: RFC 6750, section 2.1.
_SENDABLE: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")
#: Words of examples, which end up in services that anybody can reach.
_SAMPLES: Final = re.compile(
    r"change.?me|change.?this|example|sample|placeholder|password|your.?(256|api|jwt|key|secret|token)"
    r"|replace.?me|insecure|super.?secret|secret.?key|api.?key|12345678|abcdefgh",
    re.IGNORECASE,
)
_MAKE: Final = "Make one with: openssl rand -hex 32"


@dataclass(frozen=True, slots=True)
class Issuer:
    """Whose tokens are believed, and what they must say."""

    algorithms: tuple[str, ...]
    audience: str
    issuer: str
    secret: str | None  #: or
    jwks_url: str | None  #: one of the two
    role_claim: str
    prefix_claim: str | None


@dataclass(frozen=True, slots=True)
class Access:
    """``host`` is what to listen on; None: all addresses."""

    host: str | None
    keys: bool  #: whether API keys let in
    api_key: str | None
    issuer: Issuer | None  #: of tokens that let in; None: none does

    @property
    def auth(self) -> str:
        """As the setting AUTH has it."""
        kinds = (("keys", self.keys), ("jwt", self.issuer is not None))
        return ",".join(kind for kind, is_used in kinds if is_used) or "none"

    @property
    def reach(self) -> str:
        """Who can reach the port, in words."""
        if self.host is None:
            return "all addresses"
        if not is_loopback(self.host):
            return self.host
        if self.auth == "none":
            return (
                "this machine only; for others, set API_KEY (make one: openssl rand -hex 32), or "
                "AUTH=none to let anybody in"
            )
        return "this machine only"


def access(settings: Settings) -> Access:
    """What the settings come to. Raises StartupError that says what to set."""
    kinds = _kinds(settings)
    _check_said(settings, kinds)
    return Access(
        host=LOOPBACK if settings.host is None and not _is_said(settings) else settings.host,
        keys="keys" in kinds,
        api_key=_strong("API_KEY", settings.api_key),
        issuer=_issuer(settings) if "jwt" in kinds else None,
    )


def _kinds(settings: Settings) -> tuple[str, ...]:
    if settings.auth is None:
        return ("keys",) if settings.api_key else ()
    return () if settings.auth == "none" else tuple(settings.auth.split(","))


def _is_said(settings: Settings) -> bool:
    return settings.auth is not None or settings.api_key is not None


def _check_said(settings: Settings, kinds: tuple[str, ...]) -> None:
    """Raises StartupError if anybody would be let in unasked, or a setting would mean nothing."""
    if settings.api_key and "keys" not in kinds:
        raise StartupError(f"API_KEY is set, but AUTH={settings.auth} asks for none. Remove one.")
    given = [name for name in ("jwt_secret", "jwt_jwks_url") if getattr(settings, name)]
    if given and "jwt" not in kinds:
        raise StartupError(f"{given[0].upper()} is set, but AUTH does not name jwt. Set AUTH=jwt.")
    if _is_said(settings):
        return
    place = None
    if settings.railway_environment_name:
        place = "On Railway the store can be reached by others"
    elif settings.host is not None and not is_loopback(settings.host):
        place = f"HOST={settings.host} can be reached by others"
    if place is not None:
        raise StartupError(
            f"{place}, and nothing says who may call. Set API_KEY to a secret of {LENGTH_MIN} "
            "characters or more, such as the output of: openssl rand -hex 32. Or set AUTH=none, "
            "and whoever reaches the port may do everything."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _strong(name: str, secret: str | None) -> str | None:
    """The secret itself. Raises StartupError if it could be guessed, or not be sent."""
    if secret is None:
        return None
    if len(secret.encode()) < LENGTH_MIN:
        raise StartupError(f"{name} has fewer than {LENGTH_MIN} characters. {_MAKE}")
    if _SAMPLES.search(secret) or len(set(secret)) < KINDS_MIN:
        raise StartupError(f"{name} looks like one out of an example. {_MAKE}")
    if name == "API_KEY" and _SENDABLE.fullmatch(secret) is None:
        raise StartupError(f"{name} has characters that no header can carry. {_MAKE}")
    return secret


def _issuer(settings: Settings) -> Issuer:
    secret, url = _strong("JWT_SECRET", settings.jwt_secret), settings.jwt_jwks_url
    if (secret is None) == (url is None):
        raise StartupError("AUTH=jwt needs JWT_SECRET or JWT_JWKS_URL, and one of them only.")
    if settings.jwt_audience is None or settings.jwt_issuer is None:
        raise StartupError(
            "AUTH=jwt needs JWT_AUDIENCE and JWT_ISSUER, what aud and iss of a token must be: "
            "without them a token that was made for another service would do."
        )
    if url is not None:
        _check_address(url)
    return Issuer(
        algorithms=_algorithms(settings.jwt_algorithms, SYMMETRIC if secret else ASYMMETRIC),
        audience=settings.jwt_audience,
        issuer=settings.jwt_issuer,
        secret=secret,
        jwks_url=url,
        role_claim=settings.jwt_role_claim,
        prefix_claim=settings.jwt_prefix_claim,
    )


def _algorithms(given: str | None, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Raises StartupError for one of the other family: a public key is no secret to sign with."""
    names = tuple(name.strip() for name in given.split(",")) if given else allowed[:1]
    for name in names:
        if name not in allowed:
            raise StartupError(
                f"JWT_ALGORITHMS names {name}; give {', '.join(allowed)}: HS… belong to JWT_SECRET,"
                " the others to JWT_JWKS_URL."
            )
    return names


def _check_address(url: str) -> None:
    """Raises StartupError unless nobody on the way can put other keys in place of the issuer's."""
    try:
        parts = urlsplit(url)
        is_safe = parts.scheme == "https" or (
            parts.scheme == "http" and is_loopback(parts.hostname or "")
        )
    except ValueError:
        is_safe = False
    if not is_safe or not parts.hostname or parts.username is not None:
        raise StartupError("JWT_JWKS_URL must begin with https://, and have no user name in it.")
