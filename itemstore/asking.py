"""Asks a running server over HTTP, for the commands that tell a person about it."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from typing import Any, Final, NamedTuple

_ANSWER_TIMEOUT_S: Final = 15.0  # a write that is retried waits for its commit


class NoAnswer(Exception):
    """What the server at the URL did not do, as a person should read it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and what to show it."""

    url: str
    token: str = ""


class Answer(NamedTuple):
    """What it answered."""

    status: int
    headers: Message
    body: bytes


class _Staying(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the token is for this server, and would go along to the next."""

    def redirect_request(self, *_: Any) -> None:
        return None


#: Opens addresses to which a token goes along.
OPENER: Final = urllib.request.build_opener(_Staying)


def get(server: Server, path: str, method: str = "GET", value: Any = None) -> Answer:
    """The answer, whatever its status; ``value`` is sent as JSON. Raises NoAnswer."""
    target = f"{server.url.rstrip('/')}{path}"
    headers = {"Content-Type": "application/json"}
    if server.token:
        headers["Authorization"] = f"Bearer {server.token}"
    body = None if value is None else json.dumps(value).encode()
    try:
        if not target.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(target, body, headers, method=method)  # noqa: S310 - checked
        with OPENER.open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NoAnswer(
            f"No answer from {target}: {reason}\n"
            "Is it running? Name it with --url http://host:port."
        ) from error


def ask(server: Server, path: str, method: str = "GET", value: Any = None) -> Any:
    """The answer's JSON, None without a body. Raises NoAnswer, also if it is an error."""
    answer = get(server, path, method, value)
    try:
        said = json.loads(answer.body or b"null")
        if answer.status < 300:
            return said
        raise NoAnswer(str(said["detail"]))
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(f"{server.url}{path} answered {answer.status}, and no reason.") from None
