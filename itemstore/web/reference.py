"""The contract as one page of HTML, without a script: made on the server from the same file."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson
from markdown_it import MarkdownIt

ADDRESS: Final = "localhost:8080"  # as in docs/api.md
METHODS: Final = ("get", "put", "post", "patch", "delete")
PROBLEM: Final = "application/problem+json"

_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False})

Node = Mapping[str, Any]  # a part of the contract


class _Html(str):
    """Text that is HTML already."""


def render(contract: Node) -> str:
    """The page."""
    return "<!doctype html>\n" + _tag(
        "html",
        _tag(
            "head",
            _tag("meta", charset="utf-8"),
            _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            _tag("meta", name="color-scheme", content="light dark"),
            _tag("title", f"{contract['info']['title']}: the HTTP API"),
            _tag("link", rel="stylesheet", href="/docs/style.css"),
        ),
        _Page(contract).body(),
        lang="en",
    )


class _Page:
    """The parts of the page; references in the contract are followed here."""

    def __init__(self, contract: Node) -> None:
        self._contract = contract

    def body(self) -> _Html:
        return _tag(
            "body",
            _tag("a", "Skip to the text", href="#main", cls="skip"),
            self._navigation(),
            _tag(
                "main",
                self._introduction(),
                *(self._section(each) for each in self._contract["tags"]),
                self._schemas(),
                id="main",
            ),
        )

    def _navigation(self) -> _Html:
        info = self._contract["info"]
        return _tag(
            "nav",
            _tag("a", info["title"], " ", _tag("small", info["version"]), href="#main", cls="home"),
            *(
                _Html(
                    _tag("h2", _tag("a", tag["name"], href=f"#{_slug(tag['name'])}"))
                    + _tag(
                        "ul",
                        *(
                            _tag(
                                "li",
                                _tag(
                                    "a",
                                    _method(method),
                                    _tag("span", _breakable(path)),
                                    href=f"#{each['operationId']}",
                                ),
                            )
                            for method, path, each in self._operations(tag["name"])
                        ),
                    )
                )
                for tag in self._contract["tags"]
            ),
            _tag("h2", _tag("a", "Schemas", href="#schemas")),
            **{"aria-label": "Operations"},
        )

    def _introduction(self) -> _Html:
        info = self._contract["info"]
        bearer = self._contract["components"]["securitySchemes"]["bearer"]
        return _tag(
            "header",
            _tag("h1", info["title"]),
            _tag("p", info["summary"], cls="lead"),
            _markdown(info["description"]),
            _tag("h2", "Authorization", id="authorization"),
            _markdown(bearer["description"]),
            _pre(f'curl {ADDRESS}/items -H "Authorization: Bearer $API_KEY"'),
            _tag(
                "p",
                "For machines: ",
                _tag("a", "openapi.json", href="/openapi.json"),
                f" (OpenAPI {self._contract['openapi']}).",
            ),
        )

    def _section(self, tag: Node) -> _Html:
        name = tag["name"]
        return _tag(
            "section",
            _tag("h2", name, id=_slug(name)),
            _markdown(tag.get("description")),
            *(self._operation(*each) for each in self._operations(name)),
        )

    def _operations(self, tag: str) -> Iterator[tuple[str, str, Node]]:
        for path, item in self._contract["paths"].items():
            for method in METHODS:
                if method in item and tag in item[method]["tags"]:
                    yield method, path, item[method]

    def _operation(self, method: str, path: str, operation: Node) -> _Html:
        shared = self._contract["paths"][path].get("parameters", ())
        parameters = [self._seen(each) for each in (*shared, *operation.get("parameters", ()))]
        role = operation.get("x-role")
        return _tag(
            "article",
            _tag("h3", _method(method), " ", _tag("code", _breakable(path))),
            _tag(
                "p",
                operation["summary"],
                _tag("small", f"role {role}" if role else "open to all"),
                cls="summary",
            ),
            _markdown(operation.get("description")),
            _pre(self.curl(method, path, parameters, operation.get("requestBody"))),
            self._parameters(parameters),
            self._body(operation.get("requestBody")),
            self._answers(operation),
            id=operation["operationId"],
        )

    def curl(self, method: str, path: str, parameters: Iterable[Node], body: Node | None) -> str:
        """A command that tries the operation, with the examples of the contract."""
        examples = [(each, each["example"]) for each in parameters if "example" in each]
        query: dict[str, str] = {}
        for each, example in examples:
            if each["in"] == "path":
                path = path.replace(f"{{{each['name']}}}", quote(str(example), safe=""))
            elif each["in"] == "query":
                query |= example if isinstance(example, dict) else {each["name"]: str(example)}
        url = ADDRESS + path + (f"?{urlencode(query, safe=',')}" if query else "")
        verb = [] if method == ("post" if body else "get") else ["-X", method.upper()]
        return shlex.join(["curl", *verb, url, *_sent(body)])

    def _parameters(self, parameters: Iterable[Node]) -> _Html:
        rows = [
            (
                _tag("i", "any field") if each.get("explode") else _tag("code", each["name"]),
                each["in"],
                each["schema"],
                _markdown(each.get("description")),
            )
            for each in parameters
            if each["name"] not in self._contract["x-headers"]
        ]
        return self._members("Parameters", rows)

    def _members(self, title: str, rows: Iterable[tuple[str, str, Node, _Html]]) -> _Html:
        """A list of names, each with its place, what it may be, and what it means."""
        listed = [
            _tag(
                "div",
                _tag(
                    "dt", name, " ", _tag("small", _words([_Html(place), self._kind(schema)], ", "))
                ),
                _tag("dd", meaning),
            )
            for name, place, schema, meaning in rows
        ]
        if not listed:
            return _Html()
        return _Html((_tag("h4", title) if title else "") + _tag("dl", *listed))

    def _body(self, body: Node | None) -> _Html:
        if body is None:
            return _Html()
        return _Html(
            _tag("h4", "Body")
            + _markdown(body.get("description"))
            + "".join(self._medium(*each) for each in body["content"].items())
        )

    def _medium(self, media_type: str, medium: Node) -> _Html:
        examples = [self._seen(each)["value"] for each in medium.get("examples", {}).values()]
        examples += [medium["example"]] if "example" in medium else []
        return _Html(
            _tag("p", _tag("code", media_type), " ", self._kind(medium["schema"]))
            + "".join(_pre(_shown(each)) for each in examples)
        )

    def _answers(self, operation: Node) -> _Html:
        of_any = self._contract["x-codes"]["asked" if "x-role" in operation else "open"]
        codes = {*operation["x-codes"], *of_any}
        return _Html(
            _tag("h4", "Answers")
            + _tag(
                "dl",
                *(
                    self._answer(status, self._seen(each), codes)
                    for status, each in sorted(operation["responses"].items())
                ),
            )
        )

    def _answer(self, status: str, answer: Node, codes: set[str]) -> _Html:
        content, headers = answer.get("content", {}), set(self._contract["x-headers"])
        if PROBLEM in content:
            known = content[PROBLEM]["schema"]["properties"]["code"]["enum"]
            told = _tag("p", _words(_tag("code", code) for code in known if code in codes))
            headers.add("Cache-Control")  # no-store, as the introduction says
        else:
            told = _Html("".join(self._medium(*each) for each in content.items()))
        own = [_tag("code", each) for each in answer.get("headers", {}) if each not in headers]
        return _tag(
            "div",
            _tag("dt", _tag("b", status, cls=f"s{status[0]}")),
            _tag(
                "dd",
                _markdown(answer["description"]),
                told,
                _tag("p", "Headers: ", _words(own), cls="headers") if own else "",
            ),
        )

    def _schemas(self) -> _Html:
        schemas = self._contract["components"]["schemas"]
        return _tag(
            "section",
            _tag("h2", "Schemas", id="schemas"),
            *(self._schema(name, schema) for name, schema in schemas.items()),
        )

    def _schema(self, name: str, schema: Node) -> _Html:
        required = schema.get("required", ())
        rows = [
            (
                _tag("code", member),
                "required" if member in required else "",
                each,
                _markdown(each.get("description")),
            )
            for member, each in schema.get("properties", {}).items()
        ]
        return _tag(
            "article",
            _tag("h3", name),
            _markdown(schema.get("description")),
            "" if rows else _tag("p", self._kind(schema)),
            self._members("", rows),
            id=f"schema-{name}",
        )

    def _seen(self, node: Node) -> Node:
        """The node itself, or that it refers to."""
        while "$ref" in node:
            found: Any = self._contract
            for step in node["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            node = found
        return node

    def _kind(self, schema: Node) -> _Html:
        """What values are allowed, in a few words."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return _tag("a", name, href=f"#schema-{name}")
        if "anyOf" in schema:
            return _Html(" or ".join(map(self._kind, schema["anyOf"])))
        words = [
            _Html(escape(said.format(schema[name])))
            for name, said in _SAID.items()
            if name in schema
        ]
        if "enum" in schema:
            words.insert(0, _Html(" | ".join(_tag("code", each) for each in schema["enum"])))
        if schema.get("type") == "array":
            words.insert(0, _Html("array of " + (self._kind(schema["items"]) or "objects")))
        elif "type" in schema:
            types = schema["type"]
            words.insert(0, _Html(escape(types if isinstance(types, str) else " or ".join(types))))
        return _Html(", ".join(words))


_SAID: Final = {
    "const": "always {}",
    "minimum": "from {}",
    "maximum": "up to {}",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "default": "by default {}",
}


def _sent(body: Node | None) -> list[str]:
    """The words of curl that send the first example of a body."""
    if body is None:
        return []
    media_type, medium = next(iter(body["content"].items()))
    example = medium["example"]
    text = example if isinstance(example, str) else orjson.dumps(example).decode()
    if media_type == "application/json":
        return ["--json", text]
    return ["-H", f"Content-Type: {media_type}", "--data-binary", text]


def _tag(name: str, /, *content: str, cls: str = "", **attributes: str) -> _Html:
    """An element; text in it is escaped unless it is HTML."""
    if cls:
        attributes["class"] = cls
    given = "".join(f' {key}="{escape(value)}"' for key, value in attributes.items())
    if name in {"meta", "link"}:
        return _Html(f"<{name}{given}>")
    inner = "".join(each if isinstance(each, _Html) else escape(each) for each in content)
    return _Html(f"<{name}{given}>{inner}</{name}>")


def _markdown(text: str | None) -> _Html:
    return _Html(_MARKDOWN.render(text)) if text else _Html()


def _pre(text: str) -> _Html:
    return _tag("pre", _tag("code", text.rstrip("\n")), tabindex="0")


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    short = orjson.dumps(value).decode()
    return short if len(short) <= 80 else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _method(method: str) -> _Html:
    return _tag("b", method.upper(), cls=f"method {method}")


def _words(words: Iterable[_Html], between: str = " ") -> _Html:
    return _Html(between.join(each for each in words if each))


def _breakable(path: str) -> _Html:
    """The path, which a narrow page may break after a slash."""
    return _Html(escape(path).replace("/", "/<wbr>"))


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
