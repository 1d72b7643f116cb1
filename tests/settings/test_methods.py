"""Methods: one table, to which an engine adds its own."""

from __future__ import annotations

import pytest

from pytest_speedbench.errors import SettingsError
from pytest_speedbench.settings.methods import METHODS, Method, Offer, method_of

OWN = Method("tree", drafts="always", draft_model="needed")


def test_an_engine_offers_methods_of_the_table_and_its_own() -> None:
    offer = Offer.of("acme", ("none", "ngram", OWN), "tree")
    assert offer.methods == {"none": METHODS["none"], "ngram": METHODS["ngram"], "tree": OWN}
    assert offer.method("tree") is OWN


def test_a_method_that_the_engine_does_not_have_is_refused_with_those_that_it_has() -> None:
    offer = Offer.of("acme", ("none", OWN), "none")
    with pytest.raises(SettingsError) as caught:
        offer.method("eagle3", "speedbench.yaml, target a: method")
    assert str(caught.value) == "speedbench.yaml, target a: method=eagle3: engine acme has none, tree"


def test_nothing_is_assumed_of_a_name_that_is_not_in_the_table() -> None:
    assert method_of("tree") == Method("tree", drafts="sometimes", draft_model="none")
    assert method_of(OWN) is OWN


def test_a_method_is_written_by_its_name() -> None:
    assert f"method {METHODS['eagle3']}" == "method eagle3"


@pytest.mark.parametrize("name", METHODS)
def test_what_never_drafts_or_does_not_say_has_no_draft_length(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.has_draft_length == (method.drafts in ("always", "sometimes"))
