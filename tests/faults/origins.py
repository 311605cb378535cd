"""Rule 3: nothing is invented. Every state anybody saw goes back to one write of a client."""

from __future__ import annotations

from typing import Any

import orjson

from tests.faults.history import History, Op
from tests.faults.verdict import Verdict


class Origins:
    """Finds the write behind a state by the token in its data."""

    def __init__(self, history: History, verdict: Verdict) -> None:
        self._verdict = verdict
        self._by_token = {op.by: op for op in history.ops if op.by}
        self._shown: dict[tuple[str, int], str] = {}  # (id, version) → envelope
        self._versions: dict[str, int] = {}  # token → version
        self._post_ids: dict[str, str] = {}  # token of an open POST → id it was seen under

    def writer(self, envelope: str) -> Op | None:
        return self._by_token.get(orjson.loads(envelope)["data"].get("by", ""))

    def check(self, item_id: str, envelope: str, at: float, where: str) -> Op | None:
        """The write behind a state seen at ``at``; None if there is none, which is told."""
        item = orjson.loads(envelope)
        version = item["version"]
        op = self._by_token.get(item["data"].get("by", ""))
        if op is None:
            problem = "nobody wrote that"
        else:
            problem = (
                self._of_another(op, item_id, at)
                or self._other_bytes(op, item, envelope)
                or self._other_data(op, item["data"])
            )
        if problem:
            by = item["data"].get("by")
            self._verdict.add(3, f"{where} shows {item_id} version {version} by {by}: {problem}")
        return op

    def _of_another(self, op: Op, item_id: str, at: float) -> str:
        if op.kind == "post" and op.id is None:
            if self._post_ids.setdefault(op.by, item_id) != item_id:
                return f"the same POST made {self._post_ids[op.by]} too"
        elif op.id != item_id:
            return f"that was a write of {op.id}"
        if op.start > at:
            return "it was seen before it was sent"
        if op.fate == "refused":
            return f"it was refused with {op.status} {op.code}"
        return ""

    def _other_bytes(self, op: Op, item: dict[str, Any], envelope: str) -> str:
        version = item["version"]
        if op.is_acknowledged and op.body != envelope:
            return f"it was acknowledged as {op.body[:300]}, not {envelope[:300]}"
        if self._versions.setdefault(op.by, version) != version:
            return f"this write was version {self._versions[op.by]} before"
        before = self._shown.setdefault((item["id"], version), envelope)
        if before != envelope:
            return f"the same version was other bytes before: {before[:300]}"
        return ""

    def _other_data(self, op: Op, data: dict[str, Any]) -> str:
        """A PUT's data are as sent; a PATCH's are some PUT's, with the patch."""
        sent = orjson.loads(op.data)
        if op.kind == "patch":
            base = self._by_token.get(data.get("put", ""))
            if base is None or base.id not in (op.id, None):
                return "its base is no write of this item"
            sent = orjson.loads(base.data) | sent
        if orjson.dumps(sent) != orjson.dumps(data):
            return f"the data are not {orjson.dumps(sent).decode()[:300]}"
        return ""
