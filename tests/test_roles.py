"""Roles: planted ones are proven by both proofs, and what has one of the two only is not."""

from typing import Literal

import pytest

from neuronaut.causal.circuits.find import CircuitSearch, CircuitSettings
from neuronaut.causal.circuits.nodes import parse_nodes
from neuronaut.causal.circuits.role_values import Claim, Roles
from neuronaut.causal.circuits.roles import find_roles
from neuronaut.causal.circuits.tasks import Task
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.work import OutOfTime, Work
from tests.circuits import Circuit, gate, induction
from tests.role_circuits import fact, naming


def task_of(planted: Circuit) -> Task:
    clean, corrupted = (Batch.of(planted.subject, side.tolist()) for side in (planted.clean, planted.corrupted))
    return Task(planted.subject.name, Pairs.aligned(planted.subject, clean, corrupted, planted.answer, planted.wrong))


def roles_of(planted: Circuit, *more: str) -> Roles:
    circuit = [node for text in (*planted.matters, *more) for node in parse_nodes(text)]
    return find_roles(planted.subject, task_of(planted), circuit)


def statuses(roles: Roles) -> set[tuple[str, str, str | None]]:
    return {(str(claim.node), claim.role, claim.status) for claim in roles.claims}


def claim_of(roles: Roles, node: str, role: str) -> Claim:
    return next(claim for claim in roles.claims if str(claim.node) == node and claim.role == role)


def test_every_planted_role_is_proven_and_the_halves_of_one_are_not() -> None:
    roles = roles_of(naming("place"), "head.1:1")
    assert statuses(roles) == {
        ("head.0:0", "duplicate-token", "proven"),
        ("head.0:1", "previous-token", "proven"),
        ("head.0:1", "induction", "pattern only"),  # Where the copy's follower is the token before the repeat.
        ("head.1:0", "induction", "proven"),
        ("head.1:1", "duplicate-token", "pattern only"),
        ("head.2:0", "inhibition", "proven"),
        ("head.2:0", "position", "proven"),
        ("head.2:1", "inhibition", "effect only"),
        ("head.2:1", "position", "effect only"),
        ("head.3:0", "mover", "proven"),
        ("head.3:1", "writing against", "proven"),
    }
    assert list(roles.algorithm) == [
        "At the token after the first copy, head.0:1 reads the one before it (previous-token).",
        "At the repeated word, head.0:0 attends to its earlier copy (duplicate-token).",
        "At the repeated word, head.1:0 attends to what followed its earlier copy (induction).",
        "From the end, head.2:0 reads the repeated word and turns the movers away from its first copy (inhibition).",
        "What head.2:0 carries is the place of the first copy rather than the word (position).",
        "From the end, head.3:0 reads the answer's word and writes it (mover).",
        "From the end, head.3:1 reads the answer's word and writes against it (writing against).",
        "No role is proven for head.1:1 head.2:1.",
    ]


def test_the_numbers_are_what_was_planted() -> None:
    roles = roles_of(naming("place"))
    duplicate, mover, against = (
        claim_of(roles, *key)
        for key in (("head.0:0", "duplicate-token"), ("head.3:0", "mover"), ("head.3:1", "writing against"))
    )
    assert duplicate.pattern[0].value == pytest.approx(1, abs=1e-3) and duplicate.pattern[0].n == 12
    # The lead is (1 - 1/3) of what the mover writes, and falls by twice what goes with the other word.
    assert mover.pattern[1].value == pytest.approx(1.5, abs=1e-3) and mover.effect is not None
    assert against.pattern[1].value == pytest.approx(0.5, abs=1e-3) and against.effect is not None
    assert mover.effect.value == pytest.approx(3 * against.effect.value, rel=1e-3)


def test_a_word_that_is_carried_is_no_place() -> None:
    roles = roles_of(naming("word"), "head.0:0", "head.0:1", "head.1:0")
    assert claim_of(roles, "head.2:0", "inhibition").status == "proven"
    position = claim_of(roles, "head.2:0", "position")
    assert position.status == "pattern only" and position.effect is not None and position.effect.value < -0.5
    for head, role in (("head.0:0", "duplicate-token"), ("head.1:0", "induction"), ("head.0:1", "previous-token")):
        assert claim_of(roles, head, role).status == "pattern only", "nothing reads what it writes"
    assert claim_of(roles, "head.0:1", "previous-token").reason == "no induction head is proven that could read it"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_induction_head_at_the_end_and_its_previous_token_head(family: Literal["gpt2", "llama"]) -> None:
    roles = roles_of(induction(family), "head.1:1")
    assert statuses(roles) == {("head.0:0", "previous-token", "proven"), ("head.1:0", "induction", "proven")}
    assert roles.absent["inhibition"] == "no wrong word is repeated"
    assert str(roles.shown(roles.nodes[2])) == "()" and "head.1:1" in roles.algorithm[-1]


def test_a_fact_is_moved_carried_and_written() -> None:
    roles = roles_of(fact(), "head.1:0")
    assert statuses(roles) == {
        ("head.0:0", "mover", "proven"),
        ("head.0:1", "carrier", "proven"),
        ("mlp_out.1", "writer", "proven"),
        ("head.1:0", "carrier", "pattern only"),
    }
    assert {*roles.absent} == {"inhibition", "induction", "duplicate-token", "previous-token", "position"}
    assert "roles, on 12 pairs (changed 'Peru' at 4; end 'is' at 5)\n" in roles.table()


def test_one_pair_proves_nothing() -> None:
    roles = roles_of(gate("and"))
    assert roles.claims == () and roles.algorithm == ("No role is proven for head.0:0-1 mlp.1:1.",)


def test_a_circuits_report_has_them() -> None:
    planted = induction("gpt2", rows=20)
    settings = CircuitSettings(subsets=2, controls=4)
    search = CircuitSearch(planted.subject, task_of(planted), settings=settings)
    search.run()
    report = search.report()
    assert report.roles is not None
    data = report.to_json()["roles"]
    assert [(claim["node"], claim["role"], claim["status"]) for claim in data["claims"]] == [
        ("head.0:0", "previous-token", "proven"),
        ("head.1:0", "induction", "proven"),
    ]
    assert data["pairs"] == report.pairs[1] == 10 and data["algorithm"] == list(report.roles.algorithm)
    assert report.table().endswith(report.roles.table()) and report.passes.roles == report.roles.forwards > 0
    without = CircuitSearch(planted.subject, task_of(planted), settings=CircuitSettings(controls=4, roles=False))
    without.run()
    assert without.report().roles is None and without.report().unfinished == ()


def test_the_end_of_the_time_leaves_them_out() -> None:
    planted, work = induction("gpt2", rows=20), Work()

    def stop(work: Work) -> None:
        if work.doing.startswith("finds the roles"):
            raise OutOfTime

    work.on_progress = stop
    settings = CircuitSettings(subsets=2, controls=4)
    search = CircuitSearch(planted.subject, task_of(planted), settings=settings, work=work)
    search.run()
    report = search.report()
    assert report.unfinished == ("roles",) and report.evaluation is not None and report.evaluation.control is not None
