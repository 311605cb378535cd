"""Secrets are taken out of what is shown: in a log, in an error, on a terminal.

What is known to be secret, a setting's value, is found as it stands; what looks like a secret is
found by its form. Nothing here is the first guard: messages are written without secrets. But an
exception may quote anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote, unquote

HIDDEN: Final = "(hidden)"
#: Shorter ones are found by their form alone: "app" stands in too much else.
KNOWN_MIN: Final = 8

#: But for the word "password", which stands where a message says what to give.
_IN_URL: Final = re.compile(r"(://[^/\s:@\"']*:)(?!password@)[^\s\"']*(?=@)")
_FORMS: Final = (
    _IN_URL,
    re.compile(r"(\bpassword\s*=\s*)(?:'(?:\\.|[^'\\])*'|[^\s\"'&]+)", re.I),
    re.compile(r"(\bbearer\s+)[^\s\"',]+", re.I),
    re.compile(r"()\bitemkey_[0-9A-Za-z_]+"),  # API keys
    re.compile(r"()\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"),  # tokens: RFC 7519
)
#: Fields whose values are nobody's business, by a part of their names.
_FIELD: Final = re.compile(
    r"authorization|cookie|credential|dsn|passw|secret|token|api_?key", re.IGNORECASE
)


class Redaction:
    """Hides these values, and whatever has the form of a secret."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {form for value in values for form in _forms_of(value)}
        self._known = sorted((each for each in known if len(each) >= KNOWN_MIN), key=len)[::-1]

    def __call__(self, text: str) -> str:
        for value in self._known:
            if value in text:
                text = text.replace(value, HIDDEN)
        for form in _FORMS:
            text = form.sub(rf"\1{HIDDEN}", text)
        return text

    def within(self, value: Any) -> Any:
        """The same of all texts in it, and of what else would be shown as text."""
        match value:
            case str():
                return self(value)
            case dict():
                return {
                    name: HIDDEN if _FIELD.search(str(name)) else self.within(each)
                    for name, each in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.within(each) for each in value]
            case None | bool() | int() | float():
                return value
            case _:
                return self(repr(value))


def _forms_of(value: str) -> set[str]:
    """As it may be quoted: as it stands, of a URL the password, percent-encoded or not."""
    secrets = {value}
    for password in re.findall(r"://[^/\s:@]*:([^\s]*)@", value):
        secrets.add(password)
    for password in re.findall(r"\bpassword\s*=\s*('(?:\\.|[^'\\])*'|[^\s&]+)", value, re.I):
        secrets.add(password.strip("'"))
    secrets |= {unquote(each) for each in secrets}
    return secrets | {quote(each, safe="") for each in secrets}
