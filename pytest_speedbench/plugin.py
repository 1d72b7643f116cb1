"""pytest hooks, options and fixtures; everything else is called from here.

Nothing beyond the table of options is imported until a run names an engine: a test suite that has the
plugin installed and does not use it pays a few milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_speedbench.settings.options import OPTIONS, Option
from pytest_speedbench.speed_bench import MARKER

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pytest_speedbench.cells import Cell, Narrowing
    from pytest_speedbench.fixture import DatasetLoader, SpeedBench
    from pytest_speedbench.run.running_engine import RunningEngine
    from pytest_speedbench.run.session import Session

_SUITE = "pytest_speedbench.suite."
_NOT_WITH_XDIST = (
    "--speedbench-engine does not go with pytest-xdist's -n: cells measured at the same time would "
    "share one engine and falsify every batch size; leave out -n, or run these tests on their own with -n 0"
)
_REFUSAL: pytest.StashKey[str] = pytest.StashKey()
"""Why this process may not measure, although an engine is named."""
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
        f"{MARKER}(split, categories=None, batch_sizes=None, speedup=False, metrics=None, rounds=None, limit=None, "
        "output_length=None, tolerance=None, exclude_from_mean=None): "
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
        if settings is None:
            return
        if hasattr(config, "workerinput"):
            config.stash[_REFUSAL] = _NOT_WITH_XDIST
            return
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
    if MARKER not in metafunc.fixturenames or metafunc.definition.get_closest_marker(MARKER) is None:
        return
    from pytest_speedbench.collection import cells_of
    from pytest_speedbench.errors import SpeedBenchError

    try:
        cells = cells_of(metafunc.definition, _narrowing(metafunc.config))
    except SpeedBenchError as error:
        raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: {error}") from None
    metafunc.parametrize(
        MARKER, cells or [None], ids=[cell.id for cell in cells] or ["no-cell"], indirect=True
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Refuse marks that could never gate anything: they would be green for ever."""
    report = yield
    if report.passed and any(node.get_closest_marker(MARKER) is not None for node in report.result):
        from pytest_speedbench.collection import misuse

        reason = misuse(collector, report.result)
        if reason is not None:
            report.outcome, report.longrepr, report.result = "failed", reason, []
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of which the options leave no cell, and free the ready-made ones of pytest-timeout's limit."""
    narrowed_out = [item for item in items if _is_narrowed_out(item)]
    if narrowed_out:
        config.hook.pytest_deselected(items=narrowed_out)
        gone = set(narrowed_out)
        items[:] = [item for item in items if item not in gone]
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            # the first test of a group measures the whole group, which may take hours
            if _is_gated(item) and getattr(item, "function", item).__module__.startswith(_SUITE):
                item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run nothing in a worker of pytest-xdist that may not measure."""
    refused = session.config.stash.get(_REFUSAL, None) is not None and bool(session.shouldstop)
    return True if refused else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Read and check data, baseline and targets, before anything is launched."""
    refusal = session.config.stash.get(_REFUSAL, None)
    if refusal is not None and any(map(_needs_engine, session.items)):
        session.shouldstop = (
            refusal  # of a worker of pytest-xdist: the controller stops the run, and shows this
        )
    marked = [item for item in session.items if item.get_closest_marker(MARKER) is not None]
    if not marked:
        return
    from pytest_speedbench.cells import merged
    from pytest_speedbench.collection import asked_by, refuse_late_marks
    from pytest_speedbench.errors import SpeedBenchError

    narrowing = _narrowing(session.config)
    ours = session.config.stash.get(_SESSION, None)
    try:
        late = refuse_late_marks(marked)
        if late is not None:
            raise SpeedBenchError(late)
        planned = merged(asked for item in marked for asked in asked_by(item, narrowing))
        if ours is not None and planned and not session.config.option.collectonly:
            ours.prepare(planned)
    except SpeedBenchError as error:
        if hasattr(
            session.config, "workerinput"
        ):  # an error raised here would look like a crash of the worker
            session.config.stash[_REFUSAL] = session.shouldstop = str(error)
            return
        raise pytest.UsageError(str(error)) from None


def _narrowing(config: pytest.Config) -> Narrowing:
    from pytest_speedbench.settings.read import read_narrowing

    return read_narrowing(lambda option: _command_line(config, option), lambda option: _ini(config, option))


def _is_gated(item: pytest.Item) -> bool:
    return MARKER in getattr(item, "fixturenames", ()) and item.get_closest_marker(MARKER) is not None


def _needs_engine(item: pytest.Item) -> bool:
    return _is_gated(item) or "speedbench_engine" in getattr(item, "fixturenames", ())


def _is_narrowed_out(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    return callspec is not None and callspec.params.get(MARKER, MARKER) is None


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
    session = _session(request.config, "measure")
    from pytest_speedbench.collection import plan_of
    from pytest_speedbench.fixture import SpeedBench

    return SpeedBench(cell, plan_of(request.node, cell, _narrowing(request.config)), session, request.node)


def _session(config: pytest.Config, purpose: str) -> Session:
    """The session of this run; without an engine, the test that asks for it is skipped."""
    refusal = config.stash.get(_REFUSAL, None)
    if refusal is not None:
        pytest.fail(refusal, pytrace=False)
    session = config.stash[_SESSION]
    if session is None:
        pytest.skip(f"no engine to {purpose}: give --speedbench-engine=NAME (or --speedbench-target=NAME)")
    return session


@pytest.fixture(scope="session")
def speedbench_engine(request: pytest.FixtureRequest) -> RunningEngine:
    """The very engine that is measured, running: its `url`, `name`, `version`, `hardware`, `log`, `target`.

    It is started when first used; without --speedbench-engine or --speedbench-target the test is skipped.
    """
    session = _session(request.config, "run")
    from pytest_speedbench.errors import NotMeasured, SpeedBenchError
    from pytest_speedbench.fixture import fail_with

    try:
        return session.engine()
    except SpeedBenchError as error:
        failure = NotMeasured(str(error))
    fail_with(failure)  # out of the except block, which would make `error` its context


@pytest.fixture(scope="session")
def speedbench_dataset(request: pytest.FixtureRequest) -> DatasetLoader:
    """Loads the prompts of a split, as the run does: `speedbench_dataset("qualitative", categories=["coding"])`.

    They come from --speedbench-data, or from the bundled sample, at most --speedbench-limit per category. Needs no engine.
    """
    from pytest_speedbench.errors import SpeedBenchError
    from pytest_speedbench.fixture import DatasetLoader

    config = request.config
    session = config.stash[_SESSION]
    if session is not None:
        return DatasetLoader(session.settings.data, session.settings.limit)
    from pytest_speedbench.settings.read import read_data_options

    try:
        return DatasetLoader(
            *read_data_options(
                lambda option: _command_line(config, option), lambda option: _ini(config, option)
            )
        )
    except SpeedBenchError as error:
        failure = str(error)
    pytest.fail(failure, pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note which tests failed, and why; book the time of a cell on the test that is about it."""
    report = yield
    session = item.config.stash.get(_SESSION, None)
    if session is None:
        return report
    from pytest_speedbench.collection import cell_of

    cell = cell_of(item)
    if report.failed:
        from pytest_speedbench.errors import NotMeasured

        reason = None if call.excinfo is None else call.excinfo.value.__context__
        not_measured = isinstance(reason, NotMeasured)
        session.note_failure(item.nodeid, cell, _shown(report), not_measured=not_measured)
        if not_measured:
            # to the terminal, JUnit and others, the phase tells an error from a failure; what did not come about is the
            # measurement that the test was to judge
            report.when = "setup"
        crash = getattr(report.longrepr, "reprcrash", None)
        if _is_gated(item) and crash is not None:
            # the short summary and JUnit's message: where CI is set, pytest does not cut them
            crash.message = crash.message.partition("\n")[0]
    elif call.when == "call":
        session.forget_failure(item.nodeid, cell)
    if call.when == "call":
        report.duration = max(0.0, report.duration - session.others_s(item.nodeid))
    return report


def _shown(report: pytest.TestReport) -> str:
    """What a failed test shows: the message alone where there is no traceback."""
    crash = getattr(report.longrepr, "reprcrash", None)
    traced = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", ())
    return str(crash.message) if crash is not None and traced else report.longreprtext


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the engines, then write baselines and results; an interrupted run writes first, lest it be killed."""
    ours = session.config.stash.get(_SESSION, None)
    if ours is None:
        return
    interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
    if not interrupted:
        ours.close()
    ours.finish(int(exitstatus))
    if ours.used:
        _write_reports(session.config, ours)
    if interrupted:
        ours.close()
    ours.announce()
    session.exitstatus = ours.exit_status(int(exitstatus))


def _write_reports(config: pytest.Config, session: Session) -> None:
    from pytest_speedbench.report import json_file, markdown

    result = session.result()
    for path, write in ((session.settings.json, json_file.write), (session.settings.report, markdown.write)):
        if path is None:
            continue
        try:
            write(path, result)
        except OSError as error:
            session.note_written(f"{path} could not be written: {error.strerror}", failed=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    ours = config.stash.get(_SESSION, None)
    if ours is None or not ours.used:
        return
    from pytest_speedbench.report.terminal import summary

    terminalreporter.section("speedbench")
    for text, color in summary(ours.result(), config.get_verbosity()):
        terminalreporter.write_line(text, **({color: True} if color else {}))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the engines, also where the session did not finish."""
    ours = config.stash.get(_SESSION, None)
    if ours is not None:
        ours.close()
