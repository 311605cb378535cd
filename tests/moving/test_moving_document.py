"""The examples of docs/moving.md run as they stand, one after another, in one directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.moving.moves import datas
from tests.moving.test_importing import other_url
from tests.sql import query

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "moving.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```sh\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.timeout(400)  # eight commands, each a process of its own
@pytest.mark.skipif(shutil.which("bash") is None, reason="install bash")
def test_the_examples_run(
    dsn: str, server: Callable[[int], str], databases: Any, tmp_path: Path
) -> None:
    """And what they say is in the store is there."""
    with databases.one(server(18)) as shop:
        query(shop, "CREATE TABLE product (sku text, name text, price numeric)")
        query(shop, "INSERT INTO product VALUES ('s-1', 'Quill', 1.5)")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = {"DATABASE_URL": dsn, "SHOP_URL": other_url(shop), "PATH": path}
        for example in EXAMPLES:
            done = subprocess.run(
                ["bash", "-euc", example],
                env=os.environ | given,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert 0 == done.returncode, (example, done.stderr)
    found = datas(dsn)
    assert {"name": "Ada", "born": 1815} == found["ada"]
    assert {"name": "Lamp", "price": 12.5, "tags": ["red"]} == found["1"]
    assert {"name": "Kettle", "stock": 3} == found["p-1"]
    assert {"name": "Quill", "price": 1.5} == found["s-1"]
    created = query(dsn, "SELECT created_at::text FROM items WHERE id IN ('ada', 'p-1')")
    assert ["2024-05-01 12:00:00+00"] == sorted({str(each)[:22] for each in created})
    assert "Kettle" in (tmp_path / "items.csv").read_text("utf-8")
