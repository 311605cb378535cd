"""The work: which requests are sent, in which order, the same to every system."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from benchmarks.apis import Api
from benchmarks.client import Client
from benchmarks.data import SEED, numbered, numbered_id

WORKS: Final = {
    "get": "GET",
    "miss": "GET, no such id",
    "304": "GET, If-None-Match",
    "put": "PUT, replace",
    "post": "POST, create",
    "mixed": "95 % GET, 5 % PUT, zipf 0.99",
}

ZIPF: Final = 0.99  # as in YCSB
PUT_SHARE: Final = 0.05
REQUESTS_MAX: Final = 20_000  # then they begin again
BODIES_MAX: Final = 10_000
ETAGS_MAX: Final = 500  # asked for one by one, just before they are used


class Workload:
    """Requests over so many items; the same again from the same seed."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.rows = list(numbered(items))
        self._requests = min(items, REQUESTS_MAX)

        #: What is written: the first items' data, to other ids.
        self.bodies = [row.data for row in self.rows[:BODIES_MAX]]

    @property
    def typical(self) -> bytes:
        """The body of middle length: redis-benchmark writes always the same."""
        return sorted(self.bodies, key=len)[len(self.bodies) // 2]

    def requests(self, work: str, api: Api, port: int) -> Iterator[bytes]:
        """The requests of a work; ``port`` is asked for the ETags where they are needed."""
        chance = random.Random(f"{SEED} {work}")
        if work == "304":
            for item_id, etag in _etags(api, port, self._ids(chance, ETAGS_MAX)):
                yield api.get(item_id, etag)
            return
        ids = self._zipf(chance) if work == "mixed" else self._ids(chance, self._requests)
        for item_id in ids:
            match work:
                case "get":
                    yield api.get(item_id)
                case "miss":
                    yield api.get(f"none{item_id}")
                case "put":
                    yield api.put(item_id, chance.choice(self.bodies))
                case "post":
                    yield api.post(chance.choice(self.bodies))
                case "mixed" if chance.random() < PUT_SHARE:
                    yield api.put(item_id, chance.choice(self.bodies))
                case "mixed":
                    yield api.get(item_id)

    def _ids(self, chance: random.Random, count: int) -> list[str]:
        """All equally likely."""
        return [numbered_id(chance.randrange(self.items)) for _ in range(count)]

    def _zipf(self, chance: random.Random) -> list[str]:
        """The k-th most wanted is wanted 1/k^0.99 times as often as the first; any may be it."""
        ranked = list(range(self.items))
        chance.shuffle(ranked)
        weights = list(accumulate(rank**-ZIPF for rank in range(1, self.items + 1)))
        drawn = chance.choices(ranked, cum_weights=weights, k=self._requests)
        return [numbered_id(number) for number in drawn]


def _etags(api: Api, port: int, ids: list[str]) -> Iterator[tuple[str, str]]:
    """On a connection each: a stray answer (see kinds.py) would shift all that come after it."""
    for item_id in ids:
        with Client(port) as client:
            head, _ = client.ask(api.get(item_id))
        found = _ETAG.search(head)
        if found is not None:
            yield item_id, found[1].decode()


_ETAG: Final = re.compile(rb"^etag: *(.*?)\r?$", re.IGNORECASE | re.MULTILINE)
