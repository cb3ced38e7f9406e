"""Attribution patching against exact patching where it must be exact, and its own gradings where it is not."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neuronaut.causal.agreement import agreement, overlap, spearman
from neuronaut.causal.attribution_patching import Attribution, Line, attribution_patching
from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Grid, each_position, sites_of
from neuronaut.causal.intervene import Materials
from neuronaut.causal.measures import Direction, Effect, Question, metric
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.runs import logits_at
from neuronaut.causal.sweeps import sweep
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.circuits import gate, linear_world
from tests.families import FAMILIES, byte_tokenizer, tiny_model, tiny_subject
from tests.test_runs import pairs_of
from tests.test_sweeps import random_pairs

both_directions = pytest.mark.parametrize("direction", ["denoise", "noise"])
every_line = pytest.mark.parametrize("line", [None, Line("embed", 3), Line("site", 3)])
ALL = Edit.parse("head.0=patch")


def exact_moves(
    found: Attribution, subject: Subject, pairs: Pairs, *, materials: Materials | None = None
) -> list[float]:
    """How far each node's patch really moves the metric towards the clean run (or away, noising)."""
    grid = Grid.of_edits(node.edit for node in found.nodes if node.edit is not None)
    swept = sweep(
        subject, pairs, grid, directions=[found.direction], metrics=[found.metric], materials=materials or Materials()
    )
    moved = []
    for cell in swept.cells:
        (effect,) = cell.effects
        assert isinstance(effect, Effect)
        ends = (effect.patched, effect.corrupted) if found.direction == "denoise" else (effect.clean, effect.patched)
        moved.append((sum(ends[0]) - sum(ends[1])) / effect.n)
    return moved


# --- where it must be exact ----------------------------------------------------------------------


@both_directions
@every_line
def test_in_a_linear_world_attribution_is_patching(direction: Direction, line: Line | None) -> None:
    circuit = linear_world()
    subject, pairs = circuit.subject, pairs_of(circuit)
    grids = [
        Grid.of(ALL, sites=sites_of(subject, "head"), units=range(2)),
        Grid.of(Edit.parse("mlp.0:0=patch"), sites=sites_of(subject, "mlp"), units=range(12)),
        Grid.of(ALL, sites=["embed", "resid_pre.1", "resid_mid.1", "mlp_out.1"], positions=["3", "4-6", "last"]),
    ]
    for grid in grids:
        found = attribution_patching(subject, pairs, grid, direction=direction, line=line, sample=5, top=3)
        scores = torch.tensor([node.score for node in found.nodes])
        torch.testing.assert_close(scores, torch.tensor(exact_moves(found, subject, pairs)), rtol=1e-5, atol=1e-5)
        assert scores.abs().max() > 0.1
        assert all(abs(cut.error) < 1e-4 * abs(cut.wanted) + 1e-5 for cut in found.cuts)
        assert found.agreement.spearman == pytest.approx(1) and found.agreement.overlap == 1 and found.doubts == ()
        assert [one.labels for one in found.verified] == [node.labels for node in found.ranked()[:3]]
        for one in found.verified:
            assert one.predicted == pytest.approx(one.exact, abs=1e-5)
    inert = {tuple(unit.split(":")) for unit in circuit.inert}
    for grid in grids[:2]:
        nodes = attribution_patching(subject, pairs, grid, direction=direction, line=line).nodes
        assert {node.labels for node in nodes if node.score == 0} == inert & {node.labels for node in nodes}


def sae(norm: Any = "none") -> Dictionary:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Dictionary(
        id=SourceId("linear", "resid_post.0", "sae"),
        kind="standard",
        norm=norm,
        W_enc=draw(30, 16).T / 4,
        W_dec=draw(30, 16),
        b_enc=draw(30),
        b_dec=draw(16),
    )


@both_directions
@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
def test_features_and_what_they_leave_out_are_worth_the_whole_vector(direction: Direction, norm: Any) -> None:
    circuit = linear_world()
    subject, pairs, materials = circuit.subject, pairs_of(circuit), Materials(sources={"resid_post.0@sae": sae(norm)})
    grid = Grid.of(Edit.parse("resid_post.0@sae:0=patch"), units=range(30))
    found = attribution_patching(subject, pairs, grid, direction=direction, materials=materials)
    *features, error = found.nodes
    assert error.labels == ("resid_post.0@sae error",) and error.edit is None
    exact = exact_moves(found, subject, pairs, materials=materials)
    assert [node.score for node in features] == pytest.approx(exact, rel=1e-5, abs=2e-5)
    whole = sum(found.clean) / 6 - sum(found.corrupted) / 6
    assert sum(node.score for node in found.nodes) == pytest.approx(whole, abs=1e-4)
    assert abs(error.score) > 0.01
    assert found.provenance.dictionaries == {"resid_post.0@sae": sae(norm).revision}


def test_directions_and_positions_of_features_are_nodes_too() -> None:
    circuit = linear_world()
    subject, pairs = circuit.subject, pairs_of(circuit)
    materials = Materials(sources={"resid_post.0@sae": sae()}, directions={"way": torch.arange(-8.0, 8.0)})
    texts = [
        "resid_mid.1:way=patch",
        "resid_post.0@sae:4,7=patch@3",
        "resid_post.0@sae:4=patch@last",
        "mlp.0:4,5-=patch@last",
        "head.1=patch@last",
    ]
    found = attribution_patching(subject, pairs, Grid.of_edits(map(Edit.parse, texts)), materials=materials)
    assert [n.labels[0] for n in found.nodes[5:]] == ["resid_post.0@sae error@3", "resid_post.0@sae error@last"]
    exact = exact_moves(found, subject, pairs, materials=materials)
    assert [node.score for node in found.nodes[:5]] == pytest.approx(exact, abs=1e-5)


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "direction"), [(f, ("denoise", "noise")[i % 2]) for i, f in enumerate(FAMILIES)])
def test_scores_are_slopes_by_finite_differences(family: str, direction: Direction) -> None:
    """The site's vectors moved a little of the way by hand, in double precision."""
    subject = Subject(tiny_model(family).double(), byte_tokenizer(), name=family)
    pairs = random_pairs(subject, rows=2, positions=6)
    base, source_run, towards = (
        (pairs.corrupted, pairs.clean, 1) if direction == "denoise" else (pairs.clean, pairs.corrupted, -1)
    )
    sites = ["embed", *(site for site in subject.sites if site.endswith(".1"))]
    found = attribution_patching(subject, pairs, Grid.of(ALL, sites=sites, positions=["3"]), direction=direction)
    vectors = subject.read(source_run.tokens, sites)
    for node, site in zip(found.nodes, sites, strict=True):

        def moved(way: float, site: str = site) -> Tensor:
            def edit(tensor: Tensor) -> Tensor:
                changed = tensor.clone()
                changed[:, 3] += way * (vectors[site][:, 3] - tensor[:, 3])
                return changed

            with subject.editing({site: edit}):
                logits = logits_at(subject, base.tokens, base.last)
            rows = torch.arange(2)
            return logits[rows, pairs.answers] - logits[rows, pairs.wrong]

        step = 3e-3  # Some families compute their norms in single precision whatever the model's.
        slope = towards * (moved(step) - moved(-step)) / (2 * step)
        assert node.scores == pytest.approx(slope.tolist(), rel=1e-2, abs=3e-3)


@pytest.mark.parametrize("over", ["embed", "site"])
def test_the_midpoint_rule_misses_by_a_quarter_with_twice_the_steps(over: Any) -> None:
    subject = Subject(tiny_model("gpt2").double(), byte_tokenizer(), name="gpt2")
    pairs = random_pairs(subject, rows=1, positions=6)
    site, rest = ("embed", {}) if over == "embed" else ("resid_pre.1", {"at_once": 7})
    errors = []
    for steps in (16, 32, 64):
        found = attribution_patching(
            subject, pairs, Grid.of_edits([Edit.parse(f"{site}=patch")]), line=Line(over, steps), **rest
        )
        (error,) = [cut.error for cut in found.cuts if cut.site == site]
        assert found.nodes[0].score == pytest.approx(found.cuts[0].total, abs=1e-9)
        errors.append(error)
    assert abs(errors[0]) > 1e-4
    for one, other in zip(errors, errors[1:], strict=False):
        assert one / other == pytest.approx(4, rel=0.25)
    wanted = found.cuts[0].wanted
    assert wanted == pytest.approx(found.clean[0] - found.corrupted[0], abs=1e-5) and abs(errors[-1]) < 0.01 * abs(
        wanted
    )


def test_a_site_that_is_no_cut_is_held_to_its_own_whole_patch() -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    grid = Grid.of(ALL, sites=["head.1", "mlp_out.2"])
    found = attribution_patching(subject, pairs, grid, direction="noise", line=Line("site", 32))
    for cut, exact in zip(found.cuts, exact_moves(found, subject, pairs), strict=True):
        assert cut.wanted == pytest.approx(exact, abs=1e-5) and cut.total == pytest.approx(exact, abs=0.01)


@every_line
def test_rows_at_once_change_nothing(line: Line | None) -> None:
    subject = tiny_subject("qwen3")
    pairs = random_pairs(subject, rows=5, positions=6)
    grid = Grid.of(ALL, sites=["head.0", "head.2"], units=range(4))
    wanted = attribution_patching(subject, pairs, grid, line=line)
    for limit in (2, 12):
        found = attribution_patching(subject, pairs, grid, line=line, at_once=limit)
        for one, other in zip(found.nodes, wanted.nodes, strict=True):
            assert one.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-5)
        assert found.passes.forwards > wanted.passes.forwards or limit == 12


@pytest.mark.parametrize("name", ["logit_difference", "log_probability", "probability_difference", "kl", "loss"])
def test_every_smooth_metric_adds_up_along_a_line(name: str) -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject, rows=2, positions=6)
    found = attribution_patching(subject, pairs, Grid.of_edits([ALL]), metric=name, line=Line("embed", 96))
    question = Question(pairs.answers, pairs.wrong, subject.logits(pairs.clean.tokens)[:, -1])
    corrupted = metric(name)(subject.logits(pairs.corrupted.tokens)[:, -1], question)
    assert found.corrupted == pytest.approx(corrupted.tolist(), abs=1e-5)
    assert found.cuts[0].site == "embed" and abs(found.cuts[0].error) < 0.02 * abs(found.difference)


# --- where it fails, and says so -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "direction", "score", "exact"),
    [("or", "denoise", 4, 2), ("or", "noise", 0, 0), ("and", "denoise", 0, 0), ("and", "noise", 4, 2)],
)
def test_gates_are_where_gradients_fail_and_the_report_says_so(
    kind: Any, direction: Direction, score: float, exact: float
) -> None:
    circuit = gate(kind)
    grid = Grid.of(ALL, sites=["head.0", "head.1"], units=range(2))
    found = attribution_patching(circuit.subject, pairs_of(circuit), grid, direction=direction)
    assert [node.score for node in found.nodes] == pytest.approx([score, score, 0, 0], abs=1e-3)
    assert [one.exact for one in found.verified] == pytest.approx([exact, exact, 0, 0], abs=1e-3)
    assert found.cuts[0].relative == pytest.approx((2 * score - 2) / 2, abs=1e-3)
    assert f"add up to {found.cuts[0].total:.3g}, wanted 2" in found.doubts[0]
    assert any(("far from exact" if score else "no ranking") in doubt for doubt in found.doubts)
    shared = attribution_patching(circuit.subject, pairs_of(circuit), grid, direction=direction, line=Line("embed", 8))
    assert [node.score for node in shared.nodes] == pytest.approx([1, 1, 0, 0], abs=1e-3)
    assert shared.cuts[0].error == pytest.approx(0, abs=1e-3)


def induction_pairs(subject: Subject, *, rows: int = 8, period: int = 14) -> Pairs:
    """BOS, random tokens, and one of them again; corrupted, that one has changed places with another."""
    rng, found = random.Random(0), []
    for _ in range(rows):
        words = rng.sample([id for id in range(len(subject.vocabulary)) if id != subject.bos], period)
        here, there = rng.sample(range(0, period - 1, 2), 2)
        swapped = list(words)
        swapped[here], swapped[there] = words[there], words[here]
        found.append(
            (
                [subject.bos, *words, words[here]],
                [subject.bos, *swapped, words[here]],
                words[here + 1],
                words[there + 1],
            )
        )
    clean, corrupted, answers, wrong = zip(*found, strict=True)
    batches = (Batch.of(subject, rows) for rows in (clean, corrupted))
    return Pairs.aligned(subject, *batches, torch.tensor(answers), torch.tensor(wrong))


def test_on_the_built_in_model_the_ranking_agrees_with_patching() -> None:
    subject = Subject.load("demo")
    pairs = induction_pairs(subject)
    heads = Grid.of(ALL, sites=sites_of(subject, "head"), units=range(subject.n_heads))
    for direction in ("denoise", "noise"):
        found = attribution_patching(subject, pairs, heads, direction=direction)
        rank = found.agreement.spearman
        assert rank is not None and rank > 0.9 and len(found.agreement.exact) == 16
        assert {one.labels for one in found.verified[:2]} == {("head.2", "0"), ("head.3", "3")}
        assert found.verified[0].effect.recovered == pytest.approx(found.verified[0].exact / found.difference, abs=1e-6)
    places = each_position(subject, pairs.clean)
    residual = Grid.of(ALL, sites=sites_of(subject, "resid_pre"), positions=places.positions, labels=places.labels)
    ranks = [
        attribution_patching(subject, pairs, residual, line=line, sample=60).agreement.spearman
        for line in (None, Line("embed", 8))
    ]
    # A gradient at one point is misled by the residual stream's size; the mean along the way is not.
    assert ranks[0] is not None and ranks[1] is not None and ranks[0] < 0.8 < ranks[1]


def test_a_node_that_differs_too_little_to_be_told_of_is_said_so() -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    pairs = Pairs(pairs.clean, pairs.corrupted, pairs.answers, pairs.answers)
    found = attribution_patching(subject, pairs, Grid.of(ALL, sites=["head.0"], units=range(4)))
    assert [cut.relative for cut in found.cuts] == [None, None]
    assert found.doubts == ("clean and corrupted differ by 0 only, so nothing can be told of their parts",)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("head.0:1=0", {}, "wanted patches of vectors"),
        ("pattern.0:1=patch", {}, "wanted patches of vectors"),
        ("head.0:1=patch~3", {}, "wanted patches of vectors"),
        ("head.0:9=patch", {}, "no unit 9"),
        ("head.7:1=patch", {}, "no site 'head.7'"),
        ("resid_pre.0@nice:1=patch", {}, "no dictionary"),
        ("head.0:1=patch", {"metric": "rank"}, "metric rank has no gradient"),
        ("head.0:1=patch", {"metric": "nice"}, "no metric 'nice'"),
        ("head.0:1=patch", {"line": Line("site", 0)}, "wanted at least 1"),
        ("head.0:1=patch", {"sample": 0}, "a sample of 0"),
        ("resid_pre.1=patch@0", {}, "none of the 1 edits changed anything"),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_the_model_left(text: str, options: dict[str, Any], says: str) -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    before = subject.logits(pairs.clean.tokens)
    with pytest.raises(NeuronautError, match=says) as caught:
        attribution_patching(subject, pairs, Grid.of_edits([Edit.parse(text)]), **options)
    assert "\n" not in str(caught.value) and torch.is_grad_enabled()
    assert torch.equal(subject.logits(pairs.clean.tokens), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_grad_mode_does_not_matter_and_stays(mode: Callable[[], Any]) -> None:
    subject = tiny_subject()
    pairs = random_pairs(subject)
    grid = Grid.of(ALL, sites=["head.1", "head.2"], units=range(4))
    wanted = [node.score for node in attribution_patching(subject, pairs, grid, line=Line("site", 2)).nodes]
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = attribution_patching(subject, pairs, grid, line=Line("site", 2))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert [node.score for node in found.nodes] == wanted
    assert all(parameter.grad is None for parameter in subject.model.parameters())


# --- gradings, data, pictures --------------------------------------------------------------------


def test_rank_correlation_and_overlap() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([5.0, 6.0, 7.0, 8.0, 7.0])
    assert spearman(a, b) == pytest.approx(0.8208, abs=1e-4)  # scipy.stats.spearmanr
    assert (
        spearman(a, -a) == pytest.approx(-1) and spearman(a, torch.ones(5)) is None and spearman(a[:2], a[:2]) is None
    )
    assert overlap([1, -9, 3, 4], [9, 8, 0, 0], 2) == 0.5
    found = agreement([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], top=9)
    assert (found.k, found.overlap) == (1, 0) and found.spearman == pytest.approx(-1)


def test_an_attribution_is_json_and_a_picture(tmp_path: Path) -> None:
    circuit = linear_world()
    subject, pairs = circuit.subject, pairs_of(circuit)
    grid = Grid.of(Edit.parse("resid_post.0@sae:0=patch"), units=range(8), positions=["2-4", "last"])
    found = attribution_patching(subject, pairs, grid, materials=Materials(sources={"resid_post.0@sae": sae()}))
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [node["edit"] for node in data["nodes"][-2:]] == [None, None] and len(data["nodes"]) == 18
    for written, node in zip(data["nodes"], found.nodes, strict=True):
        assert tuple(written["scores"]) == node.scores and math.isclose(written["score"], node.score)
    assert Edit.parse(data["verified"][0]["edit"]) == found.verified[0].edit and data["formula"] == found.formula
    assert "at the corrupted run" in found.formula and "logit[answer]-logit[wrong]/1" in found.formula
    found.picture(tmp_path / "grid.png")
    line = attribution_patching(
        subject, pairs, Grid.of(Edit.parse("mlp.1:0=patch"), units=range(5)), line=Line("site", 4)
    )
    assert "4 midpoints from corrupted to clean vectors of the site" in line.formula
    line.picture(tmp_path / "list.png")
    assert all(path.stat().st_size > 4000 for path in tmp_path.iterdir())
