"""Fixtures for all real engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pytest_speedbench import engines
from pytest_speedbench.engines.launch.process import start
from pytest_speedbench.settings.target import Target
from tests.real.scenario import Gate
from tests.real.targets import variables


@pytest.fixture
def gate(pytester: pytest.Pytester) -> Gate:
    return Gate(pytester)


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Target], str]]:
    """The URL of a server of a target, launched once for all tests that only send to it: a start takes half a minute."""
    urls: dict[Target, str] = {}
    with ExitStack() as servers:

        def url_of(target: Target) -> str:
            if target not in urls:
                engine = engines.load(target.engine)(target)
                engine.check()
                logs = tmp_path_factory.mktemp(target.name) / "logs"
                with variables(target.engine):
                    urls[target] = servers.enter_context(start(engine, target, logs)).url
            return urls[target]

        yield url_of
