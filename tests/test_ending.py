"""How an investigation ends: cause and grading apart, late hypotheses tested, finalists, several runs, all sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any

import pytest

from neuronaut.agent.loop.closing import last_calls
from neuronaut.agent.loop.conclusion import outcome_among
from neuronaut.agent.loop.hypotheses import Hypothesis
from neuronaut.agent.loop.judging import cause_odds, outcome_of, rank_rivals
from neuronaut.agent.loop.levels import levels_of
from neuronaut.agent.loop.run import RivalState
from neuronaut.agent.loop.target import Finalist
from neuronaut.agent.pooling import pool
from neuronaut.agent.report.assemble import assemble
from neuronaut.agent.summary import summarise
from neuronaut.cli.sessions import _format_summary
from neuronaut.data.store.journal_values import Charge, Experiment, InvestigationRecord, Observation, Prediction
from neuronaut.data.store.store import Store
from tests import journals

EVEN = (0.25,) * 4
PER = 6
"""Items of an experiment."""


def claim(*tokens: str) -> Hypothesis:
    return Hypothesis(text=f"fires on {tokens}", rule=journals.rule(*tokens))


NULL = Hypothesis(text="nothing in particular", kind="no_pattern")


class Plays:
    """Experiments of six items each, with what each hypothesis expects of them and what is seen."""

    def __init__(self, hypotheses: Mapping[str, Hypothesis]) -> None:
        self.hypotheses = dict(hypotheses)
        self.experiments: list[Experiment] = []
        self.observations: dict[str, Observation] = {}

    def add(self, seen: Sequence[float], *, role: str = "proposer", **expected: float | None | Sequence[float]) -> None:
        """One experiment; an expectation is of every item, or by item."""
        number = len(self.experiments) + 1
        items = [{"label": "x", "ids": [number, item], "pivot": 1, "about": {}} for item in range(PER)]
        rows = {n: [v] * PER if v is None or isinstance(v, int | float) else list(v) for n, v in expected.items()}
        predictions = tuple(Prediction(name, tuple(rows.get(name, [None] * PER))) for name in self.hypotheses)
        experiment = Experiment(
            name=f"o{number}",
            tool="edit_at_random",
            args={},
            purpose="",
            survey=False,
            role=role,
            round=number,
            key=f"k{number}",
            design={"question": "?", "readout": "response", "items": items, "plan": {}},
            base=EVEN,
            reference=next(iter(self.hypotheses)),
            predictions=predictions,
        )
        result = {"values": list(seen), "effect": None, "low": None, "high": None, "units": "", "n": PER}
        self.experiments.append(experiment)
        self.observations[experiment.name] = Observation("ok", result, None, {"forwards": 10})

    @property
    def state(self) -> RivalState:
        rivals = rank_rivals(self.hypotheses, self.experiments, self.observations, kind="feature")
        return RivalState(rivals, self.experiments, self.observations)

    def outcome(self, *finalists: Finalist) -> Any:
        return outcome_among(finalists, *self.state)


def played(*, strong: float, weak: float) -> Plays:
    """H1 (nothing), H2 and H3, which say the same of when, and H3 that it is only weak on half of what fires."""
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" river", " lake")})
    for number in range(12):
        if number % 2:
            plays.add([0.0] * PER, H2=0.0, H3=0.0)
        else:
            plays.add([strong] * 3 + [weak] * 3, H2=1.0, H3=[1.0] * 3 + [0.8] * 3)
    return plays


def test_a_negative_response_is_of_the_other_tail() -> None:
    assert levels_of([-0.4, 0.0], "response").tolist() == [1, 1]
    assert levels_of([-0.4, 0.0]).tolist() == [0, 1]
    plays = Plays({"H1": NULL, "H2": claim(" river")})
    for number in range(12):
        plays.add([1.0] * PER if number % 2 else [-0.3] * PER, H2=float(number % 2))
    rival = next(r for r in plays.state.rivals if r.name == "H2")
    assert rival.hits == rival.cause == 1.0 and plays.outcome().answer == "supported"


def test_a_proven_cause_is_not_open_because_its_levels_are_guessed() -> None:
    """What is expected to be silent is seen weak: levels are missed, and the cause is not."""
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" lake")})
    for number in range(12):
        seen = [0.3] * 4 + [0.0] * 2 if number % 2 == 0 else [0.9] * PER
        plays.add(seen, H2=float(number % 2), H3=1.0 - number % 2)
    outcome = plays.outcome()
    leader = plays.state.rivals[0]
    assert leader.name == "H2" and leader.cause == 1.0
    assert leader.hits is not None and leader.hits < 0.75
    assert outcome.answer == "supported" and outcome.grading is not None and "hits the level" in outcome.grading


def test_a_cause_that_is_missed_stays_open() -> None:
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" lake")})
    for number in range(12):
        plays.add([0.9 * (number % 2)] * PER, H2=float(number % 2), H3=1.0 - number % 2)
    rivals, *others = plays.state
    outcome = outcome_of([replace(rival, cause=0.7) for rival in rivals], *others, name="H2")
    assert outcome.answer == "open" and outcome.reason.startswith("what makes it fire is open: ")
    assert "hits the cause" in outcome.reason


def test_rivals_that_grade_otherwise_leave_the_grading_open_alone() -> None:
    outcome = played(strong=1.0, weak=0.8).outcome()
    assert outcome.answer == "supported" and outcome.leader in ("H2", "H3")
    plays = played(strong=1.0, weak=0.8)
    plays.hypotheses["H4"] = claim(" river", " sea")
    plays.add([0.0] * PER, H2=0.0, H3=0.0, H4=1.0)
    assert plays.outcome().answer == "supported", "H4 predicted another cause, and was wrong"


def test_a_rule_of_means_is_right_about_the_cause() -> None:
    """It expects 0.35 where the unit fires at 1: its levels are missed, its cause is not, and no null beats it."""
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" lake")})
    for number in range(16):
        plays.add([float(number % 2)] * PER, H2=0.35 * (number % 2), H3=0.35 * (1 - number % 2))
    leader, *_ = plays.state.rivals
    assert leader.name == "H2" and leader.cause == 1.0 and leader.hits == 0.5
    outcome = plays.outcome()
    assert outcome.answer == "supported" and outcome.grading is not None


def test_without_an_item_that_fired_no_cause_is_hit() -> None:
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" lake")})
    for number in range(12):
        plays.add([0.0] * PER, H2=0.0, H3=float(number % 2))
    leader = next(rival for rival in plays.state.rivals if rival.name == "H2")
    assert leader.cause is None
    assert "no item shows whether it hits the cause" in outcome_of(*plays.state, name="H2").reason


def test_causes_are_weighed_apart_from_levels() -> None:
    """H3 grades what H2 says only roughly; H4 is of another cause, which half of what fires refutes."""
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" river"), "H4": claim(" lake")})
    for _ in range(6):
        plays.add([1.0] * 3 + [0.6] * 3, H2=1.0, H3=[1.0] * 3 + [0.6] * 3, H4=[1.0] * 3 + [0.0] * 3)
        plays.add([0.0] * PER, H2=0.0, H3=0.0, H4=0.0)
    _, *seen = plays.state
    assert cause_odds("H2", "H3", *seen) is None, "they never expected another cause"
    ahead = cause_odds("H2", "H4", *seen)
    assert ahead is not None and ahead == pytest.approx(6 * 3 * log(0.85 / 0.1))
    assert cause_odds("H4", "H2", *seen) == pytest.approx(-ahead)
    assert cause_odds("H2", "H1", *seen) != cause_odds("H4", "H1", *seen)


def test_odds_against_the_answer_are_told_as_such() -> None:
    """H3 grades what fires as it is seen, H2 only says that it fires: the cause is of both, the levels are of H3."""
    plays = Plays({"H1": NULL, "H2": claim(" river"), "H3": claim(" river")})
    for _ in range(12):
        plays.add([1.0] * 3 + [0.6] * 3, H2=0.35, H3=[1.0] * 3 + [0.6] * 3)
        plays.add([0.0] * PER, H2=0.0, H3=0.0)
    outcome = outcome_of(*plays.state, name="H2")
    assert outcome.answer == "supported"
    assert "to 1 for H3, wanted 20 to 1 against it" in (outcome.grading or "")


def test_of_finalists_the_shortest_that_predicts_as_well_is_the_answer() -> None:
    plays = played(strong=1.0, weak=0.8)
    leading = plays.outcome().leader
    other = {"H2": "H3", "H3": "H2"}[leading]
    rows = [Finalist(leading, 0.80, 0.05, 9), Finalist(other, 0.78, 0.05, 2)]
    assert plays.outcome(*rows).leader == other
    rows = [Finalist(leading, 0.80, 0.01, 9), Finalist(other, 0.70, 0.01, 2)]
    assert plays.outcome(*rows).leader == leading


def test_a_rule_that_words_tell_goes_before_one_that_predicts_no_better() -> None:
    plays = played(strong=1.0, weak=0.8)
    leading = plays.outcome().leader
    other = {"H2": "H3", "H3": "H2"}[leading]
    assert plays.outcome(Finalist(leading, 0.8, 0.05, 2, told=False), Finalist(other, 0.78, 0.05, 9)).leader == other
    far = Finalist(leading, 0.8, 0.05, 9, told=False), Finalist(other, 0.1, 0.05, 2)
    assert plays.outcome(*far).leader == leading, "words that predict nothing are no answer"


def test_a_finalist_of_another_cause_does_not_cost_the_leader_its_support() -> None:
    plays = played(strong=1.0, weak=0.9)
    plays.hypotheses["H4"] = claim(" sea")
    for _ in range(2):
        plays.add([0.0] * PER, H2=0.0, H3=0.0, H4=1.0)
    best = plays.outcome()
    assert best.answer == "supported"
    assert plays.outcome(Finalist(best.leader, 0.5, 0.01, 9), Finalist("H4", 0.9, 0.01, 2)) == best


# What code asks for at the end


def test_code_challenges_a_leader_that_nobody_challenged_and_tests_a_late_one() -> None:
    plays = played(strong=1.0, weak=0.9)
    assert [call.args["seed"] for call in last_calls(plays.state, most=8)] == [901, 902]
    assert [call.args["seed"] for call in last_calls(plays.state, most=1)] == [901]
    plays.add([0.0] * PER, role="challenger", H2=0.0, H3=0.0)
    assert last_calls(plays.state, most=8) == ()
    plays.hypotheses["H4"] = claim(" late")
    calls = last_calls(plays.state, most=8)
    leader = plays.state.rivals[0].name
    assert [(c.args["rivals"], c.args["expect"]) for c in calls] == [
        ([leader, "H4"], "silence"),
        ([leader, "H4"], "activity"),
    ]
    assert last_calls(plays.state, most=0) == ()


def test_nothing_is_asked_where_no_rule_leads() -> None:
    plays = Plays({"H1": NULL, "H2": claim(" river")})
    for number in range(8):
        plays.add([0.0] * PER if number % 2 else [1.0] * PER, H2=float(number % 2))
    assert plays.state.rivals[0].name == "H1" and last_calls(plays.state, most=8) == ()


# Several runs, and all of them

VOCABULARY = ("the", " river", " lake", " dry")


def run_of(store: Store, seed: int, *, tokens: Sequence[str], status: str, windows: Sequence[Sequence[int]]) -> str:
    """A session that ended with a rule on these tokens; a window fired where it ends in ` river`."""
    rule, id = journals.rule(*tokens), f"run{seed}"
    record = InvestigationRecord(id, "feature", journals.TARGET, "scripted", {"seed": seed}, {})
    store.journal.begin(record)
    store.journal.add_hypotheses(id, 0, [claim(*tokens).model_dump(mode="json")], origin="proposer")
    items = [{"label": "x", "ids": [*ids], "pivot": len(ids) - 1, "about": {}} for ids in windows]
    values = [1.0 if VOCABULARY[ids[-1]] == " river" else 0.0 for ids in windows]
    experiment = Experiment(
        name="o1",
        tool="edit_at_random",
        args={},
        purpose="",
        survey=False,
        role="proposer",
        round=1,
        key=f"k{seed}",
        design={"question": "?", "readout": "response", "items": items, "plan": {}},
        base=EVEN,
        reference="H1",
        predictions=(Prediction("H1", tuple(values)),),
    )
    result = {"values": values, "effect": 0.5, "low": None, "high": None, "units": "", "n": len(values), "found": {}}
    observed = Observation("ok", {**result, "control": None, "what": ""}, None, {"forwards": 10})
    store.journal.preregister(id, [experiment])
    store.journal.observe(id, "o1", observed, charge=Charge(experiments=1, forwards=10))
    frozen = {"hypothesis": "H1", "verdict": status, "evidence": status, "text": f"fires on {tokens}"}
    store.journal.event(id, "frozen", {**frozen, "rule": rule.to_json(), "hash": "0", "grading": None}, key="frozen")
    question = "context" if status == "open" else None
    store.journal.event(id, "concluded", {"status": status, "reason": "because", "question": question}, key="concluded")
    store.journal.finish(id, status, reason="because")
    return id


@pytest.fixture
def store() -> Any:
    with Store(":memory:") as opened:
        yield opened


ODD, EVEN_ROWS = [[0, 1], [0, 2], [3, 1]], [[3, 2], [2, 1], [1, 2], [1, 0]]


def pooled(store: Store, *runs: tuple[Sequence[str], str]) -> Any:
    ids = [
        run_of(store, seed, tokens=tokens, status=status, windows=EVEN_ROWS if seed % 2 else ODD)
        for seed, (tokens, status) in enumerate(runs)
    ]
    return pool(store.journal, [assemble(store.journal, id) for id in ids], VOCABULARY, scale=3.0)


def test_the_pool_is_the_rule_that_is_right_on_what_all_runs_measured(store: Store) -> None:
    right, wide = ([" river"], "supported"), ([" river", " lake"], "supported")
    one = pooled(store, right, wide, right, right)
    assert one.text == "fires on [' river']" and one.status == "supported" and one.hits == 1.0
    assert one.windows == 7 and [d.id for d in one.dissent] == ["run1"]
    # Against the right rule the wide one says activity on all of the three that end in ` lake`.
    assert one.dissent[0].agreement == pytest.approx((1 + 1 / 4) / 2)
    assert one.agreement == pytest.approx((3 * 1 + 3 * 0.5 * ((1 + 1 / 4) / 2 + (1 + 3 / 6) / 2)) / 6, abs=0.15)


def test_no_more_than_half_of_the_runs_is_no_support(store: Store) -> None:
    one = pooled(store, ([" river"], "supported"), ([" river"], "open"), ([" lake"], "supported"), ([" river"], "open"))
    assert one.status == "open" and one.text == "fires on [' river']"
    assert one.ends == {"supported": 2, "open": 2}


def test_all_sessions_are_summed_up(store: Store) -> None:
    pooled(store, ([" river"], "supported"), ([" river"], "open"))
    journals.fill(store.journal, seed=7)
    summed = summarise(store.journal)
    (group,) = summed.groups
    told = _format_summary(summed)
    assert "2 supported, 1 open" in told and "1 context" in told and "edit_at_random" in told
    assert (group.name, group.policy, group.sessions) == ("demo:mlp.2", "scripted", 3)
    assert group.ends == {"supported": 2, "open": 1} and group.open == {"context": 1}
    tools = {tool.tool: tool for tool in summed.tools}
    assert tools["edit_at_random"].experiments == 2 and tools["edit_at_random"].forwards == 20
    assert any("no result" not in reason and "failed" in reason or "refused" in reason for reason in summed.failures)
