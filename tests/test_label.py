"""Labelling a batch: everything stored once and whole, whatever stops it and however many do it."""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.records import Explanation, Score
from neuronaut.data.store.store import Store
from neuronaut.explainers.explainer import TrainBatch
from neuronaut.explainers.rule import RuleExplainer
from neuronaut.labelling import agenda, inputs
from neuronaut.labelling import label as module
from neuronaut.labelling.agenda import Agenda, Explain, Item, Judge, TimeIsOver, WorkerItem, group_items
from neuronaut.labelling.estimate import estimate
from neuronaut.labelling.inputs import Columns
from neuronaut.labelling.label import FEATURE_TOKENS, LabelJob, Outcome, Result, label, performing, score
from neuronaut.labelling.processes import Processes
from neuronaut.llm.tasks import LLMTask
from neuronaut.scorers.simulation import RuleSimulator
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.dictionary import Dictionary
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from tests.planted import LAYER, NEURONS, Planted, build

NAMES: tuple[str, ...] = ("day", "new_haven", "always", "never", "river", "name_again")
"""Planted neurons in three blocks; the second has nothing to explain."""


@cache
def planted() -> Planted:
    return build(documents=40)


@cache
def subject() -> Subject:
    return Subject(planted().model, planted().tokenizer, name="planted")


@cache
def dictionary(*, gain: float = 1.0) -> Dictionary:
    """Its features are the planted neurons, in reverse order."""
    eye = torch.eye(NEURONS).flip(1)
    return Dictionary(
        id=SourceId("planted", f"mlp.{LAYER}", "eye"),
        kind="standard",
        W_enc=gain * eye,
        W_dec=eye.T / gain,
        b_enc=torch.zeros(NEURONS),
        b_dec=torch.zeros(NEURONS),
    )


def index(name: str) -> int:
    return next(neuron.index for neuron in planted().neurons if neuron.name == name)


def features() -> list[Feature]:
    return [Feature(SourceId("planted", f"mlp.{LAYER}"), index(name)) for name in NAMES]


class Counting(RuleExplainer):
    """The rule explainer, which counts what it is asked."""

    def __init__(self) -> None:
        super().__init__(subject(), interventions=16)
        self.asked: list[Feature] = []

    def explain(self, batch: TrainBatch) -> list[Explanation]:
        self.asked += [evidence.feature for evidence in batch.features]
        return super().explain(batch)


def small() -> None:
    """Blocks of two, and little to learn from."""
    torch.set_num_threads(1)
    agenda.BLOCK, inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 2, 96, 12


def run(path: Path, **options: Any) -> list[Result]:
    with Store(path) as store:
        wanted = options.pop("features", None) or features()
        explainer = options.pop("explainer", None) or Counting()
        return list(label(wanted, store, subject(), explainer=explainer, scorers=[RuleSimulator()], **options))


def run_alone(path: str) -> None:
    """One of two processes that label into one database."""
    small()
    run(Path(path))


def run_killed(path: str) -> None:
    """A process that dies while it stores its sixth feature."""
    small()
    add, added = Store.add_result, 0

    def dying(self: Store, *args: Any, **options: Any) -> int:
        nonlocal added
        added += 1
        if added == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return add(self, *args, **options)

    Store.add_result = dying
    run(Path(path))


def start(call: str, path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.test_label import {call}; {call}({str(path)!r})"],
        cwd=Path(__file__).parents[1],
    )


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    before = torch.get_num_threads(), agenda.BLOCK, inputs.BACKGROUND, inputs.RANDOM_WINDOWS
    small()
    yield
    torch.set_num_threads(before[0])
    agenda.BLOCK, inputs.BACKGROUND, inputs.RANDOM_WINDOWS = before[1:]


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("label") / "harvested.db"
    with Store(path) as store:
        sites = [f"mlp.{LAYER}", f"mlp_out.{LAYER}", dictionary()]
        harvest(subject(), sites, Corpus.of("planted", planted().corpus), store, window=32)
    return path


@pytest.fixture
def database(harvested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(harvested, tmp_path / "one.db"))


@pytest.fixture(scope="module")
def whole(harvested: Path) -> tuple[Path, list[Result]]:
    """A database in which everything was labelled by one call that nothing stopped."""
    path = Path(shutil.copy(harvested, harvested.with_name("whole.db")))
    return path, run(path)


def content(path: Path) -> list[list[tuple[object, ...]]]:
    """The explanations and the scores, without row ids and times."""
    explanations = """SELECT feature_id, negative, text, status, reason, rule, explainer, key, attempt, seen,
        explanations.provenance FROM explanations ORDER BY feature_id, negative, attempt"""
    scores = """SELECT feature_id, negative, attempt, scorer, examples, metric, value, scores.reason, ci_low, ci_high,
        n, coverage, baselines, windows, scores.provenance
        FROM scores JOIN explanations ON explanations.id = explanation_id
        ORDER BY feature_id, negative, attempt, scorer, examples, metric"""
    with Store(path) as store:
        return [[tuple(row) for row in store.db.execute(sql)] for sql in (explanations, scores)]


def test_everything_is_stored_as_it_was_yielded(whole: tuple[Path, list[Result]]) -> None:
    path, results = whole
    assert [result.feature for result in results] == features()
    with Store(path) as store:
        for result in results:
            (stored,) = store.explanations(result.feature)
            assert stored.explanation.text == result.explanation.text
            assert stored.explanation.rule == result.explanation.rule
            assert [(s.examples, s.metric, s.value) for s in store.scores(stored.id)] == [
                (s.examples, s.metric, s.value) for s in result.scores
            ]


def test_explained_features_have_scores_and_abstentions_a_reason(whole: tuple[Path, list[Result]]) -> None:
    results = dict(zip(NAMES, whole[1], strict=True))
    for name in ("day", "new_haven", "river", "name_again"):
        assert results[name].explanation.status == "explained"
        headline = results[name].score
        assert headline is not None
        assert headline.value is not None
        assert headline.value > 0.8
        assert set(headline.baselines) == {"token_rule", "token_table", "other_rule"}
    for name, status in (("always", "dense"), ("never", "dead")):
        assert results[name].explanation.status == status
        assert results[name].explanation.reason
        assert results[name].explanation.text is None
        assert results[name].scores == []
        assert results[name].score is None


def test_no_score_is_nan(whole: tuple[Path, list[Result]]) -> None:
    for result in whole[1]:
        for made in result.scores:
            numbers = (made.value, made.ci_low, made.ci_high, *made.baselines.values())
            assert all(number is None or math.isfinite(number) for number in numbers)
            assert (made.value is None) == (made.reason is not None)
    _, rows = content(whole[0])
    assert all((row[6] is None) == (row[7] is not None) for row in rows)


def test_no_scored_window_was_shown_to_the_explainer(whole: tuple[Path, list[Result]]) -> None:
    for result in whole[1]:
        for made in result.scores:
            assert not set(made.windows) & set(result.explanation.seen)


def test_what_is_labelled_is_skipped(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    explainer, skipped = Counting(), []
    assert run(database, explainer=explainer, on_skip=skipped.append) == []
    assert explainer.asked == []
    assert skipped == [len(NAMES)]
    assert content(database) == content(whole[0])


def test_redo_adds_an_explanation_and_keeps_the_earlier_one(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    explainer = Counting()
    assert len(run(database, explainer=explainer, redo=True)) == len(NAMES)
    assert explainer.asked == features()
    with Store(whole[0]) as before, Store(database) as after:
        for feature in features():
            (first,), both = before.explanations(feature), after.explanations(feature)
            assert len(both) == 2, "the explainer said the same again, and that is kept too"
            assert first in both
    again = RuleExplainer(subject(), interventions=16, seed=1)
    run(database, explainer=again, features=features()[:1])
    with Store(database) as store:
        assert len({stored.explanation.provenance["key"] for stored in store.explanations(features()[0])}) == 2


def test_killed_and_raced_calls_end_like_an_undisturbed_one(
    whole: tuple[Path, list[Result]], database: Path, tmp_path: Path
) -> None:
    shared = Path(shutil.copy(database, tmp_path / "shared.db"))
    killed, *racers = start("run_killed", database), start("run_alone", shared), start("run_alone", shared)
    assert [process.wait() for process in (killed, *racers)] == [-signal.SIGKILL, 0, 0]
    assert content(shared) == content(whole[0])
    explanations, scores = content(database)
    assert len(explanations) == 5, "all but the feature in hand were kept"
    assert scores == [row for row in content(whole[0])[1] if row[0] in {kept[0] for kept in explanations}]
    explainer = Counting()
    run(database, explainer=explainer)
    assert explainer.asked == features()[5:]
    assert content(database) == content(whole[0])


@pytest.mark.parametrize("cut", range(1, len(NAMES)))
def test_a_call_that_was_cut_anywhere_ends_like_a_whole_one(
    cut: int, whole: tuple[Path, list[Result]], database: Path
) -> None:
    with Store(database) as store:
        cutting = label(features(), store, subject(), explainer=Counting(), scorers=[RuleSimulator()])
        assert [next(cutting).feature for _ in range(cut)] == features()[:cut]
        cutting.close()
    assert [result.feature for result in run(database)] == features()[cut:]
    assert content(database) == content(whole[0])


@contextmanager
def open_worker(path: str) -> Iterator[Callable[[WorkerItem], LLMTask[list[Outcome]]]]:
    small()
    with Store(path) as store:
        yield performing(LabelJob(store, subject(), [RuleSimulator()], None, {}, explainer=Counting()))


def test_worker_processes_fill_the_database_alike(whole: tuple[Path, list[Result]], database: Path) -> None:
    explainer = Counting()
    with Processes(2, partial(open_worker, str(database)), threads=1) as workers:
        results = run(database, explainer=explainer, workers=workers)
    assert [result.feature for result in results] == features() and explainer.asked == []
    assert content(database) == content(whole[0])


def test_windows_of_several_features_fill_forwards_and_tell_the_same(
    whole: tuple[Path, list[Result]], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agenda, "BLOCK", len(NAMES))

    def run_in_batches(tokens: int | None) -> list[int]:
        """Label in batches of so many tokens; returns the tokens of each forward."""
        monkeypatch.setattr(subject().batching, "tokens", tokens)
        sizes: list[int] = []
        with subject().watching(lambda given: sizes.append(given.numel())):
            results = run(Path(shutil.copy(database, database.with_name(f"{tokens}.db"))))
        for result, other in zip(results, whole[1], strict=True):
            assert result.explanation.text == other.explanation.text
            # Matrix products round by the number of rows.
            assert [s.value for s in result.scores] == pytest.approx([s.value for s in other.scores], abs=1e-3)
        return sizes

    alone, together = run_in_batches(None), run_in_batches(8 * FEATURE_TOKENS)
    assert len(together) < len(alone) / 2 and max(together) > max(alone)


def test_items_are_grouped_by_kind_and_source() -> None:
    def explain(name: str) -> Item:
        return Explain(SimpleNamespace(feature=Feature.parse(name)))  # pyright: ignore[reportArgumentType]

    a, b, c, other = (explain(name) for name in ("m:mlp.1:1", "m:mlp.1:2", "m:mlp.1:3", "m:mlp.2:1"))
    judged = Judge(a.work, SimpleNamespace(), SimpleNamespace())  # pyright: ignore[reportArgumentType]
    grouped = list(group_items([a, b, c, other, judged, None, a], most=2))
    assert grouped == [[a, b], [c], [other], [judged], [a]]
    assert list(group_items([a, None, None, b], most=2)) == [[a], None, [b]]
    taken = iter([a, b])
    assert next(group_items(taken, most=1)) == [a] and next(taken) is b


class StubLoader:
    """Evidence of features without a model."""

    def evidence(self, feature: Feature) -> Any:
        return SimpleNamespace(feature=feature)

    def columns(self, block: Sequence[Feature], *, on_progress: Any) -> dict[Feature, Columns]:
        on_progress("background windows", 0, 1)
        return dict.fromkeys(block, Columns(np.empty(0), np.empty(0), {}))


def controls(
    texts: str, *, done: str = "", explained: Sequence[int] = (), limit: int = 99
) -> dict[int, tuple[str | None, str | None]]:
    """The texts and rules of features' controls, in the order in which they are judged.

    A letter per feature: an explanation, upper case with a rule; "." abstains. `done` are of an earlier call.
    """
    source = SourceId("planted", "mlp.0")
    order = [Feature(source, i) for i in range(len(texts))]
    begun: list[str] = []

    def read(feature: Feature) -> Explanation:
        letter = texts[feature.index]
        rule = letter if letter.isupper() else None
        return Explanation(feature, None if letter == "." else letter, "stub", rule=rule, status="explained")

    def on_progress(what: str, *_: int) -> None:
        begun.append(what)
        if sum(":mlp.0:" in one for one in begun) > limit:
            raise TimeIsOver

    skipped = {feature for feature in order if texts[feature.index] in done}
    made = Agenda(order, skipped, read, lambda _: StubLoader(), on_progress)  # pyright: ignore[reportArgumentType]
    judged: dict[int, tuple[str | None, str | None]] = {}
    held: list[Feature] = []
    for item in made.items():
        if item is None:
            if not held:
                break
            made.add_explanation(read(held.pop()))
        elif isinstance(item, Explain):
            # Explanations come late, and the last first, where several are open at a time.
            held.append(item.work.feature)
            if item.work.feature.index not in explained:
                made.add_explanation(read(held.pop()))
        elif isinstance(item, Judge):
            other = item.control.explanation
            judged[item.work.feature.index] = other and other.text, item.control.rule
    return judged


def test_a_control_is_the_explained_feature_before_in_the_order_given() -> None:
    in_turn = controls("A.BC")
    assert list(in_turn) == [0, 2, 3], "the first waits for the second"
    assert in_turn == {0: ("B", "B"), 2: ("A", "A"), 3: ("B", "B")}
    assert controls("A.BC", done="A.") == {2: ("A", "A"), 3: ("B", "B")}
    assert controls("A.BC", done="BC") == {0: ("B", "B")}
    assert controls("A.BC", explained=(0, 1, 2, 3)) == in_turn, "whatever comes first"
    assert controls("..A..") == {2: (None, None)}
    assert controls("AbC") == {0: ("b", None), 1: ("A", "A"), 2: ("b", "A")}, "a rule is compared with a rule"


def test_of_features_that_are_not_begun_in_time_nothing_is_awaited() -> None:
    assert controls("ABC", limit=1) == {}
    assert controls("ABC", limit=2) == {0: ("B", "B"), 1: ("A", "A")}


def test_every_rule_is_scored_on_select_too(whole: tuple[Path, list[Result]], database: Path) -> None:
    for result in whole[1]:
        select = [s for s in result.scores if s.examples == "select" and s.metric == "correlation"]
        assert len(select) == (result.explanation.rule is not None)
        assert all(s.value is not None and s.value > 0.8 and s.baselines.keys() >= {"other_rule"} for s in select)
        assert result.score is None or result.score.examples == "top_random"
    shutil.copy(whole[0], database)
    with Store(database) as store:
        (again,) = score(features()[:1], store, subject(), scorers=[RuleSimulator()])
        assert not [s for s in again.scores if s.examples == "select"], "it is there"
        store.db.execute("DELETE FROM scores WHERE examples = 'select'")
        (again,) = score(features()[:1], store, subject(), scorers=[RuleSimulator()])
        assert [s for s in again.scores if s.examples == "select"]


def test_a_scorer_that_compares_with_nothing_reads_no_background(
    whole: tuple[Path, list[Result]], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(whole[0], database)
    read, original = [], inputs.read_columns

    def count(subject: Any, source: Any, tokens: np.ndarray, features: Any) -> np.ndarray:
        read.append(len(tokens))
        return original(subject, source, tokens, features)

    class Silent(RuleSimulator):
        compares = False

        def judge(self, case: Any) -> list[Any]:
            assert case.baselines is None and len(case.holdout.sets["top_random"].ids)
            return []

    monkeypatch.setattr(inputs, "read_columns", count)
    rows = {}
    for scorer in (RuleSimulator(), Silent()):
        with Store(str(database)) as store:
            read.clear()
            list(score(features(), store, subject(), scorers=[scorer]))
            rows[type(scorer)] = sum(read)
    assert 0 < rows[Silent] < rows[RuleSimulator] / 2


def test_a_dry_run_counts_the_forward_passes_of_the_run(database: Path) -> None:
    counted: list[int] = []
    names = features()[:2]
    with Store(database) as store:
        plan = estimate(names, store, subject(), explainer=Counting(), scorers=[RuleSimulator()], client=None)
        assert content(database) == [[], []]
    hook = subject().model.base_model.register_forward_pre_hook(lambda _, inputs: counted.append(inputs[0].numel()))
    run(database, features=names)
    hook.remove()
    assert (plan.forwards, plan.forward_tokens) == (len(counted), sum(counted))
    assert plan.seconds is not None and plan.seconds > 0


def test_no_feature_is_begun_when_the_time_is_over(database: Path) -> None:
    skipped: list[int] = []
    assert run(database, minutes=0.0, on_skip=skipped.append) == []
    assert skipped == [0]
    assert content(database) == [[], []]


def test_time_that_ends_in_between_keeps_what_is_finished(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    # Of this module alone: the store looks at the clock, too.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with Store(database) as store:
        results = label(features(), store, subject(), explainer=Counting(), scorers=[RuleSimulator()], minutes=1.0)
        assert [next(results).feature for _ in range(3)] == features()[:3]
        clock[0] = 61.0
        assert list(results) == []
    assert len(content(database)[0]) == 3


def test_a_negative_tail_is_a_feature_of_its_own(database: Path) -> None:
    source = SourceId("planted", f"mlp_out.{LAYER}")
    with Store(database) as store:
        troughs = [store.evidence(Feature(source, i)).statistics.trough for i in range(330, 336)]
    low = Feature(source, 330 + int(np.argmin(troughs)), negative=True)
    results = run(database, features=[low, Feature(source, low.index)])
    # The first waits for its control, and the other, without a text, is finished before.
    assert [result.feature for result in results] == [Feature(source, low.index), low]
    head, tail = results
    assert head.explanation.status == "dead", "this channel is never above zero"
    assert tail.explanation.status == "explained"
    assert tail.score is not None
    assert tail.score.value is not None
    with Store(database) as store:
        assert [stored.explanation.text for stored in store.explanations(low)] == [tail.explanation.text]
        assert store.evidence(low).train[0].activations.max() > 0


def test_a_dictionary_is_labelled_like_the_neurons_it_copies(whole: tuple[Path, list[Result]], database: Path) -> None:
    copies = [Feature(dictionary().id, NEURONS - 1 - feature.index) for feature in features()[:2]]
    results = run(database, features=copies, sources={dictionary().id: dictionary()})
    for result, original in zip(results, whole[1], strict=False):
        assert result.explanation.status == "explained"
        assert result.score is not None
        assert original.score is not None
        assert result.score.value == pytest.approx(original.score.value, abs=0.05)


def test_sources_of_one_call_are_taken_one_after_the_other(database: Path) -> None:
    copy = Feature(dictionary().id, NEURONS - 1 - index("never"))
    mixed = [copy, features()[3], Feature(SourceId("planted", f"mlp_out.{LAYER}"), 0)]
    results = run(database, features=[*mixed, copy], sources={dictionary().id: dictionary()})
    assert [result.feature for result in results] == mixed


def test_other_weights_are_an_error(database: Path) -> None:
    other = build(documents=3)
    with torch.no_grad():
        other.model.lm_head.weight.mul_(2)
    changed = Subject(other.model, other.tokenizer, name="planted")
    explainer = RuleExplainer(changed)
    copy = Feature(dictionary().id, 0)
    for wanted, sources in ((features(), None), ([copy], {dictionary().id: dictionary()})):
        with Store(database) as store, pytest.raises(NeuronautError, match=changed.revision):
            list(label(wanted, store, changed, explainer=explainer, scorers=[], sources=sources))
    with pytest.raises(NeuronautError, match=dictionary(gain=2.0).revision):
        run(database, features=[copy], sources={dictionary().id: dictionary(gain=2.0)})
    assert content(database) == [[], []]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (Feature(SourceId("planted", "mlp.0"), 0), "nothing of planted:mlp.0 in the database; run: neuronaut harvest"),
        (Feature(dictionary().id, 0), "where planted:mlp.2@eye lies is not known"),
        (Feature(SourceId("planted", f"mlp.{LAYER}"), 9999), "has 136 features"),
    ],
)
def test_what_cannot_be_labelled_is_an_error_of_one_line(feature: Feature, message: str, database: Path) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        run(database, features=[feature])
    assert "\n" not in str(caught.value)


def test_a_pool_of_other_windows_is_an_error(database: Path) -> None:
    with Store(database) as store:
        harvest(subject(), ["mlp.0"], Corpus.of("planted", planted().corpus), store, window=16)
    with pytest.raises(NeuronautError, match="harvested in other windows than the pool of planted.*--window 16"):
        run(database)


def test_scoring_again_adds_nothing_twice(whole: tuple[Path, list[Result]], database: Path) -> None:
    shutil.copy(whole[0], database)
    with Store(database) as store:
        results = list(score(features(), store, subject(), scorers=[RuleSimulator()]))
    explained = [result.feature for result in whole[1] if result.explanation.rule is not None]
    assert [result.feature for result in results] == explained
    for again, first in zip(results, (r for r in whole[1] if r.explanation.rule is not None), strict=True):
        # What is there on `select` is not measured again.
        assert comparable(again.scores) == comparable([s for s in first.scores if s.examples != "select"])


def comparable(scores: Sequence[Score]) -> list[tuple[object, ...]]:
    return [(s.examples, s.metric, s.value, s.ci_low, s.ci_high, s.windows) for s in scores]
