"""Edits as text and JSON, every operation against its definition done by hand, rows apart, no silent no-op."""

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from neuronaut.causal.edits import Edit
from neuronaut.causal.intervene import Materials, RowEdit, apply
from neuronaut.causal.prompts import Batch
from neuronaut.subject.address import SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.families import D_HEAD, D_MODEL, FAMILIES, HEADS, tiny_subject, tiny_tokens

TOKENS = tiny_tokens()
TOKENS[:, 0] = 0  # BOS
BATCH = Batch(TOKENS, torch.tensor([12, 12, 12]))
every_family = pytest.mark.parametrize("family", FAMILIES)


def dictionary(site: str = "resid_post.1", *, width: int = D_MODEL, features: int = 40) -> Dictionary:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Dictionary(
        id=SourceId("gpt2", site, "sae"),
        kind="standard",
        W_enc=draw(features, width).T / 5,
        W_dec=draw(features, width),
        b_enc=draw(features) + 1,
        b_dec=draw(width),
    )


def edited(subject: Subject, *edits: str | RowEdit, materials: Materials | None = None, batch: Batch = BATCH) -> Tensor:
    parsed = [Edit.parse(edit) if isinstance(edit, str) else edit for edit in edits]
    with apply(subject, batch, parsed, materials=materials or Materials(), may_idle=True):
        return subject.logits(batch.tokens)


# --- text and JSON -----------------------------------------------------------------------------

TEXTS = (
    "mlp.2:17=0",
    "head.1:3=mean@last",
    "resid_post.2@sae:40*=2",
    "resid_post.2@sae:40+=1.5q",
    "mlp.2:17=patch",
    "mlp.0:3-5,9-=0..3q99@1,4,-2",
    "pattern.1:3=knockout@last>0",
    'mlp.2=patch@" Ma\\"ry"~3',
    "embed:[0.5,-1]=2",
    "resid_pre.1:truth>=-1.5",
    "mlp.2:1<=0.25q99.9",
    "pattern.0=uniform",
    "score.1:2+=1.5@last>0",
    "key.1:0=0",
    "pattern.0:1=0.5@every>2-4",
    "resid_post.1@res-jb/x+=2noise#4",
    "resid_post.1=resample#7~0",
    "head.0:1,3*=0@2-5",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_json_say_the_same(text: str) -> None:
    edit = Edit.parse(text)
    assert str(edit) == text
    assert Edit.parse(edit.model_dump_json()) == edit == Edit.load(edit.model_dump())


def test_text_means_what_the_grammar_says() -> None:
    edit = Edit.parse("mlp.0:3-5,9-=0..3q99@1,4,-2")
    assert edit == Edit(
        site="mlp.0",
        units=(3, 4, 5, 9),
        negative=True,
        operation="clamp",
        low=0,
        high=3,
        quantile=99,
        positions="1,4,-2",
    )
    assert Edit.parse("mlp.0:1=zero") == Edit.parse("mlp.0:1=0.0") == Edit(site="mlp.0", units=(1,), operation="zero")
    assert Edit.parse("resid_post.2@sae:40+=1.5q") == Edit(
        site="resid_post.2", dictionary="sae", units=(40,), operation="add", value=1.5, quantile=100
    )
    assert Edit.parse("embed:1+=noise").value == 1


numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: 0.5 if x == 0 else x)


@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.integers(0, 3000), min_size=1, max_size=6, unique=True).map(tuple),
    value=numbers,
    quantile=st.none() | st.floats(0.001, 100),
    positions=st.sampled_from(("all", "every", "last", "3", "-4,-1", "2-5,7", '" a b>#~@"')),
    control=st.none() | st.integers(0, 99),
    operation=st.sampled_from(("set", "add")),
)
def test_any_edit_survives_its_text(units, value, quantile, positions, control, operation) -> None:
    edit = Edit(
        site="mlp.1",
        units=units,
        operation=operation,
        value=value,
        quantile=quantile,
        positions=positions,
        control=control,
    )
    assert Edit.parse(str(edit)) == edit


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mlp.2:17", "SITE"),
        ("mlp.2:17=five", "some that are"),
        ("mlp.2:5-3=0", "rising ranges"),
        ("mlp.2:1=0@5-3", "rising ranges"),
        ("mlp.2:1=0@-3-1", "some that are"),
        ("head.1:3=2", "no one activation"),
        ("resid_post.1@sae=2", "no one activation"),
        ("mlp.2=+1", "no one activation"),
        ("mlp.2:1=uniform", "attention patterns"),
        ("pattern.1:2=mean", "a pattern takes"),
        ("score.1:2=knockout", "a score takes"),
        ("mlp.2:1=0@2>1", "only a pattern and scores have keys"),
        ("mlp.2:1=0#3", "a seed goes with"),
        ("mlp.2:1=3..1", "above high"),
        ("head.1:3-=0", "negative tail"),
        ("pattern.1:3-=0", "negative tail"),
        ('{"site": "mlp.2", "operation": "delete"}', "operation"),
        ('{"site": "mlp.2", "operation": "zero", "extra": 1}', "extra"),
        ('{"site": "mlp.2", "units": [1], "operation": "set", "value": NaN}', "finite"),
        ('{"site": "mlp.2", "operation": "zero", "positions": "somewhere"}', "positions"),
        ("{", "JSON"),
    ],
)
def test_what_makes_no_sense_is_one_line(text: str, says: str) -> None:
    with pytest.raises(NeuronautError, match=says) as caught:
        Edit.parse(text)
    assert "\n" not in str(caught.value)


# --- every operation by hand -------------------------------------------------------------------

SAE = dictionary()
DIRECTION = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(9))
REFERENCE = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(10))
PLACES = [(row, position) for row in range(3) for position in range(12) if position or TOKENS[row, 0] != 0]
Hand = Callable[[Tensor, Tensor], Tensor]
"""From a vector and the source run's at its place to the one that is wanted."""


def feature(x: Tensor, index: int = 9) -> Tensor:
    return ((x - SAE.b_dec) @ SAE.W_enc[:, index] + SAE.b_enc[index]).relu()


def towards(x: Tensor, wanted: Tensor | float) -> Tensor:
    return x + (wanted - feature(x)) * SAE.W_dec[9]


def along(x: Tensor) -> Tensor:
    return x @ DIRECTION / DIRECTION.norm() ** 2


def column(x: Tensor, index: int, value: Tensor | float) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


CODES = torch.stack([feature(x) for x in REFERENCE])
FIRING = torch.tensor([x for x in REFERENCE[:, 5].tolist() if x > 0])
HANDS: dict[str, Hand] = {
    "resid_post.1=0": lambda x, _: x * 0,
    "resid_post.1=patch": lambda _, source_run: source_run,
    "resid_post.1=mean": lambda _x, _d: REFERENCE.mean(0),
    "resid_post.1*=-2": lambda x, _: -2 * x,
    "resid_post.1:5=0": lambda x, _: column(x, 5, 0),
    "resid_post.1:5=3": lambda x, _: column(x, 5, 3),
    "resid_post.1:5-=3": lambda x, _: column(x, 5, -3),
    "resid_post.1:5-+=3": lambda x, _: column(x, 5, x[5] - 3),
    "resid_post.1:5=mean": lambda x, _: column(x, 5, REFERENCE[:, 5].mean()),
    "resid_post.1:5=patch": lambda x, source_run: column(x, 5, source_run[5]),
    "resid_post.1:5=-0.5..0.25": lambda x, _: column(x, 5, x[5].clamp(-0.5, 0.25)),
    "resid_post.1:5->=0.5": lambda x, _: column(x, 5, -max(-float(x[5]), 0.5)),
    "resid_post.1:5+=2q": lambda x, _: column(x, 5, x[5] + 2 * FIRING.max()),
    "resid_post.1:5=2q40": lambda x, _: column(x, 5, 2 * FIRING.quantile(0.4)),
    "resid_post.1@sae:9=0": lambda x, _: towards(x, 0),
    "resid_post.1@sae:9=3": lambda x, _: towards(x, 3),
    "resid_post.1@sae:9+=1.5q": lambda x, _: towards(x, feature(x) + 1.5 * CODES.max()),
    "resid_post.1@sae:9=mean": lambda x, _: towards(x, CODES.mean()),
    "resid_post.1@sae:9=patch": lambda x, source_run: towards(x, feature(source_run)),
    "resid_post.1:way=2": lambda x, _: x + (2 - along(x)) * DIRECTION,
    "resid_post.1:way=0": lambda x, _: x - along(x) * DIRECTION,
    "resid_post.1:way+=-3": lambda x, _: x - 3 * DIRECTION,
    "resid_post.1:way=patch": lambda x, source_run: x + (along(source_run) - along(x)) * DIRECTION,
}


@pytest.mark.parametrize("text", HANDS)
def test_an_operation_is_what_it_says(text: str) -> None:
    subject = tiny_subject()
    read = subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]
    source_run = subject.read(TOKENS.flip(1), ["resid_post.1"])["resid_post.1"]
    materials = Materials(
        sources={"resid_post.1@sae": SAE},
        directions={"way": DIRECTION},
        reference={"resid_post.1": REFERENCE},
        source_runs={"resid_post.1": source_run},
    )
    wanted = read.clone()
    for row, position in PLACES:
        wanted[row, position] = HANDS[text](read[row, position], source_run[row, position])
    with apply(subject, BATCH, [Edit.parse(text)], materials=materials) as ledger:
        found = subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]
        logits = subject.logits(TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)
    with subject.editing({"resid_post.1": lambda _: wanted}):
        torch.testing.assert_close(logits, subject.logits(TOKENS), rtol=1e-4, atol=1e-4)
    (report,) = ledger.reports
    assert report.fired == 2
    assert [(row, place) for row, places in report.places.items() for place in places] == PLACES
    assert report.max_change == pytest.approx(float((wanted - read).abs().max()), rel=1e-4)


def test_draws_come_from_the_reference_and_its_spread() -> None:
    subject = tiny_subject()
    materials = Materials(reference={"resid_post.1": REFERENCE})
    read = subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]

    def run(text: str) -> Tensor:
        with apply(subject, BATCH, [Edit.parse(text)], materials=materials):
            return subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]

    drawn = run("resid_post.1=resample@every#1")
    assert all(any(torch.equal(vector, one) for one in REFERENCE) for vector in drawn.flatten(0, 1))
    assert torch.equal(drawn, run("resid_post.1=resample@every#1"))
    assert not torch.equal(drawn, run("resid_post.1=resample@every#2"))
    scaled = (run("resid_post.1+=3noise@every") - read).flatten(0, 1) / REFERENCE.std(0, correction=0)
    assert float(scaled.std()) == pytest.approx(3, rel=0.1)


@every_family
def test_a_head_is_its_slice_of_the_input_of_the_output_projection(family: str) -> None:
    subject = tiny_subject(family)
    with apply(subject, BATCH, [Edit.parse("head.1:2=0@every")]):
        z = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
    plain = subject.read(TOKENS, ["head.1"])["head.1"].unflatten(-1, (HEADS, -1))
    assert z.shape[-1] == (
        D_HEAD
        if family not in ("gpt2", "gpt2_n_inner", "gpt_neox", "gpt_neox_sequential", "qwen2")
        else D_MODEL // HEADS
    )
    assert not z[:, :, 2].any()
    kept = [0, 1, 3]
    assert torch.equal(z[:, :, kept], plain[:, :, kept])


@every_family
def test_identity_edits_leave_every_bit(family: str) -> None:
    subject = tiny_subject(family)
    plain = subject.logits(TOKENS)
    for site in subject.sites:
        sae = dictionary(site, width=subject.width(site))
        own = Materials(sources={f"{site}@sae": sae}, source_runs=subject.read(TOKENS, [site]))
        for text in (
            f"{site}*=1",
            f"{site}=patch",
            f"{site}@sae:3=patch",
            f"{site}@sae:0-9>=0",
            f"{site}:[{'1,' * (subject.width(site) - 1)}2]*=1",
        ):
            assert torch.equal(edited(subject, text, materials=own), plain), text


def test_a_random_control_has_the_norm_of_the_change_and_one_direction() -> None:
    subject = tiny_subject()
    plain = subject.read(TOKENS, ["resid_post.1"])["resid_post.1"]

    def shift(text: str) -> Tensor:
        with apply(subject, BATCH, [Edit.parse(text)]):
            return (subject.read(TOKENS, ["resid_post.1"])["resid_post.1"] - plain)[:, 1:].flatten(0, 1)

    real, control = shift("resid_post.1=0"), shift("resid_post.1=0~5")
    torch.testing.assert_close(control.norm(dim=1), real.norm(dim=1), rtol=1e-4, atol=1e-4)
    unit = control / control.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, unit[:1].expand_as(unit), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(shift("resid_post.1=0~6"), control, atol=0.1)


# --- several edits, rows apart, resid_mid, gradients ---------------------------------------------


@every_family
def test_rows_with_edits_of_their_own_are_as_if_run_one_by_one(family: str) -> None:
    subject = tiny_subject(family)
    row = BATCH.take([0])
    materials = Materials(
        reference={f"head.{layer}": REFERENCE.repeat(1, 2)[:, : subject.width(f"head.{layer}")] for layer in range(3)}
    )
    edits = [
        Edit.parse(f"head.{layer}:{head}={operation}")
        for layer in range(3)
        for head in range(HEADS)
        for operation in ("0", "mean", "resample#1")
    ]
    together = BATCH.take([0] * len(edits))
    at_once = edited(
        subject, *(RowEdit(edit, (place,)) for place, edit in enumerate(edits)), materials=materials, batch=together
    )
    one_by_one = torch.cat([edited(subject, str(edit), materials=materials, batch=row) for edit in edits])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-5, atol=1e-5)
    assert len({tuple(logits.flatten().tolist()[:50]) for logits in at_once[:, -1]}) == len(edits)


def test_edits_of_one_site_work_in_their_order() -> None:
    subject = tiny_subject()
    found = []
    for edits in (("mlp.1:3=2", "mlp.1:3*=3", "mlp.1:3+=1"), ("mlp.1:3+=1", "mlp.1:3*=3", "mlp.1:3=2")):
        with apply(subject, BATCH, [Edit.parse(edit) for edit in edits]):
            found.append(subject.read(TOKENS, ["mlp.1"])["mlp.1"][0, 5, 3])
    assert found == [7, 2]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_neox"])
def test_resid_mid_is_changed_on_both_of_its_paths(family: str) -> None:
    subject = tiny_subject(family)
    values = subject.read(TOKENS, subject.sites)
    with apply(subject, BATCH, [Edit.parse("resid_mid.1=0@every")]):
        post = subject.read(TOKENS, ["mlp_out.1", "resid_post.1"])
    torch.testing.assert_close(post["resid_post.1"], post["mlp_out.1"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(post["mlp_out.1"], values["mlp_out.1"], atol=1e-3)


@every_family
def test_gradients_flow_through_edits_and_end_at_the_leaf(family: str) -> None:
    subject, leaves = tiny_subject(family), []

    def leaf(vectors: Tensor) -> Tensor:
        leaves.append(vectors.detach().requires_grad_())
        return leaves[-1]

    with subject.editing({"embed": leaf}), apply(subject, BATCH, [Edit.parse("resid_post.0=0@3")]):
        subject.run(TOKENS)[:, -1, 7].sum().backward()
    assert leaves[0].grad[:, 2].any() and leaves[0].grad.isfinite().all()
    with subject.editing({"embed": leaf}), apply(subject, BATCH, [Edit.parse("resid_post.0=0@every")]):
        subject.run(TOKENS)[:, -1, 7].sum().backward()
    assert not leaves[1].grad.any()


# --- positions -----------------------------------------------------------------------------------


def places_of(subject: Subject, rule: str, batch: Batch) -> dict[int, tuple[int, ...]]:
    with apply(subject, batch, [Edit.parse(f"mlp.0:1+=1@{rule}")]) as ledger:
        subject.logits(batch.tokens)
    return dict(ledger.reports[0].places)


def test_positions_count_real_tokens_and_leave_bos_out() -> None:
    subject = tiny_subject()
    batch = Batch.of(subject, [[0, 11, 12, 13, 12], [0, 12, 11], [14, 12, 11, 12]])
    assert places_of(subject, "all", batch) == {0: (1, 2, 3, 4), 1: (1, 2), 2: (0, 1, 2, 3)}
    assert places_of(subject, "every", batch) == {0: (0, 1, 2, 3, 4), 1: (0, 1, 2), 2: (0, 1, 2, 3)}
    assert places_of(subject, "last", batch) == {0: (4,), 1: (2,), 2: (3,)}
    assert places_of(subject, "0-1,-1", batch) == {0: (0, 1, 4), 1: (0, 1, 2), 2: (0, 1, 3)}
    line = subject.vocabulary.index("\n")
    broken = Batch.of(subject, [[0, 11, line, 13]])
    assert places_of(subject, '"\n"', broken) == places_of(subject, '"\\n"', broken) == {0: (2,)}
    assert str(Edit.parse('mlp.0:1=0@"\n"')) == 'mlp.0:1=0@"\\n"'
    word = subject.vocabulary[12].replace("\\", "\\\\").replace('"', '\\"')
    assert places_of(subject, f'"{word}"', batch) == {0: (2, 4), 1: (1,), 2: (1, 3)}
    with pytest.raises(NeuronautError, match="position 3 is outside row 1, which has 3 tokens"):
        places_of(subject, "3", batch)
    with pytest.raises(NeuronautError, match="no row has the token 'elephant'"):
        places_of(subject, '"elephant"', batch)


# --- nothing happens in silence, and nothing stays -----------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mpl.1:3=0", "has no site 'mpl.1'"),
        ("mlp.7:3=0", "has no site 'mlp.7'"),
        ("mlp.1:9999=0", "no unit 9999"),
        ("head.1:4=0", "no unit 4"),
        ("pattern.1:4=0", "no head 4"),
        ("pattern.9:0=0", "has no site 'head.9'"),
        ("mlp.1@none:3=0", "no dictionary mlp.1@none"),
        ("resid_post.1@sae:99=0", "no unit 99"),
        ("resid_post.1@sae:3-=0", "never below 0"),
        ("mlp.1:nowhere=0", "no direction 'nowhere'"),
        ("mlp.1:[1,2]=0", "wanted"),
        ("mlp.1=mean", "needs a reference at mlp.1"),
        ("mlp.1=patch", "needs a source run at mlp.1"),
        ("resid_post.1:0+=2q", "never above zero in the reference"),
        ("mlp.1:3*=1", "changed nothing"),
        ("mlp.1:3+=1e38", "no finite numbers"),
    ],
)
def test_an_edit_that_does_not_happen_is_an_error(text: str, says: str) -> None:
    subject = tiny_subject()
    materials = Materials(sources={"resid_post.1@sae": SAE}, reference={"resid_post.1": -torch.ones(4, D_MODEL)})
    with (
        pytest.raises(NeuronautError, match=says) as caught,
        apply(
            subject,
            BATCH,
            [Edit.parse(text), Edit.parse("mlp.1:3*=1e38")][: 2 if "e38" in text else 1],
            materials=materials,
        ),
    ):
        subject.logits(TOKENS)
    assert "\n" not in str(caught.value)


def test_a_pass_that_does_not_reach_the_edit_is_an_error() -> None:
    subject = tiny_subject()
    with pytest.raises(NeuronautError, match="fired 0 times in 1"), apply(subject, BATCH, [Edit.parse("mlp.2:3=0")]):
        subject.read(TOKENS, ["mlp.1"])
    with pytest.raises(NeuronautError, match="fired 0 times in 0"), apply(subject, BATCH, [Edit.parse("mlp.2:3=0")]):
        pass
    with (
        pytest.raises(NeuronautError, match="run its batch's tokens"),
        apply(subject, BATCH, [Edit.parse("mlp.2:3=0")]),
    ):
        subject.logits(TOKENS[:2])
    with pytest.raises(NeuronautError, match="no edit was given"), apply(subject, BATCH, []):
        pass


def test_a_fused_kernel_that_goes_around_the_module_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny_subject("llama")
    mlp = subject.model.model.layers[1].mlp

    def fused(x: Tensor) -> Tensor:
        return linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)

    plain = subject.logits(TOKENS)
    monkeypatch.setattr(mlp, "forward", fused)
    assert torch.equal(subject.logits(TOKENS), plain)
    with pytest.raises(NeuronautError, match="fired 0 times in 1"), apply(subject, BATCH, [Edit.parse("mlp.1:3=0")]):
        subject.logits(TOKENS)


def state_of(subject: Subject) -> tuple[object, ...]:
    digest = hashlib.sha256()
    for tensor in subject.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in subject.model.modules()]
    implementation = subject.model.config._attn_implementation
    random = torch.random.get_rng_state().numpy().tobytes()
    return digest.hexdigest(), hooks, implementation, random, torch.is_grad_enabled(), torch.is_inference_mode_enabled()


@every_family
def test_the_model_is_left_as_it_was_after_an_exception_too(family: str) -> None:
    subject = tiny_subject(family)
    subject.model.base_model.register_forward_hook(lambda *_: None)  # somebody else's
    edits = [Edit.parse(text) for text in ("mlp.1:3=0", "pattern.1=uniform", "resid_post.0=resample", "head.2:1*=2")]
    materials = Materials(reference={"resid_post.0": REFERENCE})
    before, plain = state_of(subject), subject.logits(TOKENS)
    with apply(subject, BATCH, edits, materials=materials):
        subject.logits(TOKENS)
    assert state_of(subject) == before
    with pytest.raises(ZeroDivisionError), apply(subject, BATCH, edits, materials=materials):
        subject.read(TOKENS, ["head.1"])  # stops inside an attention module
        raise ZeroDivisionError
    assert state_of(subject) == before
    assert torch.equal(subject.logits(TOKENS), plain)


def test_a_batch_of_one_position_or_bfloat16_is_no_exception() -> None:
    subject = tiny_subject()
    subject.model.to(torch.bfloat16)
    materials = Materials(sources={"resid_post.1@sae": SAE}, reference={"resid_post.1": REFERENCE.bfloat16()})
    batch = BATCH.take([1])
    for text in ("resid_post.1@sae:9=3@last", "resid_post.1=mean", "resid_post.1:5+=2q", "pattern.1:1=knockout@last>2"):
        with apply(subject, batch, [Edit.parse(text)], materials=materials) as ledger:
            assert subject.logits(batch.tokens).dtype == torch.bfloat16
        assert math.isfinite(ledger.reports[0].max_change)
