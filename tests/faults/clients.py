"""Writers and readers in a process of their own, which no fault touches, and their history.

    python -m tests.faults.clients --url http://127.0.0.1:8080 --history FILE --tag r0

They go on whatever happens, until SIGTERM or the deadline; then each ends the operation it is at.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson

from tests.faults.connection import Answer, Connection, Lost, NotSent, item_path
from tests.faults.history import LOST, NOT_SENT

COUNTERS: Final = 5
PAUSE_MIN_S: Final = 0.01
PAUSE_MAX_S: Final = 0.2
OPEN_LOOP_MAX: Final = 4_000  # requests under way; what cannot even be begun is no load
#: What a client does next, by weight.
MIX: Final = {"put": 45, "post": 8, "patch": 12, "delete": 8, "add": 10, "get": 17}


class Clients:
    """All clients of the process, over one history."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._history = options.history.open("wb", buffering=1 << 16)
        self._numbers = itertools.count()
        self._stopping = asyncio.Event()
        levels = dict(part.split("=") for part in options.levels.split(","))
        self._levels, self._level_weights = list(levels), [float(w) for w in levels.values()]
        mix = MIX | {kind: int(weight) for kind, weight in (m.split("=") for m in options.mix)}
        self._kinds, self._kind_weights = list(mix), list(mix.values())

    async def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)
        asyncio.get_running_loop().call_later(self._options.seconds, self._stopping.set)
        sys.stdout.write("begun\n")
        sys.stdout.flush()
        if self._options.rate:
            await self._open_loop()
        else:
            await asyncio.gather(*(self._closed_loop(n) for n in range(self._options.writers)))
        self._note(done=True)
        self._history.close()

    async def _closed_loop(self, number: int) -> None:
        client = Client(self, number)
        failures = 0
        while not self._stopping.is_set():
            if await client.act():
                failures = 0
                continue
            client.turn()
            pause = min(PAUSE_MIN_S * 2 ** min(failures, 10), PAUSE_MAX_S)
            failures += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self._stopping.wait(), pause * client.chance.uniform(0.5, 1.0)
                )
        client.close()

    async def _open_loop(self) -> None:
        """``rate`` operations a second are begun, however long the answers take."""
        idle: list[Client] = []
        busy: set[asyncio.Task[None]] = set()
        made = itertools.count()

        async def act(client: Client) -> None:
            await client.act()
            idle.append(client)

        begun, started = 0, time.monotonic()
        while not self._stopping.is_set():
            due = int((time.monotonic() - started) * self._options.rate)
            for _ in range(max(0, min(due - begun, OPEN_LOOP_MAX - len(busy)))):
                task = asyncio.create_task(act(idle.pop() if idle else Client(self, next(made))))
                busy.add(task)
                task.add_done_callback(busy.discard)
            begun = due
            await asyncio.sleep(0.01)
        await asyncio.gather(*busy)

    # --- for one client

    def note_intent(self, kind: str, item_id: str | None, **more: Any) -> int:
        number = next(self._numbers)
        self._note(number=number, kind=kind, id=item_id, start=time.monotonic(), **more)
        return number

    def note_outcome(self, number: int, answer: Answer | None, status: int = LOST) -> None:
        if answer is None:
            self._note(number=number, status=status, end=time.monotonic())
            return
        self._note(
            number=number,
            status=answer.status,
            end=time.monotonic(),
            given=answer.headers.get("durability", ""),
            retry_after="retry-after" in answer.headers,
            body=answer.body,
        )

    def _note(self, **entry: Any) -> None:
        self._history.write(orjson.dumps(entry) + b"\n")

    def some_kind(self, chance: random.Random) -> str:
        return str(chance.choices(self._kinds, self._kind_weights)[0])

    def some_level(self, chance: random.Random) -> str:
        return str(chance.choices(self._levels, self._level_weights)[0])

    def some_id(self, chance: random.Random) -> str:
        """Few ids often, many seldom."""
        return f"{self._options.tag}-i{int(self._options.ids * chance.random() ** 2.5)}"

    @property
    def options(self) -> argparse.Namespace:
        return self._options


class Client:
    """One at a time: decides, notes, sends, notes."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        options = clients.options
        self.chance = random.Random(f"{options.seed}-{number}")
        self._name = f"{options.tag}-w{number}"
        self._sequence = itertools.count()
        self._urls = itertools.cycle(options.url)
        self._connection = Connection(next(self._urls), timeout_s=options.timeout)

    def turn(self) -> None:
        """The next server, after this one did not serve."""
        if len(self._clients.options.url) > 1:
            self._connection.turn_to(next(self._urls))

    def close(self) -> None:
        self._connection.close()

    async def act(self) -> bool:
        """One operation. False if the server could not serve it."""
        kind = self._clients.some_kind(self.chance)
        item_id = self._clients.some_id(self.chance)
        match kind:
            case "get":
                answer = await self._get(item_id)
            case "delete":
                answer = await self._write(kind, item_id, "DELETE", item_path(item_id))
            case "post":
                answer = await self._write(kind, None, "POST", "/items", self._data())
            case "put":
                answer = await self._write(kind, item_id, "PUT", item_path(item_id), self._data())
            case "patch":
                answer = await self._write(
                    kind, item_id, "PATCH", item_path(item_id), self._change()
                )
            case _:
                answer = await self._add()
        return answer is not None and answer.status < 500

    def _token(self) -> str:
        return f"{self._name}-{next(self._sequence)}"

    def _data(self, **more: int) -> dict[str, Any]:
        token = self._token()
        text = "ä€😀 " + "x" * self.chance.randrange(self._clients.options.size)
        if self.chance.random() < self._clients.options.poison:
            text += "poison"
        return {"by": token, "put": token, "text": text, **more}

    def _change(self) -> dict[str, Any]:
        token = self._token()
        return {"by": token, "patch": token}

    async def _get(self, item_id: str) -> Answer | None:
        number = self._clients.note_intent("get", item_id)
        return await self._send(number, "GET", item_path(item_id))

    async def _add(self) -> Answer | None:
        """Increments a counter, if nobody else has since it was read."""
        item_id = f"{self._clients.options.tag}-c{self.chance.randrange(COUNTERS)}"
        found = await self._get(item_id)
        if found is None or found.status not in (200, 404):
            return found
        if found.status == 404:
            data, condition = self._data(n=1), {"If_None_Match": "*"}
        else:
            item = orjson.loads(found.body)
            data = self._data(n=item["data"]["n"] + 1)
            condition = {"If_Match": f'"{item["version"]}"'}
        return await self._write("add", item_id, "PUT", item_path(item_id), data, **condition)

    async def _write(
        self,
        kind: str,
        item_id: str | None,
        method: str,
        path: str,
        data: dict[str, Any] | None = None,
        **headers: str,
    ) -> Answer | None:
        level = self._clients.some_level(self.chance)
        about = {} if data is None else {"by": data["by"], "data": orjson.dumps(data).decode()}
        number = self._clients.note_intent(kind, item_id, level=level, **about)
        body = b"" if data is None else orjson.dumps({"data": data})
        return await self._send(number, method, path, body, Durability=level, **headers)

    async def _send(
        self, number: int, method: str, path: str, body: bytes = b"", **headers: str
    ) -> Answer | None:
        answer, status = None, LOST
        try:
            answer = await self._connection.request(method, path, body, **headers)
        except NotSent:
            status = NOT_SENT
        except Lost:
            pass
        self._clients.note_outcome(number, answer, status)
        return answer


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", action="append", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--tag", required=True, help="begins every id and token")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--ids", type=int, default=200)
    parser.add_argument("--levels", default="commit=1", help="level=weight,…")
    parser.add_argument("--mix", action="append", default=[], help="kind=weight")
    parser.add_argument("--poison", type=float, default=0.0, help="share of bad rows")
    parser.add_argument("--size", type=int, default=200, help="bytes of text, at most")
    parser.add_argument("--rate", type=float, default=0.0, help="operations a second, open loop")
    parser.add_argument("--timeout", type=float, default=15.0, help="s, for an answer")
    parser.add_argument("--seconds", type=float, default=3600.0)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(Clients(_options()).run())
