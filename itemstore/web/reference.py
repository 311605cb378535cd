"""The contract as one page of HTML, without a script: made on the server from the same file."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from itemstore.web.html import Html, block, code, element, joined, markdown

ADDRESS: Final = "localhost:8080"  # as in docs/api.md
METHODS: Final = ("get", "put", "post", "patch", "delete")
PROBLEM: Final = "application/problem+json"

Node = Mapping[str, Any]  # a part of the contract


def render(contract: Node) -> str:
    """The page."""
    return "<!doctype html>\n" + element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", f"{contract['info']['title']}: the HTTP API"),
            element("link", rel="stylesheet", href="/docs/style.css"),
        ),
        _Page(contract).body(),
        lang="en",
    )


class _Page:
    """The parts of the page; references in the contract are followed here."""

    def __init__(self, contract: Node) -> None:
        self._contract = contract

    def body(self) -> Html:
        return element(
            "body",
            element("a", "Skip to the text", href="#main", cls="skip"),
            self._navigation(),
            element(
                "main",
                self._introduction(),
                *(self._section(each) for each in self._contract["tags"]),
                self._schemas(),
                id="main",
            ),
        )

    def _navigation(self) -> Html:
        info, tags = self._contract["info"], self._contract["tags"]
        version = element("small", info["version"])
        return element(
            "nav",
            element("a", info["title"], " ", version, href="#main", cls="home"),
            *(self._group(tag["name"]) for tag in tags),
            element("h2", element("a", "Schemas", href="#schemas")),
            **{"aria-label": "Operations"},
        )

    def _group(self, tag: str) -> Html:
        links = (
            element("a", _method(method), _breakable(path), href=f"#{operation['operationId']}")
            for method, path, operation in self._operations(tag)
        )
        heading = element("h2", element("a", tag, href=f"#{_slug(tag)}"))
        return joined([heading, element("ul", *(element("li", link) for link in links))])

    def _introduction(self) -> Html:
        info = self._contract["info"]
        bearer = self._contract["components"]["securitySchemes"]["bearer"]
        return element(
            "header",
            element("h1", info["title"]),
            element("p", info["summary"], cls="lead"),
            markdown(info["description"]),
            element("h2", "Authorization", id="authorization"),
            markdown(bearer["description"]),
            block(f'curl {ADDRESS}/items -H "Authorization: Bearer $API_KEY"'),
            element(
                "p",
                "For machines: ",
                element("a", "openapi.json", href="/openapi.json"),
                f" (OpenAPI {self._contract['openapi']}).",
            ),
        )

    def _section(self, tag: Node) -> Html:
        name = tag["name"]
        return element(
            "section",
            element("h2", name, id=_slug(name)),
            markdown(tag.get("description")),
            *(self._operation(*each) for each in self._operations(name)),
        )

    def _operations(self, tag: str) -> Iterator[tuple[str, str, Node]]:
        for path, item in self._contract["paths"].items():
            for method in METHODS:
                if method in item and tag in item[method]["tags"]:
                    yield method, path, item[method]

    def _operation(self, method: str, path: str, operation: Node) -> Html:
        shared = self._contract["paths"][path].get("parameters", ())
        parameters = [self._seen(each) for each in (*shared, *operation.get("parameters", ()))]
        role = operation.get("x-role")
        return element(
            "article",
            element("h3", _method(method), " ", code(_breakable(path))),
            element(
                "p",
                operation["summary"],
                element("small", f"role {role}" if role else "open to all"),
                cls="summary",
            ),
            markdown(operation.get("description")),
            block(self.curl(method, path, parameters, operation.get("requestBody"))),
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

    def _parameters(self, parameters: Iterable[Node]) -> Html:
        rows = [
            (
                element("i", "any field") if each.get("explode") else code(each["name"]),
                each["in"],
                each["schema"],
                each.get("description"),
            )
            for each in parameters
            if each["name"] not in self._contract["x-headers"]
        ]
        return self._members("Parameters", rows)

    def _members(self, title: str, rows: Iterable[tuple[Html, str, Node, str | None]]) -> Html:
        """A list of names, each with its place, what it may be, and what it means."""
        listed = [
            element(
                "div",
                element("dt", name, " ", element("small", joined([place, self._kind(each)], ", "))),
                element("dd", markdown(meant)),
            )
            for name, place, each, meant in rows
        ]
        return (
            joined([element("h4", title) if title else "", element("dl", *listed)])
            if listed
            else Html()
        )

    def _body(self, body: Node | None) -> Html:
        if body is None:
            return Html()
        media = (self._medium(*each) for each in body["content"].items())
        return joined([element("h4", "Body"), markdown(body.get("description")), *media])

    def _medium(self, media_type: str, medium: Node) -> Html:
        examples = [self._seen(each)["value"] for each in medium.get("examples", {}).values()]
        examples += [medium["example"]] if "example" in medium else []
        form = element("p", code(media_type), " ", self._kind(medium["schema"]))
        return joined([form, *(block(_shown(each)) for each in examples)])

    def _answers(self, operation: Node) -> Html:
        of_any = self._contract["x-codes"]["asked" if "x-role" in operation else "open"]
        codes = {*operation["x-codes"], *of_any}
        answers = (
            self._answer(status, self._seen(each), codes)
            for status, each in sorted(operation["responses"].items())
        )
        return joined([element("h4", "Answers"), element("dl", *answers)])

    def _answer(self, status: str, answer: Node, codes: set[str]) -> Html:
        content, headers = answer.get("content", {}), set(self._contract["x-headers"])
        if PROBLEM in content:
            known = content[PROBLEM]["schema"]["properties"]["code"]["enum"]
            told = element("p", joined((code(each) for each in known if each in codes), " "))
            headers.add("Cache-Control")  # no-store, as the introduction says
        else:
            told = joined(self._medium(*each) for each in content.items())
        own = [code(each) for each in answer.get("headers", {}) if each not in headers]
        return element(
            "div",
            element("dt", element("b", status, cls=f"s{status[0]}")),
            element(
                "dd",
                markdown(answer["description"]),
                told,
                element("p", "Headers: ", joined(own, " "), cls="headers") if own else "",
            ),
        )

    def _schemas(self) -> Html:
        schemas = self._contract["components"]["schemas"]
        return element(
            "section",
            element("h2", "Schemas", id="schemas"),
            *(self._schema(name, schema) for name, schema in schemas.items()),
        )

    def _schema(self, name: str, schema: Node) -> Html:
        required = schema.get("required", ())
        rows = [
            (
                code(member),
                "required" if member in required else "",
                each,
                each.get("description"),
            )
            for member, each in schema.get("properties", {}).items()
        ]
        return element(
            "article",
            element("h3", name),
            markdown(schema.get("description")),
            "" if rows else element("p", self._kind(schema)),
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

    def _kind(self, schema: Node) -> Html:
        """What values are allowed, in a few words."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return element("a", name, href=f"#schema-{name}")
        if "contentSchema" in schema:
            return joined(["lines of ", self._kind(schema["contentSchema"])])
        if "anyOf" in schema:
            return joined(map(self._kind, schema["anyOf"]), " or ")
        words: list[str] = []
        if schema.get("type") == "array":
            words.append(joined(["array of ", self._kind(schema["items"]) or "objects"]))
        elif "type" in schema:
            types = schema["type"]
            words.append(types if isinstance(types, str) else " or ".join(types))
        if "enum" in schema:
            words.append(joined(map(code, schema["enum"]), " | "))
        words += [said.format(schema[name]) for name, said in _SAID.items() if name in schema]
        return joined(words, ", ")


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


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    short = orjson.dumps(value).decode()
    return short if len(short) <= 80 else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _method(method: str) -> Html:
    return element("b", method.upper(), cls=f"method {method}")


def _breakable(path: str) -> Html:
    """The path, which a narrow page may break after a slash."""
    return element("span", Html(escape(path).replace("/", "/<wbr>")))


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")
