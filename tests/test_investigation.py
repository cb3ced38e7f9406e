"""The loop of an investigation: predictions before observations, verdicts by code, budgets, kills, bounded state."""

import os
import shutil
import signal
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.loop.hypotheses import Call, Fault, Hypothesis, Propose, UseTools
from neuronaut.agent.loop.judging import outcome_of, rank_rivals
from neuronaut.agent.loop.policy import NoActionError
from neuronaut.agent.loop.resuming import KEPT, Latest, hold_lock, is_running
from neuronaut.agent.loop.run import InvestigationRun, Settings
from neuronaut.agent.replay import replay
from neuronaut.data.store import database
from neuronaut.data.store.journal_values import Charge, Observation
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Rule
from neuronaut.subject.errors import NeuronautError
from tests.investigating import LABEL_RULE, RIVER_NOT_DRY, TRUE_RULE, Plain, Windows, harvested, prepared, run, work_of
from tests.planted import corpus


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the planted neurons' evidence; tests work on copies."""
    path = tmp_path_factory.mktemp("evidence") / "planted.db"
    store = harvested(str(path))
    store.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    return path


@pytest.fixture
def store(evidence: Path, tmp_path: Path) -> Any:
    with Store(shutil.copy(evidence, tmp_path / "own.db")) as opened:
        yield opened


def finished(store: Store, policy: Any, **said: Any) -> InvestigationRun:
    """An investigation that was run to its end."""
    work = work_of(store, prepared(store), policy, **said)
    run(work)
    return work


# Predictions come first, and stay


def test_a_true_rule_is_supported_and_stored_with_its_scores(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE))
    row = work.journal.row(work.id)
    assert row["status"] == "supported", row["reason"]
    kept = store.explanation(row["explanation_id"])
    assert kept is not None and kept.explanation.rule == Rule.parse(TRUE_RULE).to_json()
    text, headline = kept.explanation.text, kept.explanation.headline
    assert headline is None or (text or "").startswith(headline)
    scores = {(s.examples, s.metric): s.value for s in store.scores(kept.id)}
    assert scores["context", "agreement"] == 1.0


def test_nothing_is_observed_without_a_prediction_and_nothing_twice(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE, rounds=1))
    experiments = work.journal.experiments(work.id)
    with pytest.raises(sqlite3.IntegrityError):
        work.journal.observe(work.id, "o1", Observation("ok", {"values": []}, None), charge=Charge())
    work.journal.preregister(work.id, [replace(experiments[0], name="o99", key="other", predictions=())])
    with pytest.raises(sqlite3.IntegrityError, match="without an earlier prediction"):
        work.journal.observe(work.id, "o99", Observation("ok", {"values": []}, None), charge=Charge())
    sql = """SELECT min(observations.created > predictions.created)
        FROM observations JOIN predictions USING (investigation, experiment)"""
    assert store.db.conn.execute(sql).fetchone()[0] == 1


@pytest.mark.parametrize("table", ["predictions", "observations"])
def test_what_was_predicted_and_seen_cannot_be_changed(store: Store, table: str) -> None:
    finished(store, Plain(TRUE_RULE, rounds=1))
    for statement in (f"UPDATE {table} SET created = 0", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            store.db.conn.execute(statement)


@pytest.mark.parametrize("tampering", ["SET expected = '[0]' WHERE seq = 2", "SET seq = 99 WHERE seq = 2"])
def test_tampering_breaks_the_chain(store: Store, tampering: str) -> None:
    work = finished(store, Plain(TRUE_RULE, rounds=2))
    assert work.journal.broken_link(work.id) is None
    store.db.conn.execute("DROP TRIGGER predictions_update")
    store.db.conn.execute(f"UPDATE predictions {tampering}")
    assert work.journal.broken_link(work.id) is not None
    assert not replay(store.journal, work.id).same


def test_a_replay_gives_every_verdict_again_to_the_bit(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE))
    again = replay(store.journal, work.id)
    assert again.same and again.rounds == 6 and again.answer == "supported"
    store.db.conn.execute("UPDATE events SET payload = replace(payload, '\"share\"', '\"part\"') WHERE kind = 'judged'")
    assert replay(store.journal, work.id).different == (1, 2, 3, 4, 5, 6)


# Verdicts are code's


@pytest.mark.parametrize("words", ["CONFIRMED", "not CONFIRMED ... REFUTED", "Evidence: every test contradicted it"])
def test_words_change_no_verdict(store: Store, words: str) -> None:
    said = finished(store, Plain(TRUE_RULE, rounds=3, words=words), id="said")
    other = finished(store, Plain(TRUE_RULE, rounds=3, words="something else"), id="other")
    one, two = (
        [(r.name, r.status, r.log_odds, r.hits, r.brier) for r in work.rival_state().rivals] for work in (said, other)
    )
    assert one == two
    assert said.journal.event_of("said", "frozen")["verdict"] == other.journal.event_of("other", "frozen")["verdict"]  # type: ignore[index]


def test_a_false_rule_is_refuted_by_what_is_seen(store: Store) -> None:
    work = finished(store, Plain('{"any":[{"when":[{"token":[" house"," garden"]}],"value":1.0}]}'))
    rivals = {rival.name: rival for rival in work.rival_state().rivals}
    origins = {row["name"]: row["origin"] for row in work.journal.hypotheses(work.id)}
    assert origins == {"H1": "code", "H2": "code", "H3": "label", "H4": "proposer"}
    assert rivals["H4"].status == "refuted"
    assert work.outcome().leader != "H4", "a null, or the label, predicts better"


def test_a_policys_wish_is_no_verdict(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE, rounds=1))
    row = work.journal.row(work.id)
    assert row["status"] == "open" and "of its predictions are resolved" in row["reason"]


def test_plans_that_tell_nothing_or_never_ask_for_silence_are_refused(store: Store) -> None:
    class Loud(Plain):
        def decide(self, view: Any, actions: Any, tools: Any) -> Any:
            action = super().decide(view, actions, tools)
            return action.model_copy(update={"calls": action.calls[:1]}) if hasattr(action, "calls") else action

    work = finished(store, Loud(TRUE_RULE))
    reasons = [event["reason"] for event in work.journal.events(work.id) if event["kind"] == "rejected"]
    assert len(reasons) == 3 and all("predict silence for only 0 of 1" in reason for reason in reasons)
    assert not work.journal.experiments(work.id)


def test_of_a_plan_what_can_be_run_is_run(store: Store) -> None:
    """A faulty call comes back alone, and so does the one that is too many for so little silence."""

    class Careless(Plain):
        def decide(self, view: Any, actions: Any, tools: Any) -> Any:
            action = super().decide(view, actions, tools)
            if not isinstance(action, UseTools):
                return action
            loud, silent = action.calls
            louder = [loud.model_copy(update={"args": {**loud.args, "number": n}}) for n in (10, 11)]
            wrong = loud.model_copy(update={"args": {"number": "many"}})
            unread = Fault(call="windows", reason="not JSON")
            return UseTools(calls=(wrong, *louder, silent), faults=(unread,))

    policy = Careless(TRUE_RULE, rounds=1)
    work = finished(store, policy)
    assert [experiment.name for experiment in work.journal.experiments(work.id)] == ["o1", "o2"]
    assert [experiment.args["number"] for experiment in work.journal.experiments(work.id)] == [10, 13]
    last = policy.views[2]
    assert last.rejected is not None and last.last_rejection is None
    told = [(refused.rejection.code, refused.partial) for refused in last.refused]
    assert told == [("bad_call", True), ("bad_call", True), ("silence_quota", True)]
    assert [refused.action and refused.action["calls"][0]["args"]["number"] for refused in last.refused[1:]] == [
        "many",
        11,
    ]
    assert all(part in last.rejected for part in ("not JSON", "windows: number:", "silence for only 1 of 3"))


def test_experiments_beside_a_proposal_follow_it(store: Store) -> None:
    class Faulty(Plain):
        def decide(self, view: Any, actions: Any, tools: Any) -> Any:
            action = super().decide(view, actions, tools)
            if not isinstance(action, Propose):
                return action
            return action.model_copy(update={"calls": (Call(tool="windows", args={"number": "many"}),)})

    work = finished(store, Plain(TRUE_RULE, rounds=2, eager=True))
    first, second, *_ = work.journal.decisions(work.id)
    assert first["action"]["action"] == "propose" and len(first["action"]["calls"]) == 2
    assert second["action"]["action"] == "use_tools"
    assert [(e.name, e.round) for e in work.journal.experiments(work.id)[:4]] == [
        ("o1", 1),
        ("o2", 1),
        ("o3", 2),
        ("o4", 2),
    ]
    assert all(len(experiment.predictions) >= 3 for experiment in work.journal.experiments(work.id)[:2])
    policy = Faulty(TRUE_RULE, rounds=1)
    work = finished(store, policy, id="faulty")
    assert [h for h in work.hypotheses().values() if h.kind == "rule"]
    assert "windows: number:" in (policy.views[1].rejected or "") and policy.views[1].refused[-1].partial


def test_odds_are_the_sum_of_the_prior_and_what_each_experiment_added(store: Store) -> None:
    rivals = finished(store, Plain(TRUE_RULE, rounds=3)).rival_state().rivals
    for rival in rivals:
        assert rival.prior + sum(term.log_odds for term in rival.terms) == pytest.approx(rival.log_odds, abs=1e-5)
    terms = [term for rival in rivals for term in rival.terms]
    assert any(term.log_odds < 0 and term.hits < term.expected for term in terms)
    assert all(term.items > 0 and term.hits <= term.items and 0 < term.weight <= 1 for term in terms)


# Failures


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), NeuronautError("no carrier")])
def test_failures_are_no_zeros(store: Store, error: Exception) -> None:
    def fail() -> None:
        raise error

    work = finished(store, Plain(TRUE_RULE), tools={"windows": Windows(break_=fail)})
    row = work.journal.row(work.id)
    assert row["status"] == "error" and str(error) in row["reason"]
    assert all(rival.resolved == 0 for rival in work.rival_state().rivals)
    assert all(observation.result == {} for observation in work.rival_state().observations.values())


def test_a_value_that_is_no_number_is_a_failure(store: Store) -> None:
    class Broken(Windows):
        def measure(self, design: Any, lab: Any) -> Any:
            measured = super().measure(design, lab)
            return replace(measured, values=(float("nan"), *measured.values[1:]))

    work = finished(store, Plain(TRUE_RULE, rounds=1), tools={"windows": Broken()})
    assert {o.reason for o in work.rival_state().observations.values()} == {
        "windows gave a value that is not a finite number"
    }


def test_a_policy_without_a_valid_action_ends_with_a_report(store: Store) -> None:
    class Mute(Plain):
        def decide(self, *_: Any) -> Any:
            raise NoActionError("it said nothing", repairs=1)

    work = finished(store, Mute(TRUE_RULE))
    assert work.journal.row(work.id)["status"] == "open"
    assert "3 decisions in a row were not valid" in work.journal.row(work.id)["reason"]


# The holdout


def test_the_holdout_is_read_once_and_never_by_tools(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE))
    assert work.journal.peeks(work.id) == ["holdout"]
    held = store.evidence(work.lab.feature).holdout[0]
    with pytest.raises(NeuronautError, match="none of the training windows"):
        work.lab.window(held.window)
    shown = {example.window for view in work.policy.views for example in view.examples}  # type: ignore[attr-defined]
    assert shown and not shown & {example.window for example in store.evidence(work.lab.feature).holdout}


def label(rule: str) -> Hypothesis:
    return Hypothesis(text="a claim", rule=Rule.parse(rule))


def test_only_counterfactuals_show_a_missing_exception() -> None:
    """`river` unless after `dry`, in a corpus in which `dry` comes before it in one of twenty."""
    texts = corpus(documents=120, seed=1)
    rare = [text.replace(" dry river", " old river") if number % 6 else text for number, text in enumerate(texts)]
    joined = " ".join(rare)
    assert 0.03 < joined.count(" dry river") / joined.count(" river") < 0.07
    with harvested(texts=rare) as store:
        one = prepared(store, RIVER_NOT_DRY)
        found, scores = {}, {}
        for name, rule in (("label", LABEL_RULE), ("truth", TRUE_RULE)):
            scores[name] = one.examiner.holdout(name, label(rule)).scores
            found[name] = {(s.examples, s.metric): s.value for s in scores[name]}
        assert found["label"]["top_random", "correlation"] >= 0.95
        assert (found["label"]["context", "agreement"] or 0.0) <= 0.6
        assert found["truth"]["context", "agreement"] == found["truth"]["counterfactual", "agreement"] == 1.0
        assert one.examiner.shortfall(scores["label"])
        assert one.examiner.shortfall(scores["truth"]) is None


# Budgets


class Restless(Plain):
    """Never submits."""

    def decide(self, view: Any, actions: Any, tools: Any) -> Any:
        return super().decide(replace(view, round=view.round % self.rounds), actions, tools)


@pytest.mark.parametrize(
    ("limits", "kind", "most"),
    [
        (Limits(experiments=5), "experiments", 6),
        (Limits(experiments=None, fwd=150), "forwards", 150 + 2000),
        (Limits(experiments=None, minutes=0.002), "minutes", 1),
    ],
)
def test_a_policy_that_never_ends_is_ended_by_its_budget(store: Store, limits: Limits, kind: str, most: float) -> None:
    work = finished(store, Restless(TRUE_RULE, number=30), limits=limits)
    row = work.journal.row(work.id)
    assert row["status"] == "budget" and row["ended"], row["reason"]
    assert getattr(work.journal.spent(work.id), kind) <= most
    assert len(work.journal.experiments(work.id)) <= 6
    assert work.journal.event_of(work.id, "holdout"), "the reserve pays for the holdout"


def test_limits_hold_across_a_resume(store: Store) -> None:
    one = prepared(store)
    work = work_of(store, one, Restless(LABEL_RULE), limits=Limits(experiments=9))
    work.journal.charge(work.id, "an earlier run", "experiment", Charge(experiments=8))
    run(work)
    assert not work.journal.experiments(work.id)


# Kills


def state_of(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that an investigation left, but for times."""
    db = sqlite3.connect(path)
    queries = {
        "investigations": "SELECT id, status, reason, explanation_id FROM investigations",
        "hypotheses": "SELECT name, step, body FROM hypotheses",
        "decisions": "SELECT step, role, decision FROM decisions",
        "experiments": "SELECT name, tool, args, key, design, base, reference FROM experiments ORDER BY id",
        "predictions": "SELECT seq, experiment, hypothesis, expected FROM predictions ORDER BY seq",
        "observations": "SELECT experiment, status, result FROM observations ORDER BY experiment",
        "events": "SELECT kind, key FROM events ORDER BY seq",
        # What was read and not yet written down when a process died is read again, so forward passes may differ.
        "ledger": "SELECT key, kind, experiments FROM ledger WHERE kind <> 'minutes' ORDER BY key",
        "peeks": "SELECT purpose FROM peeks",
        "explanations": "SELECT text, rule FROM explanations",
        "scores": "SELECT examples, metric, value FROM scores ORDER BY id",
    }
    found = {name: db.execute(sql).fetchall() for name, sql in queries.items()}
    db.close()
    return found


def in_child(path: Path, kill_at: int | None, *, before: bool) -> tuple[int, int]:
    """Run or resume an investigation in a child process that is killed at a write to the database; gives the signal
    that ended it and how many writes there were."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _child(path, kill_at, before, write)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as told:
        counted = told.read()
    return status & 0x7F, int(counted or 0)


def _child(path: Path, kill_at: int | None, before: bool, write: int) -> None:
    torch.set_num_threads(1)
    store = Store(str(path))
    count, original = 0, store.db.conn.execute

    class Counting:
        """The connection, which dies at a commit."""

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

        def execute(self, sql: str, *values: Any) -> Any:
            nonlocal count
            is_commit = sql == "COMMIT"
            count += is_commit
            if is_commit and count == kill_at and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(sql, *values)
            if is_commit and count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    connection = store.db.conn
    store.db.conn = Counting()  # type: ignore[assignment]
    assert database.transaction
    work = work_of(store, prepared(store), Plain(TRUE_RULE, rounds=2, eager=True))
    saver = Latest(sqlite3.connect(f"{path}.checkpoints", check_same_thread=False))
    run(work, saver)
    os.write(write, str(count).encode())
    os._exit(0)


def test_killed_anywhere_it_ends_the_same(evidence: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copy(evidence, tmp_path / "whole.db"))
    signal_, writes = in_child(whole, None, before=False)
    assert signal_ == 0 and writes > 40
    wanted = state_of(whole)
    for number in range(8):
        path = Path(shutil.copy(evidence, tmp_path / f"killed{number}.db"))
        at = 2 + number * (writes - 3) // 7
        killed, _ = in_child(path, at, before=number % 2 == 0)
        assert killed == signal.SIGKILL
        assert in_child(path, None, before=False)[0] == 0
        assert state_of(path) == wanted, f"killed at write {at} of {writes}"


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "locked.db")
    with hold_lock(path, "abc"):
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                os.write(write, b"under way, " * is_running(path, "abc"))
                with hold_lock(path, "abc"):
                    os.write(write, b"let in")
            except NeuronautError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as told:
            words = told.read()
            assert words.startswith("under way") and "running in another process" in words
    assert not is_running(path, "abc") and not is_running(path, "xyz")
    with hold_lock(path, "abc"):
        pass


# Bounded state


def test_checkpoints_stay_small(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints"
    saver = Latest(sqlite3.connect(path, check_same_thread=False))
    rounds, policy = 25, Restless(TRUE_RULE, rounds=1000, number=2)
    run(
        work_of(store, prepared(store), policy, limits=Limits(experiments=None), settings=Settings(rounds=rounds)),
        saver,
    )
    kept = saver.conn.execute("SELECT count(*) FROM checkpoints").fetchone()[0]
    assert kept == KEPT and path.stat().st_size < 200_000


def test_rivals_that_come_later_must_win_on_what_comes_later(store: Store) -> None:
    work = finished(store, Plain(TRUE_RULE, rounds=4))
    _, experiments, observations = work.rival_state()
    hypotheses = {**work.hypotheses(), "H9": Hypothesis(text="late", rule=Rule.parse(TRUE_RULE))}
    rivals = rank_rivals(hypotheses, experiments, observations, kind="feature")
    late = next(rival for rival in rivals if rival.name == "H9")
    assert late.resolved == 0 and late.log_odds < rivals[0].log_odds - 2
    assert outcome_of(rivals, experiments, observations).leader != "H9"
