"""Plain aiohttp routes over a dict, on uvloop: what aiohttp gives before anything is stored.

python -m benchmarks.peer_services.plain_aiohttp --port 8080 --items FILE
"""

from __future__ import annotations

import uvloop
from aiohttp import web

from benchmarks.peer_services.held import Held, Items, arguments


def make_app(items: Items) -> web.Application:
    """The three routes."""

    async def get(request: web.Request) -> web.Response:
        held = items.get(request.match_info["id"])
        if held is None:
            return web.json_response({"code": "item_not_found"}, status=404)
        if request.headers.get("If-None-Match") == held.etag:
            return web.Response(status=304, headers={"ETag": held.etag})
        return _answer(200, held)

    async def put(request: web.Request) -> web.Response:
        return _answer(200, items.put(request.match_info["id"], await request.read()))

    async def post(request: web.Request) -> web.Response:
        return _answer(201, items.post(await request.read()))

    app = web.Application()
    app.add_routes(
        [web.get("/items/{id}", get), web.put("/items/{id}", put), web.post("/items", post)]
    )
    return app


def _answer(status: int, held: Held) -> web.Response:
    return web.Response(
        status=status,
        body=held.body,
        content_type="application/json",
        headers={"ETag": held.etag},
    )


def main() -> None:
    given = arguments()
    app = make_app(Items(given.items))
    web.run_app(
        app,
        host="127.0.0.1",
        port=given.port,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
