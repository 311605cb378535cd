"""Idempotency-Key over HTTP: POST /items and POST /items:batch are carried out once."""

from __future__ import annotations

import asyncio

import pytest

from tests.web.conftest import Answer, Api, Gate, Service, count_of, request, run_batch

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"


def told(answer: Answer) -> tuple[int, bytes, str | None, str | None]:
    """What must be the same each time."""
    return answer.status, answer.body, answer.headers.get("ETag"), answer.headers.get("Location")


async def create(api: Api, key: str, n: int = 1) -> Answer:
    return await api("POST", "/items", {"data": {"n": n}}, idempotency_key=key)


async def test_a_repetition_is_answered_alike(service: Service, name: str) -> None:
    """201 with the same id, version, body and headers, and marked; also once it is deleted."""
    first = await create(service.api, name)
    assert (201, None) == (first.status, first.headers.get(REPLAYED))
    for _ in range(2):
        again = await create(service.api, name)
        assert told(first) == told(again)
        assert "true" == again.headers[REPLAYED]
        service.store.repetitions._recent.clear()
    await service.api("DELETE", first.headers["Location"])
    assert told(first) == told(await create(service.api, name))
    assert 404 == (await service.api("GET", first.headers["Location"])).status


async def test_another_body_under_the_key_is_422(api: Api, name: str) -> None:
    """Be it another item, or a batch."""
    await create(api, name)
    (await create(api, name, n=2)).is_problem(422, "idempotency_key_reused")
    operations = {"operations": [{"op": "create", "data": {}}]}
    answer = await api("POST", "/items:batch", operations, idempotency_key=name)
    answer.is_problem(422, "idempotency_key_reused")


async def test_a_refused_request_is_not_remembered(api: Api, name: str) -> None:
    """After a 409 and a 422 the key is as good as new: the repetition is carried out."""
    item = {"id": name, "data": {}}
    await api("POST", "/items", item)
    answer = await api("POST", "/items", item, idempotency_key=name)
    answer.is_problem(409, "item_exists")
    await api("DELETE", f"/items/{name}")
    assert 201 == (await api("POST", "/items", item, idempotency_key=name)).status


async def test_while_the_first_is_answered_it_is_409(
    service: Service, held_writes: Gate, name: str
) -> None:
    """Retry-After says when; others are answered meanwhile."""
    first = asyncio.create_task(create(service.api, name))
    await held_writes.reached.wait()
    again = await create(service.api, name)
    again.is_problem(409, "idempotency_in_progress")
    assert "1" == again.headers["Retry-After"]
    assert 200 == (await service.api("GET", "/livez")).status
    held_writes.open.set()
    assert told(await first) == told(await create(service.api, name))


@pytest.mark.parametrize(
    "key",
    ["", " ", "a b", "ä", '"', '"a', '""', '"a\\b"', "x" * 256, f'"{"x" * 256}"', '"a";b=1'],
)
async def test_a_key_that_is_none_is_400(api: Api, name: str, key: str) -> None:
    """No character, too many, one that is not visible, or a string that is not whole."""
    answer = await create(api, key)
    answer.is_problem(400, "invalid_idempotency_key")
    body = {"operations": [{"op": "put", "id": name, "data": {}}]}
    answer = await api("POST", "/items:batch", body, idempotency_key=key)
    answer.is_problem(400, "invalid_idempotency_key")
    assert 0 == await count_of(api, name)


async def test_two_keys_are_none(api: Api) -> None:
    """Which of them was meant is not guessed."""
    lines = [(KEY, "a"), (KEY, "b")]
    answer = await api("POST", "/items", {"data": {}}, lines=lines)
    answer.is_problem(400, "invalid_idempotency_key")


async def test_a_key_with_quotes_and_without_is_one(api: Api, name: str) -> None:
    """The draft writes it as a string of RFC 9651, most clients without its quotes."""
    plain = await create(api, f"{name}\\x")
    assert told(plain) == told(await create(api, f'"{name}\\\\x"'))
    longest = f"{name}{'x' * (255 - len(name))}"
    assert 201 == (await create(api, longest)).status


async def test_a_batch_is_repeated_operation_by_operation(api: Api, name: str) -> None:
    """Each status and item again, marked; a failed operation is tried again."""
    body = {
        "operations": [
            {"op": "create", "data": {"n": 1}},
            {"op": "put", "id": f"{name}b", "data": {"n": 2}},
            {"op": "patch", "id": f"{name}b", "data": {"more": 1}},
            {"op": "delete", "id": f"{name}none"},
            {"op": "nonsense"},
            {"op": "get", "id": f"{name}b"},
            {"op": "delete", "id": f"{name}b"},
        ]
    }
    first = await api("POST", "/items:batch", body, idempotency_key=name)
    assert REPLAYED not in first.headers
    assert [201, 201, 200, 404, 422, 200, 204] == [one["status"] for one in first.json["results"]]
    again = await api("POST", "/items:batch", body, idempotency_key=name)
    assert "true" == again.headers[REPLAYED]
    results = again.json["results"]
    assert [201, 201, 200, 404, 422, 404, 204] == [one["status"] for one in results]
    assert first.json["results"][:3] == results[:3]


async def test_other_methods_have_no_use_for_it(api: Api, name: str) -> None:
    """PUT, PATCH and DELETE are repeated without harm: they pass the header over."""
    for method, status in (("PUT", 201), ("PUT", 200), ("PATCH", 200), ("DELETE", 204)):
        item = None if method == "DELETE" else {"data": {"n": 1}}
        answer = await api(method, f"/items/{name}", item, idempotency_key="no good key")
        assert (status, None) == (answer.status, answer.headers.get(REPLAYED))


async def test_the_lane_leaves_it_to_the_ordinary_route(service: Service, name: str) -> None:
    """A repetition over a bare connection is answered alike too."""
    raw = await service.raw()
    post = request("POST", "/items", b'{"data":{}}', f"{KEY}: {name}")
    first, again = await raw.ask(post), await raw.ask(post)
    assert (told(first), "true") == (told(again), again.headers[REPLAYED])


async def test_many_keys_are_asked_for_together(service: Service, name: str) -> None:
    """A hundred repetitions at once are answered alike, with a few queries."""
    keys = [f"{name}{number}" for number in range(100)]
    first = await asyncio.gather(*(create(service.api, key) for key in keys))
    service.store.repetitions._recent.clear()
    again = await asyncio.gather(*(create(service.api, key) for key in keys))
    assert list(map(told, first)) == list(map(told, again))
    assert 100 == len({answer.headers["Location"] for answer in again})


async def test_without_a_key_nothing_is_remembered(service: Service) -> None:
    """No request is under way afterwards, and none is known."""
    await run_batch(service.api, {"op": "create", "data": {}})
    await service.api("POST", "/items", {"data": {}})
    assert not service.store.repetitions._pending
    assert not service.store.repetitions._running
