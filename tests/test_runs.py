"""Prompts, runs that begin in the middle, patching in both directions, and records that run again to the bit."""

from typing import Any

import pytest
import torch

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import apply
from neuronaut.causal.measures import Question, fidelity, metric, text_loss
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.records import Outcome, Trial, replay, run
from neuronaut.causal.runs import compare, gather, logits_at, patching, read_source_run, resumable, resume, separately
from neuronaut.subject.errors import NeuronautError
from tests.circuits import Circuit, gate, induction
from tests.families import FAMILIES, tiny_subject, tiny_tokens
from tests.test_edits import SAE

TOKENS = tiny_tokens()
TOKENS[:, 0] = 0  # BOS
BATCH = Batch(TOKENS, torch.tensor([12, 12, 12]))
every_family = pytest.mark.parametrize("family", FAMILIES)


# --- prompts -------------------------------------------------------------------------------------


@every_family
def test_padding_and_company_change_no_result(family: str) -> None:
    subject = tiny_subject(family)
    rows = [tiny_tokens(1, length, seed=length)[0].tolist() for length in (3, 11, 7, 5)]
    edits = [Edit.parse(text) for text in ("head.1:2=0@last", "mlp.0:5+=2@1", "pattern.2:1=knockout@last>-2")]
    together = compare(subject, Batch.of(subject, rows), edits)
    for place, ids in enumerate(rows):
        alone = compare(subject, Batch.of(subject, [ids]), edits)
        torch.testing.assert_close(together.after[place], alone.after[0], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(together.before[place], alone.before[0], rtol=1e-5, atol=2e-5)


@every_family
def test_rows_of_many_lengths_take_one_positions_logits_each(family: str) -> None:
    subject, shapes = tiny_subject(family), []
    rows = Batch.of(subject, [tiny_tokens(1, length, seed=length)[0].tolist() for length in range(1, 9)])
    whole = subject.logits(rows.tokens)[torch.arange(8), rows.last]
    head = subject.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    with head.register_forward_hook(lambda _module, _args, output: shapes.append(tuple(output.shape))):
        found = logits_at(subject, rows.tokens, rows.last)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=2e-5)
    assert shapes == [(8, 1, whole.shape[1])] and not head._forward_pre_hooks


@every_family
def test_rows_padded_on_either_side_are_the_same_rows(family: str) -> None:
    subject = tiny_subject(family)
    rows = [tiny_tokens(1, length, seed=length)[0].tolist() for length in (3, 9, 6)]
    wanted = Batch.of(subject, rows)
    for side in ("left", "right"):
        filled = [[7] * (9 - len(r)) + r if side == "left" else r + [7] * (9 - len(r)) for r in rows]
        ones = [
            [0] * (9 - len(r)) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * (9 - len(r)) for r in rows
        ]
        tokens, mask = torch.tensor(filled), torch.tensor(ones)
        found = Batch.from_padded(tokens, mask)
        assert torch.equal(found.tokens, wanted.tokens) and torch.equal(found.lengths, wanted.lengths)
    # transformers' own forward over the left-padded rows, at their last positions.
    left = torch.tensor([[7] * (9 - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (9 - len(r)) + [1] * len(r) for r in rows])
    places = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        own = subject.model(left, attention_mask=mask, position_ids=places, use_cache=False).logits[:, -1]
    torch.testing.assert_close(logits_at(subject, wanted.tokens, wanted.last), own, rtol=1e-4, atol=1e-4)


def test_pairs_are_aligned_or_name_the_token() -> None:
    subject = induction("gpt2").subject
    pairs = Pairs.of(subject, [("w1 w2 w3 w1", "w4 w2 w3 w1", "w2", "w5"), ("w3 w4", "w4 w3", "w1", "w2")])
    assert pairs.clean.ids()[0] == [0, 1, 2, 3, 1] and len(pairs) == 2
    assert (pairs.answers.tolist(), pairs.wrong.tolist()) == ([2, 1], [5, 2])
    with pytest.raises(
        NeuronautError, match=r"pair 1 is not aligned: 5 clean .* 6 corrupted; from position 3 on .*'w4w5'"
    ):
        Pairs.of(subject, [("w1", "w2", "w3", "w4"), ("w1 w2 w3 w6", "w1 w2 w4 w5 w6", "w1", "w2")])
    with pytest.raises(NeuronautError, match="2 tokens .* wanted one"):
        Pairs.of(subject, [("w1", "w2", "w1 w2", "w4")])


def test_answers_stand_where_they_are_asked() -> None:
    subject = tiny_subject()
    found = logits_at(subject, TOKENS, torch.tensor([3, 11, 3]))
    whole = subject.logits(TOKENS)
    torch.testing.assert_close(found, torch.stack([whole[0, 3], whole[1, 11], whole[2, 3]]))


# --- beginning in the middle ---------------------------------------------------------------------


@every_family
def test_a_run_that_begins_in_the_middle_is_the_whole_run(family: str) -> None:
    subject = tiny_subject(family)
    assert resumable(subject) is None
    whole, deeper = subject.logits(TOKENS), subject.read(TOKENS, ["resid_post.2"])["resid_post.2"]
    for layer in (1, 2, 3):
        site = f"resid_post.{layer - 1}"
        residual = subject.read(TOKENS, [site])[site]
        with resume(subject, layer, residual):
            torch.testing.assert_close(subject.logits(TOKENS), whole, rtol=1e-5, atol=1e-5)
            if layer < 3:
                again = subject.read(TOKENS, ["resid_post.2"])["resid_post.2"]
                torch.testing.assert_close(again, deeper, rtol=1e-5, atol=1e-5)
    edit = [Edit.parse("head.2:1=0"), Edit.parse("pattern.2:0=uniform")]
    wanted = compare(subject, BATCH, edit).after
    residual = subject.read(TOKENS, ["resid_pre.2"])["resid_pre.2"]
    with resume(subject, 2, residual), apply(subject, BATCH, edit):
        torch.testing.assert_close(logits_at(subject, TOKENS, BATCH.last), wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(subject.logits(TOKENS), whole)


def test_resuming_runs_the_later_blocks_only_and_from_what_is_given() -> None:
    subject = tiny_subject()
    ran: list[int] = []
    for layer, block in enumerate(subject.model.transformer.h):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    residual = subject.read(TOKENS, ["resid_pre.2"])["resid_pre.2"]
    resumable(subject)
    ran.clear()
    with resume(subject, 2, residual):
        plain = subject.logits(TOKENS)
    assert ran == [2]
    with resume(subject, 2, residual * 2):
        assert not torch.allclose(subject.logits(TOKENS), plain, atol=0.1)


def test_what_was_left_out_cannot_be_edited_or_read() -> None:
    subject = tiny_subject()
    blocks = subject.model.transformer.h
    residual = subject.read(TOKENS, ["resid_pre.2"])["resid_pre.2"]
    for text in ("mlp.1:3=0", "resid_post.1=0", "embed=0"):
        with (
            pytest.raises(NeuronautError, match="fired 0 times"),
            resume(subject, 2, residual),
            apply(subject, BATCH, [Edit.parse(text)]),
        ):
            subject.logits(TOKENS)
    with pytest.raises(NeuronautError, match="fired 0 times"), resume(subject, 2, residual):
        subject.read(TOKENS, ["mlp.0"])
    with pytest.raises(NeuronautError, match="as many rows and positions"), resume(subject, 2, residual):
        subject.logits(TOKENS[:2])
    with pytest.raises(NeuronautError, match="nothing to leave out"), resume(subject, 0, residual):
        pass
    assert subject.model.transformer.h is blocks


def test_a_model_whose_blocks_cannot_be_left_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject()
    base: Any = subject.model.base_model
    forward = base.forward

    def nosy(*args: Any, **kwargs: Any) -> Any:
        base.h[0].attn.c_attn.weight.sum()
        return forward(*args, **kwargs)

    monkeypatch.setattr(base, "forward", nosy)
    with pytest.raises(NeuronautError, match="gpt2 cannot be resumed: .*AttributeError"), resume(subject, 2, TOKENS):
        pass
    assert "left out" in str(resumable(subject))


# --- patching ------------------------------------------------------------------------------------


def pairs_of(circuit: Circuit) -> Pairs:
    batches = [Batch(rows, torch.full((len(rows),), rows.shape[1])) for rows in (circuit.clean, circuit.corrupted)]
    return Pairs.aligned(circuit.subject, *batches, circuit.answer, circuit.wrong)


def recovered(circuit: Circuit, *texts: str) -> tuple[float | None, float | None]:
    both = patching(circuit.subject, pairs_of(circuit), [Edit.parse(text) for text in texts], may_idle=True)
    return tuple(both[direction].effects["logit_difference"].recovered for direction in ("denoise", "noise"))


@pytest.mark.parametrize(("kind", "one", "two"), [("or", (1.0, 0.0), (1.0, 1.0)), ("and", (0.0, 1.0), (1.0, 1.0))])
def test_gates_show_why_both_directions_are_needed(kind: Any, one: tuple[float, ...], two: tuple[float, ...]) -> None:
    circuit = gate(kind)
    for head in (0, 1):
        assert recovered(circuit, f"head.0:{head}=patch@last") == pytest.approx(one, abs=1e-3)
    assert recovered(circuit, "head.0:0=patch@last", "head.0:1=patch@last") == pytest.approx(two, abs=1e-3)
    assert recovered(circuit, "head.0:0,1=patch") == pytest.approx(two, abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_induction_circuit_is_found_by_patching(family: Any) -> None:
    circuit = induction(family)
    for unit in circuit.matters:
        denoised, noised = recovered(circuit, f"{unit}=patch")
        assert denoised is not None and noised is not None and max(denoised, noised) > 0.9
    for unit in circuit.inert:
        assert recovered(circuit, f"{unit}=patch") == pytest.approx((0, 0), abs=1e-3)


def test_a_patch_of_everything_is_the_other_run() -> None:
    subject = tiny_subject()
    clean, corrupted = BATCH, Batch(TOKENS.roll(1, 0), BATCH.lengths)
    pairs = Pairs.aligned(subject, clean, corrupted, torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9]))
    both = patching(subject, pairs, [Edit.parse("resid_post.1=patch@every"), Edit.parse("pattern.1=patch@every")])
    for direction, other in (("denoise", "clean"), ("noise", "corrupted")):
        for name, found in both[direction].effects.items():
            assert found.patched == pytest.approx(getattr(found, other), abs=1e-5), name
            assert found.recovered == pytest.approx(1, abs=1e-4)


def test_edits_run_beside_each_other_as_alone() -> None:
    subject = tiny_subject("qwen3")
    corrupted = Batch(TOKENS.roll(1, 0), BATCH.lengths)
    edits = [
        Edit.parse(f"head.{layer}:{head}=patch@{at}") for layer in (0, 2) for head in range(4) for at in ("3", "last")
    ]
    edits += [Edit.parse("mlp.1:3*=1"), Edit.parse("pattern.1:2=uniform"), Edit.parse("resid_post.0=patch@2-4")]
    materials = gather(subject, edits, source_run=corrupted)
    question = Question(torch.tensor([4, 5, 6]), torch.tensor([7, 8, 9]))
    found, reports = separately(
        subject,
        BATCH,
        edits,
        lambda logits: metric("logit_difference")(logits, question),
        materials=materials,
        at_once=20,
    )
    for edit, values, report in zip(edits, found, reports, strict=True):
        with apply(subject, BATCH, [edit], materials=materials, may_idle=True) as ledger:
            alone = metric("logit_difference")(logits_at(subject, TOKENS, BATCH.last), question)
        torch.testing.assert_close(values, alone, rtol=1e-5, atol=1e-5)
        assert report.places == ledger.reports[0].places
        assert report.max_change == pytest.approx(ledger.reports[0].max_change, rel=1e-4)
    assert reports[16].max_change == 0


def test_donors_and_reference_are_read_where_edits_need_them() -> None:
    subject = tiny_subject()
    batch = Batch.of(subject, [[0, 4, 5, 6], [0, 7]])
    edits = [Edit.parse(text) for text in ("mlp.1:3=mean", "head.0=patch", "pattern.2=patch", "resid_pre.1:2=3")]
    found = gather(subject, edits, reference=batch, source_run=batch)
    read = subject.read(batch.tokens, ["mlp.1"])["mlp.1"]
    assert torch.equal(found.reference["mlp.1"], torch.stack([read[0, 1], read[0, 2], read[0, 3], read[1, 1]]))
    assert set(found.reference) == {"mlp.1"} and set(found.source_runs) == {"head.0", "pattern.2"}
    assert set(read_source_run(subject, batch, ["embed"])) == {"embed"}


# --- records -------------------------------------------------------------------------------------


def trial(*texts: str) -> Trial:
    rows = tuple(tuple(row) for row in TOKENS.tolist())
    return Trial(
        prompts=rows,
        edits=tuple(Edit.parse(text) for text in texts),
        metrics=("logit_difference", "kl", "rank"),
        answers=(4, 5, 6),
        wrong=(7, 8, 9),
        source_runs=(rows[1], rows[2], rows[0]),
        reference=rows[:2],
        directions={"way": tuple(float(n) for n in range(-12, 12))},
    )


TRIAL = trial(
    "resid_post.1@sae:1+=1.5q99@last",
    "head.0:2=resample#3",
    "mlp.2=patch@4-6",
    "pattern.1:0=knockout@last>0",
    "resid_pre.1:way*=2~4",
    "mlp.0:1-9+=noise",
)
SOURCES = {"resid_post.1@sae": SAE}


def test_a_stored_record_runs_again_to_the_bit() -> None:
    stored = run(tiny_subject(), TRIAL, sources=SOURCES).model_dump_json()
    outcome = Outcome.load(stored)
    again = replay(tiny_subject(), outcome, sources=SOURCES)
    assert again == outcome and again.model_dump_json() == stored
    assert outcome.before != outcome.after
    assert [one.fired for one in outcome.done] == [1] * 6
    provenance = outcome.provenance
    assert (provenance.attention, provenance.dtype, provenance.device) == ("eager", "float32", "cpu")
    assert provenance.dictionaries == {"resid_post.1@sae": SAE.revision}
    assert provenance.revision == tiny_subject().revision
    assert set(provenance.formulas) == {"logit_difference", "kl", "rank"}


def test_a_feature_result_says_what_its_dictionary_leaves_out() -> None:
    subject = tiny_subject()
    (found,) = run(subject, TRIAL, sources=SOURCES).dictionaries.values()
    vectors = subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]
    rebuilt = vectors.clone()
    rebuilt[:, 1:] = SAE.reconstruct(vectors[:, 1:].flatten(0, 1)).view_as(vectors[:, 1:])
    seen = vectors[:, 1:].flatten(0, 1)
    left = (vectors - rebuilt).square().sum() / (seen - seen.mean(0)).square().sum()
    assert found.unexplained == pytest.approx(float(left), rel=1e-4)
    with subject.editing({"resid_post.1": lambda _: rebuilt}):
        wanted = text_loss(subject.logits(TOKENS), BATCH).mean()
    assert found.rebuilt_loss == pytest.approx(float(wanted), rel=1e-5)
    assert found.loss == pytest.approx(float(text_loss(subject.logits(TOKENS), BATCH).mean()), rel=1e-5)
    alone = fidelity(subject, SAE, Batch.of(subject, [[7]]))
    assert (alone.unexplained, alone.loss, alone.rebuilt_loss) == (None, None, None)
    with pytest.raises(NeuronautError, match="no next token"):
        text_loss(subject.logits(torch.tensor([[7]])), Batch.of(subject, [[7]]))


def test_a_record_is_not_run_on_something_else() -> None:
    outcome = run(tiny_subject(), TRIAL, sources=SOURCES)
    with pytest.raises(NeuronautError, match="made with revision"):
        replay(tiny_subject(seed=1), outcome, sources=SOURCES)
    with pytest.raises(NeuronautError, match="made with dictionaries"):
        replay(tiny_subject(), outcome)
    changed = outcome.model_copy(
        update={"trial": trial("mlp.0:1=0").model_copy(update={"prompts": TRIAL.prompts[::-1]})}
    )
    with pytest.raises(NeuronautError, match="made with"):
        replay(tiny_subject(), changed, sources=SOURCES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": (1,)}, "not as many answers"),
        ({"answers": (1, 2, 900)}, "no token of"),
        ({"source_runs": ((1, 2), (3, 4), (5, 6))}, "not aligned"),
        ({"metrics": ("nice",)}, "no metric 'nice'"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(NeuronautError, match=says):
        run(tiny_subject(), TRIAL.model_copy(update=change), sources=SOURCES)


def test_a_damaged_record_is_one_line() -> None:
    with pytest.raises(NeuronautError, match="no stored outcome: trial") as caught:
        Outcome.load("{}")
    assert "\n" not in str(caught.value)
