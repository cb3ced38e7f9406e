"""No question to a database reads a big table as a whole, but those that are listed here with their reason."""

import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from neuronaut.data.store import overview, vectors, words
from neuronaut.data.store.export import neuronpedia_lines, write_jsonl
from neuronaut.data.store.importing import Sources, import_files
from neuronaut.data.store.listing import SORTS
from neuronaut.data.store.maps import Map
from neuronaut.data.store.overview import read_overview
from neuronaut.data.store.search import refresh, semantic_search, similar, source_vectors
from neuronaut.data.store.store import Store
from neuronaut.data.store.summary import summarise
from neuronaut.labelling.inspect import describe
from neuronaut.subject.address import Feature
from tests.stored import explanation, harvest_result, score
from tests.test_listing import Drawn

SOURCE = "demo:mlp.2"
FEATURE = Feature.parse("demo:mlp.2:1")
SMALL = {
    "sources",
    "harvests",
    "tallies",  # a row for each source, status, scorer and bin
    "embedders",
    "vocabularies",
    "prompts",
    "prompt_choices",
    "pool",
    "asked",  # json_each of a page
    "json_each",
    "CONSTANT",
}
MUST_SCAN = {
    r"ORDER BY source_id, source_id|ORDER BY source_id, idx, negative LIMIT -1": "a whole list, as export writes it",
    r"^SELECT count\(\*\) FROM \w+$": "db status counts the rows of every table",
    r"^\s*INSERT INTO (features|explanations|scores) ": "where a foreign key is violated its children are looked for",
    r"instr\(lower\(": "what holds no word is in no index; the best scores are asked first",
}


def ask(store: Store, folder: Path) -> Iterator[Callable[[], object]]:
    """Every way to read the store, each as it is used."""
    yield store.sources
    yield store.status
    yield lambda: store.source(FEATURE.source)
    yield lambda: describe(store, FEATURE)
    yield lambda: store.features(f"{SOURCE}:random:2")
    yield lambda: store.row(FEATURE)
    yield lambda: store.another_explanation(FEATURE, with_rule=True)
    yield lambda: store.labelled([FEATURE], "k")
    yield lambda: store.statistics(FEATURE.source)
    yield lambda: read_overview(store)
    yield lambda: read_overview(store, SOURCE)
    yield lambda: store.keep_map(Map(FEATURE.source, "decoder", "pca", np.arange(2, dtype=np.int32), np.eye(2)))
    yield store.maps
    yield lambda: store.map(FEATURE.source, "decoder", "pca")
    yield lambda: store.labels(FEATURE.source)
    yield lambda: store.top_tokens(FEATURE)
    for sort in SORTS:
        for conditions in ({}, {"status": "weak"}, {"min_score": 0.1, "beats_baseline": True}):
            for source in (None, SOURCE):
                yield lambda s=source, c=conditions, o=sort: store.list_rows(s, limit=2, sort=o, **c)
                yield lambda s=source, c=conditions, o=sort: store.list_rows(s, limit=2, sort=o, after=FEATURE, **c)
    yield lambda: store.search_rows("text")
    yield lambda: store.search_rows("text", markers=("[", "]"), source=SOURCE, min_score=0.2)
    yield lambda: store.search_rows("(")
    yield lambda: store.search_rows("(", limit=None)
    yield lambda: refresh(store, Drawn())
    yield lambda: source_vectors(store, FEATURE.source, model=Drawn().model)
    yield lambda: semantic_search(store, "text", embedder=Drawn(), status="weak")
    yield lambda: semantic_search(store, "text", embedder=Drawn())
    yield lambda: similar(store, FEATURE, embedder=Drawn())
    yield lambda: write_jsonl(store.iterate_rows(), io.StringIO())
    yield lambda: list(neuronpedia_lines(store, FEATURE.source))
    yield lambda: summarise(store, SOURCE)
    rows = folder / "rows.jsonl"
    rows.write_text('{"feature": "demo:mlp.2:2", "explanation": "from elsewhere"}\n')
    yield lambda: import_files(store, [rows], sources=Sources(store), check_rule=str)
    yield lambda: store.add_result(explanation(4, "one more"), [score(0.3)])
    yield lambda: store.write_harvest(harvest_result(SOURCE, tokens=2000))


@pytest.fixture
def asked(tmp_path, monkeypatch) -> Iterator[tuple[sqlite3.Connection, list[str]]]:
    """A connection, and every statement that was run on it."""
    monkeypatch.setattr(vectors, "INDEXED", 1)
    said: list[str] = []
    with Store(tmp_path / "a.db") as store:
        store.write_harvest(harvest_result(SOURCE, "demo:mlp.3"))
        for index in range(4):
            store.add_result(explanation(index, f"text {index} ("), [score(index / 5)])
        store.add_result(explanation(1, "below", negative=True), [score(0.4)])
        store.db.conn.set_trace_callback(said.append)
        for question in ask(store, tmp_path):
            question()
        monkeypatch.setattr(overview, "SAMPLE", 1)
        read_overview(store)
        monkeypatch.setattr(words, "RANKED", 0)
        store.search_rows("text")
        monkeypatch.setattr(vectors, "FILTERED", -1)
        semantic_search(store, "text", embedder=Drawn(), status="weak")
        store.db.conn.set_trace_callback(None)
        yield store.db.conn, said


def scans(connection: sqlite3.Connection, sql: str) -> list[str]:
    """The tables that a statement reads as a whole, as its plan calls them."""
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    # A virtual table with an index string is asked for words; one without is read as a whole.
    found = [match for line in plan if (match := re.match(r"SCAN (\S+)(?! VIRTUAL TABLE INDEX \d+:[^ ]+)", line))]
    return [match[1] for match in found if "VIRTUAL TABLE INDEX" not in match.string]


def test_what_is_counted_reads_no_source_as_a_whole(asked) -> None:
    connection, said = asked
    counts = [sql for sql in set(said) if re.match(r"\s*SELECT\b", sql) and re.search(r"\b(count|sum)\(", sql)]
    assert any("AS explained" in sql for sql in counts)
    whole = re.compile(r"SEARCH (?!tallies|sources|harvests|maps)\S+ USING .*\(source_id=\?\)$")
    for sql in counts:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert not any(map(whole.match, plan)), " ".join(sql.split())


def test_no_big_table_is_read_as_a_whole(asked) -> None:
    connection, said = asked
    statements = {
        sql for sql in said if re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", sql) and not sql.startswith("--")
    }
    assert len(statements) > 100
    used: set[str] = set()
    wrong: list[str] = []
    for sql in sorted(statements):
        for table in set(scans(connection, sql)) - SMALL:
            if re.match(r"\d+$|\(subquery", table):
                continue  # a subquery, which is planned on lines of its own
            reasons = [sign for sign in MUST_SCAN if re.search(sign, sql)]
            used |= set(reasons)
            if not reasons:
                wrong.append(f"{table}: {' '.join(sql.split())}")
    assert not wrong, "\n".join(wrong)
    assert used == set(MUST_SCAN), "an exception that nothing needs"
