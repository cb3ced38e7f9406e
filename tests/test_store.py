"""The store on planted harvests: what goes in comes out, once, and no score leaks."""

import multiprocessing
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from neuronaut.data.codec import grams, pack_activations, unpack_activations, window_digest
from neuronaut.data.splits import part
from neuronaut.data.store import migrations
from neuronaut.data.store.database import connect
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result, score, windows

NEURONS = SourceId.parse("demo:mlp.2")


@pytest.fixture
def store():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        yield store


def dump(store: Store) -> list[str]:
    return list(store.db.conn.iterdump())


# Blobs


@given(
    arrays.arrays(np.uint16, arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20)),
    st.sampled_from([0x0000, 0x0001, 0xFFFF]),
)
def test_packed_activations_come_back_to_the_bit(bits, mask):
    packed = pack_activations((bits * (bits & 7 == mask) if mask < 2 else bits).view(np.float16))
    expected = bits * (bits & 7 == mask) if mask < 2 else bits
    assert unpack_activations(packed).shape == expected.shape
    assert (unpack_activations(packed).view(np.uint16) == expected).all()


def test_sparse_activations_take_little_room():
    activations = np.zeros((40, 128), np.float16)
    activations[:, 3] = 1
    assert len(pack_activations(activations)) < 40 * 6 + 20


@given(arrays.arrays(np.int32, (3, 12), elements=st.integers(0, 2)))
def test_grams_are_those_of_a_plain_loop(ids):
    plain = [len({tuple(row[i : i + 8]) for i in range(5)}) for row in ids.tolist()]
    assert [len(row) for row in grams(ids)] == plain
    shared = len({tuple(ids[0][i : i + 8]) for i in range(5)} & {tuple(ids[1][i : i + 8]) for i in range(5)})
    assert len(np.intersect1d(grams(ids)[0], grams(ids)[1])) == shared


# Harvests and evidence


def test_evidence_is_what_was_harvested(store):
    evidence = store.evidence(Feature(NEURONS, 2))
    parts = evidence.train, evidence.tune, evidence.select, evidence.holdout
    assert [len(part) for part in parts] == [6, 4, 4, 8]
    example = next(example for part in parts for example in part if example.document == "doc-0-5")
    assert (example.kind, example.split) == ("top", part("select", "doc-0-5"))
    assert example.ids.tolist() == windows()[5].tolist()
    assert example.tokens == tuple(f" t{i}" for i in windows()[5])
    assert example.window == window_digest(windows()[5])
    expected = np.full(16, 2 + 5 / 16)
    expected[2] += 1
    assert example.activations.dtype == np.float32
    assert example.activations.tolist() == expected.tolist()
    statistics = evidence.statistics
    assert (statistics.tokens, statistics.density, statistics.peak, statistics.trough) == (1000, 0.012, 3.0, -4.0)
    assert statistics.histogram == tuple(range(128, 192))


def test_the_negative_tail_is_turned(store):
    evidence = store.evidence(Feature.parse("demo:mlp.2:2-"))
    assert (evidence.statistics.peak, evidence.statistics.trough) == (4.0, -3.0)
    assert [example.kind for example in evidence.train] == ["top"] * 3 + ["bottom"] * 3
    top = [example for example in evidence.train if example.kind == "top"]
    assert top[0].peak == 3.0
    assert all((example.activations < 0).all() for example in evidence.train if example.kind == "bottom")


def test_sparse_sources_come_back_too():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("demo:resid_post.2@sparse"))
        example = store.evidence(Feature.parse("demo:resid_post.2@sparse:3")).train[0]
        assert example.activations.tolist() == [0, 0, 0, 2.5] + [0] * 12


def test_the_same_harvest_twice_changes_nothing(store):
    before = dump(store)
    store.write_harvest(harvest_result())
    assert dump(store) == before


def test_a_new_harvest_replaces_examples_and_leaves_explanations(store):
    store.add_result(explanation(), [score()])
    store.write_harvest(harvest_result(seed=7, tokens=2000))
    evidence = store.evidence(Feature(NEURONS, 1))
    assert evidence.statistics.tokens == 2000
    assert {example.document.split("-")[1] for example in evidence.train} == {"7"}
    assert store.best(Feature(NEURONS, 1)).explanation.text == "fires on ` self`"
    assert [window.window for window in store.pool_windows("demo", "train")] == [window_digest(windows(7)[0])]


def test_other_weights_under_one_name_are_refused_and_nothing_is_written(store):
    before = dump(store)
    with pytest.raises(NeuronautError, match="other weights"):
        store.write_harvest(harvest_result("demo:mlp.1", "demo:mlp.2", revision="new"))
    assert dump(store) == before


def test_the_pool_comes_back_by_split(store):
    pool = store.pool("demo")
    half = part("select", "doc-0-4")
    assert {split: ids.tolist() for split, ids in pool.items() if len(ids)} == {
        split: [windows()[row].tolist()] for split, row in (("train", 0), (half, 4), ("holdout", 8))
    }
    assert [(w.document, w.ids.tolist()) for w in store.pool_windows("demo", half)] == [
        ("doc-0-4", windows()[4].tolist())
    ]
    assert store.vocabulary("demo")[7] == " t7"
    assert store.models() == ["demo"]
    assert [(row["source"], row["alive"], row["width"]) for row in store.sources()] == [("demo:mlp.2", 5, 5)]


def overlapping(share: int) -> np.ndarray:
    """Windows of which holdout window 9 shares `share` of its nine grams with train window 1."""
    ids = windows()
    ids[9, : share + 7] = ids[1, : share + 7]
    return ids


@pytest.mark.parametrize(("share", "kept"), [(4, True), (5, False)])
def test_near_duplicates_of_earlier_splits_are_left_out(share, kept):
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(ids=overlapping(share)))
        documents = {example.document for example in store.evidence(Feature(NEURONS, 0)).holdout}
        assert ("doc-0-9" in documents) == kept
        assert {"doc-0-8", "doc-0-10"} <= documents


def test_a_window_spread_over_two_train_windows_is_no_duplicate_of_either():
    ids = windows()
    ids[9, :8], ids[9, 8:] = ids[1, :8], ids[2, 8:]
    ids[3], ids[10] = np.tile([1, 2], 8), np.tile([5, 6], 8)
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(ids=ids))
        assert "doc-0-9" in {example.document for example in store.evidence(Feature(NEURONS, 0)).holdout}


def test_documents_of_earlier_splits_are_left_out():
    documents = tuple("shared" if row in (1, 6, 10) else f"doc-{row}" for row in range(12))
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(documents=documents))
        evidence = store.evidence(Feature(NEURONS, 0))
        assert "shared" in {example.document for example in evidence.train}
        assert "shared" not in {example.document for example in (*evidence.select, *evidence.holdout)}


# Naming features


def test_selections_resolve():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(width=20, dead=(3, 4)))
        alive = [index for index in range(20) if index not in (3, 4)]
        assert [feature.index for feature in store.features("demo:mlp.2")] == alive
        assert [feature.index for feature in store.features("demo:mlp.2:all-")] == list(range(20))
        assert all(feature.negative for feature in store.features("demo:mlp.2:alive-"))
        assert [feature.index for feature in store.features("demo:mlp.2:4,1-2")] == [4, 1, 2]
        drawn = store.features("demo:mlp.2:random:5")
        assert drawn == store.features("demo:mlp.2:random:5")
        assert len(drawn) == 5
        assert {feature.index for feature in drawn} <= set(alive)
        assert len(store.features("demo:mlp.2:random:50")) == 18


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda store: store.features("demo:mlp.2:0-5"), "0 to 4"),
        (lambda store: store.features("demo:mlp.9:1"), "holds demo:mlp.2; run: neuronaut harvest demo mlp.9"),
        (lambda store: store.evidence(Feature(NEURONS, 5)), "0 to 4"),
        (lambda store: store.vocabulary("gpt2"), "neuronaut harvest gpt2"),
        (lambda store: store.add_explanation(explanation(99)), "demo:mlp.2:99"),
        (lambda store: store.list_rows("demo:mlp.9"), "neuronaut harvest"),
        (lambda store: store.list_rows(sort="beauty"), "wanted one of"),
        (lambda store: store.add_scores(77, [score()]), "no explanation 77"),
        (lambda store: store.merge("nowhere.db"), "neuronaut harvest"),
    ],
)
def test_errors_are_one_line(store, call: Callable[[Store], object], words: str):
    with pytest.raises(NeuronautError) as error:
        call(store)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


# Explanations and scores


def test_a_result_comes_back(store):
    given_explanation, given_score = explanation(seen=("a", "b")), score(windows=("c",))
    id_ = store.add_result(given_explanation, [given_score])
    stored = store.best(Feature(NEURONS, 1))
    assert (stored.id, stored.explanation) == (id_, given_explanation)
    assert store.scores(id_) == [given_score]


def test_a_score_on_a_window_that_was_seen_is_refused_with_its_explanation(store):
    with pytest.raises(NeuronautError, match="saw one of the scored windows"):
        store.add_result(explanation(seen=("a", "b")), [score(), score(0.6, windows=("c", "b"))])
    assert store.explanations(Feature(NEURONS, 1)) == []
    id_ = store.add_explanation(explanation(seen=("a", "b")))
    with pytest.raises(NeuronautError, match="saw one of the scored windows"):
        store.add_scores(id_, [score(windows=("c",)), score(0.6, windows=("a",))])
    assert store.scores(id_) == []
    with pytest.raises(sqlite3.IntegrityError, match="leak"):
        store.db.conn.execute(
            """INSERT INTO scores (explanation_id, scorer, examples, metric, value, n, coverage, baselines, windows,
            digest, provenance, created) VALUES (?, 's', 'e', 'm', 1, 1, 1, '{}', '["a"]', 'd', '{}', 't')""",
            [id_],
        )


def test_a_number_that_is_none_is_refused(store):
    id_ = store.add_explanation(explanation())
    with pytest.raises(ValueError, match="not finite"):
        store.add_scores(id_, [score(float("nan"))])
    store.add_scores(id_, [score(None)])
    assert [(found.value, found.reason) for found in store.scores(id_)] == [(None, "refused")]


def test_a_key_labels_a_feature_once_unless_it_failed_or_is_redone(store):
    feature = Feature(NEURONS, 1)
    store.add_explanation(explanation(text=None, status="failed"))
    assert store.labelled([feature], "k") == set()
    first = store.add_result(explanation(text="one"), [score(0.4)])
    assert store.labelled([feature, Feature(NEURONS, 2)], "k") == {feature}
    assert store.labelled([feature], "other") == set()
    assert store.add_result(explanation(text="two"), [score(0.9)]) == first
    assert [found.value for found in store.scores(first)] == [0.4]
    second = store.add_result(explanation(text="two"), [score(0.9)], redo=True)
    assert [stored.id for stored in store.explanations(feature)][:2] == [second, first]
    assert store.add_result(explanation(text="two"), [score(0.9)], redo=True) == second
    assert len(store.scores(second)) == 1


def test_the_best_has_the_highest_headline_then_the_latest_then_abstentions(store):
    texts = {"low": 0.1, "high": 0.8, "unscored": None, "refused": None}
    ids = {text: store.add_explanation(explanation(text=text, key=text)) for text in texts}
    store.add_explanation(explanation(text=None, status="too_rare", key="rare"))
    for text in ("low", "high"):
        store.add_scores(ids[text], [score(0.99, metric="auroc"), score(texts[text])])
    store.add_scores(ids["refused"], [score(None)])
    found = [stored.explanation.text for stored in store.explanations(Feature(NEURONS, 1))]
    assert found == ["high", "low", "refused", "unscored", None]
    row = store.list_rows(status="explained")[0]
    assert (row["explanation"], row["score"], row["metric"], row["baseline"]) == ("high", 0.8, "correlation", 0.2)
    store.add_scores(ids["high"], [score(0.05)])
    assert store.best(Feature(NEURONS, 1)).explanation.text == "low"


def test_status_has_a_row_per_feature():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(width=6, dead=(5,)))
        store.add_explanation(explanation(0))
        store.add_explanation(explanation(1, None, status="dense"))
        store.add_explanation(explanation(2, None, status="failed"))
        store.add_explanation(explanation(3, "far below zero", negative=True))
        statuses = [row["status"] for row in store.db.query("SELECT status FROM feature_status ORDER BY idx")]
        assert statuses == ["explained", "dense", "failed", "unlabelled", "unlabelled", "dead"]
        assert [row["feature"] for row in store.list_rows()][3:5] == ["demo:mlp.2:3", "demo:mlp.2:3-"]
        assert store.status()["status"] == {"dead": 1, "dense": 1, "explained": 1, "failed": 1, "unlabelled": 2}


# Files


def test_every_version_migrates_to_the_same_schema(tmp_path):
    def schema(path: Path) -> list[tuple[str, ...]]:
        with Store(path) as store:
            return store.db.conn.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    fresh = schema(tmp_path / "fresh.db")
    for version in range(1, len(migrations.MIGRATIONS)):
        path = tmp_path / f"{version}.db"
        db = connect(str(path), create=True)
        for step in migrations.MIGRATIONS[:version]:
            step(db)
        db.conn.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
        db.conn.execute(f"PRAGMA user_version = {version}")
        db.conn.execute("INSERT INTO vocabularies VALUES ('kept', '[\"a\"]')")
        db.conn.close()
        assert [tuple(row) for row in schema(path)] == [tuple(row) for row in fresh]
        with Store(path) as store:
            assert store.vocabulary("kept") == ("a",)


def test_files_that_are_not_ours(tmp_path):
    newer, other, text, damaged = (tmp_path / name for name in ("newer.db", "other.db", "text.db", "damaged.db"))
    with Store(newer) as store:
        store.db.conn.execute("PRAGMA user_version = 999")
    sqlite3.connect(other).execute("CREATE TABLE t (x)").connection.commit()
    text.write_text("not a database at all, but long enough to be read as one" * 100)
    with Store(damaged) as store:
        store.write_harvest(harvest_result())
    content = damaged.read_bytes()
    damaged.write_bytes(content[:4096] + b"\x5a" * (len(content) - 4096))
    for path, words in (
        (newer, "upgrade"),
        (other, "another program"),
        (text, "not a Neuronaut"),
        (tmp_path, "folder"),
        (tmp_path / "no" / "x.db", "no folder"),
    ):
        with pytest.raises(NeuronautError, match=words):
            Store(path)
    with pytest.raises(NeuronautError, match="damaged"), Store(damaged) as store:
        store.list_rows()
    with pytest.raises(NeuronautError, match="neuronaut harvest"):
        Store(tmp_path / "absent.db", create=False)
    assert not (tmp_path / "absent.db").exists()


def _as_nobody(path: Path, results) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        with Store(path) as store:
            results.put(len(store.list_rows()))
            store.add_explanation(explanation())
    except NeuronautError as error:
        results.put(str(error))


@pytest.mark.parametrize("folder_mode", [0o555, 0o777])
def test_a_read_only_database_can_be_read(folder_mode):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "read-only.db"
        with Store(path) as store:
            store.write_harvest(harvest_result())
        path.chmod(0o444)
        Path(folder).chmod(folder_mode)
        fork = multiprocessing.get_context("fork")
        results = fork.Queue()
        process = fork.Process(target=_as_nobody, args=(path, results))
        process.start()
        assert results.get(timeout=60) == 5
        assert "can only be read" in results.get(timeout=60)
        process.join()
        Path(folder).chmod(0o755)


def _label(path: Path, worker: int) -> None:
    with Store(path) as store:
        for index in range(30):
            store.add_result(explanation(index, f"by {worker}"), [score(worker / 10)])
            store.add_result(explanation(index, f"own {worker}", key=f"own-{worker}"), [score(worker / 10)])


def test_processes_that_label_at_once_lose_and_double_nothing(tmp_path):
    path = tmp_path / "shared.db"
    with Store(path) as store:
        store.write_harvest(harvest_result(width=30))
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_label, args=(path, worker)) for worker in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with Store(path) as store:
        for feature in store.features("demo:mlp.2:all"):
            found = store.explanations(feature)
            assert sorted(s.explanation.provenance["key"] for s in found) == ["k", "own-1", "own-2", "own-3"]
            for stored in found:
                assert [s.value for s in store.scores(stored.id)] == [int(stored.explanation.text[-1]) / 10]


def _open_new(path: Path) -> None:
    Store(path).close()


def test_processes_may_make_one_file_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=_open_new, args=(tmp_path / "new.db",)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6


def _killed_inside(path: Path) -> None:
    with Store(path) as store, store.transaction():
        store.add_explanation(explanation())
        os._exit(9)


def test_a_killed_writer_leaves_nothing_half_done(tmp_path):
    with Store(tmp_path / "killed.db") as store:
        store.write_harvest(harvest_result())
    process = multiprocessing.get_context("fork").Process(target=_killed_inside, args=(tmp_path / "killed.db",))
    process.start()
    process.join()
    with Store(tmp_path / "killed.db") as store:
        assert store.status()["explanations"] == 0
        store.add_explanation(explanation())


def test_backup_is_equal_and_overwrites_nothing(tmp_path, store):
    store.add_result(explanation(), [score()])
    store.backup(tmp_path / "copy.db")
    with Store(tmp_path / "copy.db") as copy:
        assert dump(copy) == dump(store)
    with pytest.raises(NeuronautError, match="exists already"):
        store.backup(tmp_path / "copy.db")


def test_merge_adds_what_is_missing_once(tmp_path, store):
    store.add_result(explanation(text="here"), [score(0.3)])
    with Store(tmp_path / "other.db") as other:
        other.write_harvest(harvest_result("demo:mlp.3", seed=5))
        other.write_harvest(harvest_result())
        other.add_result(explanation(text="there"), [score(0.7)])
        other.add_result(explanation(text="here"), [score(0.3)], redo=True)
        other.add_result(explanation(source="demo:mlp.3", negative=True), [])
    added = store.merge(tmp_path / "other.db")
    assert added == {
        "sources": 1,
        "features": 5,
        "windows": 12,
        "examples": 10,
        "explanations": 2,
        "scores": 1,
        "judgements": 0,
        "llm_calls": 0,
        "prompts": 0,
        "investigations": 0,
    }
    feature = Feature.parse("demo:mlp.3:2")
    with Store(tmp_path / "other.db") as other:
        theirs, ours = other.evidence(feature), store.evidence(feature)
        for their, our in zip(theirs.train, ours.train, strict=True):
            assert (their.window, their.kind, their.document) == (our.window, our.kind, our.document)
            assert (their.activations == our.activations).all()
    assert [stored.explanation.text for stored in store.explanations(Feature(NEURONS, 1))] == ["there", "here"]
    assert len(store.explanations(Feature.parse("demo:mlp.3:1-"))) == 1
    assert len(store.pool_windows("demo", "train")) == 1
    before = dump(store)
    assert set(store.merge(tmp_path / "other.db").values()) == {0}
    assert dump(store) == before
