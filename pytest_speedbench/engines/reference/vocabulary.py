"""A reversible tokenizer: whole words and code pieces where there is one, single bytes where there is none."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SPECIAL = ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
BOS, END = 0, 1
"""Begin of text; end of a message, which also ends a generation."""
ROLES = {"system": 2, "user": 3, "assistant": 4}
FIRST_BYTE = len(SPECIAL)
FIRST_PIECE = FIRST_BYTE + 256

_PRE_TOKEN = re.compile(
    r"['\u2019](?:[sdmt]|ll|ve|re)\b|\n+[ \t]*| ?[^\W\d_]+| ?\d{1,4}| ?(?:[^\w\s]|_)+|[^\S\n]+(?!\S)|\s| ?.",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "s": " ", "\\": "\\"}
_CACHE_LIMIT = 50_000


class Vocabulary:
    """Text to token ids and back. Ids are the special tokens, the 256 bytes, then the pieces in file order.

    A text is cut into words, numbers, punctuation runs and indentation, and each of these into the longest
    pieces from the left. Whatever no piece covers becomes its UTF-8 bytes, so that every text comes back
    unchanged: `decode(encode(text)) == text`. Special tokens never come out of a text.

    Args:
        pieces: strings of at least two characters, or of one that is not ASCII; no duplicates.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces: tuple[str, ...] = tuple(pieces)
        self._ids = {chr(byte): FIRST_BYTE + byte for byte in range(128)}
        for token, piece in enumerate(self.pieces, FIRST_PIECE):
            if piece in self._ids:
                raise ValueError(f"piece {piece!r} stands twice in the vocabulary")
            self._ids[piece] = token
        self._longest = max(map(len, self._ids))
        self._cache: dict[str, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return FIRST_PIECE + len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens among them."""
        tokens: list[int] = []
        cache = self._cache
        for word in _PRE_TOKEN.findall(text):
            known = cache.get(word)
            if known is None:
                known = self._cut(word)
                if len(cache) >= _CACHE_LIMIT:
                    cache.clear()
                cache[word] = known
            tokens.extend(known)
        return tokens

    def _cut(self, word: str) -> tuple[int, ...]:
        tokens: list[int] = []
        at = 0
        while at < len(word):
            for end in range(min(len(word), at + self._longest), at, -1):
                token = self._ids.get(word[at:end])
                if token is not None:
                    tokens.append(token)
                    at = end
                    break
            else:
                # A lone surrogate is no Unicode text, but JSON can carry one and it must come back too.
                tokens.extend(FIRST_BYTE + byte for byte in word[at].encode("utf-8", "surrogatepass"))
                at += 1
        return tuple(tokens)

    def decode(self, tokens: Iterable[int], *, special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 show as U+FFFD.

        Args:
            tokens: ids below `len(self)`.
            special: whether special tokens show as their names rather than not at all.
        """
        joined = b"".join(self.bytes_of(token, special=special) for token in tokens)
        try:
            return joined.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return joined.decode("utf-8", "replace")

    def bytes_of(self, token: int, *, special: bool = False) -> bytes:
        """What one token adds to a text, as UTF-8."""
        if token >= FIRST_PIECE:
            return self.pieces[token - FIRST_PIECE].encode()
        if token >= FIRST_BYTE:
            return bytes((token - FIRST_BYTE,))
        return SPECIAL[token].encode() if special else b""

    def chat(self, messages: Sequence[tuple[str, str]], *, generation_prompt: bool = True) -> list[int]:
        """Token ids of a chat: one `<|bos|>`, then per message its role, its text and `<|end|>`.

        Args:
            messages: (role, content) pairs; roles are the keys of `ROLES`.
            generation_prompt: whether the assistant's marker follows, so that a reply comes next.

        Raises:
            KeyError: a role that the template does not know.
        """
        tokens = [BOS]
        for role, content in messages:
            tokens.append(ROLES[role])
            tokens.extend(self.encode(content))
            tokens.append(END)
        if generation_prompt:
            tokens.append(ROLES["assistant"])
        return tokens


def read_pieces(path: Path) -> list[str]:
    r"""Pieces of a file, one per line; `\n`, `\t`, `\s` (space) and `\\` stand for what a line cannot show."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [re.sub(r"\\(.)", lambda match: _ESCAPES[match[1]], line) for line in lines if line]


@functools.cache
def built_in() -> Vocabulary:
    """The vocabulary of the embedded engine."""
    return Vocabulary(read_pieces(Path(__file__).with_name("pieces.txt")))
