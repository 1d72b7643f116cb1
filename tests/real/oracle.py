"""What greedy speculative decoding must do for given prompts, worked out with transformers and nothing of ours.

    python oracle.py < question.json > answer.json

A question holds the folders `target` and `draft_model` (or null), `prompts` (lists of token ids), `output_length`,
`draft_length`, and how the engine drafts:
    lookup          [fewest, most] tokens of an n-gram, where prompt lookup drafts in place of a model
    unseen          how many tokens at the start of a prompt the draft model is not shown
    within_output   whether a draft stops short of the output's end, as its last token needs none
    never           tokens that the target model may not write, as an engine sees to it that no output ends early

The answer holds for each prompt
    steps           [[drafted, accepted], ...], drafts accepted past the output's end included
    tokens          the output
    narrowest       the smallest lead of a most likely token over the second most likely, in logits: below the
                    rounding of float32, which of the two is taken says nothing about an engine

Needs torch and transformers, which engines bring along.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Ids = Sequence[int]


def answer(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Decode every prompt."""
    target = load(question["target"])
    draft_model = load(question["draft_model"]) if question["draft_model"] else None
    length, longest, unseen = question["output_length"], question["draft_length"], question["unseen"]
    answers = []
    for prompt in question["prompts"]:
        ids = prompt + greedy(target, prompt, length + longest, question["never"])
        positions = range(len(prompt) + 1, len(prompt) + length)
        narrowest = lead(target, ids, len(prompt), question["never"])
        if draft_model is None:
            drafts = {position: look_up(ids[:position], *question["lookup"]) for position in positions}
        else:
            # A draft model's second guess counts only if its first was right, and is then a guess at what follows
            # the true text: so its guesses after every beginning of the true text are all that can matter.
            guesses = [-1] * (unseen + 1) + logits(draft_model, ids[unseen:]).argmax(-1).tolist()
            drafts = {position: guesses[position:] for position in positions}
            narrowest = min(narrowest, lead(draft_model, ids[unseen:], len(prompt) - unseen))
        steps = []
        position = positions.start  # prefill yields the first token, and is no decode step
        while position in positions:
            room = min(longest, positions.stop - position - 1) if question["within_output"] else longest
            drafted = drafts[position][:room]
            accepted = agreement(drafted, ids[position:])
            steps.append((len(drafted), accepted))
            position += accepted + 1
        output = ids[len(prompt) : positions.stop]
        answers.append({"steps": steps, "tokens": output, "narrowest": narrowest})
    return answers


def agreement(drafted: Ids, text: Ids) -> int:
    """How many drafts are what the target model writes, up to the first that is not."""
    right = (guess == token for guess, token in zip(drafted, text, strict=False))
    return sum(1 for _ in takewhile(bool, right))


def look_up(text: Ids, fewest: int, most: int) -> Ids:
    """What followed the earliest occurrence of the longest end of a text that occurred in it before."""
    for size in range(min(most, len(text) - 1), fewest - 1, -1):
        for start in range(len(text) - size):
            if text[start : start + size] == text[-size:]:
                return text[start + size :]
    return []


def greedy(model: Any, prompt: Ids, length: int, never: Ids) -> list[int]:
    """The tokens that a model writes after a prompt; an end-of-sequence token is one like any other."""
    written: list[int] = []
    new, past = torch.tensor([prompt]), None
    for _ in range(length):
        output = model(new, past_key_values=past, use_cache=True)
        past = output.past_key_values
        output.logits[..., never] = -torch.inf
        new = output.logits[:, -1:].argmax(-1)
        written.append(int(new))
    return written


def lead(model: Any, ids: Ids, prompt: int, never: Ids = ()) -> float:
    """The smallest lead of a best guess over the second best, after the prompt and each token that follows it."""
    guesses = logits(model, ids)[prompt - 1 : -1]
    guesses[:, never] = -torch.inf
    best = guesses.topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


def logits(model: Any, ids: Ids) -> torch.Tensor:
    """(tokens, vocabulary): row i holds the guess at token i + 1."""
    found: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return found


def load(folder: str) -> Any:
    """A model, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


if __name__ == "__main__":
    torch.set_num_threads(1)  # they wait for each other in loops, which takes for ever on a busy machine
    with torch.inference_mode():
        json.dump(answer(json.load(sys.stdin)), sys.stdout)
