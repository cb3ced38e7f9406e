"""Metrics against their formulas, fractions that are withheld, intervals that cover, controls that are fair."""

import math
import random

import numpy as np
import pytest
import torch

from neuronaut.causal.controls import other_units, population, random_directions, rank_among
from neuronaut.causal.edits import Edit
from neuronaut.causal.measures import METRICS, Question, divergence, effect, mean, metric, text_loss
from neuronaut.causal.prompts import Batch
from neuronaut.causal.runs import separately
from neuronaut.subject.errors import NeuronautError
from tests.families import FAMILIES, tiny_subject, tiny_tokens

LOGITS = torch.randn((5, 30), generator=torch.Generator().manual_seed(0)) * 3
PLAIN = torch.randn((5, 30), generator=torch.Generator().manual_seed(1)) * 3
ANSWERS, WRONG = torch.tensor([3, 0, 29, 7, 7]), torch.tensor([4, 1, 28, 8, 0])


def by_hand(name: str, row: int) -> float:
    x, plain = LOGITS[row].double().numpy(), PLAIN[row].double().numpy()
    answer, wrong = int(ANSWERS[row]), int(WRONG[row])
    p, q = (np.exp(v) / np.exp(v).sum() for v in (x, plain))
    return {
        "logit_difference": x[answer] - x[wrong],
        "log_probability": math.log(p[answer]),
        "probability_difference": p[answer] - p[wrong],
        "kl": sum(q * np.log(q / p)),
        "rank": sorted(x, reverse=True).index(x[answer]),
        "loss": -math.log(p[answer]),
    }[name]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_its_formula_for_each_example(name: str) -> None:
    found = metric(name)(LOGITS, Question(ANSWERS, WRONG, PLAIN))
    assert found.tolist() == pytest.approx([by_hand(name, row) for row in range(5)], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [1e-7, 1e-4, 1e-2, 1.0, 30.0, 200.0])
def test_a_divergence_is_never_below_zero_however_small_or_large(size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    plain = 3 * torch.randn((20, 5000), generator=generator)
    edited = plain + size * torch.randn(plain.shape, generator=generator)
    p, q = (logits.log_softmax(-1) for logits in (plain, edited))
    found, wanted = divergence(p, q), (p.double().exp() * (p.double() - q.double())).sum(-1)
    assert (found >= 0).all() and (divergence(p, p) == 0).all()
    # The plain formula is good to float32 in float64 too: the log-probabilities are rounded.
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_metrics_say_what_they_lack() -> None:
    with pytest.raises(NeuronautError, match="needs 'wrong'"):
        metric("logit_difference")(LOGITS, Question(ANSWERS))
    with pytest.raises(NeuronautError, match="needs 'plain'"):
        metric("kl")(LOGITS, Question(ANSWERS, WRONG))
    with pytest.raises(NeuronautError, match="no metric 'logit'; there are logit_difference"):
        metric("logit")
    assert len({one.formula for one in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_a_text_is_transformers_own(family: str) -> None:
    subject = tiny_subject(family)
    batch = Batch.of(subject, [tiny_tokens()[0].tolist(), tiny_tokens()[1, :7].tolist()])
    found = text_loss(subject.logits(batch.tokens), batch)
    with torch.no_grad():
        own = [float(subject.model(row, labels=row).loss) for row in (torch.tensor([ids]) for ids in batch.ids())]
    assert found.tolist() == pytest.approx(own, rel=1e-4)


# --- effects -------------------------------------------------------------------------------------


def test_fractions_in_both_directions() -> None:
    clean, corrupted, patched = torch.tensor([4.0, 2.0]), torch.tensor([0.0, -2.0]), torch.tensor([3.0, 1.0])
    denoised, noised = (
        effect("logit_difference", clean=clean, corrupted=corrupted, patched=patched, direction=direction)
        for direction in ("denoise", "noise")
    )
    assert denoised.recovered == pytest.approx((2 - -1) / (3 - -1))
    assert noised.recovered == pytest.approx((3 - 2) / (3 - -1))
    assert (denoised.clean, denoised.corrupted, denoised.patched) == ((4, 2), (0, -2), (3, 1))
    assert denoised.n == 2 and denoised.formula != noised.formula
    assert denoised.interval == pytest.approx((0.75, 0.75))


def test_a_fraction_of_nothing_is_withheld() -> None:
    same = torch.tensor([1.0, 3.0])
    found = effect("loss", clean=same, corrupted=same.flip(0), patched=same + 9, direction="denoise")
    assert (found.recovered, found.interval) == (None, None)
    assert "below 0.001" in str(found.reason)
    assert found.patched == (10, 12)
    # Two examples that pull in opposite directions: the mean has a sign, a resample may not.
    torn = effect(
        "loss", clean=torch.tensor([5.0, 0.0]), corrupted=torch.tensor([0.0, 4.0]), patched=same, direction="noise"
    )
    assert torn.recovered is not None and torn.interval is None and "no interval" in str(torn.reason)
    alone = effect(
        "loss", clean=torch.tensor([1.0]), corrupted=torch.tensor([0.0]), patched=torch.tensor([1.0]), direction="noise"
    )
    assert (alone.recovered, alone.interval, alone.reason) == (0, None, "one example has no interval")


def test_a_broken_run_is_never_a_number() -> None:
    good, broken = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    with pytest.raises(NeuronautError, match="no finite numbers"):
        effect("loss", clean=good, corrupted=good, patched=broken, direction="noise")
    with pytest.raises(NeuronautError, match="no finite numbers"):
        mean([])


def test_a_mean_has_its_interval_and_its_seed() -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(2)) + 1
    found = mean(values, seed=3)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.interval is not None
    half = 1.96 * float(values.std()) / 40**0.5
    assert found.interval == pytest.approx((found.value - half, found.value + half), abs=0.08)
    assert mean(values, seed=3) == found != mean(values, seed=4)
    assert mean([2.0]).interval is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = torch.Generator().manual_seed(4)
    covered = 0
    for seed in range(200):
        interval = mean(torch.randn(30, generator=generator) + 0.3, seed=seed).interval
        assert interval is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


# --- controls --------------------------------------------------------------------------------------


def test_other_units_are_as_many_of_the_same_site_and_never_the_real_ones() -> None:
    subject = tiny_subject()
    edit = Edit.parse("mlp.1:3,8=mean@last")
    drawn = other_units(edit, population=population(subject, edit, sources={}), count=30, seed=5)
    assert len({one.units for one in drawn}) == 30
    assert all(len(set(one.units or ())) == 2 and not {3, 8} & set(one.units or ()) for one in drawn)
    assert {one.model_copy(update={"units": (3, 8)}) for one in drawn} == {edit}
    assert drawn == other_units(edit, population=96, count=30, seed=5)
    heads = other_units(
        Edit.parse("head.1:2=0"), population=population(subject, Edit.parse("head.1:2=0"), sources={}), count=20
    )
    assert {one.units for one in heads} == {(0,), (1,), (3,)}
    for text in ("mlp.1=0", "head.1:0,1,2=0"):
        with pytest.raises(NeuronautError, match="use random directions instead"):
            other_units(Edit.parse(text), population=4, count=3)


def test_random_directions_differ_and_a_pattern_has_none() -> None:
    drawn = random_directions(Edit.parse("resid_post.1+=noise"), count=5, seed=1)
    assert len({one.control for one in drawn}) == 5
    with pytest.raises(NeuronautError, match="no directions"):
        random_directions(Edit.parse("pattern.1:0=0"), count=5)


def test_standing_ranks_by_size_and_never_gives_p_zero() -> None:
    found = rank_among(-3.0, [1, -2, 3, 4])
    assert (found.percentile, found.p) == (62.5, 3 / 5)
    assert rank_among(10, [1.0] * 19).p == pytest.approx(0.05)
    assert rank_among(0, [0.0] * 9).p == 1
    with pytest.raises(NeuronautError, match="no controls"):
        rank_among(1, [])


def test_planted_negatives_are_significant_no_more_often_than_they_should_be() -> None:
    """A neuron chosen at random causes nothing in particular, and a neuron without output weights causes nothing."""
    subject = tiny_subject("gpt2_n_inner")
    silent, width = 17, subject.width("mlp.2")
    with torch.no_grad():
        subject.model.transformer.h[2].mlp.c_proj.weight[silent] = 0
    batch = Batch(tiny_tokens(2, 8), torch.tensor([8, 8]))
    shifts, reports = separately(
        subject,
        batch,
        [Edit.parse(f"mlp.2:{unit}+=2") for unit in range(width)],
        lambda logits: metric("log_probability")(logits, Question(torch.tensor([5, 9]))),
        at_once=80,
    )
    plain = metric("log_probability")(subject.logits(batch.tokens)[:, -1], Question(torch.tensor([5, 9])))
    effects = (shifts - plain).mean(1).tolist()
    assert effects[silent] == pytest.approx(0, abs=1e-5)
    assert min(report.max_change for report in reports) > 1.9
    rng, significant = random.Random(0), 0
    for _ in range(200):
        real, *controls = rng.sample(range(width), 40)
        significant += rank_among(effects[real], [effects[unit] for unit in controls]).p <= 0.05
        assert rank_among(effects[silent], [effects[unit] for unit in controls if unit != silent]).p > 0.9
    # Binomial with 200 tries of 0.05: more than 18 has a chance of less than 1%.
    assert significant <= 18
