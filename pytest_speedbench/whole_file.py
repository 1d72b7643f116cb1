"""Writes a file so that a reader finds the old one or the new one, never half of it."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file at once.

    The content goes to a temporary file in the same folder, to the disk, and then takes the old file's place and
    mode in one step. A link is followed. Folders are made.

    Args:
        path: of the file.
        content: its new content; a text is written as UTF-8.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{real.name}.{os.getpid()}.tmp")
    real.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as file:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(real.stat().st_mode))
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)
