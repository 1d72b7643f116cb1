"""Files: YAML checked against a JSON Schema, and writes that leave the old file or the new one, never half."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from pytest_speedbench.errors import SpeedBenchError


class YamlFileError(SpeedBenchError):
    """A YAML file that cannot be read or does not fit its schema; the message names file and place."""


def load_checked(path: Path, schema: Path) -> Any:
    """A YAML document that fits a JSON Schema.

    Args:
        path: the YAML file. Duplicate keys are refused: YAML would silently keep the last.
        schema: the JSON Schema's file.

    Raises:
        YamlFileError: unreadable, no YAML, a key given twice, or not fitting the schema.
    """
    document = load(path)
    check(document, schema, path)
    return document


def check(document: Any, schema: Path, path: Path) -> None:
    """Check a document against a JSON Schema.

    Args:
        document: what was read from, or will be written to, `path`.
        schema: the JSON Schema's file.
        path: named in the message.

    Raises:
        YamlFileError: names the first place that does not fit.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(json.loads(schema.read_text("utf-8"))).iter_errors(document))
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path) or "the document"
        raise YamlFileError(f"{path}: {place}: {error.message}")


def load(path: Path) -> Any:
    """A YAML document, duplicate keys refused.

    Raises:
        YamlFileError: unreadable, no YAML, or a key given twice.
    """
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        """Refuses a key that is given twice in one mapping."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise YamlFileError(f"{path}, line {line}: {key!r} is given twice; keep one of the two")
                seen.add(key)
            return super().construct_mapping(node, deep)

    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, Loader)
    except OSError as error:
        raise YamlFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise YamlFileError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise YamlFileError(f"{path}{where}: {problem}") from None
    except (
        TypeError,
        ValueError,
        RecursionError,
    ) as error:  # such as a list as a key, or the date 2026-13-45
        raise YamlFileError(f"{path}: {error}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; another process that asks for it waits.

    The lock is the folder's own (flock), so that no file is left behind. On a system without flock this is no lock.

    Args:
        folder: made where it is missing.

    Raises:
        OSError: it cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
