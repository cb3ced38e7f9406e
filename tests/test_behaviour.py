"""Behaviours: the lab keeps its holdout, tools find what is planted, and the scripted policy comes to it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.agent.loop.behaviour_examiner import examine, random_control
from neuronaut.agent.loop.behaviour_lab import PARTS, BehaviourLab, prompts_of, split
from neuronaut.agent.loop.experiments import AnyTool, Design, Item, Measured
from neuronaut.agent.loop.hypotheses import Hypothesis
from neuronaut.agent.replay import replay
from neuronaut.agent.rerun import rerun
from neuronaut.agent.session import InvestigationConfig, Session, investigate
from neuronaut.agent.tools.table import tools_for
from neuronaut.causal.circuits.nodes import parse_nodes
from neuronaut.causal.circuits.tasks import Task, open_task
from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import logits_at, read_source_run
from neuronaut.data.store.journal_values import Experiment
from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import gate, induction

TOOLS = tools_for("behaviour")
CIRCUITS: dict[str, dict[str, float]] = {
    "gpt2": {"head.0:0": 1.0, "head.1:0": 1.0},
    "llama": {"head.0:0": 1.0, "head.1:0": 1.0},
    "and": {"head.0:0": 1.0, "head.0:1": 1.0, "mlp_out.1": 1.0},
    "or": {"head.0:0": 0.0, "head.0:1": 0.0, "mlp_out.1": 1.0, "head.0:0 + head.0:1": 1.0},
}
"""By hand-built model, its nodes and their shares."""


def planted(name: str) -> tuple[Subject, Task]:
    """A hand-built subject and its task. A gate does not care what stands before its bits, nor what is not `on`."""
    if name in ("gpt2", "llama"):
        subject = induction(name).subject  # pyright: ignore[reportArgumentType]
        return subject, open_task(subject, "induction", rows=32)
    made = gate(name)  # pyright: ignore[reportArgumentType]
    rows = [([f, 1, 1, 3], [f, one, two, 3]) for f in range(6) for one, two in ((2, 2), (2, 4), (5, 2), (4, 5))]
    sides = (Batch.of(made.subject, [row[side] for row in rows]) for side in (0, 1))
    answers = (ids.expand(len(rows)) for ids in (made.answer, made.wrong))
    return made.subject, Task(name, Pairs.aligned(made.subject, *sides, *answers))


def lab_of(name: str, *rivals: dict[str, float]) -> BehaviourLab:
    lab = BehaviourLab(*planted(name))
    claims = [circuit(nodes) for nodes in rivals or (CIRCUITS[name],)]
    lab.rivals = {f"H{number}": claim for number, claim in enumerate([*claims, *lab.nulls()], start=1)}
    return lab


def circuit(nodes: dict[str, float]) -> Hypothesis:
    return Hypothesis(text="these do it", kind="circuit", nodes=nodes)


def use(tool: str, lab: BehaviourLab, **args: Any) -> tuple[Design, Measured]:
    """Design and measure, with the design as it comes back from the journal."""
    chosen: AnyTool = TOOLS[tool]
    design = chosen.design(chosen.args.model_validate(args), lab)
    stored = json.loads(json.dumps(asdict(design)))
    items = tuple(Item(**{**item, "ids": tuple(item["ids"])}) for item in stored["items"])
    found = chosen.measure(Design(stored["question"], stored["readout"], items, stored["plan"]), lab)
    json.dumps(asdict(found), allow_nan=False)
    return design, found


def by_label(tool: str, lab: BehaviourLab, **args: Any) -> dict[str, float]:
    design, found = use(tool, lab, **args)
    return dict(zip([item.label for item in design.items], found.values, strict=True))


# --- the lab -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "or"])
def test_the_three_parts_have_no_prompt_in_common(name: str) -> None:
    _, task = planted(name)
    parts = split(task, seed=3)
    prompts = [{prompt for both in prompts_of(part) for prompt in both} for part in parts.values()]
    assert sum(map(len, parts.values())) == len(task) and tuple(parts) == tuple(PARTS)
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(parts["explore"]) == len(task) / 2


def test_pairs_that_share_their_prompts_are_too_few() -> None:
    subject, task = planted("or")
    with pytest.raises(NeuronautError, match="4 pairs in 1 groups without a prompt in common, too few"):
        BehaviourLab(subject, task.take(range(4)))


def test_the_holdout_is_refused() -> None:
    lab = lab_of("or")
    for read in (lab.part, lab.runs):
        with pytest.raises(NeuronautError, match="the holdout is read once, at the end, and by no tool"):
            read("holdout")


@contextmanager
def recording(subject: Subject) -> Iterator[list[torch.Tensor]]:
    """All rows of tokens that are run through the subject within the block."""
    seen: list[torch.Tensor] = []

    def hook(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.extend(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim == 2)

    handle = subject.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def test_no_prompt_of_the_holdout_is_run_by_any_tool() -> None:
    subject, task = planted("gpt2")
    held = {tuple(prompt) for both in prompts_of(split(task, seed=0)["holdout"]) for prompt in both}
    lab = BehaviourLab(subject, task)
    lab.rivals = {"H1": circuit(CIRCUITS["gpt2"])}
    with recording(subject) as seen:
        for tool in TOOLS:
            use(tool, lab)
    rows = {tuple(row) for part in seen for row in part.tolist()}
    assert rows and not rows & held
    with recording(subject) as seen:
        examine(lab, circuit(CIRCUITS["gpt2"]))
    assert held <= {tuple(row) for part in seen for row in part.tolist()}


def test_a_task_that_the_subject_does_not_do_is_refused() -> None:
    subject, task = planted("gpt2")
    pairs = task.pairs
    with pytest.raises(NeuronautError, match="does not do induction"):
        BehaviourLab(subject, Task(task.name, Pairs(pairs.clean, pairs.corrupted, pairs.wrong, pairs.answers)))


def test_what_is_known_from_the_start_is_plain() -> None:
    about = json.loads(json.dumps(lab_of("gpt2").about(), allow_nan=False))
    assert about["accuracy"] == 1 and about["pairs"] == {"explore": 16, "select": 8} and len(about["prompts"]) == 2
    assert about["nodes"] == ["head.0:0", "head.0:1", "mlp_out.0", "head.1:0", "head.1:1", "mlp_out.1"]
    assert (about["clean"], about["corrupted"]) == pytest.approx((4, -4), abs=1e-3)


# --- what hypotheses expect ----------------------------------------------------------------------

_LAB: list[BehaviourLab] = []
_NAMES = ("head.0:0", "head.0:1", "mlp_out.0", "head.1:0", "head.1:1", "mlp_out.1")


def about(what: str, nodes: Sequence[str]) -> Item:
    return Item(what, about={what: list(nodes)})


@given(
    st.dictionaries(st.sets(st.sampled_from(_NAMES), min_size=1, max_size=2).map(frozenset), st.floats(-0.2, 1)),
    st.sets(st.sampled_from(_NAMES)),
)
def test_shares_add_up_over_what_is_cut(shares: dict[frozenset[str], float], chosen: set[str]) -> None:
    if not _LAB:
        _LAB.append(lab_of("or"))
    lab = _LAB[0]
    claim = circuit({" + ".join(sorted(nodes)): share for nodes, share in shares.items()})
    rest = [name for name in _NAMES if name not in chosen]
    cut, kept = lab.expect(claim, Design("", "effect", (about("cut", sorted(chosen)), about("keep", rest))))
    lost = min(1, sum(share for nodes, share in shares.items() if all(node in chosen for node in nodes)))
    assert cut == pytest.approx(lost, abs=1e-4) and kept == pytest.approx(max(0, 1 - lost), abs=1e-4)


def test_the_nulls_and_what_is_restored() -> None:
    lab = lab_of("and")
    items = (
        Item("", about={"node": "head.0:0"}),
        about("restore", ["head.0:0"]),
        about("restore", ["head.1:1"]),
        about("keep", []),
        about("restore", ["head.0:0", "head.0:1", "mlp_out.1"]),
    )
    design = Design("", "effect", items)
    token, none = lab.nulls()
    assert lab.expect(token, design) == (0.0, 0.0, 0.0, 1.0, 0.0) and lab.expect(none, design) == (None,) * 5
    assert lab.expect(circuit(CIRCUITS["and"]), design) == (1.0, None, 0.0, 0.0, 1.0)
    described = Hypothesis(text="in words", kind="described")
    assert lab.expect(described, design) == (None,) * 5


def test_where_the_last_tokens_differ_token_identity_has_no_opinion() -> None:
    subject, task = planted("gpt2")
    pairs = task.pairs
    # The corrupted prompt ends in another word, and asks for what followed that.
    ids, rows = pairs.clean.tokens.clone(), torch.arange(len(task))
    ids[:, -1] = ids[:, 3]
    other = Task("last", Pairs(pairs.clean, Batch(ids, pairs.clean.lengths), pairs.answers, ids[rows, 4]))
    lab = BehaviourLab(subject, other)
    assert lab.expect(lab.nulls()[0], Design("", "effect", (about("cut", ["head.0:0"]),))) == (None,)


def test_hypotheses_that_cannot_be_tested_here_have_a_fault() -> None:
    lab = lab_of("or")
    assert lab.fault(circuit(CIRCUITS["or"])) is None and lab.fault(lab.nulls()[0]) is None
    assert "head.7:0 is none of the 6 nodes of or or" in str(lab.fault(circuit({"head.7:0": 1})))
    assert "is no node" in str(lab.fault(circuit({"the induction head": 1})))
    assert "no rule" in str(lab.fault(Hypothesis(text="fires"))) and "no nodes" in str(lab.fault(circuit({})))


# --- tools ---------------------------------------------------------------------------------------


def test_a_cut_is_the_patch_of_that_node_alone() -> None:
    lab = lab_of("gpt2")
    pairs, found = lab.part("select").pairs, by_label("cut_nodes", lab, nodes=_NAMES)
    for name in _NAMES:
        (node,), edits = parse_nodes(name), [Edit.parse(f"{name}=patch")]
        patch_values = Materials(source_runs=read_source_run(lab.subject, pairs.corrupted, [node.site]))
        with torch.inference_mode(), apply(lab.subject, pairs.clean, edits, materials=patch_values, may_idle=True):
            cut = logits_at(lab.subject, pairs.clean.tokens, pairs.clean.last)
        left = (cut.gather(1, pairs.answers[:, None]) - cut.gather(1, pairs.wrong[:, None])).mean()
        assert found[name] == pytest.approx(float((4 - left) / 8), abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_induction_circuit_shows_in_every_tool(family: str) -> None:
    lab = lab_of(family)
    assert by_label("cut_nodes", lab) == pytest.approx({n: float(n in CIRCUITS[family]) for n in _NAMES}, abs=1e-4)
    kept = by_label("keep_only", lab)
    assert [*kept.values()] == pytest.approx([1, 0, 0], abs=1e-4) and next(iter(kept)) == "keep head.0:0 head.1:0"
    _, fresh = use("swap_prompts", lab, prompts=2)
    assert fresh.values[:2] == pytest.approx((1, 1), abs=1e-4) and fresh.found["accuracy"] == 1
    _, survey = use("find_circuit", lab)
    assert survey.found["proposal"] == pytest.approx(CIRCUITS[family]) and survey.values == ()
    _, looks = use("head_patterns", lab)
    assert looks.found["previous"][0]["head"] == "head.0:0" and looks.found["induction"][0]["head"] == "head.1:0"
    _, seen = use("attention_to", lab)
    assert seen.found["head.1:0"]["after changed"] > 0.99 and seen.found["head.0:0"]["before"] > 0.99
    _, parts = use("direct_logits", lab)
    assert parts.found["components"][0] == {"component": "head.1:0", "share": pytest.approx(1, abs=1e-3)}


def test_a_control_of_random_circuits_does_nothing() -> None:
    _, kept = use("keep_only", lab_of("gpt2"))
    assert kept.control is not None and "random circuits of the same make-up" in kept.control.what
    assert kept.effect == pytest.approx(1, abs=1e-4) and kept.control.high == pytest.approx(0, abs=1e-4)


def test_an_or_is_seen_only_where_both_are_cut() -> None:
    lab = lab_of("or")
    alone = by_label("cut_nodes", lab, nodes=["head.0:0", "head.0:1", "mlp_out.1"])
    assert [*alone.values()] == pytest.approx([0, 0, 1], abs=1e-4)
    together = by_label("cut_together", lab, sets=[["head.0:0", "head.0:1"], ["head.0:0", "head.1:0"]])
    assert [*together.values()] == pytest.approx([1, 0], abs=1e-4)
    assert by_label("restore_nodes", lab, nodes=["head.0:0"]) == pytest.approx(
        {"restore head.0:0-1 mlp_out.1": 1, "restore head.0:0": 1}, abs=1e-4
    )
    proposal = use("find_circuit", lab)[1].found["proposal"]
    assert {frozenset(text.split(" + ")): share for text, share in proposal.items()} == pytest.approx(
        {frozenset(text.split(" + ")): share for text, share in CIRCUITS["or"].items()}, abs=1e-3
    )


def test_an_and_needs_both_and_either_alone_brings_nothing_back() -> None:
    lab = lab_of("and")
    assert [*by_label("cut_nodes", lab, nodes=["head.0:0-1"]).values()] == pytest.approx([1, 1], abs=1e-4)
    assert [*by_label("restore_nodes", lab, nodes=["head.0:0-1"]).values()] == pytest.approx([1, 0, 0], abs=1e-4)


@pytest.mark.parametrize("tool", ["cut_nodes", "cut_together", "keep_only", "restore_nodes", "swap_prompts"])
def test_silence_is_what_is_asked_for_and_seen(tool: str) -> None:
    lab = lab_of("gpt2")
    design, found = use(tool, lab, expect="silence")
    expected = lab.expect(lab.rivals["H1"], design)
    assert None not in expected
    assert 2 * sum(value == 0 for value in expected) >= len(expected) and any(value == 1 for value in expected)
    assert found.values == pytest.approx(expected, abs=1e-4)


def test_designs_follow_from_arguments_and_seed() -> None:
    one, other = lab_of("gpt2"), lab_of("gpt2")
    for tool in TOOLS.values():
        assert tool.design(tool.args(), one) == tool.design(tool.args(), other)
    drawn = [use("cut_together", one, expect="silence", draw=draw)[0] for draw in (0, 1)]
    assert drawn[0].items != drawn[1].items


def test_tools_refuse_what_they_cannot_do() -> None:
    lab = lab_of("or")
    with pytest.raises(NeuronautError, match="or has no generator, so there are no fresh prompts"):
        use("swap_prompts", lab)
    with pytest.raises(NeuronautError, match=r"head.5:0 is none of the 6 nodes"):
        use("cut_nodes", lab, nodes=["head.5:0"])
    with pytest.raises(NeuronautError, match="mlp_out.1 is no list of heads"):
        use("attention_to", lab, heads=["mlp_out.1"])
    lab.rivals = {"H1": lab.nulls()[1]}
    with pytest.raises(NeuronautError, match="no rival names nodes; say which"):
        use("keep_only", lab)


def test_fresh_prompts_are_none_of_the_tasks() -> None:
    lab = lab_of("gpt2")
    known = {prompt for part in lab._parts.values() for both in prompts_of(part) for prompt in both}
    draws = [{prompt for both in prompts_of(lab.fresh(draw).task) for prompt in both} for draw in (1, 2, 3)]
    assert not any(draw & known for draw in draws) and not draws[0] & draws[1]


# --- the holdout ---------------------------------------------------------------------------------


def scores(lab: BehaviourLab, nodes: dict[str, float]) -> dict[tuple[str, str], float | None]:
    return {(score.examples, score.metric): score.value for score in examine(lab, circuit(nodes))}


@pytest.mark.parametrize("name", CIRCUITS)
def test_a_planted_circuit_is_faithful_and_complete_on_both_halves(name: str) -> None:
    found = scores(lab_of(name), CIRCUITS[name])
    assert found == pytest.approx(
        {
            (half, metric): float(metric == "faithfulness")
            for half in ("natural", "counterfactual")
            for metric in ("faithfulness", "completeness")
        },
        abs=1e-4,
    )


def test_a_circuit_without_its_backup_fails_the_counterfactual_half() -> None:
    found = scores(lab_of("or"), {"head.0:0": 0.0, "mlp_out.1": 1.0})
    assert found["natural", "faithfulness"] == pytest.approx(1, abs=1e-4)
    assert found["counterfactual", "faithfulness"] == pytest.approx(0, abs=1e-4)


def test_what_cannot_be_examined_has_a_reason_and_no_value() -> None:
    lab = lab_of("gpt2")
    assert all(
        one.value is None and one.reason == "the hypothesis names no nodes" for one in examine(lab, lab.nulls()[0])
    )
    subject, task = planted("and")
    other = task.pairs.wrong * 0 + 1  # not what the corrupted prompt asks for
    lab = BehaviourLab(subject, Task("odd", Pairs(task.pairs.clean, task.pairs.corrupted, task.pairs.answers, other)))
    natural, _, half, _ = examine(lab, circuit(CIRCUITS["and"]))
    assert natural.value == pytest.approx(1, abs=1e-4)
    assert half.value is None and half.reason is not None and "does not do odd reversed" in half.reason


def test_a_sham_takes_every_node_for_another() -> None:
    lab = lab_of("gpt2")
    design, found = use("cut_nodes", lab, nodes=_NAMES)
    planned = Experiment("o1", "cut_nodes", {}, "", False, "proposer", 1, "k", json.loads(json.dumps(asdict(design))))
    (values,) = random_control(lab, [planned], 0).values()
    assert values != list(found.values) and sorted(values) == pytest.approx(sorted(found.values), abs=1e-4)


# --- the policy ----------------------------------------------------------------------------------


def investigated(subject: Subject, task: Task) -> tuple[Session, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    found = investigate(
        task, subject, Store(":memory:"), InvestigationConfig(on_event=lambda event: events.append(dict(event)))
    )
    return found, events


@pytest.mark.parametrize("name", CIRCUITS)
def test_the_scripted_policy_comes_to_the_planted_circuit(name: str) -> None:
    found, events = investigated(*planted(name))
    (frozen,) = (event for event in events if event["kind"] == "frozen")
    assert found.status == "supported", found.reason
    said = {frozenset(text.split(" + ")): share for text, share in frozen["nodes"].items()}
    assert said == pytest.approx({frozenset(t.split(" + ")): s for t, s in CIRCUITS[name].items()}, abs=0.01)
    assert all(event["passed"] for event in events if event["kind"] == "control")
    (roles,) = (event for event in events if event["kind"] == "roles")
    proven = {(claim["node"], claim["role"]) for claim in roles["claims"] if claim["status"] == "proven"}
    heads = {("head.0:0", "previous-token"), ("head.1:0", "induction")}
    assert proven >= heads if name in ("gpt2", "llama") else not proven & heads
    assert not [event for event in events if event["kind"] == "rejected"]


def test_its_rivals_are_the_mlps_and_the_heads_of_the_layer_with_the_largest_attribution() -> None:
    _, events = investigated(*planted("gpt2"))
    actions = [event["action"] for event in events if event["kind"] == "decided"]
    claimed = [one.get("nodes") for action in actions if "hypotheses" in action for one in action["hypotheses"]]
    assert {"mlp_out.0": 0.5, "mlp_out.1": 0.5} in claimed and {"head.1:0": 0.5, "head.1:1": 0.5} in claimed


def test_what_was_measured_is_not_chosen_again_while_there_is_something_new() -> None:
    lab = lab_of("gpt2")
    first, _ = use("cut_together", lab, expect="silence", count=4)
    lab.take(first, [0.0] * len(first.items))
    again, _ = use("cut_together", lab, expect="silence", count=4)
    assert first.items[0] == again.items[0] and not {*map(repr, first.items[1:])} & {*map(repr, again.items[1:])}
    nodes, _ = use("cut_nodes", lab, choose="top", count=2)
    lab.take(nodes, [0.0] * 2)
    others, _ = use("cut_nodes", lab, choose="top", count=2)
    assert not {item.label for item in nodes.items} & {item.label for item in others.items}


def test_a_behaviour_is_replayed_and_run_again_on_its_task_alone() -> None:
    subject, task = planted("gpt2")
    with Store(":memory:") as store:
        id = investigate(task, subject, store).id
        assert replay(store.journal, id).same
        again = rerun(store, id, subject, task=task)
        assert again.experiments > 4 and again.faults == ()
        store.db.conn.execute(
            "UPDATE events SET payload = json_set(payload, '$.scores[0].value', 0.5) WHERE kind = 'holdout'"
        )
        edited, status, reason = replay(store.journal, id).faults
        assert edited == "events holdout payload was edited after it was sealed"
        assert status == "status: 'supported' was concluded, judged again it is 'open'" and "wanted 0.75" in reason
        faults = rerun(store, id, subject, task=task).faults
        (fault,) = (line for line in faults if "holdout" in line)
        assert "scores.0.value is stored as 0.5" in fault
        store.db.conn.execute("UPDATE events SET payload = json_set(payload, '$.pairs', 99) WHERE kind = 'roles'")
        assert "events holdout, roles payload was edited after it was sealed" in replay(store.journal, id).faults
        assert any("roles" in line and "99" in line for line in rerun(store, id, subject, task=task).faults)
        for other in (None, Task("another", task.pairs)):
            with pytest.raises(NeuronautError, match="give its pairs again, with --task or --pairs"):
                rerun(store, id, subject, task=other)
