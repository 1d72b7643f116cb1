"""What the pages under docs/ and examples/ promise: options, links, targets and outputs that are really there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pytest_speedbench import engines, files
from pytest_speedbench.catalogue import DEFAULT_TOLERANCES, UNITS
from pytest_speedbench.gate.check import Verdict
from pytest_speedbench.gate.decide import decide, interim_analyses, share_of_alpha
from pytest_speedbench.gate.estimate import Pair, ratio_of_ratios
from pytest_speedbench.settings.options import OPTIONS, TOLERATED
from pytest_speedbench.settings.targets_file import SCHEMA

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES, *sorted((ROOT / "examples").glob("*/*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_NUMBER = re.compile(r"[-+]?\d[\d.]*")


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text("utf-8")) if kind == language]


def prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text("utf-8"))


def rows(page: Path) -> Iterator[list[str]]:
    """The cells of every line of a table."""
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split(" |")]


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Options


def test_every_option_is_described_with_its_ini_twin_its_key_and_its_default() -> None:
    described = {cells[0]: cells[1:4] for cells in rows(DOCS / "options.md") if cells[0].startswith("`--")}
    assert list(described) == list(dict.fromkeys(described))
    assert {name: cells[:2] for name, cells in described.items()} == {
        f"`{option.option}`": [
            f"`speedbench_{option.field}`" if option.ini else "none",
            f"`{option.key}`" if option.key else "",
        ]
        for option in OPTIONS
    }
    for option in OPTIONS:
        default = described[f"`{option.option}`"][2].strip("`")
        if isinstance(option.default, bool):
            assert default == str(option.default).lower()
        elif isinstance(option.default, (int, float)):
            assert default == f"{option.default:g}"
        elif option.default is not None:
            assert default == option.default


def test_default_tolerances_are_those_of_the_settings() -> None:
    [default] = [cells[3] for cells in rows(DOCS / "options.md") if cells[0] == "`--speedbench-tolerance`"]
    told = dict(text.strip("` ").split("=") for text in default.split(","))
    assert {metric: float(loss) for metric, loss in told.items()} == DEFAULT_TOLERANCES
    assert set(told) == set(TOLERATED)


FIXTURES = {"speedbench_engine", "speedbench_dataset"}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_that_are_named_exist(page: Path) -> None:
    known = {option.option for option in OPTIONS}
    ini = {f"speedbench_{option.field}" for option in OPTIONS if option.ini}
    text = page.read_text("utf-8")
    assert set(re.findall(r"--speedbench-[a-z]+(?:-[a-z]+)*", text)) <= known
    assert set(re.findall(r"`(speedbench_[a-z_]+)`", text)) <= ini | FIXTURES


# Metrics


def test_every_metric_is_described_with_its_unit() -> None:
    described = {
        name: cells[1]
        for cells in rows(DOCS / "measuring.md")
        if len(cells) == 4 and cells[3] in ("counters", "clock", "both")
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    assert described == UNITS


# Engines


def test_every_engine_is_described_with_its_methods() -> None:
    described = {
        cells[0].strip("`"): set(re.findall(r"`(\w+)`", cells[2]))
        for cells in rows(DOCS / "engines.md")
        if len(cells) == 4 and cells[0].startswith("`")
    }
    assert described == {name: set(engines.offer(name).methods) for name in engines.names()}


# Links


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert ROOT in target.parents, link
        if heading:
            assert heading in anchors(target), link


def test_the_index_leads_to_every_page() -> None:
    linked = {link.partition("#")[0] for link in _LINK.findall((DOCS / "index.md").read_text("utf-8"))}
    assert {page.name for page in PAGES} - {"index.md"} <= linked


# YAML


def yaml_blocks() -> Iterator[tuple[Path, str]]:
    for page in TEXTS:
        for text in blocks(page, "yaml"):
            yield page, text


@pytest.mark.parametrize(
    ("page", "text"),
    [pytest.param(page, text, id=page.name) for page, text in yaml_blocks() if text.startswith("targets:")],
)
def test_targets_that_are_shown_fit_the_schema(page: Path, text: str) -> None:
    files.check(yaml.safe_load(text), SCHEMA, page)


def test_the_page_of_options_shows_every_key_of_a_target() -> None:
    targets: dict[str, dict[str, Any]] = {}
    for text in blocks(DOCS / "options.md", "yaml"):
        targets |= yaml.safe_load(text)["targets"]
    assert {key for target in targets.values() for key in target} == {
        option.key for option in OPTIONS if option.key
    }


def test_the_baseline_that_is_shown_fits_the_schema() -> None:
    from pytest_speedbench.gate.store import SCHEMA as BASELINE

    [text] = [each for each in blocks(DOCS / "baselines.md", "yaml") if "schema_version" in each]
    files.check(yaml.safe_load(text), BASELINE, DOCS / "baselines.md")


# Figures


@pytest.mark.parametrize("prompts", [8, 20, 40, 80])
def test_the_table_of_prompts_and_verdicts_is_what_a_simulation_gives(prompts: int) -> None:
    """Steps vary by 30 % between prompts, and each prompt's by 10 % from pass to pass, in run and baseline alike."""
    [shown] = [
        [float(cell.removesuffix("%")) for cell in cells[1:]]
        for cells in rows(DOCS / "gate-your-engine.md")
        if len(cells) == 7 and cells[0] == str(prompts)
    ]
    trials = 2000
    found: list[float] = []
    for loss, verdicts in (
        (0.05, (Verdict.REGRESSION, Verdict.INCONCLUSIVE, Verdict.PASS)),
        (0.0, (Verdict.REGRESSION, Verdict.INCONCLUSIVE)),
    ):
        random = np.random.default_rng(20260604)
        runs = [simulated_run(random, prompts, loss) for _ in range(trials)]
        if loss:
            found.append(100 * float(np.median([half_width for _, half_width in runs])))
        counted = Counter(verdict for verdict, _ in runs)
        found += [100 * counted[verdict] / trials for verdict in verdicts]
    assert shown == pytest.approx(found, abs=0.1)


def simulated_run(random: np.random.Generator, prompts: int, loss: float) -> tuple[Verdict, float]:
    """The verdict after the last look that was needed, and half the relative width of the interval at the first."""
    tokens, rounds, max_rounds, baseline_rounds = 512, 3, 9, 9
    steps = 200 * np.exp(0.3 * random.standard_normal(prompts))
    before = passes(random, steps, baseline_rounds)
    now = np.zeros(prompts)
    verdict, half_width, done = Verdict.INCONCLUSIVE, 0.0, 0
    for look, total in enumerate(interim_analyses(rounds, max_rounds)):
        now += passes(random, steps / (1 - loss), total - done)
        done = total
        estimate = ratio_of_ratios(
            [Pair(baseline_rounds * tokens, y, total * tokens, z) for y, z in zip(before, now, strict=True)]
        )
        assert estimate is not None
        if look == 0:
            interval = estimate.interval()
            assert interval is not None
            half_width = (interval[1] - interval[0]) / 2 / estimate.ratio
        verdict = decide(estimate, 0.03, share_of_alpha(0.01, 108, rounds, max_rounds, look))
        if verdict is not Verdict.INCONCLUSIVE:
            break
    return verdict, half_width


def passes(random: np.random.Generator, steps: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """Steps of each prompt, summed over passes."""
    noise: NDArray[np.float64] = np.exp(0.1 * random.standard_normal((number, len(steps)))).sum(axis=0)
    return steps * noise


# Outputs


def shown_runs() -> Iterator[Any]:
    """Runs of the quickstart that a page shows: the command, and lines that do not depend on a machine's speed."""
    for page in PAGES:
        for text in blocks(page, "text"):
            command, _, output = text.partition("\n")
            if command.startswith("$ pytest examples/quickstart"):
                yield pytest.param(shlex.split(command)[2:], output.splitlines(), id=page.stem)


@pytest.mark.parametrize(("arguments", "lines"), list(shown_runs()))
def test_failures_that_are_shown_are_what_a_run_prints(
    pytester: pytest.Pytester, arguments: list[str], lines: list[str]
) -> None:
    shutil.copytree(
        ROOT / "examples" / "quickstart",
        pytester.path / "examples" / "quickstart",
        ignore=shutil.ignore_patterns(".*"),
    )
    shutil.copytree(ROOT / "baselines", pytester.path / "baselines")
    # what else this machine computes meanwhile, such as other tests, is left out of causes: they may have to blame it
    pytester.makepyfile(
        undisturbed="""
        from pytest_speedbench.load.other_processes import OtherProcesses

        OtherProcesses.share = property(lambda self: 0.0, lambda self, share: None)
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "undisturbed", *arguments)
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) + outcomes.get("errors", 0) == 1
    printed = result.stdout.str().splitlines()
    exact = re.compile(r"  acceptance_length .* -> |  accepted less|  differs")
    assert [line for line in lines if exact.match(line) and line not in printed] == []
    words = {_NUMBER.sub("N", line) for line in printed}
    verdicts = [
        line
        for line in lines
        if re.match(
            r" +(REGRESSION|INVALID)|  (cause|pattern): |  \d+ of \d+ prompts|  \d+ rounds against", line
        )
    ]
    assert verdicts
    for line in verdicts:
        start = _NUMBER.sub("N", line)[:40]
        assert any(word.startswith(start) for word in words), line
