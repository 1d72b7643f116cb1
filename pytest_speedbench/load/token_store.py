"""Token ids of prompts, kept beside the data that they were made from, so that a later run need not ask again."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from pytest_speedbench.files import write_whole

TokenIds = tuple[int, ...]


class TokenStore:
    """Token ids by what they are for, a file for the prompts of each cell.

    A file that cannot be read or written is as good as none: prompts are tokenized then.

    Args:
        folder: of the files.
        made_by: what decides about token ids besides the prompts, but for the version: engine, model, arguments.
        version: the engine's. Of each cell the ids of one version are kept.
    """

    def __init__(self, folder: Path, made_by: Sequence[str], version: str) -> None:
        self._folder = folder
        self._made_by = made_by
        self._version = version

    def ids(
        self, texts: Sequence[str], first: TokenIds, tokenize_all: Callable[[], Sequence[TokenIds]]
    ) -> Sequence[TokenIds]:
        """Token ids of a cell's prompts: the kept ones, or new ones, which are kept.

        Args:
            texts: of the prompts.
            first: token ids of the first one, made now. Kept ids are used where theirs are the same: a model, a
                tokenizer or a template that was changed in its place would give others.
            tokenize_all: makes those of all.
        """
        path = self._folder / f"{self._digest(texts)}.npz"
        kept = self._read(path)
        if kept is not None and len(kept) == len(texts) and kept[0] == first:
            return kept
        made = tokenize_all()
        with contextlib.suppress(OSError):
            self._write(path, made)
        return made

    def _digest(self, texts: Sequence[str]) -> str:
        return hashlib.sha256(json.dumps([*self._made_by, list(texts)]).encode()).hexdigest()[:32]

    def _read(self, path: Path) -> list[TokenIds] | None:
        import numpy as np

        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                version, ids, ends = str(file["version"]), file["ids"], file["ends"]
        except Exception:  # a damaged archive can come to grief in a dozen ways
            return None
        if version != self._version or not len(ends) or ends[-1] != len(ids):
            return None
        return [tuple(part.tolist()) for part in np.split(ids, ends[:-1])]

    def _write(self, path: Path, made: Sequence[TokenIds]) -> None:
        import numpy as np

        file = BytesIO()
        np.savez(
            file,
            version=np.array(self._version),
            ids=np.concatenate([np.asarray(ids, dtype=np.int32) for ids in made]),
            ends=np.cumsum([len(ids) for ids in made]),
        )
        write_whole(path, file.getvalue())
