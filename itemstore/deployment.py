"""What follows from the settings and the machine together."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from itemstore.database import default_data_dir
from itemstore.errors import StartupError
from itemstore.settings import Settings

JOURNAL_DIR: Final = "journal"  # in the directory for data


def journal_dir(settings: Settings) -> Path | None:
    """Where the journal lies; None if no directory is configured for it, or files there are lost.

    Raises StartupError if it is asked for by name and cannot be.
    """
    data_dir = settings.embedded_dir
    if data_dir is None and settings.database_url is None:
        data_dir = default_data_dir()
    if data_dir is None:
        reason: str | None = "no directory for data is configured"
    elif settings.railway_environment_name and not _on_volume(data_dir, settings):
        reason = "a Railway container's own disk is gone with the next deploy"
    else:
        from itemstore.storage.journal import lasting  # a store without one needs no SQLite

        reason = lasting(data_dir)
    if reason is None and data_dir is not None:
        return data_dir / JOURNAL_DIR
    if settings.durability == "journal":
        raise StartupError(
            f"DURABILITY=journal needs a disk that lasts, but {str(reason).rstrip('.')}. Name a "
            "directory with DATA_DIR, attach a volume, or choose DURABILITY=commit."
        )
    return None


def _on_volume(directory: Path, settings: Settings) -> bool:
    volume = settings.railway_volume_mount_path
    return volume is not None and directory.resolve().is_relative_to(volume.resolve())
