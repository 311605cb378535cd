"""itemstore: JSON items in memory, persisted to PostgreSQL.

    async with ItemStore.open("postgresql://…") as store:
        await store.put("cart:7", {"apples": 3})
        item = await store.get("cart:7")

The map, from the door to the disk: ``cli`` → ``web`` → ``store`` → ``persister``, ``loader`` →
``storage`` → ``core`` → ``errors``. A module imports only from its right.
"""

from itemstore import errors
from itemstore.core.caller import Caller, Role
from itemstore.core.condition import Condition
from itemstore.core.item import Item
from itemstore.core.listing import Page
from itemstore.core.operation import Create, Delete, Get, Patch, Put
from itemstore.core.record import Once, Origin
from itemstore.options import Durability, Options, Preload
from itemstore.store import ItemStore

__all__ = [
    "Caller",
    "Condition",
    "Create",
    "Delete",
    "Durability",
    "Get",
    "Item",
    "ItemStore",
    "Once",
    "Options",
    "Origin",
    "Page",
    "Patch",
    "Preload",
    "Put",
    "Role",
    "errors",
]
__version__ = "0.1.0"
