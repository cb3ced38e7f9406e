"""Writing under edits: with the cache as without it, in company as alone, and as transformers writes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from neuronaut.causal.edits import Edit
from neuronaut.causal.generation import Generated, generate
from neuronaut.causal.intervene import Materials, RowEdit, apply
from neuronaut.causal.prompts import Batch
from neuronaut.causal.runs import logits_at, read_source_run
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests import planted as world
from tests.families import FAMILIES, tiny_subject, tiny_tokens
from tests.test_edits import dictionary

every_family = pytest.mark.parametrize("family", FAMILIES)
TOKENS = 6
PROMPTS = [[0, *tiny_tokens(1, length, seed=length)[0].tolist()] for length in (3, 10, 6)]
SUBJECTS: dict[str, Subject] = {}
SAE = {"resid_post.1@sae": dictionary()}
MATERIALS = Materials(sources=SAE)

EDITS = (
    "resid_post.1:3+=4",
    "resid_mid.1:2+=4",
    "mlp.0:5=4@last",
    "head.1:2=0@every",
    "resid_post.1@sae:4=6",
    "resid_pre.2:[1,0,2,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,3]*=-2",
    "mlp.0:7+=9@1-2",
    "mlp.1:3+=8@-2~5",
)
"""Of every sort of unit and every positional rule; the last is a control in a random direction."""


def subject_of(family: str) -> Subject:
    if family not in SUBJECTS:
        SUBJECTS[family] = tiny_subject(family)
    return SUBJECTS[family]


def batch_of(subject: Subject, prompts: Sequence[Sequence[int]] = PROMPTS) -> Batch:
    return Batch.of(subject, prompts)


def close(found: Generated, wanted: Generated) -> None:
    assert found.tokens == wanted.tokens
    for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)


def decided(edit: Edit, prompt: int, length: int, scope: str) -> list[int]:
    """The touched positions of a row of `length`, by the law as it is told, for rules that do not look at tokens."""
    old = {"all": range(1, prompt), "every": range(prompt), "last": [prompt - 1], "1-2": [1, 2], "-2": [prompt - 2]}[
        edit.positions
    ]
    new = range(prompt, length) if edit.positions in ("all", "every", "last") else []
    return [*(old if scope != "decode" else []), *(new if scope != "prefill" else [])]


def naively(
    subject: Subject, prompt: Sequence[int], edit: Edit, touched: Callable[[int], list[int]]
) -> tuple[list[int], list[float]]:
    """One row without padding, run anew for each token, by an edit of explicit positions."""
    row, logprobs = list(prompt), []
    for _ in range(TOKENS):
        alone, places = Batch.of(subject, [row]), touched(len(row))
        given = [edit.model_copy(update={"positions": ",".join(map(str, places))})] if places else []
        if given:
            with apply(subject, alone, given, materials=MATERIALS, may_idle=True):
                logits = logits_at(subject, alone.tokens, alone.last)[0]
        else:
            logits = logits_at(subject, alone.tokens, alone.last)[0]
        row.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(0)[row[-1]]))
    return row[len(prompt) :], logprobs


# --- the cache, padding, company --------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("text", EDITS)
def test_with_the_cache_without_it_and_one_row_at_a_time_the_text_is_the_same(family: str, text: str) -> None:
    subject, edit = subject_of(family), Edit.parse(text)
    if edit.site not in subject.sites:
        pytest.skip("the branches of this family are parallel")
    batch = batch_of(subject)
    cached = generate(subject, batch, [edit], tokens=TOKENS, materials=MATERIALS)
    anew = generate(subject, batch, [edit], tokens=TOKENS, materials=MATERIALS, cached=False)
    plain = generate(subject, batch, tokens=TOKENS)
    close(cached, anew)
    assert cached.logprobs != plain.logprobs
    assert cached.reports[0].places == anew.reports[0].places
    for row, prompt in enumerate(PROMPTS):
        touched = lambda length, prompt=prompt: decided(edit, len(prompt), length, "every")  # noqa: E731
        ids, logprobs = naively(subject, prompt, edit, touched)
        assert cached.tokens[row] == tuple(ids)
        torch.testing.assert_close(torch.tensor(cached.logprobs[row]), torch.tensor(logprobs), rtol=1e-4, atol=2e-4)
        assert list(cached.reports[0].places[row]) == touched(len(prompt) + TOKENS - 1)


@every_family
@pytest.mark.parametrize("scope", ["prefill", "decode"])
@pytest.mark.parametrize("rule", ["all", "last"])
def test_a_scope_keeps_an_edit_to_its_part(family: str, scope: Any, rule: str) -> None:
    subject, edit = subject_of(family), Edit.parse(f"mlp.0:5+=9@{rule}")
    batch = batch_of(subject)
    found = generate(subject, batch, [edit], tokens=TOKENS, scope=scope)
    close(found, generate(subject, batch, [edit], tokens=TOKENS, scope=scope, cached=False))
    for row, prompt in enumerate(PROMPTS):
        touched = lambda length, prompt=prompt: decided(edit, len(prompt), length, scope)  # noqa: E731
        ids, logprobs = naively(subject, prompt, edit, touched)
        assert found.tokens[row] == tuple(ids)
        torch.testing.assert_close(torch.tensor(found.logprobs[row]), torch.tensor(logprobs), rtol=1e-4, atol=2e-4)
    assert found.reports[0].fired == (1 if scope == "prefill" else TOKENS - 1)


def test_scopes_differ_and_fire_as_often_as_they_say() -> None:
    subject, edit = subject_of("llama"), Edit.parse("mlp.0:5+=9")
    found = {
        (scope, cached): generate(subject, batch_of(subject), [edit], tokens=TOKENS, scope=scope, cached=cached)
        for scope in ("every", "prefill", "decode")
        for cached in (True, False)
    }
    assert [found[scope, True].reports[0].fired for scope in ("every", "prefill", "decode")] == [6, 1, 5]
    assert [found[scope, False].reports[0].fired for scope in ("every", "prefill", "decode")] == [6, 6, 5]
    assert len({found[scope, True].logprobs for scope in ("every", "prefill", "decode")}) == 3
    every, prefill, decode = (found[scope, True].reports[0].places[1] for scope in ("every", "prefill", "decode"))
    assert every == tuple(range(1, 16)) == prefill + decode and prefill == tuple(range(1, 11))


def test_a_last_that_was_edited_stays_edited() -> None:
    subject, edit = subject_of("gpt2"), Edit.parse("mlp.0:5+=9@last")
    found = generate(subject, batch_of(subject), [edit], tokens=TOKENS)
    _, moving = naively(subject, PROMPTS[0], edit, lambda length: [length - 1])
    assert found.logprobs[0][0] == pytest.approx(moving[0], abs=1e-4)
    assert found.logprobs[0][1] != pytest.approx(moving[1], abs=1e-3)


@every_family
def test_company_padding_and_its_side_change_nothing(family: str) -> None:
    subject = subject_of(family)
    edits = [Edit.parse("resid_post.0:4+=3"), Edit.parse("head.2:1=0@last")]
    together = generate(subject, batch_of(subject), edits, tokens=TOKENS)
    width = max(map(len, PROMPTS))
    for side in ("left", "right"):
        fill = [[7] * (width - len(row)) for row in PROMPTS]
        rows = [f + r if side == "left" else r + f for f, r in zip(fill, PROMPTS, strict=True)]
        real = [
            [0] * len(f) + [1] * len(r) if side == "left" else [1] * len(r) + [0] * len(f)
            for f, r in zip(fill, PROMPTS, strict=True)
        ]
        padded = Batch.from_padded(torch.tensor(rows), torch.tensor(real))
        close(generate(subject, padded, edits, tokens=TOKENS), together)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(subject, batch_of(subject, [prompt]), edits, tokens=TOKENS)
        assert alone.tokens[0] == together.tokens[row]
        torch.testing.assert_close(
            torch.tensor(alone.logprobs[0]), torch.tensor(together.logprobs[row]), rtol=1e-4, atol=1e-4
        )


@every_family
def test_transformers_writes_the_same(family: str) -> None:
    subject = subject_of(family)
    push = torch.randn(24, generator=torch.Generator().manual_seed(1))
    row = torch.tensor([PROMPTS[1]])
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), subject.editing({"resid_post.1": lambda x: x + push}):
        wanted = subject.model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, row.shape[1] :]
    edit = Edit(site="resid_post.1", direction=tuple(push.tolist()), operation="add", value=1, positions="every")
    found = generate(subject, batch_of(subject), [edit], tokens=TOKENS)
    assert found.tokens[1] == tuple(wanted.tolist())
    assert found.texts[1] == "".join(subject.decode_tokens(found.tokens[1]))


def test_rows_may_have_different_edits_and_edits_of_a_site_work_in_order() -> None:
    subject = subject_of("qwen3")
    batch = batch_of(subject, [PROMPTS[0]] * 3)
    first, second = Edit.parse("mlp.1:3=2"), Edit.parse("mlp.1:3*=4")
    found = generate(subject, batch, [RowEdit(first, (2, 0)), RowEdit(second, (2,))], tokens=4)
    for row, edits in enumerate(([first], [], [first, second])):
        alone = generate(subject, batch_of(subject, [PROMPTS[0]]), edits, tokens=4)
        assert found.tokens[row] == alone.tokens[0]
        assert found.logprobs[row] == pytest.approx(alone.logprobs[0], abs=1e-4)
    assert set(found.reports[0].places) == {0, 2} and set(found.reports[1].places) == {2}


def test_a_token_rule_touches_the_token_wherever_it_comes_up() -> None:
    subject = subject_of("gpt2")
    plain = generate(subject, batch_of(subject), tokens=TOKENS)
    string = subject.vocabulary[plain.tokens[0][1]]
    edit = Edit(site="resid_post.2", units=(1,), operation="add", value=1e-3, positions=f'"{string}"')
    ids = [*PROMPTS[0], *plain.tokens[0]][:-1]
    wanted = [p for p, id in enumerate(ids) if subject.vocabulary[id] == string]
    batch = batch_of(subject, PROMPTS[:1])
    assert list(generate(subject, batch, [edit], tokens=TOKENS).reports[0].places[0]) == wanted
    absent = next(s for i, s in enumerate(subject.vocabulary) if i not in ids and s.isalpha())
    nowhere = edit.model_copy(update={"positions": f'"{absent}"'})
    with pytest.raises(NeuronautError, match="no position that it means came up"):
        generate(subject, batch, [nowhere], tokens=TOKENS)


def test_a_patched_prompt_is_continued() -> None:
    subject = subject_of("gemma2")
    batch, other = batch_of(subject), batch_of(subject, [[0, *reversed(row[1:])] for row in PROMPTS])
    patch_values = Materials(source_runs=read_source_run(subject, other, ["resid_post.1"]))
    edits = [RowEdit(Edit.parse("resid_post.1=patch@1,-1"), (2, 0))]
    found = generate(subject, batch, edits, tokens=3, scope="prefill", materials=patch_values)
    close(found, generate(subject, batch, edits, tokens=3, scope="prefill", materials=patch_values, cached=False))
    with apply(subject, batch, edits, materials=patch_values):
        first = logits_at(subject, batch.tokens, batch.last).log_softmax(1).amax(1)
    torch.testing.assert_close(torch.tensor([row[0] for row in found.logprobs]), first, rtol=1e-4, atol=1e-4)


# --- sampling and stopping -----------------------------------------------------------------------------


def test_a_row_draws_from_its_own_stream() -> None:
    subject = subject_of("llama")
    drawn: dict[str, Any] = {"tokens": 8, "temperature": 1.5}
    many = generate(subject, batch_of(subject, [PROMPTS[0]] * 5), seed=[3, 1, 4, 1, 5], **drawn).tokens
    assert many[1] == many[3] and len(set(many)) == 4
    for row, seed in enumerate((3, 1, 4)):
        assert generate(subject, batch_of(subject, [PROMPTS[0]]), seed=seed, **drawn).tokens[0] == many[row]
    few = generate(subject, batch_of(subject, PROMPTS[:2]), seed=7, **drawn)
    assert generate(subject, batch_of(subject), seed=7, **drawn).tokens[:2] == few.tokens
    assert generate(subject, batch_of(subject, PROMPTS[:2]), seed=8, **drawn).tokens != few.tokens
    close(few, generate(subject, batch_of(subject, PROMPTS[:2]), seed=7, cached=False, **drawn))


def test_an_edit_without_effect_on_the_logits_leaves_the_samples() -> None:
    subject = subject_of("gpt2")
    batch = batch_of(subject)
    plain = generate(subject, batch, tokens=5, temperature=1.0, seed=3)
    tiny = generate(subject, batch, [Edit.parse("resid_post.2:1+=1e-5")], tokens=5, temperature=1.0, seed=3)
    assert tiny.tokens == plain.tokens


def test_samples_follow_the_models_probabilities() -> None:
    subject = subject_of("gpt2")
    row = [0, 9, 4]
    found = generate(subject, batch_of(subject, [row] * 800), tokens=1, temperature=2.0, seed=0)
    logits = subject.logits(torch.tensor([row]))[0, -1]
    wanted = (logits / 2.0).softmax(0)
    token = int(wanted.argmax())
    share = sum(ids == (token,) for ids in found.tokens) / 800
    assert abs(share - float(wanted[token])) < 4 * (float(wanted[token]) * (1 - float(wanted[token])) / 800) ** 0.5
    drawn = torch.tensor([ids[0] for ids in found.tokens])
    torch.testing.assert_close(torch.tensor([one[0] for one in found.logprobs]), logits.log_softmax(0)[drawn])


def test_a_row_stops_and_the_others_go_on() -> None:
    subject = subject_of("llama")
    batch, edit = batch_of(subject), Edit.parse("mlp.1:3+=5")
    whole = generate(subject, batch, [edit], tokens=8)
    end = whole.tokens[0][2]
    found = generate(subject, batch, [edit], tokens=8, stop=[end])
    for row in range(3):
        ids = whole.tokens[row]
        kept = ids.index(end) + 1 if end in ids else 8
        assert found.tokens[row] == ids[:kept] and len(found.logprobs[row]) == kept
    assert len(found.tokens[0]) <= 3 and found.reports[0].places[0][-1] == len(PROMPTS[0]) + len(found.tokens[0]) - 2
    everything = generate(subject, batch, [edit], tokens=8, stop=range(300))
    assert [len(ids) for ids in everything.tokens] == [1, 1, 1] and everything.reports[0].fired == 1


# --- what is refused, and what is left as it was ----------------------------------------------------


@pytest.mark.parametrize(
    ("edits", "given", "message"),
    [
        (["mlp.1:3*=1"], {}, r"edit mlp.1:3\*=1 changed nothing at mlp.1 in 4 forward passes: the unit already"),
        (["mlp.9:3=1"], {}, "has no site 'mlp.9'"),
        (["mlp.1:96=1"], {}, "there is no unit 96"),
        (["pattern.1:3=0"], {}, "attention weights, which grow with the row; edit head.1 instead"),
        (["mlp.1:3+=noise"], {}, "values for the prompt's positions only.*scope='prefill'"),
        (["mlp.1=patch"], {"scope": "prefill"}, r"needs a source run at mlp.1; pass one in \(there are: none\)"),
        (["mlp.1:3+=1q"], {}, "needs a reference at mlp.1"),
        (["mlp.1:3=9@1"], {"scope": "decode"}, "touches no position in scope decode"),
        (["mlp.1:3=9@9"], {}, "position 9 is outside row 0"),
        (['mlp.1:3=9@"no such token"'], {}, "has no token 'no such token'"),
        (["mlp.1:3+=1e39"], {}, "no finite numbers"),
        ([], {"tokens": 0}, "write fewer tokens, at least 1"),
        ([], {"tokens": 54}, "have 65; gpt2 takes at most 64"),
        ([], {"temperature": -1.0}, "temperature -1.0"),
        ([], {"seed": [1, 2]}, r"seeds \[1, 2\] do not fit 3 rows"),
        ([], {"seed": -1}, "seeds -1 do not fit"),
        (["mlp.1:3=9"], {"scope": "both"}, "no scope 'both'; there are every, prefill, decode"),
    ],
)
def test_what_cannot_be_done_is_an_error(edits: list[str], given: dict[str, Any], message: str) -> None:
    subject = subject_of("gpt2")
    before = torch.get_rng_state()
    with pytest.raises(NeuronautError, match=message):
        generate(subject, batch_of(subject), [Edit.parse(e) for e in edits], **{"tokens": 4, **given})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert torch.equal(torch.get_rng_state(), before) and torch.is_grad_enabled()


def test_rows_and_ids_outside_are_errors() -> None:
    subject = subject_of("gpt2")
    with pytest.raises(NeuronautError, match="is for rows .3.; wanted different ones from 0 to 2"):
        generate(subject, batch_of(subject), [RowEdit(Edit.parse("mlp.1:3=9"), (3,))], tokens=2)
    with pytest.raises(NeuronautError, match="token id 300 is outside the vocabulary of gpt2, 0 to 299"):
        generate(subject, batch_of(subject, [[0, 300]]), tokens=2)


def test_writing_leaves_the_model_as_it_was() -> None:
    subject = subject_of("mistral")
    tokens, state = tiny_tokens(), torch.get_rng_state()
    before = subject.logits(tokens)
    generate(subject, batch_of(subject), [Edit.parse("resid_mid.1:2+=4")], tokens=4, temperature=1.0)
    assert torch.equal(subject.logits(tokens), before) and torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())


def test_an_idle_edit_is_reported_where_it_may_be() -> None:
    subject = subject_of("gpt2")
    found = generate(subject, batch_of(subject), [Edit.parse("mlp.1:3*=1")], tokens=3, may_idle=True)
    assert found.reports[0].max_change == 0 and found.reports[0].fired == 3
    assert found.logprobs == generate(subject, batch_of(subject), tokens=3).logprobs


def test_a_planted_neuron_writes_its_token() -> None:
    model, tokenizer, _, neurons = world.build(documents=1)
    subject = Subject(model, tokenizer, name="planted")
    neuron = next(neuron for neuron in neurons if neuron.promotes)
    edit = Edit(site=f"mlp.{world.LAYER}", units=(neuron.index,), operation="set", value=30)
    found = generate(subject, Batch.of(subject, ["the old house", "Anna"]), [edit], tokens=3)
    assert all(set(text.split()) == {neuron.promotes} for text in found.texts)


def test_a_dictionary_of_another_subject_has_its_address() -> None:
    renamed = replace(SAE["resid_post.1@sae"], id=SourceId("llama", "resid_post.1", "sae"))
    subject = subject_of("llama")
    edit = Edit.parse("resid_post.1@sae:4=6")
    found = [
        generate(subject, batch_of(subject), [edit], tokens=3, materials=Materials(sources={"resid_post.1@sae": one}))
        for one in (renamed, SAE["resid_post.1@sae"])
    ]
    assert found[0] == found[1]
