"""What JUnit, and everything else that reads pytest's `user_properties`, is given of a judged cell."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_speedbench.run.ledger import CellRun


def properties(known: CellRun, metrics: Sequence[str]) -> list[tuple[str, object]]:
    """Value, baseline, ratio, interval, verdict and cause of each metric, and the time that the cell took.

    Args:
        known: the cell, judged.
        metrics: that the test asserts.

    Returns:
        Names and values; what is not known is left out.
    """
    found: list[tuple[str, object]] = []
    for check in known.checks:
        if check.metric not in metrics:
            continue
        name = f"speedbench_{check.metric}"
        numbers = {
            name: check.value,
            f"{name}_baseline": check.baseline,
            f"{name}_ratio": check.ratio,
            f"{name}_ci_low": check.ci_low,
            f"{name}_ci_high": check.ci_high,
            f"{name}_verdict": check.verdict.value,
        }
        found += [(key, value) for key, value in numbers.items() if value is not None]
    if known.cause is not None:
        found.append(("speedbench_cause", known.cause.word))
    if known.measuring_s:
        found.append(("speedbench_measuring_s", round(known.measuring_s, 3)))
    return found
