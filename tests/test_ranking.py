"""Headline scores, weak explanations and the best of several: by the pure functions, and as the store keeps them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.cli import common
from neuronaut.data.codec import content_digest
from neuronaut.data.ranking import HEADLINES, Candidate, headline_score, rank, standing, why_weak
from neuronaut.data.records import Score
from neuronaut.data.store import listing, migrations, writing
from neuronaut.data.store.database import connect
from neuronaut.data.store.store import Store
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from tests.stored import explanation, harvest_result, score

FEATURE = Feature.parse("demo:mlp.2:1")


def judged(kind: int, value: float | None, judge: str = "", *, ci: float = 0.1, **baselines: float | None) -> Score:
    """A headline score of the kind of a place in HEADLINES."""
    scorer, examples, metric = HEADLINES[kind]
    ends = {} if value is None else {"ci_low": value - ci, "ci_high": value + ci}
    reason = "refused" if value is None else None
    return Score(scorer, examples, metric, value, reason, **ends, baselines=baselines, judge=judge)


def selected(value: float, judge: str = "a", *, scorer: str = "simulation", windows: tuple[str, ...] = ("w",)) -> Score:
    """A score of a candidate on `select` windows."""
    return Score(scorer, "select", "correlation", value, judge=judge, windows=windows)


# Headline scores


def test_the_headline_is_of_the_kind_that_says_most_and_of_the_judge_under_whom_it_does_best():
    simulated, detected = judged(0, 0.3, "rule"), judged(1, 0.9, "llm")
    assert headline_score([simulated, detected, judged(3, 0.99)]) is simulated
    assert headline_score([simulated, judged(0, 0.03, "small")]) is simulated
    assert headline_score([judged(0, 0.03, "small"), simulated]) is simulated
    assert headline_score([judged(1, None), judged(2, 0.6)]).scorer == "fuzzing"
    assert headline_score([replace(simulated, examples="quantile"), judged(0, None)]) is None
    assert headline_score([selected(0.9)]) is None


def test_a_judge_that_judges_again_is_taken_at_its_latest_word():
    assert headline_score([judged(0, 0.8, "a"), judged(0, 0.2, "a"), judged(0, None, "a")]).value == 0.2
    apart = [replace(judged(0, value, "a"), backend=backend) for value, backend in ((0.8, "json"), (0.2, "probe"))]
    assert headline_score(apart).value == 0.8


# Weak


@pytest.mark.parametrize(
    ("score", "weak"),
    [
        (judged(0, 0.5), False),
        (judged(0, 0.1), True),
        (judged(0, -0.5), True),
        (judged(1, 0.7), False),
        (judged(1, 0.6), True),
        (judged(3, 0.55), True),
        (judged(0, 0.5, token_rule=0.49, other_rule=0.2), False),
        (judged(0, 0.5, token_rule=0.5), False),
        (judged(0, 0.5, token_rule=0.51), True),
        (judged(0, 0.5, token_rule=None, other_rule=0.6), True),
        (judged(1, 0.8, empty=0.8), True),
        (judged(1, 0.8, shuffled=0.9), True),
        (judged(0, 0.5, token_table=0.6), False),
        (judged(0, 0.5, token_table=0.61), True),
        (replace(judged(0, 0.5), ci_low=None, ci_high=None), True),
    ],
)
def test_weak_is_what_chance_a_token_or_another_explanation_may_explain(score: Score, weak: bool):
    assert bool(why_weak(score)) == weak
    assert standing("explained", score) == ("weak" if weak else "explained")
    assert standing("dense", score) == "dense"
    assert standing("explained", None) == "explained"


# The best of several


def ranked(**scores: list[Score] | None) -> str:
    """The names of candidates, one letter each, the oldest given first, in the order that they are ranked in."""
    candidates = [Candidate(id, own is not None, own or []) for id, own in enumerate(scores.values())]
    names = list(scores)
    random.Random(0).shuffle(candidates)
    return "".join(names[candidate.id] for candidate in rank(candidates))


@pytest.mark.parametrize(
    ("scores", "order"),
    [
        # Holdout prefers a, and the same judge on the same select windows prefers b.
        ({"a": [judged(0, 0.9), selected(0.5)], "b": [judged(0, 0.6), selected(0.7)]}, "ba"),
        # Other judges, other scorers and other windows do not compare.
        ({"a": [judged(0, 0.9), selected(0.5)], "b": [judged(0, 0.6), selected(0.7, "b")]}, "ab"),
        ({"a": [judged(0, 0.9), selected(0.5)], "b": [judged(0, 0.6), selected(0.7, scorer="detection")]}, "ab"),
        ({"a": [judged(0, 0.9), selected(0.5)], "b": [judged(0, 0.6), selected(0.7, windows=("v",))]}, "ab"),
        # A headline of another kind does not decide where there is a common measure.
        ({"a": [judged(0, 0.5), selected(0.5)], "b": [judged(1, 0.9), selected(0.7)]}, "ba"),
        ({"a": [judged(0, 0.5)], "b": [judged(1, 0.9)]}, "ab"),
        # What nobody judged displaces nothing, and text comes before none.
        ({"a": [judged(0, 0.1)], "b": []}, "ab"),
        ({"a": [judged(0, None)], "b": []}, "ba"),
        ({"a": [selected(0.1)], "b": [], "c": None}, "abc"),
        ({"a": None, "b": None, "c": []}, "cba"),
        # Of several common measures, the one that most share decides, then that of the scorer that says most.
        (
            {
                "a": [judged(0, 0.1), selected(0.1), selected(0.9, scorer="detection")],
                "b": [judged(0, 0.2), selected(0.2), selected(0.8, scorer="detection")],
                "c": [judged(0, 0.3), selected(0.7, scorer="detection")],
            },
            "abc",
        ),
        (
            {
                "a": [selected(0.2), selected(0.8, scorer="detection")],
                "b": [selected(0.1), selected(0.9, scorer="detection")],
            },
            "ab",
        ),
        # One that was never compared keeps its place among those that were.
        ({"a": [judged(0, 0.9), selected(0.5)], "b": [judged(0, 0.7), selected(0.7)], "c": [judged(0, 0.8)]}, "bca"),
    ],
)
def test_candidates_are_ordered_by_a_common_measure_or_by_their_headlines(scores, order):
    assert ranked(**scores) == order


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([None, 0.1, 0.5]), st.sampled_from([None, 0.2, 0.4]))))
def test_ranking_depends_on_no_order_and_unjudged_ones_come_last(drawn):
    candidates = [
        Candidate(id, text, [score for score in (head and judged(0, head), own and selected(own)) if text and score])
        for id, (text, head, own) in enumerate(drawn)
    ]
    order = rank(candidates)
    assert order == rank(reversed(candidates))
    assert sorted(candidate.id for candidate in order) == list(range(len(drawn)))
    tiers = [(not candidate.has_text, not candidate.scores) for candidate in order]
    assert tiers == sorted(tiers)
    values = [s.value for candidate in order for s in candidate.scores if s.examples == "select"]
    assert values == sorted(values, reverse=True)


# In the store


@pytest.fixture
def store():
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())
        yield store


def texts(store: Store) -> list[str | None]:
    return [stored.explanation.text for stored in store.explanations(FEATURE)]


def test_every_reader_of_the_store_follows_the_ranking(store):
    a = store.add_result(explanation(text="a", key="a"), [score(0.9), selected(0.5)])
    b = store.add_result(explanation(text="b", key="b"), [score(0.6), selected(0.5)])
    store.add_explanation(explanation(3, "another"))
    assert texts(store) == ["a", "b"]
    store.add_scores(b, [selected(0.7)])
    assert texts(store) == ["b", "a"]
    assert store.best(FEATURE).id == b
    assert [stored.id for stored in store.iterate_best(FEATURE.source)][0] == b
    assert store.another_explanation(Feature.parse("demo:mlp.2:3"), with_rule=False).text == "b"
    assert store.row(FEATURE) == store.list_rows()[1]
    assert (store.row(FEATURE)["explanation"], store.row(FEATURE)["score"]) == ("b", 0.6)
    assert [row["explanation"] for row in store.search_rows("a")] == []
    store.add_scores(a, [selected(0.8)])
    assert store.search_rows("a")[0]["score"] == 0.9


def test_a_weaker_judge_leaves_the_headline_and_the_status_as_they_are(store):
    id = store.add_result(explanation(), [replace(score(0.97), backend="rule", judge="code")])
    before = store.row(FEATURE)
    weak = replace(score(0.03), backend="json", judge="small @ here # 1a2b")
    store.add_scores(id, [weak, replace(judged(3, 0.6), judge="embedding")])
    assert store.row(FEATURE) == before
    assert before["status"] == "explained"


def test_status_follows_the_scores_and_rows_are_filtered_by_it(store):
    store.add_result(explanation(0, "good", negative=True), [score(0.8)])
    store.add_result(explanation(1, "at chance"), [score(0.05)])
    store.add_result(explanation(2, "a token does better"), [score(0.6, baselines={"token_rule": 0.7})])
    store.add_result(explanation(3, "as good as the table"), [score(0.6, baselines={"token_table": 0.65})])
    store.add_explanation(explanation(4, None, status="dense"))
    statuses = {row["feature"]: row["status"] for row in store.list_rows()}
    assert statuses == {
        "demo:mlp.2:0": "unlabelled",
        "demo:mlp.2:0-": "explained",
        "demo:mlp.2:1": "weak",
        "demo:mlp.2:2": "weak",
        "demo:mlp.2:3": "explained",
        "demo:mlp.2:4": "dense",
    }
    for status in listing.STATUSES:
        expected = [feature for feature, own in statuses.items() if own == status]
        assert [row["feature"] for row in store.list_rows(status=status)] == expected
        assert [row["feature"] for row in store.iterate_rows(status=status)] == expected
    assert [row["feature"] for row in store.list_rows(beats_baseline=True)] == ["demo:mlp.2:0-"]
    assert [row["feature"] for row in store.search_rows("a", status="weak")] == ["demo:mlp.2:2"]
    assert store.search_rows("table", beats_baseline=True) == []
    assert [stored.status for stored in store.iterate_best(FEATURE.source)] == ["weak", "weak", "explained"]
    assert [s.explanation.feature.index for s in store.iterate_best(FEATURE.source, status="explained")] == [3]
    assert store.status()["status"] == {"dense": 1, "explained": 1, "unlabelled": 1, "weak": 2}
    with pytest.raises(NeuronautError, match="wanted one of explained, weak"):
        store.list_rows(status="strong")


def test_the_command_line_offers_every_status():
    assert common.STATUSES == listing.STATUSES


def test_a_merge_ranks_again(tmp_path: Path, store):
    store.add_result(explanation(text="here", key="here"), [score(0.9), selected(0.4)])
    with Store(tmp_path / "other.db") as other:
        other.write_harvest(harvest_result())
        other.add_result(explanation(text="there", key="there"), [score(0.5), selected(0.6)])
        other.add_result(explanation(text="here", key="here"), [score(0.05, metric="auroc")])
    store.merge(tmp_path / "other.db")
    assert texts(store) == ["there", "here"]
    before = list(store.db.conn.iterdump())
    store.merge(tmp_path / "other.db")
    assert list(store.db.conn.iterdump()) == before


def test_scores_that_are_there_already_change_nothing(store):
    id = store.add_result(explanation(), [score(0.5)])
    before = store.db.conn.total_changes
    store.add_scores(id, [score(0.5)])
    assert store.db.conn.total_changes == before


# Old databases


def old_database(path: Path) -> None:
    """A file of version 9, with four explanations of one feature, the last of which comes second by its headline."""
    with Store(path) as store:
        store.write_harvest(harvest_result())
        features = [tuple(row) for row in store.db.conn.execute("SELECT * FROM features")]
        sources = [tuple(row) for row in store.db.conn.execute("SELECT * FROM sources")]
    path.unlink()
    db = connect(str(path), create=True)
    for step in migrations.MIGRATIONS[:9]:
        step(db)
    db.conn.execute(f"PRAGMA application_id = {migrations.APPLICATION_ID}")
    db.conn.execute("PRAGMA user_version = 9")
    for table, content in (("sources", sources), ("features", features)):
        # Later columns stand behind those of then.
        count = len(db.conn.execute(f"PRAGMA table_info({table})").fetchall())
        rows = [row[:count] for row in content]
        db.conn.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * count)})", rows)
    by_rule, small = {"by": "rule"}, {"by": "json", "llm": "small", "endpoint": "here", "prompt": {"simulate": "1a2b"}}
    add_old(db, "good by code, then bad by a small judge", [(0.9, by_rule), (0.03, small)])
    add_old(db, "fair", [(0.5, by_rule)])
    add_old(db, "never judged", [])
    add_old(db, "weak", [(0.15, by_rule)])
    db.conn.close()


def add_old(db, text: str, judged: list[tuple[float, dict[str, object]]]) -> None:
    """Add an explanation and its headline scores to a file of version 9, with the digests of then."""
    id = db.conn.execute(
        "INSERT INTO explanations (feature_id, negative, text, status, explainer, key, attempt, digest, seen,"
        " provenance, created) VALUES (2, 0, ?, 'explained', 'rule', ?, 1, ?, '[]', '{}', 't')",
        [text, text, text],
    ).lastrowid
    for value, provenance in judged:
        written = replace(score(value), windows=("w",))
        content = writing._score_row(written)[: writing.SCORE_CONTENT.index("backend")]
        db.conn.execute(
            "INSERT INTO scores (explanation_id, scorer, examples, metric, value, reason, ci_low, ci_high, n, coverage,"
            " baselines, windows, digest, provenance, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 't')",
            [id, *content, content_digest(*content), json.dumps(provenance)],
        )


def test_an_old_database_keeps_its_order_and_learns_its_judges_and_what_is_weak(tmp_path: Path):
    old_database(tmp_path / "old.db")
    with Store(tmp_path / "old.db") as store:
        assert texts(store) == ["fair", "weak", "good by code, then bad by a small judge", "never judged"]
        statuses = {stored.explanation.text[:4]: stored.status for stored in store.explanations(FEATURE)}
        assert statuses == {"fair": "explained", "weak": "weak", "good": "explained", "neve": "explained"}
        both = store.scores(store.explanations(FEATURE)[2].id)
        assert [(one.backend, one.judge) for one in both] == [("rule", "code"), ("json", "small @ here # 1a2b")]
        assert [row["explanation"] for row in store.search_rows("small judge")] == []
        assert [row["explanation"] for row in store.search_rows("fair")] == ["fair"]


def test_an_old_score_that_is_made_again_adds_nothing(tmp_path: Path):
    old_database(tmp_path / "old.db")
    with Store(tmp_path / "old.db") as store:
        stored = store.explanations(FEATURE)[0]
        store.add_scores(stored.id, store.scores(stored.id))
        assert len(store.scores(stored.id)) == 1
        store.add_scores(stored.id, [replace(store.scores(stored.id)[0], judge="another")])
        assert len(store.scores(stored.id)) == 2


def test_what_comes_later_is_ranked_by_the_rule_of_now(tmp_path: Path):
    old_database(tmp_path / "old.db")
    with Store(tmp_path / "old.db") as store:
        good = store.explanations(FEATURE)[2]
        store.add_scores(good.id, [score(0.2, metric="auroc")])
        assert store.best(FEATURE).id == good.id


@pytest.mark.parametrize(("value", "first"), [(0.894, 0), (0.904, 0), (0.92, 1)])
def test_what_an_investigation_did_not_prove_must_be_ahead_by_more_than_two_decimals_show(
    value: float, first: int
) -> None:
    label, answer = (Candidate(id, True, [judged(0, own)]) for id, own in enumerate((0.9, value)))
    assert [candidate.id for candidate in rank([label, answer._replace(unproven=True)])][0] == first
    assert [candidate.id for candidate in rank([label, answer])][0] == int(value > 0.9)
