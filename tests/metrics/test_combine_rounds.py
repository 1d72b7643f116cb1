from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_speedbench.catalogue import UNITS
from pytest_speedbench.cells import Cell
from pytest_speedbench.engines.base import Counters
from pytest_speedbench.load.records import Arrivals, RequestRecord, RoundRecord
from pytest_speedbench.metrics.combine_rounds import mean_over_categories
from pytest_speedbench.metrics.measurement import Measurement, RoundFigures
from tests.metrics.records import build, counters, prompt, request, round_of

CELL = Cell("qualitative", "coding", 1)


def measure(
    *requests: RequestRecord, method: str = "eagle3", turns: int = 1, batch_size: int = 1
) -> Measurement:
    prompts = [prompt(name, turns) for name in dict.fromkeys(record.question_id for record in requests)]
    return build(
        replace(CELL, batch_size=batch_size), method, [round_of(*requests, batch_size=batch_size)], prompts
    )


def test_every_metric_is_measured_or_has_its_reason() -> None:
    whole = measure(request())
    assert set(whole.metrics) == set(UNITS) - {"speedup"}
    assert whole.missing == {}
    assert whole.problems == ()
    for partial in (
        measure(request(counted=False), method="none"),
        measure(request(counted=False)),
        measure(request(accepted_by_step=[])),
        measure(replace(request(), error="lost", arrivals=Arrivals(), output_tokens=0)),
        measure(request(), batch_size=8),
    ):
        assert set(partial.metrics) | set(partial.missing) == set(UNITS) - {"speedup"}
        assert not set(partial.metrics) & set(partial.missing)
        assert all(partial.missing.values())


def test_counts_are_pooled_over_turns_repeats_and_rounds() -> None:
    first = round_of(request(turn=0, accepted_by_step=[3, 3]), request(turn=1, accepted_by_step=[0]))
    second = round_of(request(turn=0, accepted_by_step=[1]), request(turn=1, accepted_by_step=[2, 2]))
    measured = build(CELL, "eagle3", [first, second], [prompt(turns=2)])
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == (8 + 1 + 2 + 6) / 6
    (tally,) = measured.prompts
    assert (tally.requests, tally.output_tokens, tally.steps, tally.drafted_steps) == (4, 21, 6, 6)
    assert tally.accepted_per_position == (5, 4, 2)
    assert tally.decode_tokens == 17
    assert tally.digest == prompt(turns=2).digest
    assert measured.prompt_tokens == 40
    assert (len(measured.rounds), measured.sent, measured.finished, measured.failed) == (2, 4, 4, 0)


def test_what_is_timed_is_the_median_of_the_rounds() -> None:
    rounds = [
        round_of(request(accepted_by_step=[0] * 9, ttft_s=0.1, step_s=step_s)) for step_s in (0.1, 0.3, 0.9)
    ]
    measured = build(CELL, "eagle3", rounds, [prompt()])
    assert [each.output_tps for each in measured.rounds] == pytest.approx([10 / 1.0, 10 / 2.8, 10 / 8.2])
    assert [each.step_latency_s for each in measured.rounds] == pytest.approx([0.1, 0.3, 0.9])
    assert [each.acceptance_length for each in measured.rounds] == [1, 1, 1]
    assert measured.metrics["output_tps"] == pytest.approx(10 / 2.8)
    assert measured.metrics["step_latency_s_mean"] == pytest.approx(0.3)


def test_speed_benchs_mean_takes_a_prompt_with_its_turns_as_one_request() -> None:
    measured = measure(
        request("a", [3], turn=0), request("a", [3], turn=1), request("b", [0], turn=0), request("b", [0], turn=1),
        turns=2,
    )  # fmt: skip
    assert measured.metrics["mean_of_requests_acceptance_length"] == (10 / 4 + 4 / 4) / 2


def test_tallies_are_in_the_order_of_question_ids() -> None:
    measured = measure(request("b"), request("c"), request("a"))
    assert [tally.question_id for tally in measured.prompts] == ["a", "b", "c"]


def test_without_drafting_acceptance_length_is_one_and_needs_no_counters() -> None:
    measured = measure(request(accepted_by_step=[0, 0], counted=False), method="none")
    assert measured.metrics["acceptance_length"] == 1
    assert measured.missing["drafted_acceptance_length"] == "method none drafts nothing"
    assert measured.metrics["step_latency_s_mean"] == pytest.approx(0.1)
    assert measured.problems == ()
    assert measured.counter_source is None


def test_an_engine_that_drafts_with_method_none_is_a_problem() -> None:
    (problem,) = measure(request(), method="none").problems
    assert "q1 turn 1" in problem
    assert "with method none" in problem


def test_missing_counters_are_a_problem_and_never_a_number() -> None:
    measured = measure(request(counted=False))
    assert measured.problems == ("the engine sent no counters",)
    assert "acceptance_length" not in measured.metrics
    assert measured.missing["acceptance_length"] == "the engine sent no counters of its decode steps"
    assert measured.prompts[0].steps is None


def test_counters_missing_of_some_requests_are_a_problem() -> None:
    measured = measure(request("a"), request("b", counted=False), request("c"))
    assert measured.problems == ("the engine sent no counters for 1 of 3 requests, first b turn 1",)
    assert "acceptance_length" not in measured.metrics


def test_a_request_of_one_token_needs_no_counters() -> None:
    measured = measure(request("a"), request("b", [], counted=False))
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == 8 / 3


def test_counters_of_the_server_give_acceptance_but_not_by_prompt() -> None:
    records = [request("a", [2, 0, 3], counted=False), request("b", [1], overshoot=1, counted=False)]
    pooled = counters([2, 0, 3, 1], source="prometheus")
    rounds = [round_of(*records, server_counters=pooled)] * 2
    measured = build(CELL, "eagle3", rounds, [prompt("a"), prompt("b")])
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == (8 + 1) / 4
    assert measured.per_position["conditional_acceptance_rate"] == (0.75, 2 / 3, 0.5)
    assert measured.metrics["step_latency_s_mean"] == pytest.approx(0.1)
    assert measured.missing["step_latency_s_p99"] == "the engine counts per server only, not per request"
    assert measured.counter_source == "prometheus"
    assert [tally.steps for tally in measured.prompts] == [None, None]


def test_counters_of_the_server_that_do_not_fit_are_a_problem() -> None:
    round_ = round_of(request(counted=False), server_counters=counters([2, 0, 3, 3, 3, 3]))
    (problem,) = build(CELL, "eagle3", [round_], [prompt()]).problems
    assert problem.startswith("the server's counters are inconsistent: ")


def test_inconsistent_counters_name_the_request() -> None:
    wrong = replace(request("b", turn=1), counters=counters([3] * 9))
    measured = measure(request("b"), wrong, turns=2)
    (problem,) = measured.problems
    assert problem.startswith("inconsistent counters in 1 of 2 requests, first b turn 2: ")


def test_failed_requests_are_counted_and_the_first_error_is_told() -> None:
    failed = replace(request("b"), error="HTTP 500: out of memory", arrivals=Arrivals(), output_tokens=0)
    measured = measure(request("a"), failed, replace(failed, question_id="c"))
    assert measured.problems == ("2 of 3 requests failed, first b turn 1: HTTP 500: out of memory",)
    assert (measured.sent, measured.finished, measured.failed) == (3, 1, 2)
    assert [tally.question_id for tally in measured.prompts] == ["a"]


def test_turns_that_cannot_follow_a_failed_one_are_not_told_again() -> None:
    failed = replace(request("a"), error="lost", arrivals=Arrivals(), output_tokens=0)
    measured = measure(failed, request("b"), request("b", turn=1), turns=2)
    assert measured.problems == ("1 of 3 requests failed, first a turn 1: lost",)


def test_an_overloaded_client_measures_itself() -> None:
    def of_client(**told: float) -> Measurement:
        """Two rounds of 1.9 s, the second with this client."""
        long = round_of(request(accepted_by_step=[3] * 14))
        return build(CELL, "eagle3", [long, replace(long, **told)], [prompt()])  # type: ignore[arg-type]

    late = of_client(client_busy=0.94, client_waiting=0.02)
    assert late.overload == (
        "round 2: the client was overloaded: it computed 94% of the time and waited 2% for a core, so that its speed "
        "was measured and not the engine's; use a smaller batch size, or a machine with faster cores"
    )
    assert late.problems == ()
    assert late.metrics["acceptance_length"] == 4, "counters do not mind"
    assert "output_tps" not in late.metrics
    assert late.missing["output_tps"] == late.missing["ttft_s_p99"] == late.overload
    starved = of_client(client_busy=0.3, client_waiting=0.65).overload
    assert starved is not None and starved.endswith("; it had no free core: leave it one")
    flooded = of_client(client_busy=0.7, loop_lag_s_p99=2.5).overload
    assert flooded is not None and "it came 2500 ms late to what had arrived (p99)" in flooded
    assert of_client(client_busy=0.6).overload is None
    assert of_client(client_busy=0.6).notes == (
        "the client computed 60% of the time: latencies may be its own",
    )
    assert of_client(loop_lag_s_p99=0.04).notes == (
        "the client came up to 40 ms late to what had arrived (p99)",
    )
    assert of_client(client_busy=0.2, loop_lag_s_p99=0.002).notes == ()


def test_a_machine_shared_with_others_is_told() -> None:
    def beside(*shares: float | None) -> tuple[str, ...]:
        rounds = [replace(round_of(request()), other_processes_busy=share) for share in shares]
        return build(CELL, "eagle3", rounds, [prompt()]).notes

    assert beside(0.02, 0.18) == (
        "other processes took 18% of these processors in a round (10% of all rounds): an unchanged engine is slower then",
    )
    assert beside(0.05) == beside(None) == ()


def test_a_request_that_was_never_sent_is_a_problem() -> None:
    measured = build(CELL, "eagle3", [round_of(request("a"))], [prompt("a", turns=2), prompt("b")])
    assert measured.problems == ("2 requests are unaccounted for, first a turn 2",)


def test_a_request_that_was_sent_twice_is_a_problem() -> None:
    (problem,) = measure(request("a"), request("a")).problems
    assert problem == "1 requests were not asked for or came twice, first a turn 1"


def test_a_request_without_tokens_is_a_problem() -> None:
    empty = replace(request("b"), arrivals=Arrivals(), output_tokens=0)
    measured = measure(request("a"), empty)
    assert measured.problems == ("1 of 2 requests delivered no token, first b turn 1",)


def test_a_problem_of_every_round_is_told_once() -> None:
    silent = round_of(request(counted=False))
    assert build(CELL, "eagle3", [silent, silent], [prompt()]).problems == ("the engine sent no counters",)


def test_no_request_at_all_is_a_problem() -> None:
    assert build(CELL, "none", [round_of()], []).problems == ("no request was sent",)


def test_notes_tell_how_far_ngram_can_be_off() -> None:
    plain = request(accepted_by_step=[3, 0, 0, 0])
    measured = build(CELL, "ngram", [round_of(replace(plain, counters=counters([3])))], [prompt()])
    assert measured.problems == ()
    assert measured.notes == (
        "acceptance length is an upper bound: the engine counts drafted steps only, and not the drafts accepted past "
        "the end of an output; it lies in 1.0000 .. 1.7500",
    )


def test_notes_tell_of_repeats_steps_without_a_draft_and_untimed_requests() -> None:
    at_once = RequestRecord(
        "q1",
        turn=0,
        repeat=1,
        sent_s=0.0,
        ended_s=1.0,
        arrivals=Arrivals.of([(1.0, 10)]),
        output_tokens=10,
        counters=request().counters,
    )
    notes = measure(request(), at_once, batch_size=2).notes
    assert notes == (
        "acceptance length is an upper bound: the engine counts drafted steps only, and some of its steps had no draft; "
        "it lies in 1.3077 .. 2.4286",
        "at least 1 of 7 steps had no draft, as after a preemption",
        "a round sends more than its prompts (1): some were sent 2 times",
        "all tokens arrived at once of 1 request; user TPS and step latency leave them out",
        "the engine returns no token ids: whether outputs repeat themselves was not checked",
        "1 request came without a count of prompt tokens",
    )


def test_notes_tell_where_stream_and_usage_disagree() -> None:
    record = replace(request(), arrivals=Arrivals.of([(0.5, 1), (0.8, 5)]))
    assert "the streams held 6 tokens, and the engine counted 9" in measure(record).notes


def test_tokenizations_are_told() -> None:
    rounds = [RoundRecord(1, (request(),), "engine"), RoundRecord(1, (request(),), "messages")]
    assert build(CELL, "eagle3", rounds, [prompt()]).tokenization == "engine, messages"


STEPS = ([2, 0, 3], [1, 1])


def told_by(accepted_by_step: list[int], question_id: str) -> RequestRecord:
    """A response that tells its steps, and not which of them had a draft."""
    whole = request(question_id, accepted_by_step)
    assert whole.counters is not None
    counted = replace(
        whole.counters, drafted_steps=None, accepted_per_position=(), decode_steps=len(accepted_by_step)
    )
    return replace(whole, counters=counted)


def told_together(server_accepted: list[int]) -> Measurement:
    requests = [told_by(steps, f"q{number}") for number, steps in enumerate(STEPS)]
    server = counters(server_accepted, source="prometheus")
    return build(CELL, "ngram", [round_of(*requests, server_counters=server)], [prompt("q0"), prompt("q1")])


def test_drafted_steps_are_the_servers_where_responses_tell_all_steps_only() -> None:
    """One of the five steps had no draft."""
    measured = told_together([2, 3, 1, 1])
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == (5 + 7) / 5
    assert measured.metrics["drafted_acceptance_length"] == 1 + 7 / 4
    assert measured.per_position["histogram"] == (0, 2, 1, 1)
    assert [(tally.steps, tally.drafted_steps) for tally in measured.prompts] == [(3, None), (2, None)]
    assert [tally.accepted_per_position for tally in measured.prompts] == [None, None]
    assert measured.counter_source == "response"


def test_a_server_that_counted_more_than_its_responses_is_not_ours_alone() -> None:
    (problem,) = told_together([2, 3, 1, 1, 3]).problems
    assert problem == (
        "the server counted 10 accepted drafts, and its responses 7: is it serving somebody else?"
    )


def test_steps_without_a_draft_are_those_that_the_server_tells() -> None:
    """A response tells 3 steps with a draft, and 13 tokens that 7 to 10 steps may have delivered; it were 8."""
    record = replace(request(accepted_by_step=[2, 0, 3]), output_tokens=13)
    server = replace(counters([2, 0, 3], source="prometheus"), decode_steps=8, output_tokens=13)
    measured = build(CELL, "ngram", [round_of(record, server_counters=server)], [prompt()])
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == 12 / 8
    assert measured.metrics["user_tps"] == pytest.approx(
        measured.metrics["acceptance_length"] / measured.metrics["step_latency_s_mean"]
    )
    assert not any("upper bound" in note for note in measured.notes)
    why = "the engine does not report how many steps of a request had no draft"
    for name in ("mean_of_requests_acceptance_length", "step_latency_s_median", "step_latency_s_p99"):
        assert measured.missing[name] == why
        assert name not in measured.metrics
    assert [(tally.steps, tally.steps_exact) for tally in measured.prompts] == [(7, False)]
    assert measured.counter_source == "response"


def test_which_steps_had_a_draft_may_be_told_by_nobody() -> None:
    measured = measure(told_by([2, 0], "q0"), method="ngram")
    assert measured.problems == ()
    assert measured.metrics["acceptance_length"] == 4 / 2
    assert (
        measured.missing["drafted_acceptance_length"] == "the engine does not report which steps had a draft"
    )


def test_an_endpoint_that_tells_nothing_has_its_speed_measured_and_no_acceptance() -> None:
    measured = measure(request(counted=False), method="unknown")
    assert measured.problems == ()
    assert measured.metrics["output_tps"] > 0
    assert measured.missing["acceptance_length"].startswith("not available: the endpoint reports neither")


def test_what_is_estimated_is_called_so() -> None:
    estimated = Counters("estimated", None, None, 5, (), 0, decode_steps=3)
    measured = measure(replace(request(), counters=estimated), method="unknown")
    assert measured.metrics["acceptance_length"] == 8 / 3
    assert measured.counter_source == "estimated"
    assert measured.estimated
    assert mean_over_categories(MEAN_CELL, [measure(request()), measured]).estimated
    assert not measure(request()).estimated
    assert any(note.startswith("acceptance length is estimated") for note in measured.notes)


def test_what_needs_tokens_by_event_is_missing_where_only_their_total_is_reported() -> None:
    """An endpoint with `usage` at the end; its events hold 3 tokens each, and are taken for one."""
    events = Arrivals.of([(0.5, 1), (0.6, 1), (0.7, 7)])
    record = replace(request(), arrivals=events, counters=None, tokens_per_event_known=False)
    for records in ([record], [record, request(counted=False)]):
        rounds = [round_of(each) for each in records]
        measured = build(CELL, "unknown", rounds, [prompt()])
        unknown = [
            name for name, why in measured.missing.items() if why.startswith("the server reports how many")
        ]
        assert len(unknown) == 8
        assert {"steady_output_tps", "inter_token_latency_s_median", "first_arrival_tokens"} <= set(unknown)
        assert not set(unknown) & set(measured.metrics)
        assert measured.metrics["output_tps"] > 0
        assert any("takes the first event for one token" in note for note in measured.notes)
    assert build(CELL, "unknown", [round_of(record)], [prompt()]).metrics["user_tps"] == pytest.approx(
        8 / 0.2
    )


MEAN_CELL = Cell("qualitative", "mean", 1)


def test_the_mean_over_categories_weighs_each_alike() -> None:
    coding, math = (
        replace(measure(request(accepted_by_step=steps)), cell=replace(CELL, category=category))
        for category, steps in (("coding", [3, 3, 3]), ("math", [0]))
    )
    mean = mean_over_categories(MEAN_CELL, [coding, math])
    assert mean.metrics["acceptance_length"] == (4 + 1) / 2
    assert (mean.sent, mean.finished, mean.problems, mean.prompts) == (2, 2, (), ())


def test_a_round_of_the_mean_is_the_mean_of_the_categories_rounds() -> None:
    coding, math = (
        replace(
            measure(request()),
            cell=replace(CELL, category=category),
            rounds=tuple(RoundFigures(value, user, 2.0, None) for value, user in rounds),
        )
        for category, rounds in (
            ("coding", [(100.0, 10.0), (200.0, None)]),
            ("math", [(300.0, 20.0), (100.0, 5.0), (7.0, 7.0)]),
        )
    )
    assert mean_over_categories(MEAN_CELL, [coding, math]).rounds == (
        RoundFigures(200.0, 15.0, 2.0, None),
        RoundFigures(150.0, None, 2.0, None),
    )


def test_a_mean_needs_all_its_categories() -> None:
    sound = measure(request())
    silent = replace(measure(request(counted=False)), cell=replace(CELL, category="math"))
    mean = mean_over_categories(MEAN_CELL, [sound, silent])
    assert "acceptance_length" not in mean.metrics
    assert mean.missing["acceptance_length"] == "math: the engine sent no counters of its decode steps"
    assert mean.problems == ("math: the engine sent no counters",)


def test_outputs_that_repeat_themselves_are_counted_by_prompt() -> None:
    looping = replace(request("a", [3] * 40), token_ids=[1, 2, 3, 4] * 40)
    (a, b) = measure(looping, request("b", [3] * 40)).prompts
    assert (a.latched, b.latched) == (1, 0)
    (untold,) = measure(replace(request(), token_ids=None)).prompts
    assert untold.latched is None


def preempted(question_id: str, steps: int, undrafted: int, overshoot: int) -> RequestRecord:
    """A request of a method that always drafts, some of whose steps had no draft after all."""
    with_draft = [2] * (steps - undrafted - 1) + [3]
    output_tokens = 1 + sum(1 + accepted for accepted in with_draft) + undrafted - overshoot
    arrivals = Arrivals.of([(0.0, 1), (1.0, output_tokens - 1)])
    return replace(
        request(question_id), counters=counters(with_draft), arrivals=arrivals, output_tokens=output_tokens
    )


def test_steps_without_a_draft_may_hide_behind_an_overshoot() -> None:
    """In 2 of 3 requests the overshoot makes up for them, so that 9 steps without a draft show where 12 were."""
    requests = [preempted(f"q{n}", 100, 4, overshoot) for n, overshoot in enumerate((0, 1, 2))]
    measured = measure(*requests)
    truth = sum(record.output_tokens - 1 for record in requests) / 300
    assert measured.problems == ()
    (bound, undrafted) = measured.notes
    assert undrafted == "at least 9 of 297 steps had no draft, as after a preemption"
    low, high = (float(number) for number in bound.rpartition("in ")[2].split(" .. "))
    assert low < truth < high == pytest.approx(measured.metrics["acceptance_length"], abs=5e-5)
    assert not any(tally.steps_exact for tally in measured.prompts)


def test_where_no_step_without_a_draft_shows_steps_are_exact() -> None:
    measured = measure(request("a"), request("b", overshoot=2))
    assert measured.notes == ()
    assert all(tally.steps_exact for tally in measured.prompts)
