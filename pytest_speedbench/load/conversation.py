"""What goes out: prompts tokenized and encoded before the clock starts, later turns once their reply is known."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_speedbench.engines.base import Generation, Message
from pytest_speedbench.errors import DataError, EngineError

if TYPE_CHECKING:
    from pytest_speedbench.data.prompts import Prompt
    from pytest_speedbench.engines.base import Engine, HttpCall
    from pytest_speedbench.engines.control import Control
    from pytest_speedbench.load.token_store import TokenStore
    from pytest_speedbench.settings.target import Sampling

ENCODER_THREADS = 8
"""Fewer than the 10 connections that the control session keeps open."""

Tokenizer = Callable[[Sequence[Message]], "tuple[int, ...] | None"]


@dataclass(frozen=True)
class Prepared:
    """The prompts of a cell, ready to go out any number of times."""

    prompts: tuple[Prompt, ...]
    generations: tuple[Generation, ...]
    """First turn of each prompt."""
    openings: tuple[HttpCall, ...]
    """`generations`, encoded."""
    sampling: Sampling
    tokenization: str
    """`engine`, `transformers` or `messages`; later turns go out in the same way as the first."""
    tokenize: Tokenizer
    """Blocking; None as result where chat messages go out as they are. Can be pickled."""
    note: str = ""
    """Why prompts did not go out as token ids, if there was a fault."""


def prepare(
    engine: Engine,
    control: Control,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    model: str | None = None,
    store: TokenStore | None = None,
) -> Prepared:
    """Tokenize and encode the first turn of every prompt, so that neither happens on the clock.

    Token ids come from the engine's own tokenizer (`engine`), else from the model's by the `tokenizer` extra
    (`transformers`), else chat messages go out and the engine applies its template itself (`messages`).

    Args:
        engine: encodes the calls.
        control: the running server.
        prompts: of one cell, in the order in which they are sent.
        sampling: for every turn.
        model: name or path of the target model, for the `tokenizer` extra.
        store: of token ids that were made before; without it all are made now.

    Raises:
        DataError: there are no prompts.
        EngineError: the engine's tokenizer failed.
    """
    if not prompts:
        raise DataError("there are no prompts to send: the selection of categories or the limit leaves none")
    openers = [(Message("user", prompt.turns[0]),) for prompt in prompts]
    tokenization, tokenize, note, first = _choose_tokenizer(engine, control, model, openers[0])

    if first is None:
        generations = tuple(Generation(sampling, messages=chat) for chat in openers)
    else:

        def tokenize_all() -> list[tuple[int, ...]]:
            with encoder_threads() as threads:
                return [first, *threads.map(partial(_token_ids, tokenize), openers[1:])]

        texts = [prompt.turns[0] for prompt in prompts]
        ids_of_all = tokenize_all() if store is None else store.ids(texts, first, tokenize_all)
        generations = tuple(Generation(sampling, token_ids=ids) for ids in ids_of_all)
    return Prepared(
        prompts=tuple(prompts),
        generations=generations,
        openings=tuple(engine.call(generation) for generation in generations),
        sampling=sampling,
        tokenization=tokenization,
        tokenize=tokenize,
        note=note,
    )


def warm_up(engine: Engine, prepared: Prepared, requests: int, output_length: int = 16) -> Prepared:
    """The first turns of as many prompts (used again where there are fewer), with a short output."""
    sampling = replace(prepared.sampling, output_length=min(output_length, prepared.sampling.output_length))
    chosen = [number % len(prepared.prompts) for number in range(requests)]
    generations = tuple(replace(prepared.generations[index], sampling=sampling) for index in chosen)
    prompts = (prepared.prompts[index] for index in chosen)
    return replace(
        prepared,
        prompts=tuple(replace(prompt, turns=prompt.turns[:1]) for prompt in prompts),
        generations=generations,
        openings=tuple(engine.call(generation) for generation in generations),
        sampling=sampling,
    )


def next_call(engine: Engine, prepared: Prepared, prompt: Prompt, replies: Sequence[str]) -> HttpCall:
    """The turn that follows `replies`, the engine's own replies to all turns before it. Blocking.

    Raises:
        EngineError: the engine's tokenizer failed.
    """
    chat = [Message("user", prompt.turns[0])]
    for reply, turn in zip(replies, prompt.turns[1:], strict=False):
        chat += [Message("assistant", reply), Message("user", turn)]
    return engine.call(_generation(prepared.tokenize, tuple(chat), prepared.sampling))


@contextmanager
def encoder_threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for tokenization; whoever is interrupted does not wait for what they had in hand."""
    threads = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="speedbench-encode")
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _generation(tokenize: Tokenizer, chat: tuple[Message, ...], sampling: Sampling) -> Generation:
    token_ids = tokenize(chat)
    if token_ids is None:
        return Generation(sampling, messages=chat)
    return Generation(sampling, token_ids=token_ids)


def _token_ids(tokenize: Tokenizer, chat: Sequence[Message]) -> tuple[int, ...]:
    token_ids = tokenize(chat)
    if token_ids is None:
        raise EngineError("the engine tokenized the first prompt of a cell, and then said that it cannot")
    return token_ids


def _choose_tokenizer(
    engine: Engine, control: Control, model: str | None, trial: Sequence[Message]
) -> tuple[str, Tokenizer, str, tuple[int, ...] | None]:
    """How prompts go out, the tokenizer for it, a note, and the token ids of `trial`, by which it was found out."""
    if engine.messages_only:
        return "messages", _no_token_ids, "", None
    if (ids := engine.tokenize(control, trial)) is not None:
        return "engine", partial(engine.tokenize, control), "", ids
    note = ""
    if model is not None:
        try:
            tokenize = _ModelTokenizer(model)
            ids = tokenize(trial)
        except ImportError:
            pass
        except Exception as error:  # a tokenizer's own code may run here, and raises what it likes
            reason = str(error).strip().splitlines() or [type(error).__name__]
            note = f"the tokenizer of {model} could not be used, chat messages went out instead: {reason[0]}"
        else:
            return "transformers", tokenize, "", ids
    return "messages", _no_token_ids, note, None


def _no_token_ids(chat: Sequence[Message]) -> None:
    """For chats that go out as they are."""


class _ModelTokenizer:
    """The tokenizer of a model, by `transformers`. Pickled by the model's name, and loaded anew."""

    def __init__(self, model: str) -> None:
        from transformers import AutoTokenizer

        self._model = model
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        # "Already borrowed": a fast tokenizer sets its padding in place and bears one thread at a time.
        self._one_at_a_time = threading.Lock()

    def __reduce__(self) -> tuple[type[_ModelTokenizer], tuple[str]]:
        return type(self), (self._model,)

    def __call__(self, chat: Sequence[Message]) -> tuple[int, ...]:
        messages = [{"role": message.role, "content": message.content} for message in chat]
        with self._one_at_a_time:
            ids = self._tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=True, return_dict=False
            )
        return tuple(int(token) for token in ids)
