"""Asks a running server over HTTP, for the commands that tell a person about it."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from email.message import Message
from typing import Any, Final, NamedTuple

_ANSWER_TIMEOUT_S: Final = 15.0  # a write that is retried waits for its commit


class NoAnswer(Exception):
    """What the server at the URL did not do, as a person should read it."""


class Answer(NamedTuple):
    """What it answered."""

    status: int
    headers: Message
    body: bytes


def get(url: str, path: str, token: str = "", method: str = "GET") -> Answer:
    """The answer, whatever its status. Raises NoAnswer if there is none."""
    target = f"{url.rstrip('/')}{path}"
    try:
        if not target.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(target, method=method)  # noqa: S310 - checked
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:  # noqa: S310 - checked
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


def ask(url: str, path: str, method: str = "GET", token: str = "") -> Any:
    """The answer's JSON, None without a body. Raises NoAnswer, also if it is an error."""
    answer = get(url, path, token, method)
    try:
        value = json.loads(answer.body or b"null")
        if answer.status < 400:
            return value
        raise NoAnswer(str(value["detail"]))
    except (ValueError, KeyError, TypeError):
        raise NoAnswer(f"{url}{path} answered {answer.status}, which no itemstore says.") from None
