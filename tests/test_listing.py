"""Lists, words, counts and neighbours of large databases equal what plain loops over all rows find."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.data.store import migrations, vector_file, vectors, words
from neuronaut.data.store.database import connect
from neuronaut.data.store.listing import SORTS, STATUSES
from neuronaut.data.store.listing_schema import _COLUMNS, TALLIED
from neuronaut.data.store.search import Embedder, refresh, semantic_search, similar
from neuronaut.data.store.store import Store
from neuronaut.data.store.tallies import count_by_source
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result, score

SOURCES = ("demo:mlp.2", "demo:mlp.3", "demo:resid_post.2@sae")
WORDS = ("self", "selves", "month", "(", "==", "name", "names", "bracket")

labels = st.tuples(
    st.sampled_from(SOURCES),
    st.integers(0, 4),
    st.booleans(),
    st.none() | st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join),
    st.none() | st.sampled_from([-0.2, 0.0, 0.1, 0.15, 0.5, 0.5000001, 0.9]),
    st.sampled_from(["dense", "no_pattern", "failed"]),
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "min_score": st.sampled_from([-0.2, 0.0, 0.1, 0.5, 0.95]),
        "max_score": st.sampled_from([-0.2, 0.1, 0.5, 0.95]),
        "status": st.sampled_from(STATUSES),
        "beats_baseline": st.booleans(),
    },
)


def fill(store: Store, drawn) -> None:
    """A harvest of three sources, and labels in the order in which they were drawn, a feature perhaps several times."""
    store.write_harvest(harvest_result(*SOURCES, dead=(3,)))
    for number, (source, index, negative, text, value, status) in enumerate(drawn):
        label = explanation(index, text, source=source, key=str(number), negative=negative)
        label = label if text else replace(label, status=status)
        store.add_result(label, [] if text is None or value is None else [score(value)])


def rows_in(store: Store, columns: str, table: str) -> list[tuple[object, ...]]:
    return sorted((tuple(row) for row in store.db.conn.execute(f"SELECT {columns} FROM {table}")), key=repr)


def check_derived(store: Store) -> None:
    """What triggers keep is what it is defined as."""
    assert rows_in(store, _COLUMNS, "listed") == rows_in(store, _COLUMNS, "listing")
    assert rows_in(store, "*", "tallies WHERE n > 0") == rows_in(store, "*", f"({TALLIED})")


def passes(row, conditions) -> bool:
    low, high = conditions.get("min_score"), conditions.get("max_score")
    value, baseline = row["score"], row["baseline"]
    return (
        (low is None or (value is not None and value >= low))
        and (high is None or (value is not None and value <= high))
        and conditions.get("status") in (None, row["status"])
        and (not conditions.get("beats_baseline") or (value is not None and baseline is not None and value > baseline))
    )


def naive_list(store: Store, source, sort, conditions) -> list[str]:
    """All rows of the view of definition, filtered and sorted in Python."""
    sql = "SELECT listing.*, name FROM listing JOIN sources ON sources.id = source_id"
    rows = [dict(row) for row in store.db.conn.execute(sql)]
    rows = [row for row in rows if source in (None, row["name"]) and passes(row, conditions)]
    keys = {
        "feature": lambda _: 0,
        "score": lambda row: (row["score"] is None, -(row["score"] or 0)),
        "worst": lambda row: (row["score"] is None, row["score"] or 0),
        "density": lambda row: (row["density"] is None, -(row["density"] or 0)),
        "peak": lambda row: -row["peak"],
    }
    rows.sort(key=lambda row: (keys[sort](row), row["source_id"], row["idx"], row["negative"]))
    return [f"{row['name']}:{row['idx']}{'-' if row['negative'] else ''}" for row in rows]


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(labels, max_size=25),
    source=st.none() | st.sampled_from(SOURCES),
    sort=st.sampled_from(list(SORTS)),
    conditions=filters,
    size=st.integers(1, 4),
)
def test_pages_follow_each_other_as_in_one_list(drawn, source, sort, conditions, size) -> None:
    with Store(":memory:") as store:
        fill(store, drawn)
        check_derived(store)
        wanted = naive_list(store, source, sort, conditions)
        assert [row["feature"] for row in store.list_rows(source, sort=sort, **conditions)] == wanted
        paged: list[str] = []
        while page := store.list_rows(
            source, sort=sort, limit=size, after=Feature.parse(paged[-1]) if paged else None, **conditions
        ):
            paged += [row["feature"] for row in page]
        assert paged == wanted
        if wanted:
            rest = store.list_rows(source, sort=sort, after=Feature.parse(wanted[0]), **conditions)
            assert [row["feature"] for row in rest] == wanted[1:]


@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(labels, min_size=1, max_size=15), change=st.randoms(use_true_random=False))
def test_rows_and_counts_follow_every_change(drawn, change) -> None:
    with Store(":memory:") as store:
        fill(store, drawn)
        statements = (
            "UPDATE explanations SET text = 'other' WHERE text IS NOT NULL AND id % 2 = {}",
            "DELETE FROM ranks WHERE explanation_id % 2 = {}",
            "UPDATE scores SET value = 0.7 WHERE value IS NOT NULL AND id % 2 = {}",
            "DELETE FROM scores WHERE id % 2 = {}",
            "UPDATE features SET count = 0, density = 0 WHERE id % 2 = {}",
            "INSERT OR REPLACE INTO ranks SELECT * FROM ranks WHERE explanation_id % 2 = {}",
        )
        for _ in range(4):
            store.db.conn.execute(change.choice(statements).format(change.randrange(2)))
            check_derived(store)
        store.write_harvest(harvest_result(*SOURCES, dead=(0, 1), tokens=2000))
        check_derived(store)


def test_sources_and_statuses_count_what_lists_show() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(*SOURCES, dead=(3,)))
        for index, value in enumerate((0.12, 0.62, 0.64)):
            store.add_result(explanation(index), [score(value)])
        store.add_result(explanation(1, "below", negative=True), [score(-0.33)])
        counts = count_by_source(store.db.conn)
        rows = store.list_rows("demo:mlp.2")
        assert counts["demo:mlp.2"] == {
            status: sum(row["status"] == status for row in rows if not row["feature"].endswith("-"))
            for status in {row["status"] for row in rows}
        }
        assert counts["demo:mlp.3"] == {"dead": 1, "unlabelled": 4}
        (counted,) = (row for row in store.sources() if row["source"] == "demo:mlp.2")
        statuses = counts["demo:mlp.2"]
        assert (counted["alive"], counted["explained"], counted["weak"]) == (4, statuses["explained"], statuses["weak"])
        assert store.source(Feature.parse("demo:mlp.2:0").source) == counted


def test_a_page_after_what_has_no_row_is_refused() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        with pytest.raises(NeuronautError, match="demo:mlp.2:1- has no row here"):
            store.list_rows(limit=1, after=Feature.parse("demo:mlp.2:1-"))


# Words


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(labels, max_size=25),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=2).map(" ".join),
    source=st.none() | st.sampled_from(SOURCES),
    conditions=filters,
    limit=st.integers(1, 5),
)
def test_common_words_are_found_by_the_walk_as_by_sorting_all(drawn, query, source, conditions, limit) -> None:
    with Store(":memory:") as store, pytest.MonkeyPatch.context() as patch:
        fill(store, drawn)
        patch.setattr(words, "RANKED", 0)
        patch.setattr(words, "_STRIDE", 2)
        walked = store.search_rows(query, limit=limit, source=source, **conditions)
        patch.setattr(words, "_walk", lambda *_: None)
        assert walked == store.search_rows(query, limit=limit, source=source, **conditions)
        patch.setattr(words, "RANKED", 10_000)
        best_first = naive_list(store, source, "score", conditions)
        everything = {row["feature"] for row in store.search_rows(query, limit=None, source=source, **conditions)}
        assert [row["feature"] for row in walked] == [name for name in best_first if name in everything][:limit]


def test_what_is_looked_for_too_long_is_sorted_after_all(monkeypatch) -> None:
    monkeypatch.setattr(words, "RANKED", 1)
    monkeypatch.setattr(words, "_STRIDE", 1)
    monkeypatch.setattr(words, "WALKED", 2)
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        for index in range(5):
            store.add_result(explanation(index, "rare" if index < 2 else "other"), [score(index / 10)])
        assert [row["feature"] for row in store.search_rows("rare", limit=1)] == ["demo:mlp.2:1"]


# Neighbours


class Drawn(Embedder):
    """A random vector for each text, the same whenever it is asked for."""

    def __init__(self, dimension: int = 8) -> None:
        super().__init__("drawn")
        self._dimension = dimension

    def embed(self, texts):
        drawn = [np.random.default_rng(sum(map(ord, text))).standard_normal(self._dimension) for text in texts]
        return np.array([vector / np.linalg.norm(vector) for vector in drawn], np.float32)


@settings(max_examples=40, deadline=None)
@given(drawn=st.lists(labels, max_size=25), source=st.none() | st.sampled_from(SOURCES), conditions=filters)
def test_the_nearest_by_file_are_those_of_all_vectors(tmp_path_factory, drawn, source, conditions) -> None:
    path = tmp_path_factory.mktemp("vectors") / "a.db"
    with Store(path) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "FILTERED", -1)
        fill(store, drawn)
        embedder = Drawn()
        wanted = semantic_search(store, "self", embedder=embedder, limit=4, source=source, **conditions)
        assert not list(path.parent.glob("*-vectors-*"))
        patch.setattr(vectors, "INDEXED", 1)
        assert semantic_search(store, "self", embedder=embedder, limit=4, source=source, **conditions) == wanted
        patch.setattr(vectors, "FILTERED", 10_000)
        assert semantic_search(store, "self", embedder=embedder, limit=4, source=source, **conditions) == wanted


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 300), dimension=st.integers(1, 12), spread=st.floats(0.01, 1))
def test_bounds_of_a_third_and_of_the_whole_row_hold(tmp_path_factory, seed, count, dimension, spread) -> None:
    rng = np.random.default_rng(seed)
    drawn = (rng.standard_normal(dimension) + spread * rng.standard_normal((count, dimension))).astype(np.float16)
    drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True).clip(1e-3)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0].astype("<f4")
    rows = vector_file.quantise(range(count), drawn @ rotation)
    path = tmp_path_factory.mktemp("bounds") / "file"
    path.write_bytes(bytes(vector_file._HEADER.size) + rotation.tobytes() + rows.tobytes())
    query = drawn[0]
    file = vector_file.VectorFile(path, dimension, count)
    ids, upper = file.bound(query)
    whole = file.refine(query, np.arange(count))
    true = drawn @ query
    assert ids.tolist() == list(range(count))
    assert (true <= whole + 1e-5).all()
    assert (whole <= upper + 1e-5).all()
    # The whole row leaves out only what eight bits do.
    assert (whole - true).max() < 0.02


def labelled(path: Path, count: int, first: int = 0) -> Store:
    store = Store(path)
    if not first:
        store.write_harvest(harvest_result(width=1000))
    for index in range(first, first + count):
        store.add_explanation(explanation(index, f"text {index} {'x' * index}"))
    return store


def nearest(store: Store, query: str = "self") -> list[str]:
    return [row["feature"] for row in semantic_search(store, query, embedder=Drawn(), limit=5)]


def test_the_file_follows_the_database_and_is_made_anew_for_another(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(vectors, "INDEXED", 1)
    path = tmp_path / "a.db"
    with labelled(path, 30) as store:
        nearest(store)
        store.backup(tmp_path / "old.db")
    file = tmp_path / "a.db-vectors-1"
    size = file.stat().st_size
    with labelled(path, 5, first=30) as store:
        monkeypatch.setattr(vectors, "INDEXED", 10_000)
        wanted = nearest(store)
        monkeypatch.setattr(vectors, "INDEXED", 1)
        assert nearest(store) == wanted
        assert file.stat().st_size == size + 5 * vector_file.record(8).itemsize
        # A text that changes loses its vector, and the row of the file that is left does no harm.
        store.db.conn.execute("UPDATE explanations SET text = 'self' WHERE id = 3")
        assert nearest(store)[0] == "demo:mlp.2:2"
    # A backup grows otherwise than the file did: the tokens differ.
    (tmp_path / "old.db").replace(path)
    for leftover in ("-wal", "-shm"):
        Path(f"{path}{leftover}").unlink(missing_ok=True)
    with labelled(path, 20, first=50) as store:
        found = nearest(store)
        monkeypatch.setattr(vectors, "INDEXED", 10_000)
        assert found == nearest(store)
    assert file.stat().st_size == vector_file.rows_start(8) + 50 * vector_file.record(8).itemsize


def test_a_torn_or_foreign_file_is_made_anew(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(vectors, "INDEXED", 1)
    with labelled(tmp_path / "a.db", 30) as store:
        wanted, file = nearest(store), tmp_path / "a.db-vectors-1"
        whole = file.read_bytes()
        for content in (whole[:-1], whole[:10], b"x" * len(whole), b""):
            file.write_bytes(content)
            assert nearest(store) == wanted
            assert file.read_bytes() == whole


def test_vectors_are_never_changed_and_go_with_their_text() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        first, second = (store.add_explanation(explanation(index, f"text {index}")) for index in range(2))
        assert refresh(store, Drawn()) == 2
        with pytest.raises(sqlite3.IntegrityError, match="never changed"):
            store.db.conn.execute("UPDATE embeddings SET vector = x'00'")
        store.db.conn.execute("DELETE FROM explanations WHERE id = ?", [second])
        assert store.status()["embeddings"] == 1
        # The id is given again, and its new text is embedded.
        assert store.add_explanation(explanation(3, "again")) == second
        store.db.conn.execute("UPDATE explanations SET text = 'new' WHERE id = ?", [first])
        assert (refresh(store, Drawn()), refresh(store, Drawn())) == (2, 0)


def naive_overlaps(store: Store, feature: Feature, limit: int) -> list[tuple[str, float]]:
    """The Jaccard index with every feature, from the harvest's own lists."""
    tops: dict[str, set[int]] = {}
    sql = """SELECT name, idx, windows FROM examples JOIN features ON features.id = feature_id
        JOIN sources ON sources.id = source_id WHERE examples.kind = 'top' ORDER BY features.id"""
    for name, idx, windows in store.db.conn.execute(sql):
        tops[f"{name}:{idx}"] = set(np.frombuffer(windows, "<i4").tolist())
    own = tops.pop(str(feature))
    pairs = [(name, len(own & other) / len(own | other)) for name, other in tops.items() if own & other]
    return sorted(pairs, key=lambda pair: -pair[1])[:limit]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.integers(1, 12), stale=st.booleans())
def test_features_that_share_windows_are_those_of_all_pairs(seed, limit, stale) -> None:
    result = harvest_result(*SOURCES, width=6)
    rng = np.random.default_rng(seed)
    for source in result.sources:
        keep = rng.random(len(source.lists["top"].features)) < 0.4
        keep[0] = True
        own = source.lists["top"]
        source.lists["top"] = own._replace(
            features=own.features[keep], windows=own.windows[keep], activations=own.activations[keep]
        )
    feature = Feature.parse(f"demo:mlp.2:{result.sources[0].lists['top'].features[0]}")
    with Store(":memory:") as store:
        store.write_harvest(result)
        if stale:
            store.db.conn.execute("UPDATE window_harvests SET digest = 'other' WHERE source_id = 2")
            store.db.conn.execute("DELETE FROM window_features WHERE source_id = 2")
        found = similar(store, feature, embedder=None, limit=limit).by_activation
        assert [(row["feature"], row["similarity"]) for row in found] == naive_overlaps(store, feature, limit)


# An old file


def test_a_file_of_before_is_migrated_with_its_vectors(tmp_path, monkeypatch) -> None:
    path = tmp_path / "old.db"
    with monkeypatch.context() as patch, Store(":memory:") as fresh:
        fill(fresh, [(SOURCES[0], 1, False, "self", 0.5, "dense"), (SOURCES[1], 2, True, "month", 0.9, "dense")])
        wanted = {sort: fresh.list_rows(sort=sort) for sort in SORTS}
        patch.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:12])
        db = connect(str(path), create=True)
        migrations.migrate(db, str(path))
        for table in ("sources", "harvests", "features", "vocabularies", "windows", "examples", "explanations"):
            copy(fresh.db.conn, db.conn, table)
        for table in ("scores", "ranks"):
            copy(fresh.db.conn, db.conn, table)
        vector = Drawn().embed(["self"])[0]
        for id_, text in ((1, "self"), (2, "another text")):
            db.conn.execute(
                "INSERT INTO embeddings (explanation_id, model, content_hash, vector) VALUES (?, 'drawn', ?, ?)",
                [id_, migrations.content_digest(text), vector.tobytes()],
            )
        db.conn.close()
    with Store(path) as store:
        check_derived(store)
        assert {sort: store.list_rows(sort=sort) for sort in SORTS} == wanted
        assert store.status()["embeddings"] == 1
        assert refresh(store, Drawn()) == 1
        assert len(similar(store, Feature.parse("demo:mlp.2:1"), embedder=None, limit=3).by_activation) == 3


def copy(source: sqlite3.Connection, target: sqlite3.Connection, table: str) -> None:
    """Copy the columns that the older table has."""
    columns = ", ".join(row[1] for row in target.execute(f"PRAGMA table_info({table})"))
    rows = [tuple(row) for row in source.execute(f"SELECT {columns} FROM {table}")]
    target.executemany(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(rows[0]))})", rows)
