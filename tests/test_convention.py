"""BOS stands before a row once or never, special tokens are text unless asked for, and harvests are followed."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from neuronaut.causal.prompts import Batch
from neuronaut.cli.causal.inputs import read_questions
from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.store.store import Store
from neuronaut.explainers.rule import RuleExplainer
from neuronaut.labelling.harvested import as_harvested
from neuronaut.labelling.label import label
from neuronaut.labelling.opening import pass_gate, settle_bos
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.convention import BEFORE, CUSTOM, choose_convention
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.families import D_MODEL, tiny_subject

BOS = "<|endoftext|>"
CHAT = (
    "{% for m in messages %}<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def tokenizer(*, adds: bool = False, chat: bool = False) -> PreTrainedTokenizerBase:
    own = tiny_subject("gpt2").tokenizer
    if adds:
        own._tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, own.bos_token_id)])
    own.chat_template = CHAT if chat else None
    return own


@pytest.mark.parametrize(
    ("adds", "chat", "family", "bos"),
    [
        (True, False, "llama", True),
        (True, True, "llama", True),
        (False, True, "llama", False),
        (False, True, "gpt2", False),
        (False, False, "llama", False),
        *((False, False, family, True) for family in CUSTOM),
    ],
)
def test_auto_is_what_the_tokenizer_does_or_a_reason_in_the_table(
    adds: bool, chat: bool, family: str, bos: bool
) -> None:
    chosen = choose_convention(tokenizer(adds=adds, chat=chat), family, name="x")
    assert (chosen.bos, bool(chosen.reason)) == (bos, True)
    for asked, wanted in (("always", True), ("never", False)):
        assert choose_convention(tokenizer(adds=adds, chat=chat), family, name="x", bos=asked).bos is wanted


def test_without_a_bos_there_is_none_and_always_is_refused() -> None:
    own = tokenizer()
    own.bos_token = None
    assert choose_convention(own, "gpt2", name="x").bos is None
    with pytest.raises(NeuronautError, match="has no BOS to put before a text; wanted auto or never"):
        choose_convention(own, "gpt2", name="x", bos="always")
    with pytest.raises(NeuronautError, match="'maybe' is not known; wanted one of: auto, always, never"):
        choose_convention(own, "gpt2", name="x", bos="maybe")


SUBJECT = tiny_subject("gpt2")


@given(st.text(st.sampled_from(" ab.\n<|>endoftx"), max_size=30), st.integers(0, 3))
def test_a_row_begins_with_one_bos_and_holds_no_other_special_token(text: str, own: int) -> None:
    while text.startswith(BOS):
        text = text.removeprefix(BOS)
    row = SUBJECT.row(BOS * own + text)
    assert row == SUBJECT.row(text)
    assert [place for place, id in enumerate(row) if id in SUBJECT.special_ids] == [0]
    assert "".join(SUBJECT.decode_tokens(row[1:])) == text
    never = SUBJECT.with_convention(replace(SUBJECT.convention, bos=False))
    assert not SUBJECT.special_ids & {*never.row(BOS * own + text)}


def test_special_tokens_are_tokens_where_that_is_asked_for() -> None:
    asked = SUBJECT.with_convention(replace(SUBJECT.convention, special_tokens=True))
    assert asked.row(f"{BOS}a{BOS}b").count(SUBJECT.bos_id) == 2
    assert asked.remarks([f"a{BOS}b"]) == []
    assert SUBJECT.remarks([f"{BOS}a{BOS}b", "c"]) == [
        f"1 of 2 texts bring {BOS} themselves: it stands there once",
        f"special tokens are read as text here ({BOS} in 1); --special-tokens, of a feature at its harvest, reads "
        "them as tokens",
    ]


def test_a_chat_is_put_into_the_template_once() -> None:
    chat = Subject(SUBJECT.model, tokenizer(chat=True), name="chat")
    chat = chat.with_convention(replace(chat.convention, special_tokens=True, chat=True))
    bos = chat.bos_id
    assert chat.bos is None, "a chat model, whose tokenizer adds none"
    row = chat.row("hi")
    assert (row.count(bos), row[0]) == (1, bos)
    assert "".join(chat.decode_tokens(row[1:])) == "user: hi\nassistant:"
    messages = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert chat.render_chat(messages) == f"{BOS}user: a\n{BOS}assistant: b\n"
    always = chat.with_convention(replace(chat.convention, bos=True))
    assert always.row("hi") == row, "the template brings it"
    with pytest.raises(NeuronautError, match="has no chat template; give text without --chat"):
        SUBJECT.render_chat("hi")


# Harvests and what follows them

WORDS = ["one", "two", "red", "blue", "old", "new", "sad", "glad", "bad", "thin", "fat"]
TEXTS = [
    " fish ".join(["", *random.Random(number).choices(WORDS, k=1 + number % 9), str(number)]) for number in range(60)
]


def harvested(store: Store, bos: str, site: str = "mlp.1", window: int = 16) -> Subject:
    own = tiny_subject("gpt2")
    of = Subject(own.model, own.tokenizer, name="tiny", bos=bos)
    harvest(of, [site], Corpus.of("fish", TEXTS), store, window=window)
    return of


def test_a_harvest_keeps_its_convention_and_another_is_refused() -> None:
    with Store(":memory:") as store:
        without = harvested(store, "never")
        source = SourceId("tiny", "mlp.1")
        assert store.convention(source).bos is False
        with pytest.raises(
            NeuronautError, match="was harvested here with no BOS before each row, and this is with BOS"
        ):
            harvested(store, "always")
        plain = Subject(without.model, without.tokenizer, name="tiny")
        features = store.features("tiny:mlp.1:0-3")
        with pytest.raises(NeuronautError, match="was harvested here with no BOS"):
            list(label(features, store, plain, explainer=RuleExplainer(plain), scorers=[]))
        follows = as_harvested(plain, store, [source])
        assert follows.bos is None
        assert len(list(label(features, store, follows, explainer=RuleExplainer(follows), scorers=[]))) == 4
        harvested(store, "always", site="mlp.0")
        with pytest.raises(
            NeuronautError, match="harvested in different ways: tiny:mlp.1 with no BOS .*; tiny:mlp.0 with BOS"
        ):
            as_harvested(plain, store, [source, SourceId("tiny", "mlp.0")])


def test_sources_of_one_pool_agree_on_special_tokens() -> None:
    with Store(":memory:") as store:
        of = harvested(store, "never")
        special = of.with_convention(replace(of.convention, special_tokens=True))
        with pytest.raises(
            NeuronautError, match="mlp.1 was harvested here with no BOS .* special tokens read as tokens"
        ):
            harvest(special, ["mlp.0"], Corpus.of("fish", TEXTS), store, window=16)
        harvested(store, "always", site="mlp.0")
        assert [row["source"] for row in store.sources()] == ["tiny:mlp.0", "tiny:mlp.1"]


def test_databases_of_before_count_as_always(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with Store(path) as store:
        harvested(store, "always")
        sql = "UPDATE harvests SET provenance = json_remove(provenance, '$.convention')"
        with store.transaction():
            store.db.conn.execute(sql)
        assert store.convention(SourceId("tiny", "mlp.1")) == BEFORE
        harvested(store, "always")
        store.db.conn.execute(sql)
        with pytest.raises(NeuronautError, match="harvested here with BOS before each row, and this is with no BOS"):
            harvested(store, "never")


def test_merging_two_conventions_is_refused(tmp_path: Path) -> None:
    for bos in ("always", "never"):
        with Store(tmp_path / f"{bos}.db") as store:
            harvested(store, bos)
    result = CliRunner().invoke(main, ["db", "merge", str(tmp_path / "never.db"), "-d", str(tmp_path / "always.db")])
    assert result.exit_code == 1
    assert "tiny:mlp.1 was harvested here with BOS before each row, and this is with no BOS" in result.stderr


def test_the_dictionarys_own_convention_leads() -> None:
    def trained(bos: bool | None) -> Dictionary:
        g = torch.Generator().manual_seed(0)
        return Dictionary(
            id=SourceId("tiny", "resid_post.1", str(bos).lower()),
            kind="standard",
            W_enc=torch.randn(D_MODEL, 8, generator=g),
            W_dec=torch.randn(8, D_MODEL, generator=g),
            b_enc=torch.zeros(8),
            b_dec=torch.zeros(D_MODEL),
            prepend_bos=bos,
        )

    assert settle_bos(SUBJECT, [trained(False)], asked="auto").bos is None
    assert settle_bos(SUBJECT, [trained(None), trained(True)], asked="auto").bos == SUBJECT.bos_id
    assert settle_bos(SUBJECT, [trained(False)], asked="always") is SUBJECT
    with pytest.raises(NeuronautError, match="some were trained with BOS before the text and some without"):
        settle_bos(SUBJECT, [trained(False), trained(True)], asked="auto")


class Massive(Subject):
    """A subject in which one token's vectors are a hundred times as long."""

    mark = -1

    def read(self, tokens: torch.Tensor, sites: Sequence[str]) -> dict[str, torch.Tensor]:
        scale = torch.where(tokens == self.mark, 100.0, 1.0)[:, :, None]
        return {site: value * scale.to(value) for site, value in super().read(tokens, sites).items()}


def test_a_dictionary_that_rebuilds_massive_positions_alone_is_refused() -> None:
    own = tiny_subject("llama")
    of = Massive(own.model, own.tokenizer, name="massive")
    of.mark = of.encode(" fish")[0]
    (vectors,) = of.read(torch.tensor([of.encode("one fish")]), ["resid_post.1"]).values()
    massive = vectors[0, of.encode("one fish").index(of.mark)]
    direction = (massive / massive.norm())[:, None]
    one_live = Dictionary(
        id=SourceId("massive", "resid_post.1", "one"),
        kind="standard",
        W_enc=direction,
        W_dec=direction.T.contiguous(),
        b_enc=-massive.norm()[None] / 2,
        b_dec=torch.zeros(D_MODEL),
    )
    texts = Corpus.of("fish", [f"{text}{BOS} and <unk>" for text in TEXTS])
    with pytest.raises(NeuronautError, match="does not rebuild the vectors of resid_post.1"):
        list(pass_gate(of, [one_live], texts, window=16, force=False))
    lines = list(pass_gate(of, [one_live], texts, window=16, force=True))
    assert "tokens are special or massive at resid_post.1: the gate leaves them out" in lines[0]


def test_prompts_follow_the_option() -> None:
    with_bos, without = (Subject(SUBJECT.model, SUBJECT.tokenizer, name="x", bos=bos) for bos in ("always", "never"))
    assert Batch.of(with_bos, ["a b"]).ids() == [[SUBJECT.bos_id, *Batch.of(without, ["a b"]).ids()[0]]]


def test_the_command_line_says_what_it_does(tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == code, result.output
        return result.stdout, result.stderr

    bos = str(Subject.load("demo").tokenizer.bos_token)
    out, error = run("run", "demo", f"{bos}import os", "--json")
    assert f"1 of 1 texts bring {bos} themselves" in error
    assert json.loads(out)[0]["next"] == json.loads(run("run", "demo", "import os", "--json")[0])[0]["next"]
    assert (
        json.loads(out)[0]["next"]
        != json.loads(run("run", "demo", "import os", "--bos", "never", "--json")[0])[0]["next"]
    )
    short = tmp_path / "short.jsonl"
    short.write_text("".join(f'{{"text": "def f{n}(self): return {n}"}}\n' for n in range(9)), encoding="utf-8")
    run("harvest", "demo", "mlp.1", "--corpus", str(short), "-d", str(tmp_path / "y.db"))
    tried, error = run("try", "demo:mlp.1:3", f"{bos}import os", "--json", "-d", str(tmp_path / "y.db"))
    assert f"1 of 1 texts bring {bos} themselves" in error and len(json.loads(tried)[0]["tokens"]) == 2
    assert "has no chat template" in run("run", "demo", "hi", "--chat", code=1)[1]
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n' * 9, encoding="utf-8")
    place = ["--corpus", str(chats), "-d", str(tmp_path / "x.db")]
    assert "is a chat; add --chat" in run("harvest", "demo", "mlp.1", *place, "--text-column", "messages", code=1)[1]
    assert "has no chat template" in run("harvest", "demo", "mlp.1", *place, "--chat", code=1)[1]
    assert "names the dictionary of --sae" in run("harvest", "demo", "mlp.1", "--name", "x", "-d", "x.db", code=1)[1]


def test_features_of_a_short_corpus_are_labelled_and_scored() -> None:
    with Store(":memory:") as store:
        of = harvested(store, "auto", window=60)
        evidence = store.evidence(Feature.parse("tiny:mlp.1:5"))
        assert len({len(example.ids) for example in evidence.train}) > 1
        assert all(len(e.tokens) == len(e.ids) == len(e.activations) for e in evidence.train)
        assert (
            len(list(label(store.features("tiny:mlp.1:0-7"), store, of, explainer=RuleExplainer(of), scorers=[]))) == 8
        )


def test_prompts_of_a_file_may_be_chats(tmp_path: Path) -> None:
    chat = Subject(SUBJECT.model, tokenizer(chat=True), name="chat")
    chat = chat.with_convention(replace(chat.convention, special_tokens=True, chat=True))
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}], "answer": " a"}]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = read_questions(chat, [], str(file), whole=True).batch.ids()
    assert first == second == chat.row("hi")
    for row in ({"messages": []}, {"messages": [{"role": "user"}]}, {}, {"prompt": "a", **rows[1]}):
        file.write_text(json.dumps(row), encoding="utf-8")
        with pytest.raises(NeuronautError, match=r"prompts.jsonl:1: wanted a prompt, or messages"):
            read_questions(chat, [], str(file))
    file.write_text(json.dumps(rows[1]), encoding="utf-8")
    with pytest.raises(NeuronautError, match="prompt is missing"):
        read_questions(SUBJECT, [], str(file))
