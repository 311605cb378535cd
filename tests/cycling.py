"""Writes ten times as much into a cache as it may hold, and tells what the process took meanwhile.

    python -m tests.cycling plain|packed MIB

Prints the bound, and the most that the process's memory has grown by, in bytes.
Items are of very different sizes, and each is replaced by another of any size.
"""

from __future__ import annotations

import random
import sys
from typing import Final

from itemstore.core.cache import Cache
from itemstore.core.ids import scramble
from itemstore.core.item import pack
from itemstore.core.queue import WriteQueue
from itemstore.core.recent import Recent
from itemstore.keeper import Keeper
from itemstore.memory import MIB, resident_bytes

SIZES: Final = (60, 120, 228, 400, 700, 1_500, 4_000)  # bytes of data
MEASURE_ITEMS: Final = 5_000  # about what comes in a second


def main() -> None:
    form, bound = sys.argv[1], int(sys.argv[2]) * MIB
    chance, cache = random.Random(1), Cache(packs=form == "packed")
    empty = most = resident_bytes()
    keeper = Keeper(cache, WriteQueue(), Recent(), (), bound)
    number = written = 0
    while written < 10 * bound:
        data = chance.randbytes(chance.choice(SIZES))
        cache.put(scramble(number, 7), pack(number, number, data))
        cache.unpacked(1, ())  # the packer has seen it
        number, written = number + 1, written + len(data)
        if number % MEASURE_ITEMS == 0:
            keeper.measure()
            most = max(most, resident_bytes())
    sys.stdout.write(f"{bound} {most - empty}\n")


if __name__ == "__main__":
    main()
