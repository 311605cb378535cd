"""The checkpoint of an import: up to which row all is confirmed, so that it can be resumed.

A small file of JSON, replaced as a whole after each part and removed at the end. What went in
after it was written last goes in once more, which changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from itemstore.errors import MovingError
from itemstore.moving.record import Tally

SUFFIX: Final = ".itemstore-progress"


@dataclass(slots=True)
class Checkpoint:
    """``path`` None: the source cannot be read again, and nothing is kept."""

    path: Path | None
    source: dict[str, Any] | None  #: the source's identity
    options: dict[str, Any]  #: target and mapping: what must be the same for a resumption
    row: int = 0
    key: str | None = None
    rejects_bytes: int = 0  #: what the report of rejected rows had then
    tally: Tally = field(default_factory=Tally)

    def resume(self) -> bool:
        """Goes on from what was saved; whether there was anything.

        Raises MovingError if that was another source, or other options.
        """
        if self.path is None or not self.path.exists():
            return False
        try:
            saved = orjson.loads(self.path.read_bytes())
            self.row, self.key, self.rejects_bytes = (
                saved[name] for name in ("row", "key", "rejects_bytes")
            )
            self.tally = Tally(**saved["tally"])
            source, options = saved["source"], saved["options"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MovingError(
                f"{self.path} cannot be read ({error}). Begin anew with --restart: what is in "
                "already does no harm."
            ) from error
        if source != self.source:
            raise MovingError(
                f"The source has changed since its import was interrupted at row {self.row:,}. "
                "Begin anew with --restart: rows that are in already are left as they are."
            )
        if options != self.options:
            changed = [name for name in self.options if options.get(name) != self.options[name]]
            raise MovingError(
                f"This import was begun with another {', '.join(changed) or 'version'}. Repeat "
                "the command as it was, or begin anew with --restart."
            )
        return True

    def save(self) -> None:
        """Atomic, and on disk when it returns. Raises MovingError."""
        if self.path is None:
            return
        saved = asdict(self) | {"path": None}
        made = self.path.with_name(f"{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with made.open("wb") as file:
                file.write(orjson.dumps(saved))
                file.flush()
                os.fsync(file.fileno())
            made.replace(self.path)
        except OSError as error:
            raise MovingError(f"{self.path} cannot be written: {error.strerror}.") from error

    def remove(self) -> None:
        """All is in."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
