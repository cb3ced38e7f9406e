"""Effects among their controls, against running each control by itself; and the next-token table."""

import pytest
import torch

from neuronaut.causal.controls import draw_controls, rank_among_controls, rank_patch_among_controls
from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.readouts import last_logits, next_tokens
from neuronaut.causal.runs import compare, patching
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.opening import open_source
from tests.circuits import Circuit, linear_world


@pytest.fixture(scope="module")
def world() -> Circuit:
    return linear_world()


@pytest.fixture(scope="module")
def pairs(world: Circuit) -> Pairs:
    clean, corrupted = (Batch.of(world.subject, rows.tolist()) for rows in (world.clean, world.corrupted))
    return Pairs.aligned(world.subject, clean, corrupted, world.answer, world.wrong)


def test_controls_of_prompts_are_those_run_one_by_one(world, pairs):
    edit = Edit.parse("mlp.0:3=0")
    found = rank_among_controls(world.subject, pairs.clean, edit, answers=world.answer, count=4, seed=1)
    assert [*found] == ["other units", "random directions"]
    sorts = draw_controls(world.subject, edit, sources={}, count=4, seed=1)

    def divergence(one: Edit) -> float:
        both = compare(world.subject, pairs.clean, [one])
        before, after = both.before.log_softmax(-1), both.after.log_softmax(-1)
        return float((before.exp() * (before - after)).sum(-1).mean())

    for sort, ranked in found.items():
        rank = ranked.rank
        assert rank is not None and ranked.effect == rank.real and ranked.silent == 0
        assert rank.real == pytest.approx(divergence(edit), abs=1e-5)
        assert rank.controls == pytest.approx([divergence(one) for one in sorts[sort]], abs=1e-5)


def test_controls_of_pairs_are_those_patched_one_by_one(world, pairs):
    edit = Edit.parse("head.0:0=patch@last")
    found = rank_patch_among_controls(world.subject, pairs, edit, directions=("denoise", "noise"), count=3)
    sorts = draw_controls(world.subject, edit, sources={}, count=3)
    assert len(sorts["other units"]) == 1
    for direction, ranks in found.items():
        for sort, ranked in ranks.items():
            rank = ranked.rank
            assert rank is not None
            by_hand = [
                patching(world.subject, pairs, [one], metrics=("logit_difference",))[direction]
                .effects["logit_difference"]
                .recovered
                for one in (edit, *sorts[sort])
            ]
            assert [rank.real, *rank.controls] == pytest.approx(by_hand, abs=1e-4)


def test_an_inert_unit_does_not_stand_out(world, pairs):
    found = rank_among_controls(world.subject, pairs.clean, Edit.parse("mlp.1:11=0"), answers=world.answer, count=11)
    rank = found["other units"].rank
    assert rank is not None and rank.percentile < 50 and rank.p > 0.5 and len(rank.controls) == 11


def test_silent_controls_lend_no_significance():
    subject = Subject.load("demo")
    name = "resid_post.2@sae"
    sae = open_source(subject, SourceId.parse(f"demo:{name}"))
    batch = Batch.of(subject, ["import os"])
    active = sae.encode(subject.read(batch.tokens, ["resid_post.2"])["resid_post.2"][0, 1:]).amax(0)
    edit = Edit.parse(f"{name}:{int(active.argmax())}=0")
    controls = draw_controls(subject, edit, sources={name: sae}, count=20)["other units"]
    silent = sum(not bool(active[list(one.units or ())].any()) for one in controls)
    found = rank_among_controls(
        subject, batch, edit, answers=torch.tensor([0]), count=20, materials=Materials(sources={name: sae})
    )["other units"]
    assert found.effect is not None and found.effect > 0.01 and found.silent == silent >= 15
    # All of 20 below the edit would be p = 0.048; those that never acted must not count towards it.
    assert found.rank is None or found.rank.p >= 1 / (1 + 20 - silent) - 1e-9


def test_an_edit_without_controls_is_refused(world):
    with pytest.raises(NeuronautError, match="has no controls"):
        draw_controls(world.subject, Edit.parse("pattern.0=uniform"), sources={}, count=3)
    quantile = Edit.parse("mlp.0:3+=1q")
    assert [*draw_controls(world.subject, quantile, sources={}, count=3)] == ["random directions"]


def test_next_tokens_are_the_likeliest_of_either_run(world, pairs):
    before, after = (last_logits(world.subject, batch)[0] for batch in (pairs.clean, pairs.corrupted))
    found = next_tokens(world.subject, before, after, top=2)
    parts = [part.softmax(-1) for part in (before, after)]
    assert {one.id for one in found} == {*(int(id) for part in parts for id in part.topk(2).indices)}
    for one in found:
        assert one.before == pytest.approx(float(parts[0][one.id])) and one.token == world.subject.vocabulary[one.id]
        assert one.after == pytest.approx(float(parts[1][one.id]))
    highest = [max(one.before, one.after or 0) for one in found]
    assert highest == sorted(highest, reverse=True)
    alone = next_tokens(world.subject, before, None, top=3)
    assert [one.id for one in alone] == torch.topk(before, 3).indices.tolist() and alone[0].after is None
    with pytest.raises(NeuronautError, match="top 0"):
        next_tokens(world.subject, before, None, top=0)
