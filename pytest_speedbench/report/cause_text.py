"""The lines that say who is to blame: the word, what it rests on, and where to look next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_speedbench.report.wording import interval, percent, wrapped

if TYPE_CHECKING:
    from pytest_speedbench.gate.explain.cause import Cause
    from pytest_speedbench.gate.explain.decomposition import Breakdown, Part


def cause_lines(cause: Cause, *, parts: bool, advice: bool = True) -> list[str]:
    """A cause as lines of at most 79 columns, indented by two.

    Args:
        cause: of one cell.
        parts: whether to show what each part did to the throughput: where throughput failed.
        advice: whether to say what to do next.
    """
    lines = wrapped(f"cause: {cause.word}. {cause.reason}", 2, 4)
    if parts and cause.breakdown is not None:
        lines += _parts(cause.breakdown)
    if cause.positions and cause.word != "system":
        fell = ", ".join(
            f"{each.position}: {each.baseline:.3f} -> {each.value:.3f}" for each in cause.positions
        )
        lines += wrapped(f"accepted less often at position {fell}", 2, 4)
    return [*lines, *(wrapped(f"next: {cause.advice}", 2, 4) if advice else [])]


def _parts(breakdown: Breakdown) -> list[str]:
    slower, as_fast, faster = (
        ("slower against plain", "as fast against plain", "faster against plain")
        if breakdown.metric == "speedup"
        else ("slower steps", "steps as fast", "faster steps")
    )
    rest_label = "all else" if breakdown.metric == "user_tps" else "prefill, queue, client"
    rows = [
        _row(
            "fewer tokens a step", "as many tokens a step", "more tokens a step", breakdown.acceptance_length
        ),
        _row(slower, as_fast, faster, breakdown.step_latency),
        _row(rest_label, rest_label, rest_label, breakdown.rest),
    ]
    if breakdown.metric == "user_tps" and percent(breakdown.rest.ratio) == percent(1.0):
        rows.pop()  # there is nothing else in it
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"    what changed {breakdown.metric} ({percent(breakdown.change.ratio)}), each with its 95 % CI:"
    ]
    lines += [
        f"      {label:<{widths[0]}}  {change:>{widths[1]}}  {limits:<{widths[2]}}  {share}".rstrip()
        for label, change, limits, share in rows
    ]
    plain = breakdown.without_speculation
    if plain is not None:
        lines.append(
            f"    without speculation, output_tps {percent(plain.ratio)}  {_interval(plain)}".rstrip()
        )
    return lines


def _row(lost: str, same: str, gained: str, part: Part) -> tuple[str, str, str, str]:
    """Label (one of the three), change, interval, share."""
    change, limits = percent(part.ratio), _interval(part)
    if change == percent(1.0):
        return same, change, limits, ""
    if part.ratio > 1:
        return gained, change, limits, "a gain"
    return lost, change, limits, f"{100 * part.share:.0f} % of the loss" if part.share else ""


def _interval(part: Part) -> str:
    limits = interval(part.ci_low, part.ci_high)
    return f"[{limits}]" if limits else ""
