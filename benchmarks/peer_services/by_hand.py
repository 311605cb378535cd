"""FastAPI, asyncpg and PostgreSQL: the service people write by hand.

PGHOST=… PGPORT=… PGUSER=… PGDATABASE=… uvicorn benchmarks.peer_services.by_hand:app

A pool, one statement a request, one row a statement, an upsert for PUT. The table is ``SCHEMA``.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Final

import asyncpg  # type: ignore[import-untyped]
import orjson
from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel

SCHEMA: Final = """
CREATE TABLE items (
    id         text PRIMARY KEY,
    data       jsonb       NOT NULL,
    version    bigint      NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
"""

_COLUMNS: Final = "id, data, version, created_at, updated_at"
_SELECT: Final = f"SELECT {_COLUMNS} FROM items WHERE id = $1"
_INSERT: Final = f"INSERT INTO items (id, data) VALUES ($1, $2) RETURNING {_COLUMNS}"
_UPSERT: Final = f"""
INSERT INTO items (id, data) VALUES ($1, $2)
ON CONFLICT (id) DO UPDATE
SET data = excluded.data, version = items.version + 1, updated_at = now()
RETURNING {_COLUMNS}
"""


class NewItem(BaseModel):
    """What a request sends."""

    data: dict[str, Any]


class Item(BaseModel):
    """What is answered."""

    id: str
    version: int
    created_at: datetime
    updated_at: datetime
    data: dict[str, Any]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(init=_prepare) as pool:
        app.state.pool = pool
        yield


async def _prepare(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=lambda value: orjson.dumps(value).decode(),
        decoder=orjson.loads,
    )


app = FastAPI(lifespan=_lifespan)


@app.get("/items/{item_id}")
async def get_item(
    item_id: str, response: Response, if_none_match: Annotated[str | None, Header()] = None
) -> Item:
    """200, 304 or 404."""
    row = await app.state.pool.fetchrow(_SELECT, item_id)
    if row is None:
        raise HTTPException(404, "There is no item with this id.")
    item = _answer(row, response)
    if if_none_match == response.headers["ETag"]:
        raise HTTPException(304, headers={"ETag": if_none_match})
    return item


@app.put("/items/{item_id}")
async def put_item(item_id: str, new: NewItem, response: Response) -> Item:
    """200."""
    return _answer(await app.state.pool.fetchrow(_UPSERT, item_id, new.data), response)


@app.post("/items", status_code=201)
async def create_item(new: NewItem, response: Response) -> Item:
    """201."""
    new_id = secrets.token_urlsafe(8)
    return _answer(await app.state.pool.fetchrow(_INSERT, new_id, new.data), response)


def _answer(row: asyncpg.Record, response: Response) -> Item:
    response.headers["ETag"] = f'"{row["version"]}"'
    return Item(**row)
