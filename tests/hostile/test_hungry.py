"""Those who want too much: of the server's memory, of its connections, of its time.

Each attack says what the attacker got. Others were served meanwhile, and memory stayed bounded.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import socket
import subprocess
import sys
from contextlib import suppress
from itertools import product
from typing import Final

import orjson
import pytest

from tests.hostile.conftest import BODIES_MAX_MIB, CONNECTIONS_MAX, MIB, ROUNDS_MIN, Victim
from tests.web.conftest import Answer, Raw, head, request

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def got(raw: Raw) -> str:
    """The status and code of what an attacker is told; "cut" if its connection just ends."""
    try:
        answer = await raw.answer()
    except (asyncio.IncompleteReadError, ConnectionError):
        return "cut"
    return told(answer)


def told(answer: Answer) -> str:
    return f"{answer.status} {answer.json.get('code', '')}".strip()


async def flood(victim: Victim, first: bytes, more: bytes, bytes_max: int) -> str:
    """Sends until it is told something."""
    raw = await victim.raw()
    answer = asyncio.create_task(got(raw))
    with suppress(ConnectionError):
        await raw.send(first)
        for _ in range(bytes_max // len(more)):
            if answer.done():
                break
            await raw.send(more)
    return await answer


async def test_header_flood(victim: Victim) -> None:
    """Headers without end are 400 after 128 of them, or 8 KiB of one."""
    lines = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(100))
    async with victim.under_attack(40):
        found = await asyncio.gather(
            *(flood(victim, b"GET /items/x HTTP/1.1\r\n", lines, MIB) for _ in range(20)),
            *(flood(victim, b"GET /livez HTTP/1.1\r\nX: ", b"x" * 999, MIB) for _ in range(20)),
            *(flood(victim, b"GET /", b"x" * 999, MIB) for _ in range(20)),
        )
    assert set(found) <= {"400 malformed_request", "cut"}
    assert "400 malformed_request" in found


@pytest.mark.parametrize("chunk", [b"10000\r\n" + b"x" * 65_536 + b"\r\n", b"1\r\nx\r\n" * 1_000])
async def test_body_flood(victim: Victim, chunk: bytes) -> None:
    """A body without end is 413 at its limit, or 408 if that takes it 10 s: in chunks of 64 KiB,
    and of one byte, which are dear to read."""
    first = head("PUT", "/items/flood", "Transfer-Encoding: chunked")
    async with victim.under_attack(80):
        found = await asyncio.gather(*(flood(victim, first, chunk, 8 * MIB) for _ in range(5)))
    assert set(found) <= {"413 body_too_large", "408 body_timeout", "cut"}
    assert set(found) != {"cut"}


async def test_many_large_bodies(victim: Victim) -> None:
    """Bodies of 8 MiB at the same time are 503 where they are too much together; small ones go on.

    The other half, not quite whole, is held open for as long as the attack lasts.
    """
    size = 8 * MIB
    first = head("POST", "/items:batch", f"Content-Length: {size}")

    async def send() -> Raw:
        raw = await victim.raw()
        with suppress(ConnectionError):
            await raw.send(first)
            await raw.send(b" " * (size - 1))
        return raw

    async with victim.under_attack(40 + 3 * BODIES_MAX_MIB):
        attackers = await asyncio.gather(*(send() for _ in range(12)))
        answers = [asyncio.ensure_future(got(raw)) for raw in attackers]
        done, waiting = await asyncio.wait(answers, timeout=30.0)
        assert not waiting
    found = [each.result() for each in done]
    assert set(found) <= {"503 overloaded", "408 body_timeout", "cut"}
    assert 0 < found.count("408 body_timeout") <= BODIES_MAX_MIB // 8
    assert "503 overloaded" in found


async def test_idle_readers(victim: Victim) -> None:
    """Who has read a large answer holds nothing of it while the connection is idle."""
    await put_large(victim)
    async with victim.under_attack(40):
        for lines in ((), ("X-A: 1", "X-A: 2")):  # by the lane, and by the ordinary route
            for _ in range(100):
                reader = await victim.raw()
                assert len((await reader.ask(request("GET", "/items/large", b"", *lines))).body)


async def test_slow_readers(victim: Victim) -> None:
    """Those who ask for large items and read nothing hold no more than is written for all.

    That is 32 MiB that they have not taken, each of them twice, and 32 MiB that wait.
    """
    await put_large(victim)
    async with victim.under_attack(160) as neighbour:
        attackers = [victim.deaf() for _ in range(CONNECTIONS_MAX - 20)]
        for one in attackers:
            one.sendall(request("GET", "/items/large") * 4)
        while not any(is_cut(one) for one in attackers):
            await neighbour.until(neighbour.rounds + 1)


@pytest.mark.parametrize(
    ("operation", "attackers"), [({"op": "get"}, 20), ({"op": "patch", "data": {"b": 1}}, 5)]
)
async def test_batches_that_ask_for_much(
    victim: Victim, operation: dict[str, object], attackers: int
) -> None:
    """A large item a thousand times, or as many versions of it, is not one answer."""
    await put_large(victim)
    sent = orjson.dumps({"operations": [{**operation, "id": "large"}] * 1_000})
    async with victim.under_attack(320):
        found = await asyncio.gather(
            *(victim.ask(request("POST", "/items:batch", sent), "POST") for _ in range(attackers))
        )
    for answer in found:
        assert len(answer.body) < 10 * MIB
        assert answer.status == 503 or len(answer.json["results"]) == 1_000


def is_cut(one: socket.socket) -> bool:
    """Whether its connection was ended by force, whatever was still to be sent."""
    return one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


async def put_large(victim: Victim) -> None:
    body = b'{"data":{"a":"%b"}}' % (b"x" * (MIB - 100))
    async with victim.under_attack(60):
        answer = await victim.ask(request("PUT", "/items/large", body), "PUT")
    assert answer.status in {200, 201}


@pytest.mark.parametrize("together", [1, 500])
async def test_pipelining_without_end(victim: Victim, together: int) -> None:
    """Requests without end are answered in their order, and the others in between.

    One to a packet, which the fast lane answers, and hundreds, which it does not.
    """
    sent = request("GET", "/items/neighbour") * together
    async with victim.under_attack(60) as neighbour:
        attackers = [
            subprocess.Popen(  # noqa: ASYNC220 - a process each: this one runs the neighbour
                [sys.executable, "-c", PIPELINE, str(victim.port), sent.decode()],
                stdout=subprocess.PIPE,
                stdin=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        try:
            await asyncio.gather(
                *(asyncio.to_thread(one.stdout.read, 1) for one in attackers if one.stdout)
            )
            await neighbour.until(neighbour.rounds + ROUNDS_MIN)
        finally:
            for one in attackers:
                one.kill()
                one.communicate()


#: Says so when a thousand answers are there, all of them right, and goes on until it is ended.
PIPELINE: Final = """
import socket, sys, threading
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def send():
    while True:
        connection.sendall(sys.argv[2].encode())
threading.Thread(target=send, daemon=True).start()
answers = connection.makefile("rb")
for number in range(1_000_000_000):
    status = answers.readline()
    assert status == b"HTTP/1.1 200 OK\\r\\n", status
    while (line := answers.readline()) != b"\\r\\n":
        if line.startswith(b"Content-Length: "):
            size = int(line[16:])
    answers.read(size)
    if number == 1_000:
        sys.stdout.write("!")
        sys.stdout.flush()
"""


def bomb(name: str) -> bytes:
    """JSON that is small to send and large to hold, or dear to read."""
    match name:
        case "depth":
            return b'{"data":{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}}"
        case "nodes":
            return b'{"data":{"a":[' + b"{}," * 300_000 + b"{}]}}"
        case "a number":
            return b'{"data":{"a":1' + b"0" * 1_000_000 + b"}}"
        case "numbers":
            return b'{"data":{"a":[' + b"1e-999999999," * 80_000 + b"1]}}"
        case "an exponent":
            return b'{"data":{"a":1e999999999}}'
        case "escapes":
            return b'{"data":{"a":"' + b"\\ud83d" * 170_000 + b'"}}'
        case _:
            raise AssertionError(name)


BOMBS: Final = {
    "depth": {"400 malformed_json", "422 invalid_data"},
    "nodes": {"422 invalid_data"},
    "a number": {"400 malformed_json"},
    "numbers": {"422 invalid_data"},
    "an exponent": {"400 malformed_json"},
    "escapes": {"400 malformed_json"},
}


@pytest.mark.parametrize(("name", "codes"), BOMBS.items(), ids=BOMBS)
async def test_json_bombs(victim: Victim, name: str, codes: set[str]) -> None:
    """JSON that would take much memory or time is refused by what it looks like."""
    sent = request("PUT", "/items/bomb", bomb(name))
    async with victim.under_attack(100):
        answers = await asyncio.gather(*(victim.ask(sent, "PUT") for _ in range(10)))
    assert {told(answer) for answer in answers} <= codes


async def test_of_duplicate_keys_the_last_counts(victim: Victim) -> None:
    """A key a hundred thousand times is one member, and what is stored has it once."""
    body = b'{"data":{' + b'"a":1,' * 90_000 + b'"a":2}}'
    async with victim.under_attack(60):
        answer = await victim.ask(request("PUT", "/items/twice", body), "PUT")
    assert answer.status in {200, 201}
    assert answer.body.endswith(b'"data":{"a":2}}')


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_gzip_bombs(victim: Victim, encoding: str) -> None:
    """A compressed body is 415 and never inflated."""
    body = gzip.compress(b'{"data":{"a":"' + b"x" * (32 * MIB), 9)
    sent = request("PUT", "/items/bomb", body, f"Content-Encoding: {encoding}")
    async with victim.under_attack(30):
        answers = await asyncio.gather(*(victim.ask(sent, "PUT") for _ in range(20)))
    assert {told(answer) for answer in answers} == {"415 unsupported_media_type"}


def djb2_twins(number: int) -> list[str]:
    """Strings that all have the same hash times 33, and times 31: "Aa" and "BB"."""
    return ["".join(parts) for parts in product(("Aa", "BB"), repeat=number)]


@pytest.mark.parametrize("keys", [djb2_twins(13), [str(n << 61) for n in range(32_768)]])
async def test_hash_collision_keys(victim: Victim, keys: list[str]) -> None:
    """Keys that would fall on one place of a hash table without a secret are keys like others.

    Each body is stored and read back; Python's own hashes of text have a secret a process.
    """
    body = orjson.dumps({"data": dict.fromkeys(keys, 1)})
    async with victim.under_attack(80):
        for number in range(5):
            answer = await victim.ask(request("PUT", f"/items/twins{number}", body), "PUT")
            assert answer.status in {200, 201}
            assert len(answer.json["data"]) == len(keys)


async def test_connection_flood(victim: Victim) -> None:
    """Connections beyond the limit are 503 or cut at once; silent ones give up their places."""

    async def silent() -> str:
        raw = await victim.raw()
        return await got(raw)

    async with victim.under_attack(60) as neighbour:
        attackers = [asyncio.create_task(silent()) for _ in range(2 * CONNECTIONS_MAX)]
        await asyncio.wait(attackers, return_when=asyncio.FIRST_COMPLETED)
        await neighbour.until(neighbour.rounds + ROUNDS_MIN)
        while (answer := await newcomer(victim)) != "200":
            assert answer in {"503 too_many_connections", "cut"}
            await asyncio.sleep(0.1)
        for each in attackers:
            each.cancel()
        ended = await asyncio.gather(*attackers, return_exceptions=True)
    found = {each for each in ended if isinstance(each, str)}
    assert found <= {"503 too_many_connections", "cut"}
    assert "503 too_many_connections" in found


async def newcomer(victim: Victim) -> str:
    """What one gets who comes while all places are taken."""
    raw = await victim.raw()
    with suppress(ConnectionError):
        await raw.send(request("GET", "/livez"))
    return await got(raw)
