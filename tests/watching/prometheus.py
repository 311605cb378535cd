"""A real Prometheus that scrapes a port, and what deploy/ asks of it."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
import yaml

from benchmarks.ports import Port

DEPLOY: Final = Path(__file__).parents[2] / "deploy"
DASHBOARD: Final = DEPLOY / "grafana.json"
LIMIT_S: Final = 60.0

needs_promtool: Final = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing; apt-get install prometheus"
)
needs_prometheus: Final = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is missing; apt-get install prometheus"
)

_OFTEN: Final = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
#: What Grafana puts in the place of its variables.
_VARIABLES: Final = {"$instance": ".*", "$__rate_interval": "15s"}


class Panel(NamedTuple):
    """One query of the dashboard."""

    title: str
    query: str


def panels() -> list[Panel]:
    """Those of deploy/grafana.json, one for each query."""
    return [
        Panel(f"{panel['title']}: {target['legendFormat']}", target["expr"])
        for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]


class Rule(NamedTuple):
    """One alarm of deploy/alerts.yml."""

    name: str
    query: str
    severity: str
    annotations: str
    heading: str  #: in docs/operations.md


def rules() -> list[Rule]:
    """Those of deploy/alerts.yml, which are all written in the same way."""
    found = re.findall(
        r"- alert: (\w+)\n +expr: (.+?)\n +for: \w+\n +labels:\n +severity: (\w+)\n +annotations:\n"
        r"(.+?) +runbook_url: docs/operations\.md#([\w-]+)\n",
        (DEPLOY / "alerts.yml").read_text("utf-8"),
        re.DOTALL,
    )
    return [Rule(*each) for each in found]


def configured(directory: Path, token: str, port: int = 8080) -> Path:
    """deploy/prometheus.yml for this port, with the key where it looks for it, or without one."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
    [scrape] = config["scrape_configs"]
    scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    if token:
        (directory / scrape["authorization"]["credentials_file"]).write_text(token)
    else:
        del scrape["authorization"]
    config |= {"global": _OFTEN, "rule_files": [str(DEPLOY / "alerts.yml")]}
    file = directory / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


class Prometheus:
    """What a running one answers."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def _get(self, path: str, **parameters: str) -> Any:
        async with self._session.get(f"{self._url}{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    async def series(self, query: str) -> list[dict[str, Any]]:
        """The series that have a number now."""
        for variable, value in _VARIABLES.items():
            query = query.replace(variable, value)
        found = (await self._get("/api/v1/query", query=query))["result"]
        return [each for each in found if math.isfinite(float(each["value"][1]))]

    async def firing(self) -> set[str]:
        """The alarms that fire or are about to."""
        alerts = (await self._get("/api/v1/alerts"))["alerts"]
        return {each["labels"]["alertname"] for each in alerts}

    async def sees(self, query: str) -> bool:
        """Whether the query has a series, after all the time it may take."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    if await self.series(query):
                        return True
                    await asyncio.sleep(0.2)
        except TimeoutError:
            return False

    async def wait(self) -> None:
        """Returns when it answers."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    await self._get("/api/v1/status/buildinfo")
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)
                else:
                    return


@asynccontextmanager
async def scraping(port: int, directory: Path, token: str = "") -> AsyncIterator[Prometheus]:
    """A Prometheus that scrapes the port once a second; it ends with the context."""
    config = configured(directory, token, port)
    own = Port()
    process = await asyncio.create_subprocess_exec(
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{own.number}", "--log.level=error"),
    )
    try:
        async with aiohttp.ClientSession() as session:
            prometheus = Prometheus(session, f"http://127.0.0.1:{own.number}")
            await prometheus.wait()
            yield prometheus
    finally:
        process.terminate()
        await process.wait()
        own.close()
