"""schemathesis asks the live server what the contract allows and what it forbids, with all checks.

ITEMSTORE_EXAMPLES=1000 .venv/bin/python -m pytest tests/web/test_schemathesis.py
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from itemstore.options import Options
from itemstore.storage.postgres import Postgres
from itemstore.web.app import ROUTES
from tests.web.conftest import service_over

EXAMPLES: Final = int(os.environ.get("ITEMSTORE_EXAMPLES", "10"))  # for each operation
LIMIT_S: Final = 120 + EXAMPLES * 10  # so that it ends at all; it takes about a tenth of that
ROOT: Final = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
async def test_schemathesis_finds_nothing(dsn: str, tmp_path: Path) -> None:
    """Examples, bounds, random requests and sequences of them pass every check."""
    async with service_over(Postgres(dsn), Options(journal_dir=tmp_path / "journal")) as service:
        file = tmp_path / "openapi.json"  # from its address, that route would be left out
        file.write_bytes((await service.api("GET", "/openapi.json")).body)
        process = await asyncio.create_subprocess_exec(
            *(Path(sys.executable).with_name("schemathesis"), "--no-color"),
            *("--config-file", Path(__file__).with_name("schemathesis.toml")),
            *("run", file, "--url", service.api.url, "--max-examples", str(EXAMPLES)),
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NO_PROXY": "*"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                told, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    said = told.decode()
    assert process.returncode == 0, said
    assert f"{len(ROUTES)} selected / {len(ROUTES)} total" in said
