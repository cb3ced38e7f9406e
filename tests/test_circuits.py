"""Circuits: the planted ones are found to the node, the built-in subject's induction heads are in its circuit."""

import json
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from neuronaut.causal import records
from neuronaut.causal.agreement import spearman
from neuronaut.causal.circuits.find import CircuitSearch, CircuitSettings, evaluate_circuit, find_circuit
from neuronaut.causal.circuits.nodes import Node, edits_of, join_nodes, nodes_of, parse_nodes
from neuronaut.causal.circuits.runs import CircuitRuns
from neuronaut.causal.circuits.search import Sample, prune, score_nodes
from neuronaut.causal.circuits.tasks import Task, generate
from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, apply
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import gather, logits_at, read_source_run
from neuronaut.causal.work import OutOfTime, Work
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import Circuit, _head, gate, induction, linear_world
from tests.families import D_MODEL, tiny_subject, tiny_tokens

FAST = CircuitSettings(subsets=4, controls=10, at_once=128)


def task_of(planted: Circuit) -> Task:
    sides = (Batch.of(planted.subject, side.tolist()) for side in (planted.clean, planted.corrupted))
    return Task(planted.subject.name, Pairs.aligned(planted.subject, *sides, planted.answer, planted.wrong))


def nodes(*texts: str) -> list[Node]:
    return [node for text in texts for node in parse_nodes(text)]


# --- planted circuits --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kinds", [("head", "mlp"), ("head", "neuron")])
def test_the_planted_induction_circuit_is_found_and_nothing_else(family: str, kinds: tuple[str, ...]) -> None:
    planted = induction(family, rows=20)  # pyright: ignore[reportArgumentType]
    report = find_circuit(planted.subject, task_of(planted), nodes=nodes_of(planted.subject, kinds), settings=FAST)
    assert {*map(str, report.circuit)} == {*planted.matters} == {"head.0:0", "head.1:0"}
    found = report.evaluation
    assert found.faithfulness.recovered == pytest.approx(1, abs=1e-4) and report.held_out and report.pairs == (10, 10)
    assert found.ablated.recovered == pytest.approx(0, abs=1e-4)
    assert max(gap.size for gap in found.gaps) < 1e-4 and report.backups == ()
    assert [one.value for one in found.minimality] == pytest.approx([1, 1], abs=1e-4)
    assert found.control is not None and max(found.control.faithfulness) < 0.5 and found.control.percentile == 100


def test_an_and_needs_both_of_its_parts_though_neither_is_enough() -> None:
    planted = gate("and")
    report = find_circuit(planted.subject, task_of(planted), nodes=nodes_of(planted.subject, ("head", "neuron")))
    assert {*map(str, report.circuit)} == {*planted.matters} and not report.held_out
    for head in nodes("head.0:0-1"):
        score = report.score(head)
        assert score is not None and score.role == "needed, not enough"
        assert (score.noise.recovered, score.denoise.recovered) == pytest.approx((1, 0), abs=1e-5)
    assert report.backups == () and all(one.value == pytest.approx(1) for one in report.evaluation.minimality)


def test_an_or_has_one_part_in_the_circuit_and_the_other_as_its_backup() -> None:
    planted = gate("or")
    report = find_circuit(planted.subject, task_of(planted), nodes=nodes_of(planted.subject, ("head", "neuron")))
    (backup,) = report.backups
    assert {*map(str, report.circuit), *map(str, backup.nodes)} == {*planted.matters}
    assert {backup.node, *backup.nodes} == {*nodes("head.0:0-1")}
    assert (backup.circuit, backup.model, backup.both) == pytest.approx((0, 1, 0), abs=1e-5)
    for head in nodes("head.0:0-1"):
        score = report.score(head)
        assert score is not None and score.role == "enough, not needed"
    (gap,) = [gap for gap in report.evaluation.gaps if gap.cut == (backup.node,)]
    assert gap.size == pytest.approx(1, abs=1e-5), "the model has a redundancy that the circuit has not"
    assert f"{backup.node}  " in report.table() and join_nodes(backup.nodes) in report.table()


def test_a_backup_that_is_backed_up_itself_is_named_with_its_own() -> None:
    planted = gate("or")
    third = _head(planted.subject.model, 1, 0)
    with torch.no_grad():  # It brings the first bit to the last position as head 0.0 does.
        third.query[9, 2], third.key[7, 2] = 40 * third.scale, 1.0
        third.output[1, 10], third.output[1, -1] = 1.0, -1.0
    report = find_circuit(planted.subject, task_of(planted))
    (backup,) = report.backups
    assert {backup.node, *backup.nodes} == {*nodes("head.0:0-1", "head.1:0")} and len(backup.nodes) == 2
    assert backup.both == pytest.approx(0, abs=1e-5) and len(report.circuit) == 2


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_all_nodes_are_faithful_and_none_are_not_exactly(ablation: str) -> None:
    planted = induction("gpt2")
    runs = CircuitRuns(planted.subject, task_of(planted), nodes_of(planted.subject), ablation=ablation)
    assert runs.faithful([frozenset(runs.nodes), frozenset()]) == [1.0, 0.0]
    if ablation == "corrupted":
        corrupted = planted.subject.logits(planted.corrupted)[:, -1]
        rows = torch.arange(len(corrupted))
        wanted = corrupted[rows, planted.answer] - corrupted[rows, planted.wrong]
        torch.testing.assert_close(runs.floor, wanted, atol=1e-5, rtol=0)


def test_a_circuit_of_idle_parts_is_told_from_a_real_one() -> None:
    planted = induction("gpt2", rows=20)
    idle, real = (
        evaluate_circuit(planted.subject, task_of(planted), circuit, settings=FAST)
        for circuit in (nodes("head.0:1", "head.1:1"), nodes("head.0:0", "head.1:0"))
    )
    assert idle.evaluation.faithfulness.recovered == pytest.approx(0, abs=1e-4)
    assert idle.evaluation.ablated.recovered == pytest.approx(1, abs=1e-4)
    assert [one.value for one in idle.evaluation.minimality] == pytest.approx([0, 0], abs=1e-4)
    assert idle.evaluation.control is not None and idle.evaluation.control.p > 0.5 and idle.backups == idle.steps == ()
    assert real.evaluation.faithfulness.recovered == pytest.approx(1, abs=1e-4)


def test_gradients_choose_the_nodes_to_patch_where_there_are_many() -> None:
    planted = induction("llama", rows=20)
    settings = CircuitSettings(subsets=2, controls=5, patched=3)
    report = find_circuit(
        planted.subject, task_of(planted), nodes=nodes_of(planted.subject, ("head", "neuron")), settings=settings
    )
    assert {*map(str, report.circuit)} == {*planted.matters}
    assert len(report.scores) == 3 and {*report.agreement} == {"noise", "denoise"}
    assert "chose 3 nodes to patch; rank agreement" in report.table()


def test_the_ranked_way_agrees_with_the_exact_one_on_the_built_in_subject() -> None:
    subject = Subject.load("demo")
    task, universe = generate(subject, "induction", rows=12), nodes_of(subject)
    exact, ranked = (CircuitRuns(subject, task, universe, exact=exact) for exact in (True, False))
    truth, scores = score_nodes(exact, most=2, at_once=128, seed=0), score_nodes(ranked, most=8, at_once=128, seed=0)
    assert {*truth.exact} == {*universe} and truth.sample is None and truth.agreement == {}
    assert (
        len(scores.exact) == 8 and scores.sample is not None and (scores.sample.drawn, scores.sample.others) == (4, 16)
    )
    for node, score in scores.exact.items():
        assert score.rank == pytest.approx(truth.exact[node].rank, abs=1e-4)
    places = [torch.tensor([each.ranks[node] for node in universe]) for each in (truth, scores)]
    rank = spearman(*places)
    assert rank is not None and rank > 0.8 and {*truth.order[-4:]} == {*scores.order[-4:]}
    found, _ = prune(ranked, scores.order, tolerance=0.1)
    assert {*nodes("head.2:0", "head.3:1")} <= found and len(found) <= 15
    values = exact.faithful([found, *(found - {node} for node in found)])
    assert abs(1 - values[0]) <= 0.1 < min(abs(1 - value) for value in values[1:]), "faithful, and minimal"


@pytest.mark.parametrize("ablation", ["corrupted", "mean", "zero"])
def test_losses_are_predicted_exactly_where_the_model_is_linear(ablation: str) -> None:
    planted = linear_world()
    universe = nodes_of(planted.subject, ("head", "neuron"))
    runs = CircuitRuns(planted.subject, task_of(planted), universe, ablation=ablation, exact=False)
    circuit = frozenset(universe[1::2])
    whole, *rest = runs.faithful([circuit, *(circuit - {node} for node in universe[1::2])], base=circuit)
    predicted = runs.predict_losses(circuit)
    assert [*predicted.values()] == pytest.approx([whole - value for value in rest], abs=1e-4)
    assert [*predicted] == [*universe[1::2]] and max(map(abs, predicted.values())) > 0.05


def test_a_sample_bounds_what_was_missed() -> None:
    assert Sample(16, 284, 0).bound == pytest.approx(1 - 0.05 ** (1 / 16))
    assert Sample(16, 284, 16).bound == pytest.approx(1)


# --- runs against one-at-a-time edits ----------------------------------------------------------

SITE = "resid_post.1"


def dictionary(features: int = 12) -> Dictionary:
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(features, D_MODEL, generator=generator)
    return Dictionary(
        id=SourceId("gpt2", SITE, "sae"),
        kind="standard",
        W_enc=weights.T / 5,
        W_dec=weights,
        b_enc=torch.ones(features),
        b_dec=torch.zeros(D_MODEL),
    )


def uneven(subject: Subject) -> Task:
    """Random pairs of different lengths."""
    clean, corrupted = (tiny_tokens(rows=4, positions=9, seed=seed) for seed in (1, 2))
    sides = [
        [row[:length] for row, length in zip(side.tolist(), (9, 6, 8, 9), strict=True)] for side in (clean, corrupted)
    ]
    batches = (Batch.of(subject, side) for side in sides)
    return Task("uneven", Pairs.aligned(subject, *batches, torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8, 9, 10])))


def naive(subject: Subject, task: Task, cut: list[Edit], sources: dict[str, Dictionary]) -> Tensor:
    """The logit difference, row by row, with edits of one node each, in one forward for each row."""
    values: list[Tensor] = []
    for row in range(len(task)):
        pairs = task.take([row]).pairs
        patch_values = Materials(
            sources=sources, source_runs=read_source_run(subject, pairs.corrupted, [*{edit.site for edit in cut}])
        )
        patch_values = gather(subject, cut, materials=patch_values, reference=task.pairs.corrupted)
        with torch.inference_mode(), apply(subject, pairs.clean, cut, materials=patch_values, may_idle=True):
            logits = logits_at(subject, pairs.clean.tokens, pairs.clean.last)[0]
        values.append(logits[pairs.answers[0]] - logits[pairs.wrong[0]])
    return torch.stack(values)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize(("ablation", "operation"), [("corrupted", "patch"), ("mean", "mean"), ("zero", "zero")])
def test_cut_sets_equal_edits_of_one_node_at_a_time(family: str, ablation: str, operation: str) -> None:
    subject = tiny_subject(family)
    task = uneven(subject)
    universe = nodes("head.0:0-3", "mlp_out.0@last", "mlp_out.0@1-3", "mlp.1:3,5,8", "head.2:0-3", "mlp_out.2")
    generator = torch.Generator().manual_seed(0)
    sets = [
        frozenset(node for node in universe if torch.rand((), generator=generator) < share)
        for share in (0.2, 0.5, 0.8, 0.5, 1)
    ]
    runs = [CircuitRuns(subject, task, universe, ablation=ablation, at_once=at_once) for at_once in (1, 64)]
    one, many = (each.cut(sets) for each in runs)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)
    assert runs[1].forwards < runs[0].forwards
    for cut, values in zip(sets, many, strict=True):
        edits = [edit for node in sorted(cut, key=universe.index) for edit in edits_of([node], operation)]  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(values, naive(subject, task, edits, {}), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
def test_runs_that_begin_where_sets_part_equal_whole_ones(family: str, ablation: str) -> None:
    subject = tiny_subject(family)
    task, universe = uneven(subject), nodes("head.0:0-3", "mlp_out.0", "mlp.1:3,5,8", "head.2:0-3", "mlp_out.2")
    base = frozenset(universe[::2])
    sets = [base ^ {node} for node in universe]
    whole, resumed = (CircuitRuns(subject, task, universe, ablation=ablation, exact=exact) for exact in (True, False))
    torch.testing.assert_close(resumed.cut(sets, base=base), whole.cut(sets, base=base), atol=1e-5, rtol=0)


def test_features_of_a_dictionary_are_nodes() -> None:
    subject = tiny_subject()
    task, sources = uneven(subject), {f"{SITE}@sae": dictionary()}
    universe = nodes(f"{SITE}@sae:0-11")
    runs = CircuitRuns(subject, task, universe, sources=sources)
    cut = frozenset(universe[2:7])
    together = [Edit.parse(f"{SITE}@sae:2-6=patch")]
    torch.testing.assert_close(runs.cut([cut])[0], naive(subject, task, together, sources), atol=1e-5, rtol=0)
    before = runs.forwards
    assert runs.cut([cut, cut]).shape == (2, 4) and runs.forwards == before, "nothing is run twice"


def test_the_model_is_left_as_it_was() -> None:
    planted = gate("or")
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in planted.subject.model.modules()]
    find_circuit(planted.subject, task_of(planted))
    with pytest.raises(NeuronautError, match="no ablation 'median'; there are corrupted, mean, zero"):
        find_circuit(planted.subject, task_of(planted), settings=CircuitSettings(ablation="median"))
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in planted.subject.model.modules()]
    assert hooks == after and torch.is_grad_enabled()


# --- searches that are stopped -----------------------------------------------------------------


def stopped_at(what: str, error: type[BaseException]) -> tuple[CircuitSearch, Work]:
    """A search of a planted circuit that is ended as soon as it does this."""
    planted, work = induction("gpt2", rows=20), Work()

    def stop(work: Work) -> None:
        if work.doing.startswith(what):
            raise error

    work.on_progress = stop
    return CircuitSearch(planted.subject, task_of(planted), settings=FAST, work=work), work


def test_an_interrupted_search_reports_what_it_knows() -> None:
    search, _ = stopped_at("tests", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search.run()
    report = search.report()
    assert {*map(str, report.circuit)} == {"head.0:0", "head.1:0"} and report.unfinished == ("evaluation", "roles")
    assert report.evaluation is None and json.loads(json.dumps(report.to_json()))["evaluation"] is None
    assert report.table().startswith("PARTIAL: stopped before the end of evaluation, roles\ncircuit of")
    assert "faithfulness  1.00 on the search's 10 pairs" in report.table()


def test_where_the_time_is_over_the_search_ends_and_what_it_found_is_evaluated() -> None:
    search, work = stopped_at("prunes", OutOfTime)
    search.run()
    report = search.report()
    assert report.unfinished == ("search", "backups") and report.evaluation is not None
    assert len(report.circuit) < len(report.nodes) and len(report.evaluation.minimality) == len(report.circuit)
    assert 0 < work.done < 10 * work.expected
    search, _ = stopped_at("patches", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search.run()
    assert not search.known
    search, _ = stopped_at("runs", OutOfTime)
    with pytest.raises(NeuronautError, match="over before anything was known; give more minutes"):
        search.run()
    planted = induction("gpt2")
    with pytest.raises(OutOfTime), Work(minutes=1e-9).counted(planted.subject):
        planted.subject.logits(planted.clean)


def test_until_a_circuit_is_known_the_search_has_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    planted, now = induction("gpt2", rows=20), [0.0]
    monkeypatch.setattr("neuronaut.causal.work.time", SimpleNamespace(monotonic=lambda: now[0]))
    work = Work(minutes=1)

    def pass_time(work: Work) -> None:
        if work.doing.startswith("patches"):
            now[0] = 40.0

    work.on_progress = pass_time
    search = CircuitSearch(planted.subject, task_of(planted), settings=FAST, work=work)
    search.run()
    report = search.report()
    assert report.circuit and report.unfinished == ("search", "backups") and report.evaluation is not None
    assert work.most == 20


# --- the report --------------------------------------------------------------------------------


@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
def test_the_report_is_data_and_its_trial_runs_again(ablation: str) -> None:
    planted = induction("gpt2", rows=20)
    settings = CircuitSettings(subsets=3, controls=5, ablation=ablation, threshold=0.8)
    report = find_circuit(planted.subject, task_of(planted), settings=settings)
    outcome = records.run(planted.subject, records.Trial.load(report.trial.model_dump_json()))
    faithfulness = report.evaluation.faithfulness
    assert outcome.after["logit_difference"] == pytest.approx(faithfulness.patched, abs=1e-4)
    assert outcome.before["logit_difference"] == pytest.approx(faithfulness.clean, abs=1e-5)
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["circuit"] == [*map(str, report.circuit)] and data["seed"] == 0
    assert data["provenance"]["model"] == "induction-gpt2" and data["evaluation"]["mean_gap"] >= 0
    assert {score["node"] for score in data["scores"]} == {*map(str, nodes_of(planted.subject))}
    again = find_circuit(planted.subject, task_of(planted), settings=settings)
    assert again.to_json() == report.to_json()


def test_the_built_in_subject_does_induction_by_its_previous_token_and_induction_heads() -> None:
    subject = Subject.load("demo")
    report = find_circuit(
        subject, generate(subject, "induction", rows=16), settings=CircuitSettings(subsets=2, controls=12, at_once=128)
    )
    found = report.evaluation
    assert {*nodes("head.2:0", "head.3:1")} <= {*report.circuit} and len(report.circuit) <= 13
    assert report.held_out and report.passes.total < 120
    assert found.faithfulness.recovered is not None and 0.8 < found.faithfulness.recovered < 1.15
    assert found.ablated.recovered == pytest.approx(0, abs=0.05)
    assert found.control is not None and found.control.percentile > 90 and mean(found.control.faithfulness) < 0.4


# --- nodes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["head.1:3", "mlp_out.2", "resid_post.2@sae:40", "mlp.2:17@last", "mlp_out.0@2-5", "resid_post.2@res-jb:4@-1"],
)
def test_nodes_as_text_say_what_they_are(text: str) -> None:
    (node,) = parse_nodes(text)
    assert str(node) == text


def test_several_nodes_in_short() -> None:
    found = nodes("head.1:3,0-1", "mlp_out.2", "mlp.0:4@last")
    assert len(found) == 5 and join_nodes(found) == "head.1:0-1,3 mlp.0:4@last mlp_out.2"
    assert parse_nodes("mlp.2@last") == (Node("mlp.2", positions="last"),)


WRONG = (
    ((), "no nodes to look for a circuit among"),
    (("head.0:0", "head.0:0"), "node head.0:0 is given twice"),
    (("mlp.0:3", "mlp_out.0"), "nodes mlp.0:3 and mlp_out.0 overlap"),
    (("mlp_out.0@last", "mlp_out.0"), "nodes mlp_out.0 and mlp_out.0@last overlap"),
    (("head.0:1", "attn_out.0"), "overlap"),
    (("mlp.0", "mlp.0:3"), "overlap"),
    ((f"{SITE}@sae:1", f"{SITE}@other:2"), "overlap"),
)


@pytest.mark.parametrize(("texts", "message"), WRONG)
def test_nodes_that_cannot_stand_together_are_refused(texts: tuple[str, ...], message: str) -> None:
    subject = tiny_subject()
    with pytest.raises(NeuronautError, match=message.replace("(", r"\(")):
        CircuitRuns(subject, uneven(subject), nodes(*texts))


def test_what_makes_no_sense_is_refused() -> None:
    planted = gate("and")
    subject, task = planted.subject, task_of(planted)
    for settings, message in (
        ({"threshold": 1.0}, "threshold 1.0 is no"),
        ({"controls": -1}, "wanted 0 or more subsets and controls"),
    ):
        with pytest.raises(NeuronautError, match=message):
            CircuitSettings(**settings)
    with pytest.raises(NeuronautError, match="head.7:0 is not among the 6 nodes"):
        evaluate_circuit(subject, task, nodes("head.7:0"))
    with pytest.raises(NeuronautError, match="the circuit has 0 nodes"):
        evaluate_circuit(subject, task, [])
    with pytest.raises(NeuronautError, match="cutting all 1 nodes moves logit_difference of and by 0 on average"):
        find_circuit(subject, task, nodes=nodes("head.1:1"))
    with pytest.raises(NeuronautError, match="is no node of a circuit; some that are"):
        parse_nodes("head 1")
    with pytest.raises(NeuronautError, match="no nodes of kind layer; there are head, mlp, neuron"):
        nodes_of(subject, ["layer"])
