"""pytest hooks, options and fixtures; everything else is called from here.

Nothing beyond the table of options is imported until a run names an engine: a test suite that has the
plugin installed and does not use it pays a few milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_speedbench.settings.options import OPTIONS, Option

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pytest_speedbench.cells import Cell
    from pytest_speedbench.fixture import SpeedBench
    from pytest_speedbench.run.session import Session

MARKER = "speedbench"
_SESSION: pytest.StashKey[Session | None] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register every option and its ini twin."""
    group = parser.getgroup("speedbench", "SPEED-Bench: gate an LLM inference engine")
    for option in OPTIONS:
        adds_up = option.repeatable or option.comma_list
        action = "store_true" if option.flag else "append" if adds_up else "store"
        keywords: dict[str, Any] = {} if option.flag else {"metavar": option.metavar or option.name.upper()}
        group.addoption(
            option.option,
            action=action,
            default=None,
            dest=f"speedbench_{option.field}",
            help=option.help,
            **keywords,
        )
        if option.ini:
            kind: Any = option.ini_type
            if option.number and pytest.version_tuple < (8, 4):
                kind = "string"
            help_text = f"{option.help} (ini twin of {option.option})"
            parser.addini(f"speedbench_{option.field}", help_text, type=kind, default=None)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that others may implement."""
    from pytest_speedbench import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and refuse what is wrong with them before anything is collected or launched."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(split, categories=None, batch_sizes=None, speedup=False): "
        "run the test once for each of these cells of SPEED-Bench; it takes the `speedbench` fixture",
    )
    config.stash[_SESSION] = None
    if not any(_command_line(config, option) or _ini(config, option) for option in OPTIONS):
        return
    from pytest_speedbench import engines
    from pytest_speedbench.errors import SpeedBenchError
    from pytest_speedbench.settings.read import read

    def command_line(option: Option) -> tuple[Any, str, Path] | None:
        return _command_line(config, option)

    def ini(option: Option) -> tuple[Any, str, Path] | None:
        return _ini(config, option)

    try:
        settings = read(config.rootpath, command_line, ini, engines.offer)
        if settings is None or hasattr(config, "workerinput"):
            return
        if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
            raise SpeedBenchError(
                "--speedbench-engine does not go with pytest-xdist's -n: cells measured at the same time would "
                "share one engine and falsify every batch size; leave out -n, or run these tests on their own with -n 0"
            )
        from pytest_speedbench.run.session import Session

        config.stash[_SESSION] = Session(settings, config)
    except SpeedBenchError as error:
        raise pytest.UsageError(str(error)) from None


def _command_line(config: pytest.Config, option: Option) -> tuple[Any, str, Path] | None:
    value = getattr(config.option, f"speedbench_{option.field}", None)
    return None if value is None else (value, option.option, config.invocation_params.dir)


def _ini(config: pytest.Config, option: Option) -> tuple[Any, str, Path] | None:
    if not option.ini:
        return None
    name = f"speedbench_{option.field}"
    try:
        value = config.getini(name)
    except (TypeError, ValueError, pytest.UsageError):  # by version; what is allowed is ours to say
        from pytest_speedbench.settings.ini import as_written

        value = as_written(name, config.inipath, config.getoption("override_ini"))
    if value is None or value == "" or value == []:
        return None
    base = config.inipath.parent if config.inipath else config.rootpath
    return value, f"{base / (config.inipath or base).name}: {name}", base


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is measured, on which prompts, and what it is compared with."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        return []
    from pytest_speedbench.report.header import header

    return header(session.settings, config.rootpath)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once per cell; needs neither engine nor data."""
    if MARKER not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None:
        return
    from pytest_speedbench.cells import read_marker
    from pytest_speedbench.errors import SpeedBenchError
    from pytest_speedbench.settings.read import read_narrowing

    config = metafunc.config
    try:
        grid = read_marker(marker.args, marker.kwargs)
        narrowing = read_narrowing(
            lambda option: _command_line(config, option), lambda option: _ini(config, option)
        )
    except SpeedBenchError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    cells = grid.cells(narrowing)
    metafunc.parametrize(
        MARKER, cells or [None], ids=[cell.id for cell in cells] or ["no-cell"], indirect=True
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of which the options leave no cell."""
    narrowed_out = [item for item in items if _is_gated(item) and _cell(item) is None]
    if narrowed_out:
        config.hook.pytest_deselected(items=narrowed_out)
        gone = set(narrowed_out)
        items[:] = [item for item in items if item not in gone]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Read and check data, baseline and targets, before anything is launched."""
    ours = session.config.stash.get(_SESSION, None)
    if ours is None or session.config.option.collectonly:
        return
    from pytest_speedbench.cells import read_marker
    from pytest_speedbench.errors import SpeedBenchError
    from pytest_speedbench.settings.read import read_narrowing

    config = session.config
    narrowing = read_narrowing(
        lambda option: _command_line(config, option), lambda option: _ini(config, option)
    )
    planned: dict[Cell, bool] = {}
    for item in session.items:
        cell, marker = _cell(item), item.get_closest_marker(MARKER)
        if cell is not None and marker is not None:
            grid = read_marker(marker.args, marker.kwargs)
            of_mean = [
                each for each in grid.cells(narrowing) if each.shares_group(cell)
            ]  # a mean needs them all
            for each in of_mean if cell.is_mean else [cell]:
                planned[each] = planned.get(each, False) or grid.speedup
    if not planned:
        return
    try:
        ours.prepare(planned)
    except SpeedBenchError as error:
        raise pytest.UsageError(str(error)) from None


def _is_gated(item: pytest.Item) -> bool:
    return MARKER in getattr(item, "fixturenames", ()) and item.get_closest_marker(MARKER) is not None


def _cell(item: pytest.Item) -> Cell | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(MARKER) if callspec is not None and _is_gated(item) else None


@pytest.fixture
def speedbench(request: pytest.FixtureRequest) -> SpeedBench:
    """The cell that this test is about: `speedbench.measure().assert_no_regression("acceptance_length")`."""
    cell: Cell | None = getattr(request, "param", None)
    if cell is None:
        pytest.fail(
            f"{request.node.nodeid} takes the speedbench fixture but names no cells: "
            "mark it, such as @pytest.mark.speedbench(split='qualitative', batch_sizes=[1, 32])",
            pytrace=False,
        )
    session = request.config.stash[_SESSION]
    if session is None:
        pytest.skip("no engine to measure: give --speedbench-engine=NAME (or --speedbench-target=NAME)")
    from pytest_speedbench.fixture import SpeedBench

    return SpeedBench(cell, session, request.node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which gated tests failed: nothing is saved then."""
    report = yield
    session = item.config.stash.get(_SESSION, None)
    if session is not None and report.failed and _is_gated(item):
        session.failed.append(item.nodeid)
        crash = getattr(report.longrepr, "reprcrash", None)
        if (
            crash is not None
        ):  # the short summary and JUnit's message: where CI is set, pytest does not cut them
            crash.message = crash.message.partition("\n")[0]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the engines, then write baselines and results."""
    ours = session.config.stash.get(_SESSION, None)
    if ours is None:
        return
    ours.close()
    if not ours.finish(int(exitstatus)) and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    ours = config.stash.get(_SESSION, None)
    if ours is None or not ours.used:
        return
    from pytest_speedbench.report.terminal import summary

    terminalreporter.section("speedbench")
    for text, color in summary(ours.result()):
        terminalreporter.write_line(text, **({color: True} if color else {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the engines, also where the session did not finish."""
    ours = config.stash.get(_SESSION, None)
    if ours is not None:
        ours.close()
