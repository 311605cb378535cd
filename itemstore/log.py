"""Logs: structlog events, one line each, that never hold up the event loop.

As a library the store logs through the standard ``logging`` under the name ``itemstore``, so its
host decides. As a server it writes lines to standard output from a thread of its own: a reader of
that pipe who stalls costs log lines, counted and reported, never a request.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import orjson
import structlog
from structlog.typing import FilteringBoundLogger

from itemstore.redaction import Redaction

LINES_MAX: Final = 10_000  # waiting to be written; at about 300 bytes each, 3 MB

_DROPPED: Final = '{"message":"log_lines_dropped","level":"warning","lines":%d}\n'

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


#: What the host's own handlers make text of.
_OF_HANDLERS: Final = frozenset({"exc_info", "stack_info"})

_hide: Final = Redaction()


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Takes secrets out of an event: a processor of structlog."""
    kept = {name: event[name] for name in _OF_HANDLERS & event.keys()}
    return {**_hide.within({**event}), **kept}


def library_logger() -> FilteringBoundLogger:
    """Hands events to ``logging.getLogger("itemstore")``, their fields as ``extra``."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        logging.getLogger("itemstore"),
        processors=[
            structlog.stdlib.filter_by_level,
            redact,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return logger


class LineWriter:
    """Takes lines at once and writes them from a thread; drops and counts what does not fit."""

    def __init__(self, stream: TextIO, *, is_console: bool = False) -> None:
        self._stream = stream
        #: What is written when lines were dropped, with their number in it.
        self._notice = "log lines dropped: %d\n" if is_console else _DROPPED
        #: Whether a person reads along.
        self.is_console = is_console
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self.dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    # structlog calls the method named after the level
    debug = info = warning = warn = error = critical = fatal = exception = msg

    def close(self, wait_s: float = 2.0) -> None:
        """Writes what is waiting, unless the reader is stuck."""
        try:
            self._lines.put(None, timeout=wait_s)
        except queue.Full:
            return
        self._thread.join(wait_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._tell_dropped()
                    self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more; logs are not worth dying for
                self.dropped += 1

    def _tell_dropped(self) -> None:
        if self.dropped > self._told:
            self._stream.write(self._notice % (self.dropped - self._told))
            self._told = self.dropped


def server_logger(
    level: str,
    form: str,
    stream: TextIO | None = None,
    *,
    hide: Redaction | None = None,
) -> tuple[FilteringBoundLogger, LineWriter]:
    """A logger, and the writer to close at the end. ``form`` is json, console or auto; ``hide``
    takes the secrets out of what is logged.
    """
    hide = hide or Redaction()
    stream = stream or sys.stdout
    is_console = form == "console" or (form == "auto" and stream.isatty())
    writer = LineWriter(stream, is_console=is_console)
    render: list[Any] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if is_console
        else [
            structlog.processors.EventRenamer("message"),  # as Railway's log wants it
            structlog.processors.JSONRenderer(serializer=_dumps),
        ]
    )
    logger: FilteringBoundLogger = structlog.wrap_logger(
        writer,
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            lambda _, __, event: hide.within(event),
            *render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        cache_logger_on_first_use=True,
    )
    return logger, writer


def _dumps(event: dict[str, Any], **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()
