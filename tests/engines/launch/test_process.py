"""A launched engine: how it becomes ready, how its failures read, and that nothing of it is left afterwards.

The engines here are small real servers, in processes of their own, that misbehave in one way each.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

import pytest_speedbench
from pytest_speedbench.engines.base import Engine, Launch
from pytest_speedbench.engines.control import Control
from pytest_speedbench.engines.launch.process import EngineProcess, describe_exit, start
from pytest_speedbench.errors import EngineError
from pytest_speedbench.settings.target import Target

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="uses /proc and child subreapers"
)

FOREVER_S = 600.0
"""Start-up limit of engines that must be seen to fail long before it."""
GENEROUS_S = 60.0

SERVER = """
import http.server, json, os, signal, subprocess, sys, time

pids = [os.getpid()]

def adopt(code):
    # Run Python code that prints the id of the process that is to stay.
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids.append(int(child.stdout.readline()))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            os._exit(7)
        body = json.dumps({"pids": pids, "environment": dict(os.environ), "folder": os.getcwd()}).encode()
        self.send_response(STATUS)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

STATUS = 200
"""
SERVE = """
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
DEAF_SLEEPER = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
DAEMON = "import os; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); " + SLEEPER


class ScriptEngine:
    """An engine whose server is a Python script, told its port as first argument."""

    name = "script"
    ready_path = "/health"

    def __init__(self, folder: Path, body: str = "", arguments: tuple[str, ...] = ()) -> None:
        self.script = folder / "server.py"
        self.script.write_text(SERVER + body + SERVE)
        self.arguments = arguments
        self.environment: Mapping[str, str] = {}
        self.ports: list[int] = []
        self.before_launch: Callable[[int], None] = lambda port: None

    def launch(self, port: int) -> Launch:
        self.ports.append(port)
        self.before_launch(port)
        return Launch((sys.executable, str(self.script), str(port), *self.arguments), self.environment)


class Foreigner:
    """A server of this test's own, which answers 200 to everything on a port that an engine was to have."""

    def __init__(self, port: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def launch(
    engine: ScriptEngine, folder: Path, timeout_s: float = FOREVER_S, **environment: str
) -> EngineProcess:
    target = Target("t", "script", "none", 0, engine_timeout_s=timeout_s, environment=environment)
    return start(cast("Engine", engine), target, folder / ".speedbench" / "logs")


def facts(url: str) -> Any:
    control = Control(url)
    try:
        return control.get_json("/facts")
    finally:
        control.close()


def tree(url: str) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in facts(url)["pids"]]


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that are still there when all had plenty of time to go; a zombie is gone."""
    _, alive = psutil.wait_procs(processes, timeout=GENEROUS_S)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def foreigners() -> Iterator[list[Foreigner]]:
    opened: list[Foreigner] = []
    yield opened
    for foreigner in opened:
        foreigner.close()


class TestStart:
    def test_returns_a_server_that_answers(self, tmp_path: Path) -> None:
        engine = ScriptEngine(tmp_path)
        with launch(engine, tmp_path) as process:
            assert process.url == f"http://127.0.0.1:{engine.ports[0]}"
            assert process.exit_code() is None
            assert facts(process.url)["folder"] == os.getcwd()

    def test_tells_what_is_going_on(self, tmp_path: Path) -> None:
        told: list[str] = []
        target = Target(name="t", engine="script", method="none", draft_length=0)
        with start(cast("Engine", ScriptEngine(tmp_path)), target, tmp_path / "logs", told.append) as process:
            assert told[0] == f"starting script, log {process.log}"
        assert told[-1].startswith("script is ready after ")

    def test_interrupted_leaves_nothing_behind(self, tmp_path: Path) -> None:
        before = psutil.Process().children()
        target = Target(name="t", engine="script", method="none", draft_length=0)

        def interrupt(message: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            start(cast("Engine", ScriptEngine(tmp_path)), target, tmp_path / "logs", interrupt)
        assert psutil.Process().children() == before

    def test_early_exit_shows_command_code_and_last_lines(self, tmp_path: Path) -> None:
        engine = ScriptEngine(tmp_path, "[print('line', n) for n in range(1, 41)]; sys.exit(3)")
        with pytest.raises(EngineError) as caught:
            launch(engine, tmp_path)
        lines = str(caught.value).splitlines()
        assert lines[:4] == [
            "script exited with code 3 before it was ready",
            f"  command: {sys.executable} {engine.script} {engine.ports[0]}",
            f"  log: {tmp_path}/.speedbench/logs/script-1.log",
            "  last lines of the log (at most 30):",
        ]
        assert lines[4:] == [f"    line {n}" for n in range(11, 41)]

    def test_early_death_by_a_signal_is_named(self, tmp_path: Path) -> None:
        engine = ScriptEngine(tmp_path, "os.kill(os.getpid(), signal.SIGSEGV)")
        with pytest.raises(
            EngineError, match=r"^script was killed by SIGSEGV before it was ready\n(?s:.*)empty$"
        ):
            launch(engine, tmp_path)

    def test_early_exit_is_noticed_while_a_child_keeps_the_port_and_the_log(self, tmp_path: Path) -> None:
        body = (
            "STATUS = 503\nif os.fork(): os.wait = time.sleep(0.1); print('bad', flush=True); os._exit(1)\n"
        )
        with pytest.raises(EngineError, match="exited with code 1 before it was ready"):
            launch(ScriptEngine(tmp_path, body), tmp_path)

    def test_not_ready_in_time(self, tmp_path: Path) -> None:
        with pytest.raises(
            EngineError, match=r"^script was not ready after 0\.5 s \(--speedbench-engine-timeout\)"
        ):
            launch(
                ScriptEngine(tmp_path, "STATUS = 503; print(os.getpid(), flush=True)"),
                tmp_path,
                timeout_s=0.5,
            )
        pid = int((tmp_path / ".speedbench/logs/script-1.log").read_text().splitlines()[1])
        assert not psutil.pid_exists(pid)

    @pytest.mark.parametrize(
        ("program", "reason"),
        [("no-such-python", "No such file or directory"), ("server.py", "Permission denied")],
    )
    def test_program_that_cannot_run_is_one_line(self, tmp_path: Path, program: str, reason: str) -> None:
        engine = ScriptEngine(tmp_path)
        missing = str(tmp_path / program)
        engine.launch = lambda port: Launch((missing, str(port)))  # type: ignore[method-assign]
        with pytest.raises(EngineError) as caught:
            launch(engine, tmp_path)
        assert str(caught.value) == (
            f"script could not be launched: {missing}: {reason} "
            "(--speedbench-engine-python names the interpreter that has the engine)"
        )

    def test_environment_is_the_users_and_the_engines_but_not_pytests(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("USERS_OWN", "kept")
        monkeypatch.setenv("COV_CORE_SOURCE", "dropped")
        engine = ScriptEngine(tmp_path)
        engine.environment = {"ENGINES_OWN": "added"}
        assert "PYTEST_CURRENT_TEST" in os.environ
        with launch(engine, tmp_path) as process:
            environment = facts(process.url)["environment"]
        assert environment["USERS_OWN"] == "kept"
        assert environment["ENGINES_OWN"] == "added"
        assert environment["PYTHONUNBUFFERED"] == "1"
        assert not [name for name in environment if name.startswith(("PYTEST_", "COV_CORE_"))]

    def test_modules_of_the_user_cannot_break_the_launch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("json", "signal", "psutil"):
            (tmp_path / f"{module}.py").write_text("raise SystemExit('shadowed')")
        server = tmp_path / "elsewhere"
        server.mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        engine = ScriptEngine(server)
        engine.environment = {"PYTHONPATH": ""}
        with launch(engine, tmp_path) as process:
            assert process.exit_code() is None


class TestFiles:
    def test_lie_beside_the_log_and_are_named_in_the_command(self, tmp_path: Path) -> None:
        engine = ScriptEngine(tmp_path, "told = open(sys.argv[2]).read()\npids.append(told)")
        launch_script = engine.launch

        def launch_with_file(port: int) -> Launch:
            command = (*launch_script(port).command, "{config.yaml}")
            return Launch(command, files={"config.yaml": "key: value\n"})

        engine.launch = launch_with_file  # type: ignore[method-assign]
        with launch(engine, tmp_path) as process:
            assert facts(process.url)["pids"][-1] == "key: value\n"
            assert process.log.with_name("script-1.config.yaml").read_text() == "key: value\n"
            assert str(process.log.with_name("script-1.config.yaml")) in process.command


class TestPort:
    def test_taken_by_a_server_that_answers_health_is_tried_again(
        self, tmp_path: Path, foreigners: list[Foreigner]
    ) -> None:
        """The engine takes long to load, so that the stranger answers for it."""
        engine = ScriptEngine(tmp_path)

        def lose_the_first(port: int) -> None:
            engine.script.write_text(SERVER + ("" if foreigners else "time.sleep(1000)") + SERVE)
            if not foreigners:
                foreigners.append(Foreigner(port))

        engine.before_launch = lose_the_first
        with launch(engine, tmp_path) as process:
            assert len(engine.ports) == 2
            assert process.url == f"http://127.0.0.1:{engine.ports[1]}"
            assert facts(process.url)["pids"]

    def test_engine_that_says_address_in_use_is_tried_again(self, tmp_path: Path) -> None:
        """However much it says after that: SGLang ends in a traceback of its warm-up."""
        engine = ScriptEngine(
            tmp_path,
            f"""
if not os.path.exists({str(tmp_path / "complained")!r}):
    open({str(tmp_path / "complained")!r}, "x")
    print("[Errno 98] Address already in use")
    print("at another line of a traceback\\n" * 1000)
    sys.exit(3)
""",
        )
        with launch(engine, tmp_path):
            assert len(engine.ports) == 2

    def test_always_taken(self, tmp_path: Path, foreigners: list[Foreigner]) -> None:
        engine = ScriptEngine(tmp_path)
        engine.before_launch = lambda port: foreigners.append(Foreigner(port))
        with pytest.raises(
            EngineError, match=r"^script lost 3 ports in a row to other processes: "
        ) as caught:
            launch(engine, tmp_path)
        assert len(engine.ports) == 3
        for port in engine.ports:
            assert f"{port} (process {os.getpid()}, " in str(caught.value)


class TestStop:
    def test_asks_the_main_process_first(self, tmp_path: Path) -> None:
        engine = ScriptEngine(tmp_path, "signal.signal(signal.SIGTERM, lambda *_: os._exit(42))")
        process = launch(engine, tmp_path)
        process.stop()
        assert process.exit_code() == 42

    def test_does_not_signal_the_children_of_an_engine_that_ends_in_order(self, tmp_path: Path) -> None:
        body = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
pids.append(child.pid)
def end(*_):
    print("child", child.poll(), flush=True)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
"""
        process = launch(ScriptEngine(tmp_path, body), tmp_path)
        processes = tree(process.url)
        process.stop()
        assert process.log_tail() == "child None"
        assert left(processes) == []

    def test_twice_is_once(self, tmp_path: Path) -> None:
        process = launch(ScriptEngine(tmp_path), tmp_path)
        process.stop()
        process.stop()
        assert process.exit_code() == -signal.SIGTERM

    @pytest.mark.parametrize(
        "body",
        [
            pytest.param("signal.signal(signal.SIGTERM, signal.SIG_IGN)", id="ignores-sigterm"),
            pytest.param(
                "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), 19))", id="stops-itself"
            ),
            pytest.param(f"adopt({SLEEPER!r}); adopt({DEAF_SLEEPER!r})", id="children-outlive-it"),
            pytest.param(f"adopt({DAEMON!r})", id="double-forked-daemon"),
            pytest.param(f"os.environ.clear(); adopt({DAEMON!r})", id="daemon-without-mark"),
            pytest.param(
                f"signal.signal(signal.SIGTERM, lambda *_: (adopt({DAEMON!r}), os._exit(0)))",
                id="forks-at-the-end",
            ),
        ],
    )
    def test_leaves_nothing_behind(self, tmp_path: Path, body: str) -> None:
        process = launch(ScriptEngine(tmp_path, body), tmp_path)
        processes = tree(process.url)
        supervised = processes[0].parents()[0]
        process.stop(grace_s=0.3)
        assert [other for other in [*processes, supervised] if other.is_running()] == []
        assert process.exit_code() is not None

    def test_crash_after_readiness_is_seen_and_cleaned_up_at_once(self, tmp_path: Path) -> None:
        with launch(ScriptEngine(tmp_path, f"adopt({DAEMON!r})"), tmp_path) as process:
            processes = tree(process.url)
            control = Control(process.url)
            assert not control.answers("/crash")
            control.close()
            process.wait(GENEROUS_S)
            assert process.exit_code() == 7
            assert left(processes) == []

    def test_sweeps_up_after_a_supervisor_that_was_killed(self, tmp_path: Path) -> None:
        """One child has left the engine's session, the other does not carry its mark."""
        body = f"adopt({DAEMON!r}); os.environ.clear(); adopt({DEAF_SLEEPER!r})"
        process = launch(ScriptEngine(tmp_path, body), tmp_path)
        main, *children = tree(process.url)
        main.parents()[0].kill()
        process.wait(GENEROUS_S)
        assert process.exit_code() == -signal.SIGKILL
        assert left([main]) == []
        process.stop()
        assert left(children) == []


TEST_PROCESS = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it, and it is inherited
sys.path[:0] = {paths!r}
from test_process import ScriptEngine, launch, tree, DAEMON, DEAF_SLEEPER
folder = Path({folder!r})
process = launch(ScriptEngine(folder, "adopt(%r); adopt(%r)" % (DAEMON, DEAF_SLEEPER)), folder)
processes = tree(process.url)
processes.append(processes[0].parents()[0])
{fork}
try:
    print(*(process.pid for process in processes), flush=True)
    time.sleep(1000)
except KeyboardInterrupt:
    print("interrupted", process.exit_code(), len(tree(process.url)), flush=True)
    process.stop()
    print("left", sum(process.is_running() for process in processes), flush=True)
"""


@pytest.fixture
def test_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has launched an engine, as pytest would; the first line of its output gives its processes."""
    paths = [str(Path(__file__).parent), str(Path(pytest_speedbench.__file__).parents[1])]
    code = TEST_PROCESS.format(paths=paths, folder=str(tmp_path), fork=request.param)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


HOLD_PIPES = """
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.close(1)
    time.sleep(1000)
"""


@pytest.mark.parametrize(
    "test_process",
    [pytest.param("", id="alone"), pytest.param(HOLD_PIPES, id="with-a-forked-child-that-holds-its-pipes")],
    indirect=True,
)
class TestEndOfTheTestProcess:
    def test_by_sigkill_takes_everything_with_it(self, test_process: subprocess.Popen[str]) -> None:
        assert test_process.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in test_process.stdout.readline().split()]
        assert len(processes) == 4
        test_process.kill()
        assert left(processes) == []

    def test_ctrl_c_reaches_the_test_process_alone_which_then_stops_the_engine(
        self, test_process: subprocess.Popen[str]
    ) -> None:
        assert test_process.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in test_process.stdout.readline().split()]
        os.killpg(test_process.pid, signal.SIGINT)
        assert test_process.stdout.read().splitlines() == ["interrupted None 3", "left 0"]
        assert left(processes) == []


def test_the_variables_of_a_target_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_A", "of the test process")
    engine = ScriptEngine(tmp_path)
    engine.environment = {"VLLM_B": "of the engine's module", "VLLM_C": "kept"}
    with launch(engine, tmp_path, VLLM_A="1", VLLM_B="2") as process:
        found = facts(process.url)["environment"]
    assert [found[f"VLLM_{letter}"] for letter in "ABC"] == ["1", "2", "kept"]


class TestLog:
    def test_holds_the_command_and_then_the_output(self, tmp_path: Path) -> None:
        engine = ScriptEngine(
            tmp_path, "print('out'); print('err', file=sys.stderr)", ("--name", "two words")
        )
        with launch(engine, tmp_path) as process:
            command = f"{sys.executable} {engine.script} {engine.ports[0]} --name 'two words'"
            assert process.command == command
            assert process.log.read_text().splitlines() == [f"[speedbench] {command}", "out", "err"]
            assert process.log_tail() == "out\nerr"
            assert process.log_tail(lines=1) == "err"

    def test_is_numbered_and_never_overwritten(self, tmp_path: Path) -> None:
        logs = tmp_path / ".speedbench" / "logs"
        logs.mkdir(parents=True)
        (logs / "script-7.log").write_text("of an earlier run")
        (logs / "script-notes.log").write_text("of somebody else")
        with launch(ScriptEngine(tmp_path), tmp_path) as process:
            assert process.log == logs / "script-8.log"
        assert (logs / "script-7.log").read_text() == "of an earlier run"

    def test_folder_is_ignored_by_git_when_we_made_it(self, tmp_path: Path) -> None:
        with launch(ScriptEngine(tmp_path), tmp_path):
            assert (tmp_path / ".speedbench" / ".gitignore").read_text() == "*\n"

    def test_folder_is_left_as_it_is_when_others_made_it(self, tmp_path: Path) -> None:
        (tmp_path / ".speedbench").mkdir()
        with launch(ScriptEngine(tmp_path), tmp_path):
            assert not (tmp_path / ".speedbench" / ".gitignore").exists()

    def test_folder_that_cannot_be_made_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / ".speedbench").write_text("a file")
        with pytest.raises(
            EngineError, match=r"^cannot write the log of script to .*/logs: Not a directory$"
        ):
            launch(ScriptEngine(tmp_path), tmp_path)

    def test_progress_bars_and_broken_text_are_readable(self, tmp_path: Path) -> None:
        body = r"os.write(1, b'loading 10 %\rloading 100 %\r\n\xff\n')"
        with launch(ScriptEngine(tmp_path, body), tmp_path) as process:
            assert process.log_tail() == "loading 100 %\n\N{REPLACEMENT CHARACTER}"

    @pytest.mark.parametrize(
        ("arguments", "shown"),
        [
            (("--api-key", "hush-1"), "--api-key MASKED"),
            (("--api-key=hush-1", "--port", "1"), "--api-key=MASKED --port 1"),
            (("--api-key", "hush-1", "hush-2", "--port", "1"), "--api-key MASKED MASKED --port 1"),
            (("--api_key", "hush-1"), "--api_key MASKED"),
            (("--hf-token", "hush-1"), "--hf-token MASKED"),
            (("--ssl-keyfile-password", "hush-1"), "--ssl-keyfile-password MASKED"),
            (("--client-secret=-hush-1",), "--client-secret=MASKED"),
            (("HF_TOKEN=hush-1",), "HF_TOKEN=MASKED"),
            (
                ("--num-speculative-tokens", "5", "--tokenizer", "t"),
                "--num-speculative-tokens 5 --tokenizer t",
            ),
        ],
    )
    def test_secrets_are_shown_nowhere(self, tmp_path: Path, arguments: tuple[str, ...], shown: str) -> None:
        engine = ScriptEngine(tmp_path, "print(sys.argv); sys.exit(1)", arguments)
        with pytest.raises(EngineError) as caught:
            launch(engine, tmp_path)
        command = f"{sys.executable} {engine.script} {engine.ports[0]} {shown}"
        log = tmp_path / ".speedbench" / "logs" / "script-1.log"
        assert log.read_text().splitlines()[0] == f"[speedbench] {command}"
        assert f"  command: {command}\n" in str(caught.value)
        assert "hush" not in str(caught.value)


def test_secrets_of_the_target_s_variables_are_masked(tmp_path: Path) -> None:
    engine = ScriptEngine(tmp_path, "print(os.environ['HF_TOKEN'], os.environ['LEVEL']); sys.exit(1)")
    with pytest.raises(EngineError) as caught:
        launch(engine, tmp_path, HF_TOKEN="hush-1", LEVEL="loud")
    assert "    MASKED loud" in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (137, "exited with code 137"),
        (-9, "was killed by SIGKILL"),
        (-99, "was killed by signal 99"),
    ],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
