"""Golden numbers of GPT-2 small, as published or recorded elsewhere: notes/interventions.md, section 4.

Opt-in, because the weights are not here: NEURONAUT_GPT2 names a folder that holds them with their tokenizer, and
without it every test is skipped. All is in float32 with BOS first. Where a source gives no figure, or one of another
data set, what is asserted is a set of heads or a bound, and the test says so.
"""

import os

import pytest
import torch

from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Grid, sites_of
from neuronaut.causal.heads import HeadScore, Kind, head_scores, repeated_tokens
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.measures import Effect
from neuronaut.causal.prompts import Batch, Pairs, single_token
from neuronaut.causal.runs import logits_at
from neuronaut.causal.sweeps import sweep
from neuronaut.subject.model import Subject
from tests.test_oracles import fold_value_biases

FOLDER = os.environ.get("NEURONAUT_GPT2", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="NEURONAUT_GPT2 names no folder with the weights of GPT-2 small")

FRAMES = (
    ("When {} and {} went to the shops, {} gave the bag to", " John", " Mary"),
    ("When {} and {} went to the park, {} gave the ball to", " Tom", " James"),
    ("When {} and {} went to the shops, {} gave an apple to", " Dan", " Sid"),
    ("After {} and {} went to the park, {} gave a drink to", " Martin", " Amy"),
)
"""Those of TransformerLens' Activation_Patching_in_TL_Demo, cell 15. Each is asked twice, with either name as giver."""
GIVER = -5
"""The only position where a clean prompt and its corrupted one differ."""


@pytest.fixture(scope="module")
def gpt2() -> Subject:
    return Subject.load(FOLDER, name="gpt2")


def ioi(subject: Subject) -> Pairs:
    """The 8 prompts; the corrupted prompt is the one with the other giver."""
    rows: list[tuple[str, str, str, str]] = []
    for frame, *names in FRAMES:
        first, second = (name.strip() for name in names)
        texts = [frame.format(first, second, giver) for giver in (first, second)]
        rows += [(texts[0], texts[1], names[1], names[0]), (texts[1], texts[0], names[0], names[1])]
    return Pairs.of(subject, rows)


def test_logit_difference_of_the_eight_prompts(gpt2: Subject) -> None:
    pairs = ioi(gpt2)
    for batch, wanted in ((pairs.clean, 3.5519), (pairs.corrupted, -3.5519)):
        logits = logits_at(gpt2, batch.tokens, batch.last)
        right, wrong = (logits.gather(1, ids[:, None]) for ids in (pairs.answers, pairs.wrong))
        assert float((right - wrong).mean()) == pytest.approx(wanted, abs=1e-3)


def test_logit_attribution_of_heads() -> None:
    """TransformerLens' Direct_Logit_Attribution_Demo, cell 18: Mary less John, heads without b_V W_O.

    Its b_V holds the bias of the norm before it, too, times W_V; `fold_value_biases` takes both away.
    """
    subject = Subject.load(FOLDER, name="gpt2")
    fold_value_biases(subject.model)
    batch = Batch.of(subject, ["When John and Mary went to the shops, John gave the bag to"])
    found = logit_attribution(
        subject,
        batch,
        token=single_token(subject, " Mary"),
        against=single_token(subject, " John"),
        split=sites_of(subject, "head"),
    )
    values = dict(zip(found.components, found.values[0].tolist(), strict=True))
    wanted = {
        "9:9": 1.9583,
        "9:6": 1.6281,
        "10:7": -1.4267,
        "11:1": -0.9117,
        "11:10": -0.9042,
        "10:0": 0.6370,
        "10:10": 0.4524,
        "8:10": 0.4264,
    }
    assert {unit: values[f"head.{unit}"] for unit in wanted} == pytest.approx(wanted, abs=2e-3)


def scored(subject: Subject, kind: Kind) -> tuple[HeadScore, ...]:
    return head_scores(subject, repeated_tokens(subject, rows=4), kinds=(kind,))


def test_the_previous_token_head(gpt2: Subject) -> None:
    """That 4.11 is the strongest is known of text; random tokens serve as well."""
    assert scored(gpt2, "previous")[0].unit == "head.4:11"


def test_the_induction_heads(gpt2: Subject) -> None:
    """Figures of others' random tokens are 0.91 to 0.93, so a bound is asserted."""
    strong = {one.unit for one in scored(gpt2, "induction") if one.score.value > 0.8}
    assert {"head.5:5", "head.6:9", "head.7:10", "head.5:1"} <= strong


def test_name_movers_are_among_the_heads_that_patching_finds(gpt2: Subject) -> None:
    """At the last position. The paper's heads are known, their ranks here are not: a bound is asserted."""
    grid = Grid.of(Edit.parse("head.0:0=patch@last"), sites=sites_of(gpt2, "head"), units=range(12))
    found = sweep(gpt2, ioi(gpt2), grid, directions=("denoise",))
    recovered = dict(zip(grid.labels, found.values("logit_difference", "denoise"), strict=True))
    first = [cell.labels for cell in found.top(20, metric="logit_difference", direction="denoise")]
    for mover in (("head.9", "9"), ("head.9", "6"), ("head.10", "0")):
        assert mover in first and recovered[mover] > 0
    for negative in (("head.10", "7"), ("head.11", "10")):
        assert negative in first and recovered[negative] < 0


def test_the_giver_moves_to_the_end(gpt2: Subject) -> None:
    """It is read at its own position before layer 7, and at the last one after layer 8; the bounds are ours."""
    edit = Edit.parse("resid_pre.0=patch")
    grid = Grid.of(edit, sites=sites_of(gpt2, "resid_pre"), positions=(GIVER, "last"))
    found = sweep(gpt2, ioi(gpt2), grid, directions=("denoise",))
    effects = [cell.effect("logit_difference", "denoise") for cell in found.cells]
    assert all(isinstance(one, Effect) for one in effects)
    giver, last = torch.tensor([one.recovered for one in effects]).unflatten(0, (12, 2)).T
    assert giver[0] == pytest.approx(1, abs=1e-3) and last[0] == pytest.approx(0, abs=1e-3)
    assert giver[:6].min() > 0.5 > last[:6].max() and last[10:].min() > 0.5 > giver[10:].max()
