"""Which engines there are: distributions offer them through entry points, and a name picks one."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_speedbench import engines
from pytest_speedbench.errors import SettingsError

Offer = Callable[..., None]
ENGINE = """
from pytest_speedbench.engines.base import Engine as Base

class Engine(Base):
    name = "{name}"
    methods = ("none", "eagle3")

    def launch(self, port): ...
    def call(self, generation): ...
    def read(self, events): ...
    def version(self, control): ...
    def hardware(self, control): ...
"""
"""A class that can be selected."""


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Install stub distributions, each with modules of its own, where nothing else is installed."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), sysconfig.get_path("stdlib")])
    modules = set(sys.modules)

    def install(distribution: str, name: str, value: str, source: str | None = None) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[pytest_speedbench.engines]\n{name} = {value}\n")
        module = value.partition(":")[0]
        assert module not in modules
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(ENGINE.format(name=name) if source is None else source)

    return install


def test_names_what_distributions_offer_without_importing_it(offer: Offer) -> None:
    offer("acme-engines", "zeta", "acme_names:Engine", source="raise RuntimeError('imported')")
    offer("other-engines", "alpha", "other_names:Engine", source="raise RuntimeError('imported')")
    assert engines.names() == ("alpha", "zeta")


def test_loads_the_class(offer: Offer) -> None:
    offer("acme-engines", "acme", "acme_loads:Engine")
    loaded = engines.load("acme")
    assert (loaded.__module__, loaded.__qualname__) == ("acme_loads", "Engine")


def test_unknown_name_lists_the_known_ones(offer: Offer) -> None:
    offer("acme-engines", "vllm", "acme_unknown:Engine")
    offer("other-engines", "reference", "other_unknown:Engine")
    with pytest.raises(SettingsError) as caught:
        engines.load("foo")
    assert str(caught.value) == "--speedbench-engine=foo: no such engine; there are reference, vllm"


@pytest.mark.parametrize("typed", ["vlm", "VLLM"])
def test_unknown_name_close_to_a_known_one_suggests_it(offer: Offer, typed: str) -> None:
    offer("acme-engines", "vllm", "acme_close:Engine")
    with pytest.raises(SettingsError, match=r"there are vllm \(did you mean vllm\?\)$"):
        engines.load(typed)


def test_no_engines_at_all_means_a_broken_installation(offer: Offer) -> None:
    with pytest.raises(SettingsError, match="pytest-speedbench itself is not properly installed"):
        engines.load("reference")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def broken(:", "SyntaxError: "),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("", "AttributeError: "),
    ],
)
def test_engine_that_cannot_be_imported_names_distribution_and_reason(
    offer: Offer, source: str, reason: str
) -> None:
    offer("acme-engines", "acme", "acme_broken:Engine", source=source)
    with pytest.raises(SettingsError) as caught:
        engines.load("acme")
    expected = f"--speedbench-engine=acme: acme_broken:Engine of acme-engines cannot be imported: {reason}"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("Engine = 1", "is not a subclass of pytest_speedbench.engines.base.Engine"),
        ("class Engine: name = 'acme'", "is not a subclass of pytest_speedbench.engines.base.Engine"),
        (ENGINE.format(name="acme").replace("def read", "def reads"), "does not define read"),
        (ENGINE.format(name="emca"), "calls itself 'emca'; its class attribute `name` has to be \"acme\""),
    ],
    ids=["no-class", "no-subclass", "not-whole", "other-name"],
)
def test_what_is_not_an_engine_is_refused(
    offer: Offer, request: pytest.FixtureRequest, source: str, reason: str
) -> None:
    module = f"acme_{request.node.callspec.id.replace('-', '_')}"
    offer("acme-engines", "acme", f"{module}:Engine", source=source)
    with pytest.raises(SettingsError) as caught:
        engines.load("acme")
    assert str(caught.value) == f"--speedbench-engine=acme: {module}:Engine of acme-engines {reason}"


def test_what_an_engine_brings_to_the_settings(offer: Offer) -> None:
    offer("acme-engines", "acme", "acme_offers:Engine")
    brought = engines.offer("acme")
    assert (brought.engine, list(brought.methods), brought.default_method) == (
        "acme",
        ["none", "eagle3"],
        "none",
    )
    assert brought.methods["eagle3"].draft_model == "needed"


def test_two_distributions_of_one_name_are_both_named_and_disturb_no_other(offer: Offer) -> None:
    offer("acme-engines", "vllm", "acme_twice:Engine")
    offer("other-engines", "vllm", "other_twice:Engine")
    offer("third-engines", "third", "third_twice:Engine")
    with pytest.raises(SettingsError) as caught:
        engines.load("vllm")
    assert str(caught.value) == (
        "--speedbench-engine=vllm: offered by acme-engines (acme_twice:Engine) and "
        "other-engines (other_twice:Engine); uninstall all but one"
    )
    assert engines.load("third").__qualname__ == "Engine"
