"""Whether all categories fell alike, or a few of them: what a loss of acceptance length looks like from afar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from pytest_speedbench.cells import MEAN
from pytest_speedbench.gate.check import Check, Verdict
from pytest_speedbench.gate.estimate import t_quantile

PRUNED_VOCABULARY = ("multilingual", "rag", "summarization")
"""Categories that lose most where the drafter knows fewer tokens than its target: SPEED-Bench (arXiv 2604.09557) saw
-10.2, -10.1 and -9.5 % there, and -5.5 % on average, for an EAGLE3 head pruned to 32,000 tokens."""
_SURE = 0.05
"""Chance that any category is said to have fallen although none did."""
_UNLIKE = 0.01
"""Chance that losses are said to be unlike although all are the same."""
_FACTOR = 2.0
"""Losses within this factor of their mean are alike for a person, however precisely they are known."""


@dataclass(frozen=True)
class Pattern:
    """Which categories of one split and batch size lost acceptance length."""

    split: str
    batch_size: int
    kind: str
    """`alike` or `unlike` where all fell, `few` or `one` where not."""
    fallen: tuple[str, ...]
    """The categories that fell, greatest loss first."""
    categories: int
    """That were compared."""
    pruned_vocabulary: bool
    """Whether these losses are those of a drafter with a reduced vocabulary."""
    sentence: str
    """For a person."""


def pattern_of(split: str, batch_size: int, checks: Mapping[str, Check]) -> Pattern | None:
    """What the losses of acceptance length have in common over categories.

    There is something to explain only where acceptance length regressed, in a category or in the mean. The rule, for
    the categories that were compared, at least two:

    1. A category *fell* if its check is a regression, or if its ratio is surely below 1: at a level of
       5 % / number of categories, so that in 19 of 20 cases no healthy category is named by that.
    2. *All* fell if there is no other category, or if the mean over the others is surely below 1 too (97.5 %,
       one-sided): each of them alone may be too noisy to tell.
    3. Where all fell they fell *alike* if their losses differ no more than their errors allow (Cochran's Q
       at 1 %, and at 1 % that those of `PRUNED_VOCABULARY` together lost no more than the others), or if each is
       within a factor of 2 of the mean loss; else *unlike*. That prompts do not matter is said in the second case only.
    4. Where not all fell, those of step 1 did: *one* or a *few*. None: no pattern.

    A reduced drafter vocabulary is named where a few fell, or all unlike, and the three greatest losses (both, where
    only two fell) are in `PRUNED_VOCABULARY`.

    Args:
        split: of all checks.
        batch_size: of all checks.
        checks: of acceptance length, by category; that of the mean, if there is one, as `cells.MEAN`.

    Returns:
        The pattern; None where nothing regressed, or no category surely fell.
    """
    if not any(check.verdict is Verdict.REGRESSION for check in checks.values()):
        return None
    compared = {name: check for name, check in checks.items() if check.ratio and name != MEAN}
    if len(compared) < 2:
        return None
    logs = {category: math.log(check.ratio or 1.0) for category, check in compared.items()}
    order = sorted(compared, key=lambda category: logs[category])
    fallen = [category for category in order if _fell(compared[category], _SURE / len(compared))]
    others = [category for category in order if category not in fallen]
    if others and not _surely_lost([compared[category] for category in others]):
        if not fallen:
            return None
        kind = "one" if len(fallen) == 1 else "few"
    else:
        fallen = order
        kind = "alike" if _of_one_size(list(logs.values())) or _alike(compared) else "unlike"
    most = fallen[: len(PRUNED_VOCABULARY)]
    pruned = kind in ("few", "unlike") and len(most) > 1 and set(most) <= set(PRUNED_VOCABULARY)
    return Pattern(
        split,
        batch_size,
        kind,
        tuple(fallen),
        len(compared),
        pruned,
        _sentence(kind, fallen, len(compared), logs, pruned),
    )


def _fell(check: Check, level: float) -> bool:
    if check.verdict is Verdict.REGRESSION:
        return True
    if check.standard_error is None or check.degrees_of_freedom is None:
        return False
    return _below_one([check], level)


def _surely_lost(checks: Sequence[Check]) -> bool:
    return _below_one(checks, 0.025)


def _below_one(checks: Sequence[Check], level: float) -> bool:
    """Whether the mean of logarithms of the ratios is below 0 at a one-sided level of significance."""
    mean = fmean(math.log(check.ratio or 1.0) for check in checks)
    errors = [check.standard_error for check in checks if check.standard_error is not None]
    freedoms = [check.degrees_of_freedom for check in checks if check.degrees_of_freedom is not None]
    if len(errors) < len(checks) or len(freedoms) < len(checks):
        return False
    error = math.hypot(*errors) / len(errors)
    return mean < -t_quantile(1 - level, min(freedoms)) * error


def _of_one_size(logs: Sequence[float]) -> bool:
    """Whether losses are within a factor of 2 of their mean."""
    mean = fmean(logs)
    return all(mean * _FACTOR <= log <= mean / _FACTOR for log in logs)


def _alike(compared: Mapping[str, Check]) -> bool:
    """Whether losses differ no more than their errors allow."""
    if _pruned_apart(compared):
        return False
    checks = list(compared.values())
    logs = [math.log(check.ratio or 1.0) for check in checks]
    errors = [check.standard_error for check in checks]
    weights = [1 / error**2 for error in errors if error]
    if len(weights) < len(checks):
        return False  # known without error, or with an unknown one: the sizes alone can tell

    from scipy.special import chdtri

    centre = math.fsum(w * log for w, log in zip(weights, logs, strict=True)) / math.fsum(weights)
    q = math.fsum(w * (log - centre) ** 2 for w, log in zip(weights, logs, strict=True))
    return q <= float(chdtri(len(checks) - 1, _UNLIKE))


def _pruned_apart(compared: Mapping[str, Check]) -> bool:
    """Whether the categories of `PRUNED_VOCABULARY` lost surely more, together, than the others do together.

    One contrast of two means, which sees a difference that Cochran's Q, spread over all categories, does not.
    """
    apart = [check for name, check in compared.items() if name in PRUNED_VOCABULARY]
    others = [check for name, check in compared.items() if name not in PRUNED_VOCABULARY]
    if len(apart) < 2 or not others:
        return False
    gap, error, freedom = 0.0, 0.0, math.inf
    for checks, sign in ((apart, 1), (others, -1)):
        for check in checks:
            if check.estimate is None or check.estimate.standard_error is None:
                return False
            gap += sign * check.estimate.log_ratio / len(checks)
            error = math.hypot(error, check.estimate.standard_error / len(checks))
            freedom = min(freedom, check.estimate.degrees_of_freedom)
    return gap < -t_quantile(1 - _UNLIKE, freedom) * error


def _sentence(
    kind: str, fallen: Sequence[str], compared: int, logs: Mapping[str, float], pruned: bool
) -> str:
    def change(category: str) -> str:
        return _percent(logs[category])

    named = [f"{category} {change(category)}" for category in fallen]
    everyone = "both categories" if compared == 2 else f"all {compared} categories"
    if kind == "alike":
        alike = _of_one_size(list(logs.values()))
        meaning = (
            "a worse drafter or another configuration, whatever the prompts are about."
            if alike
            else "their losses differ no more than their errors; whether the prompts matter is not known."
        )
        text = (
            f"{everyone} fell{' alike' if alike else ''}, {_percent(fmean(logs.values()))} on average "
            f"({change(fallen[0])} to {change(fallen[-1])}): {meaning}"
        )
    elif kind == "unlike":
        text = f"{everyone} fell, but unlike: most in {_listed(named[:-1][:3])}, least in {named[-1]}."
    elif kind == "one":
        text = f"only 1 of {compared} categories fell: {named[0]}."
    elif 2 * len(fallen) > compared:
        rest = _listed([name for name in logs if name not in fallen])
        text = (
            f"{len(fallen)} of {compared} categories fell, most in {_listed(named[:3])}; not surely: {rest}."
        )
    else:
        text = f"{len(fallen)} of {compared} categories fell: {_listed(named)}."
    if pruned:
        text += (
            " That is where a drafter with a reduced vocabulary loses: compare the draft model's vocabulary and "
            "token map with the baseline's."
        )
    elif kind == "one" or (kind == "few" and 2 * len(fallen) <= compared):
        text += " The drafter as a whole works: ask what these prompts have in common."
    return text


def _percent(log: float) -> str:
    return f"{round(100 * math.expm1(log), 1) + 0.0:+.1f} %"  # + 0.0: there is no -0.0 %


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
