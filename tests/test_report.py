"""Reports: what the journal holds comes out, every number names its source, pages cannot be broken, exports open."""

import importlib.util
import json
import re
import sqlite3
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.agent.report.assemble import assemble
from neuronaut.agent.report.citations import cite, find_uncited, line, quote, runs
from neuronaut.agent.report.export import to_inspect, to_lines
from neuronaut.agent.report.markup import el
from neuronaut.agent.report.page import page
from neuronaut.agent.report.page_plots import _space_labels
from neuronaut.agent.report.page_results import draw_results
from neuronaut.agent.report.report import Report
from neuronaut.data.records import Example
from neuronaut.data.store.store import Store
from tests import journals, stored

INSPECT = importlib.util.find_spec("inspect_ai")


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(":memory:") as opened:
        yield opened


@pytest.fixture
def report(store: Store) -> Report:
    return assemble(store.journal, journals.fill(store.journal))


# The lint


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("an effect of 0.94", ["0.94"]),
        ("an effect of 0.94 [o7]", []),
        ("0.94 (0.91 to 0.97) [o7], n 64 [o7]", []),
        ("0.94 [o7], n 64", ["64"]),
        ("0.94; the source [o7]", ["0.94"]),
        ("It is 3. As said [o7]", ["3"]),
        ("0.94\nthe source [o7]", ["0.94"]),
        ("“fires on digits” as H2 says", ["“fires on digits”"]),
        ("“fires on 3 digits; 4 at most. Or [o9]” [H2]", []),
        ("the token `river` it is", ["`river`"]),
        ('it says "no"', ['"no"']),
        ("50% and 2M and .5 and -4 and 1e-5 and $3", ["50%", "2M", ".5", "-4", "1e-5", "$3"]),
        ("H1, o7, mlp.2, demo:mlp.2:17 and head.0:1 are names", []),
        ("3 [page 4]", ["3", "4"]),
        ("7 [chain], 8 [ledger], 9 [baseline], 1 [holdout], 2 [controls], 3 [journal], 4 [o2-o5, o9]", []),
    ],
)
def test_the_lint_finds_numbers_and_quotes_without_a_source(text: str, bare: list[str]) -> None:
    assert find_uncited(text) == bare


def test_the_lint_finds_sources_that_do_not_exist() -> None:
    assert find_uncited("3 [o7], 4 [o2-o9], 5 [ledger]", known={"o2", "o7"}) == ["o9"]


def test_plain_words_cannot_hold_a_number_and_nothing_is_cited_to_nobody() -> None:
    with pytest.raises(ValueError, match="no source"):
        line("an effect of 0.94")
    with pytest.raises(ValueError, match="no source"):
        line("as ", "“said”")
    for sources in ([], ["somebody"], ["o7", "7"]):
        with pytest.raises(ValueError, match="no source"):
            cite("0.94", sources)
    assert line("an effect of ", cite("0.94", ["o7"])) == "an effect of 0.94 [o7]"


@given(st.text())
def test_whatever_is_quoted_the_line_passes_the_lint_and_hides_nothing(said: str) -> None:
    text = line("x", quote(said, ["H1"]), "; ", cite("7", ["o1"]))
    assert find_uncited(text) == []
    assert find_uncited(text.removesuffix(" [o1]")) == ["7"]


def test_sources_in_a_row_are_told_as_one() -> None:
    assert runs(["o3", "H1", "o1", "o2", "o7", "o8", "H1"]) == ("o1-o3", "o7", "o8", "H1")


# The report


def test_a_report_is_what_the_journal_holds(store: Store, report: Report) -> None:
    assert (report.status, report.verdict, report.hypothesis, report.broken) == ("supported", "supported", "H3", None)
    assert report.text == journals.HYPOTHESES[2].text
    assert report.rule is not None
    assert report.rule["any"][0]["unless"] == [{"at": -1, "token": [" dry"]}]
    assert [contender.name for contender in report.contenders][0] == "H3"
    assert (len(report.experiments), len(report.surveys)) == (3 * journals.ROUNDS, journals.ROUNDS)
    assert report.peeks == ("score",)
    assert report.predictions == 9 * journals.ROUNDS
    assert [control["passed"] for control in report.controls] == [True, False]
    assert all("windows" not in score for score in report.scores)
    assert assemble(store.journal, report.id[:6]) == report


def test_what_was_expected_stands_against_what_was_seen(report: Report) -> None:
    leader, rival = report.contenders[:2]
    told, wrong = leader.forecasts[0], rival.forecasts[0]
    assert (told.experiment, told.n, told.for_odds, rival.name) == ("o2", 6, True, "H1")
    assert told.expected == pytest.approx(5 / 6)
    assert told.seen == pytest.approx(np.mean([1.02, 0, 0.97, 1.1, 0.95, 1.0]))
    assert told.hits == 1.0
    # The other rival expected activity also after ` dry`, the second of six.
    assert wrong.hits == pytest.approx(5 / 6)
    assert wrong.brier > told.brier
    assert [f.for_odds for f in leader.forecasts[:2]] == [True, False]
    item = report.experiments[0].items[1]
    assert (item["label"], item["level"], item["expected"]) == (" dry", "silent", {"H1": 1.0, "H2": None, "H3": 0.0})


def test_the_odds_have_a_history(report: Report) -> None:
    history = report.contenders[1].history
    assert [odds.round for odds in history] == list(range(1, journals.ROUNDS + 1))
    leads = [mine.log_odds - other.log_odds for mine, other in zip(report.contenders[0].history, history, strict=True)]
    assert leads == sorted(leads)


def test_claims_and_what_is_open(report: Report) -> None:
    verdicts = {(claim["claim"], claim["item"]): claim["verdict"] for claim in report.claims}
    assert verdicts == {
        ("promotes", " bank"): "supported",
        ("promotes", " stone"): "untested",
        ("suppresses", " sand"): "supported",
        ("reads", "head.0:1"): "untested",
    }
    still = dict(report.open)
    assert still["experiments without a result"] == ("o4", "o8", "o12", "o16")
    assert still["negative controls that did not pass"] == ("sham",)
    assert "claims that nothing tested" in still


def test_the_text_is_short_and_every_number_names_its_source(report: Report) -> None:
    text = str(report)
    names = {trial.name for trial in report.trials} | {contender.name for contender in report.contenders}
    assert find_uncited(text, names) == []
    assert len(text.split("\n")) <= 60
    assert "0.93 (0.83 to 1.03) [holdout]" in text
    assert "0.17 (0.05 to 0.40) share of the tokens [o2]" in text
    assert "hits 6 of 6 [o2]" in text


@pytest.mark.parametrize(
    "until", ["begun", "baseline", "proposed", "planned", "observed", "judged", "frozen", "holdout"]
)
def test_an_investigation_that_has_not_ended_has_a_report(store: Store, until: str) -> None:
    report = assemble(store.journal, journals.fill(store.journal, until=until))
    assert report.status == "running"
    assert find_uncited(str(report)) == []
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["question"] == report.question
    assert page(report).endswith("</html>")


def test_a_prediction_that_was_changed_breaks_the_chain(store: Store, report: Report) -> None:
    connection = store.db.conn
    connection.execute("DROP TRIGGER predictions_update")
    connection.execute("UPDATE predictions SET expected = '[0.0,0.0,0.0,0.0,0.0,0.0]' WHERE experiment = 'o6'")
    changed = assemble(store.journal, report.id)
    assert changed.broken == "o6 H1"
    assert "is BROKEN at o6 H1" in str(changed)
    assert "broken" in page(changed)


# The page


class Reader(HTMLParser):
    """Counts elements, and sees that they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def example(tokens: tuple[str, ...]) -> Example:
    activations = np.linspace(0, 3, len(tokens)).astype(np.float32)
    return Example(tokens, np.arange(len(tokens)), activations, "top", "train", "doc", "w")


def test_the_page_is_whole_by_itself_and_nothing_in_it_is_markup_of_others(report: Report) -> None:
    html = page(report, examples=[example(("a", "\n", journals.EVIL, '"><img onerror=x>'))])
    for word in ("http", "src=", "<script", "<img", "@import", "url("):
        assert word not in html
    assert "&lt;script&gt;" in html
    reader = read(html)
    assert {"svg", "details", "table", "style"} <= set(reader.tags)
    assert "script" not in reader.tags
    assert len(reader.ids) == len(set(reader.ids))
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)


def test_plots_stay_within_their_frames(report: Report) -> None:
    for width, height, marks in re.findall(r'<svg viewBox="0 0 (\d+) (\d+)"(.*?)</svg>', page(report), re.DOTALL):
        xs = [float(x) for x in re.findall(r' c?x[12]?="(-?[\d.]+)"', marks)]
        ys = [float(y) for y in re.findall(r' c?y[12]?="(-?[\d.]+)"', marks)]
        assert xs
        assert all(0 <= x <= float(width) for x in xs)
        assert all(0 <= y <= float(height) for y in ys)


SHAPES = {
    "curve": [
        {"effect": dose / 2, "high": 1.0, "low": 0.0, "sham_high": 0.1, "sham_low": -0.1, "strength": dose}
        for dose in (0.0, 1.0, 2.0)
    ],
    "by_length": {"cut": {"1": 0.1, "16": 0.9, "2": 0.4}, "replaced": {"1": 0.2, "16": 0.8, "2": 0.3}},
    "shares": {"head.0:1": [0.4, 0.3, 0.5], "mlp.1": 0.1},
    "carriers": {"first": {"flipped": 0.2, "items": 81}, "second": {"flipped": 0.1, "items": 81}},
    "top": [{"logit": 0.5, "token": "<b>"}],
    "text": {"tokens": ["a", "<i>"], "values": [0.0, 1.0]},
    "odd": [1, [2, {"x": None}]],
    "n": 7,
}


@given(st.lists(st.floats(0, 250), max_size=12))
def test_labels_of_lines_do_not_overlap(heights: list[float]) -> None:
    placed = _space_labels(heights, gap=15, last=250)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert all(height <= 250 for height in placed)


def test_what_was_found_is_drawn_by_its_shape() -> None:
    parts = {name: read(f"<div>{draw_results({name: value})}</div>").tags for name, value in SHAPES.items()}
    counted = {
        name: {tag: tags.count(tag) for tag in ("svg", "polygon", "table", "pre", "span", "dl") if tag in tags}
        for name, tags in parts.items()
    }
    assert counted == {
        "curve": {"svg": 1, "polygon": 2},
        "by_length": {"svg": 2},
        "shares": {"svg": 1},
        "carriers": {"table": 1},
        "top": {"table": 1},
        "text": {"span": 2},
        "odd": {"pre": 1},
        "n": {"dl": 1},
    }
    assert "&lt;b&gt;" in draw_results(SHAPES)
    assert "&lt;i&gt;" in draw_results(SHAPES)
    # Lengths are ordered as numbers, not as text.
    line = re.search(r'polyline points="([^"]*)"', draw_results({"by_length": SHAPES["by_length"]["cut"]}))
    assert line is not None
    heights = [float(point.split(",")[1]) for point in line[1].split()]
    assert heights == sorted(heights, reverse=True)


@given(st.text(), st.text())
def test_no_text_leaves_its_element(text: str, attribute: str) -> None:
    html = el("p", text, title=attribute)
    assert re.fullmatch(r'<p title="[^"<>]*">[^<>]*</p>', html, re.DOTALL)


# Exports


def test_json_lines_hold_everything(store: Store, report: Report) -> None:
    rows = [json.loads(json.dumps(row)) for row in to_lines(store.journal, report.id, splits={"train": 4})]
    head, *rest = rows
    assert (head["format"], head["version"], head["id"]) == ("neuronaut-investigation", 1, report.id)
    assert (head["seed"], head["splits"], head["chain"]) == (0, {"train": 4}, "holds")
    counts = {name: sum(row["record"] == name for row in rest) for name in {row["record"] for row in rest}}
    assert counts == {
        "event": len(store.journal.events(report.id)),
        "hypothesis": 3,
        "experiment": 16,
        "observation": 16,
        "decision": 1 + journals.ROUNDS,
    }
    kinds = {row["kind"] for row in rest if row["record"] == "event"}
    assert {"begun", "judged", "holdout", "control", "ended"} <= kinds
    scan = next(row for row in rest if row["record"] == "experiment" and row["tool"] == "scan_vocabulary")
    assert scan["predictions"]["H3"] == [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_an_inspect_log_has_the_shape_of_version_2(store: Store, report: Report) -> None:
    log = json.loads(json.dumps(to_inspect(store.journal, report.id), allow_nan=False))
    assert (log["version"], log["status"], len(log["samples"])) == (2, "success", 1)
    sample = log["samples"][0]
    assert sample["scores"]["verdict"]["value"] == "C"
    assert sample["scores"]["simulation_top_random_correlation"]["value"] == 0.93
    calls = [event for event in sample["events"] if event["event"] == "tool"]
    assert [call["id"] for call in calls] == [trial.name for trial in report.trials]
    assert [call["id"] for call in calls if "error" in call] == ["o4", "o8", "o12", "o16"]


@pytest.mark.skipif(INSPECT is None, reason="inspect_ai is not installed")
@pytest.mark.parametrize("until", ["begun", "judged", "ended"])
def test_inspect_reads_its_log(tmp_path: Path, store: Store, until: str) -> None:
    from inspect_ai.log import read_eval_log  # type: ignore[import-not-found]

    id = journals.fill(store.journal, until=until)
    (tmp_path / "log.json").write_text(json.dumps(to_inspect(store.journal, id)), encoding="utf-8")
    log = read_eval_log(str(tmp_path / "log.json"))
    assert (log.status, log.eval.task_id) == ("success" if until == "ended" else "started", id)
    assert len(log.samples[0].events) == len(store.journal.events(id))


# Merging


def test_investigations_are_merged_once(tmp_path: Path) -> None:
    with Store(tmp_path / "other.db") as other:
        other.write_harvest(stored.harvest_result())
        mine, theirs = (journals.fill(other.journal, seed=seed) for seed in (0, 1))
        explained = other.add_result(stored.explanation(), [])
        other.db.conn.execute("UPDATE investigations SET explanation_id = ? WHERE id = ?", [explained, theirs])
        reports = {id: assemble(other.journal, id) for id in (mine, theirs)}
        lines = list(to_lines(other.journal, theirs))
    with Store(tmp_path / "here.db") as here:
        here.write_harvest(stored.harvest_result())
        here.add_result(stored.explanation(2), [])
        journals.fill(here.journal, seed=0, until="judged")
        added = here.merge(tmp_path / "other.db")
        assert added["investigations"] == 1
        report = assemble(here.journal, theirs)
        assert report.explanation is not None
        assert report.explanation != explained
        stays = here.explanation(report.explanation)
        assert stays is not None
        assert stays.explanation.feature.index == 1
        assert list(to_lines(here.journal, theirs)) == lines
        assert report.broken is None
        assert str(report) == str(reports[theirs])
        # What is here stays as it is.
        assert assemble(here.journal, mine).status == "running"
        before = list(here.db.conn.iterdump())
        assert set(here.merge(tmp_path / "other.db").values()) == {0}
        assert list(here.db.conn.iterdump()) == before
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            here.db.conn.execute("DELETE FROM observations")
