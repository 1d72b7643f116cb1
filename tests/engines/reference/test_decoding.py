from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest
from scipy import stats

from pytest_speedbench.engines.reference import distributions
from pytest_speedbench.engines.reference.decoding import METHODS, look_up
from pytest_speedbench.engines.reference.distributions import Shape
from pytest_speedbench.engines.reference.models import Context
from pytest_speedbench.engines.reference.vocabulary import built_in
from tests.engines.reference.decode import acceptance_length, chat, decoding, generate, models
from tests.engines.reference.texts import CODE, QUESTION, STORY, THAI

SEEDS = 8000
REPETITIVE = built_in().encode(" one two three one two three one two three one two")
"""So that prompt lookup has something to propose at once."""


def exact_distribution(
    prompt: Sequence[int], length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """Probability of every output of `length` tokens under the target model alone, enumerated."""
    pair, shape = models(), Shape().at(temperature)
    outputs: dict[tuple[int, ...], float] = {}

    def visit(context: Context, output: tuple[int, ...], probability: float) -> None:
        if len(output) == length:
            outputs[output] = probability
            return
        candidates = pair.outlook(context, shape.candidates).candidates
        for token, weight in zip(candidates, shape.target(), strict=True):
            visit(pair.extend(context, token), (*output, token), probability * weight)

    visit(pair.start(prompt), (), 1.0)
    return outputs


def p_value(method: str, temperature: float, length: int = 3) -> float:
    """Chi-square test of sampled outputs against the enumerated distribution, rare outputs in one bin."""
    expected = exact_distribution(REPETITIVE, length, temperature)
    assert math.isclose(sum(expected.values()), 1.0)
    seen: Counter[tuple[int, ...]] = Counter()
    for seed in range(SEEDS):
        state = decoding(REPETITIVE, method, temperature=temperature, seed=seed)
        seen[tuple(generate(state, length)[0])] += 1
    assert set(seen) <= set(expected)
    common = [output for output, probability in expected.items() if probability * SEEDS >= 5.0]
    observed = [seen[output] for output in common]
    wanted = [expected[output] * SEEDS for output in common]
    observed.append(SEEDS - sum(observed))
    wanted.append(SEEDS - sum(wanted))
    return float(stats.chisquare(observed, wanted).pvalue)


@pytest.mark.parametrize(
    ("method", "temperature"),
    [("none", 1.0), ("ngram", 1.0), ("ngram", 4.0), ("draft_model", 1.0), ("draft_model", 4.0)],
)
def test_output_with_drafts_is_distributed_as_without(method: str, temperature: float) -> None:
    assert p_value(method, temperature) > 1e-3


@pytest.mark.parametrize(("method", "temperature"), [("draft_model", 4.0), ("ngram", 1.0)])
def test_that_test_would_notice_a_wrong_residual(
    method: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributions, "residual", lambda p, q: p)
    assert p_value(method, temperature) < 1e-6


def test_that_test_would_notice_a_wrong_accept_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributions, "accept_probability", lambda p, q: 0.5)
    assert p_value("draft_model", 4.0) < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_greedy_output_is_the_same_with_any_method_and_seed(method: str) -> None:
    for text in (CODE, STORY):
        plain, _ = generate(decoding(chat(text), "none"), 100)
        for seed in range(3):
            assert generate(decoding(chat(text), method, seed=seed), 100)[0] == plain


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_acceptance_agrees_with_the_closed_form_of_the_contexts_it_met(temperature: float) -> None:
    shape = Shape().at(temperature)
    accepted, expected, variance = 0, 0.0, 0.0
    for text in (CODE, STORY, THAI, QUESTION):
        for seed in range(10):
            state = decoding(chat(text), "draft_model", temperature=temperature, seed=seed)
            state.first()
            for _ in range(40):
                context = state.context
                step = state.step()
                for position in range(min(step.accepted + 1, step.drafted)):
                    outlook = models().outlook(context, shape.candidates)
                    rate = shape.acceptance_rate(outlook.disagreement)
                    accepted += position < step.accepted
                    expected += rate
                    variance += rate * (1.0 - rate)
                    context = models().extend(context, step.tokens[position])
    assert abs(accepted - expected) / math.sqrt(variance) < 3.5


def test_every_step_of_a_draft_model_drafts_k() -> None:
    _, steps = generate(decoding(chat(CODE), "draft_model", draft_length=5), 100)
    assert {step.drafted for step in steps} == {5}
    assert max(step.accepted for step in steps) == 5


def test_without_a_method_every_step_is_one_token() -> None:
    _, steps = generate(decoding(chat(CODE), "none"), 20)
    assert [(len(step.tokens), step.drafted) for step in steps] == [(1, 0)] * 19


def test_prompt_lookup_has_steps_without_a_draft() -> None:
    _, steps = generate(decoding(chat(CODE), "ngram"), 256)
    undrafted = [step for step in steps if not step.drafted]
    drafted = [step for step in steps if step.drafted]
    assert undrafted and all(step.accepted == 0 for step in undrafted)
    assert acceptance_length(drafted) > 1.5 * acceptance_length(steps)


@pytest.mark.parametrize(
    ("text", "drafted"),
    [
        ("abcdXabcd", "Xab"),
        ("bcdXabcYbcZbc", "Zbc"),
        ("abcXbcYabc", "Xbc"),
        ("abcab", "cab"),
        ("abcb", ""),
        ("abcdef", ""),
        ("aaaa", "a"),
        ("ab", ""),
        ("a", ""),
    ],
    ids=[
        "longest",
        "most recent",
        "longest before most recent",
        "up to the end",
        "one is too short",
        "none",
        "overlap",
        "two",
        "one",
    ],
)
def test_prompt_lookup_proposes_what_followed_the_longest_suffix(text: str, drafted: str) -> None:
    assert look_up(text, 3) == [ord(char) for char in drafted]


def test_a_weaker_drafter_only_turns_accepts_into_rejects() -> None:
    for text in (CODE, STORY, THAI, QUESTION):
        counts = []
        for quality in (1.0, 0.95, 0.9, 0.5, 0.1):
            state = decoding(chat(text), "draft_model", pair=models(quality), seed=3)
            tokens, steps = generate(state, 200)
            assert tokens == generate(decoding(chat(text), "none"), 200)[0]
            counts.append(len(steps))
        assert counts == sorted(counts)
        assert counts[0] < counts[2] < counts[-1]


def test_draft_quality_multiplies_the_acceptance_rate_of_every_context() -> None:
    context = models().start(chat(STORY))
    for token in built_in().encode(" and so they went across the river"):
        shipped = models().outlook(context, 8)
        weaker = models(0.7).outlook(context, 8)
        assert weaker.candidates == shipped.candidates
        assert 1.0 - weaker.disagreement == pytest.approx(0.7 * (1.0 - shipped.disagreement))
        context = models().extend(context, token)


def test_the_end_of_the_message_comes_only_where_it_may() -> None:
    end = 1
    assert end not in generate(decoding(chat(CODE), "draft_model"), 3000)[0]
    assert end in generate(decoding(chat(CODE), "draft_model", may_end=True), 3000)[0]


PROGRAM = """
import hashlib
from tests.engines.reference.decode import chat, decoding, generate
from tests.engines.reference.texts import CODE, THAI
for method in ("draft_model", "ngram"):
    for text in (CODE, THAI):
        for temperature in (0.0, 0.7):
            tokens, steps = generate(decoding(chat(text), method, temperature=temperature), 100)
            print(hashlib.sha256(repr((tokens, steps)).encode()).hexdigest())
"""


def test_another_process_and_hash_seed_give_the_same() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 8
