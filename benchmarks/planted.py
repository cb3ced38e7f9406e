"""How often the rule explainer finds the truth, on neurons of which the truth is known.

    python -m neuronaut.benchmarks.planted [--seeds 3] [--documents 400] [--json]

The hand-written model (tests/planted.py) is harvested, labelled and scored over several corpora of its
grammar. Each learned rule is then held against the neuron's predicate, not only against the model:

    natural  every token of the holdout pool: how often the rule is within a quarter of the unit of the
             truth, and the balanced accuracy of "above half of the unit"
    pairs    edits of holdout windows that are made here, in ignorance of data/counterfactual.py and of
             every rule, but knowing the words that the predicate reads. Pairs are drawn until each of the
             four transitions at the pivot (silent or active, before and after) has the same share, so half
             of the edits flip the truth, and a rule that says always the same gets 0.5. The agreement is
             the share of edited pivots that the rule puts on the right side of half the unit.

Beside it stands what a table of the mean truth of every token, taken from the very windows that are
edited, gets on the same pairs: what can be had without reading context.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from statistics import fmean
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from ..agent.label import Result, label
from ..data.corpus import Corpus
from ..data.harvest import harvest
from ..data.store import Store
from ..explainers.evaluate import TokenGrid, predict
from ..explainers.rule import RuleExplainer
from ..explainers.rules import Rule
from ..scorers.metrics import agreement
from ..scorers.simulation import RuleSimulator
from ..subject.model import Subject
from ..tests.planted import CLASSES, LONGEST, WORDS, PlantedNeuron, build

ABSTAINED: Mapping[str, str | None] = {"always_on": "dense", "dead": "dead", "noise": None}
"""Kinds without an answer, with the status that is right for them; noise may be explained or not."""
GOAL = 0.95

_NAMES, _QUOTE = CLASSES["name"], ('"',)
READS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "day": (CLASSES["day"], ()),
    "colour": (CLASSES["colour"], ()),
    "new_haven": (("Haven",), ("New",)),
    "river_not_dry": (("river",), ("dry",)),
    "bell_after_storm": (("bell",), ("storm",)),
    "price": (CLASSES["digit"], CLASSES["currency"]),
    "quoted": ((), _QUOTE),
    "three_causes": (("piano", "7"), ("Mister",)),
    "quoted_city": (CLASSES["city"], _QUOTE),
    "river": (("river",), ("dry",)),
    "name_again": (_NAMES, _NAMES),
}
"""By neuron, the words that its predicate reads at the token and before it. Others read places or repeats."""

VOCABULARY = tuple(f" {word}" for word in WORDS if not word.startswith("<"))
Words = list[str]
"""Tokens of a window, with their leading spaces."""


class Reads(NamedTuple):
    """What may be put in at a pivot and before it."""

    here: Sequence[str]
    before: Sequence[str]

    @classmethod
    def of(cls, neuron: PlantedNeuron, pivot: str) -> "Reads":
        here, before = READS.get(neuron.name, ((), ()))
        return cls([f" {word}" for word in here], [*(f" {word}" for word in before), pivot])


class Pair(NamedTuple):
    """A window, an edit of it, and the truth at the pivot in both."""

    original: tuple[str, ...]
    edited: tuple[str, ...]
    pivot: int
    """Position of the pivot in the edited window."""
    was: float
    now: float


Edit = Callable[[Words, int, Reads, random.Random], int]
"""Changes the words in place and gives the pivot's new position; a window too short for the edit stays as it is."""


def _some(preferred: Sequence[str], rng: random.Random) -> str:
    return rng.choice(preferred) if preferred and rng.random() < 0.7 else rng.choice(VOCABULARY)


def _back(pivot: int, rng: random.Random) -> int:
    """A position before the pivot, the nearest ones most often, any of them sometimes."""
    near = rng.random() < 0.7
    return pivot - (min(pivot, 1 + int(rng.expovariate(0.6))) if near else rng.randint(1, pivot))


def _swap_pivot(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    words[pivot] = _some(reads.here, rng)
    return pivot


def _swap_before(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    if pivot:
        words[_back(pivot, rng)] = _some(reads.before, rng)
    return pivot


def _swap_anywhere(words: Words, pivot: int, _: Reads, rng: random.Random) -> int:
    words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
    return pivot


def _insert(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One more token before the pivot, which moves on; the window's last token makes room."""
    words.insert(_back(pivot, rng) + 1 if pivot else 0, _some(reads.before, rng))
    words.pop()
    return pivot + 1


def _push(words: Words, pivot: int, _: Reads, rng: random.Random) -> int:
    """A few tokens directly before the pivot, which carry it out of the reach of what stood there."""
    count = rng.randint(1, 5)
    words[pivot:pivot] = rng.choices(VOCABULARY, k=count)
    del words[LONGEST:]
    return pivot + count


def _delete(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """One of the causes before the pivot, or any token there, taken out; another is added at the end."""
    if not pivot:
        return pivot
    causes = [place for place in range(pivot) if words[place] in reads.before]
    words.pop(rng.choice(causes) if causes and rng.random() < 0.7 else _back(pivot, rng))
    words.append(rng.choice(VOCABULARY))
    return pivot - 1


def _clear(words: Words, pivot: int, reads: Reads, rng: random.Random) -> int:
    """Other tokens wherever one of the causes stood before the pivot."""
    cause = rng.choice(reads.before)
    for place in range(pivot):
        if words[place] == cause:
            words[place] = rng.choice(VOCABULARY)
    return pivot


EDITS: tuple[Edit, ...] = (_swap_pivot, _swap_before, _swap_anywhere, _insert, _push, _delete, _clear)


def counterfactuals(
    neuron: PlantedNeuron, windows: Sequence[Sequence[str]], *, each: int = 50, seed: int = 0
) -> list[Pair]:
    """Pairs of every transition of the truth, equally many of each and at most `each`; windows are of LONGEST tokens.

    Where both exist, every other pair of a transition keeps the token at the pivot: only its context differs.
    """
    rng = random.Random(f"{seed}:{neuron.name}")
    truths = [neuron.truth(words) for words in windows]
    half = max(map(max, truths)) / 2
    found: dict[tuple[bool, bool], tuple[dict[tuple[str, ...], Pair], ...]] = defaultdict(lambda: ({}, {}))
    for _ in range(400 * each):
        row = rng.randrange(len(windows))
        was = _pivot(neuron, windows[row], truths[row], half, rng)
        words = list(windows[row])
        pivot = rng.choice(EDITS)(words, was, Reads.of(neuron, words[was]), rng)
        if pivot >= LONGEST or words == list(windows[row]):
            continue
        before, now = truths[row][was], neuron.truth(words[: pivot + 1])[-1]
        kept = found[before > half, now > half][words[pivot] == windows[row][was]]
        if len(kept) < each:
            kept[*words, str(pivot)] = Pair(tuple(windows[row]), tuple(words), pivot, before, now)
    mixed = [_alternating(*(list(kept.values()) for kept in kinds)) for kinds in found.values()]
    fewest = min(each, *map(len, mixed))
    return [pair for pairs in mixed for pair in pairs[:fewest]]


def _alternating(first: Sequence[Pair], second: Sequence[Pair]) -> list[Pair]:
    """One of each in turn; the rest of the longer comes last."""
    return [pair for both in zip_longest(first, second) for pair in both if pair is not None]


def _pivot(
    neuron: PlantedNeuron, words: Sequence[str], truth: Sequence[float], half: float, rng: random.Random
) -> int:
    """A position at which an edit may tell: active, of a word that the predicate reads, near one of these, or any."""
    here = {f" {word}" for word in READS.get(neuron.name, ((), ()))[0]}
    active = [place for place, value in enumerate(truth) if value > half]
    read = [place for place, word in enumerate(words) if word in here]
    places = rng.choice([active, read, range(len(words))]) or range(len(words))
    place = rng.choice(places)
    return place if rng.random() < 0.7 else min(max(place + rng.randint(-4, 4), 0), len(words) - 1)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one neuron on one corpus."""

    seed: int
    kind: str
    neuron: str
    status: str
    explanation: str | None
    rule: str | None
    within: float | None = None
    """Share of natural holdout tokens on which the rule is within a quarter of the unit of the truth."""
    balanced: float | None = None
    """Balanced accuracy of "above half of the unit" on the same tokens."""
    agreement: float | None = None
    """Share of edited pivots that the rule puts on the right side of half the unit."""
    table_agreement: float | None = None
    """The same of the token table."""
    pairs: int = 0
    scores: Mapping[str, float | None] | None = None
    """The stored scores, by "set metric"."""


def rows(*, seeds: int, documents: int) -> Iterator[Row]:
    """Label the planted neurons over `seeds` corpora."""
    for seed in range(seeds):
        planted = build(documents=documents, seed=seed)
        subject = Subject(planted.model, planted.tokenizer, name="planted")
        with Store(":memory:") as store:
            harvest(subject, ["mlp.2"], Corpus.of("planted", planted.corpus), store, seed=seed)
            features = store.features(f"planted:mlp.2:0-{len(planted.neurons) - 1}")
            pool = store.pool_windows("planted", "holdout")
            windows = [subject.decode_tokens(window.ids.tolist()) for window in pool]
            explainer, scorers = RuleExplainer(subject, seed=seed), [RuleSimulator(seed=seed)]
            for result in label(features, store, subject, explainer=explainer, scorers=scorers):
                yield _row(seed, planted.neurons[result.feature.index], result, windows)


def _row(seed: int, neuron: PlantedNeuron, result: Result, windows: Sequence[Sequence[str]]) -> Row:
    made = result.explanation
    if made.rule is None:
        return Row(seed, neuron.kind, neuron.name, made.status, made.text or made.reason, None)
    rule, truth = Rule.parse(made.rule), np.array([neuron.truth(words) for words in windows], np.float32)
    said, unit = predict(rule, TokenGrid.of(windows)), float(truth.max())
    pairs = counterfactuals(neuron, windows, seed=seed)
    return Row(
        seed, neuron.kind, neuron.name, made.status, made.text, made.rule,
        within=float((abs(said - truth) <= unit / 4).mean()),
        balanced=agreement(truth, said, threshold=unit / 2).value,
        agreement=told(pairs, at_pivots(rule, pairs), half=unit / 2),
        table_agreement=told(pairs, _table(windows, truth, pairs), half=unit / 2),
        pairs=len(pairs),
        scores={f"{score.examples} {score.metric}": score.value for score in result.scores},
    )  # fmt: skip


def at_pivots(rule: Rule, pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """What the rule predicts at the edited pivots, shape (pair,)."""
    said = predict(rule, TokenGrid.of([pair.edited for pair in pairs]))
    return said[np.arange(len(pairs)), [pair.pivot for pair in pairs]]


def told(pairs: Sequence[Pair], said: NDArray[np.float32], *, half: float) -> float:
    """The share of edited pivots at which the prediction is on the truth's side of `half`."""
    return float(((said > half) == (np.array([pair.now for pair in pairs]) > half)).mean())


def _table(windows: Sequence[Sequence[str]], truth: NDArray[np.float32], pairs: Sequence[Pair]) -> NDArray[np.float32]:
    """Mean truth of the token at each edited pivot, shape (pair,)."""
    values: dict[str, list[float]] = defaultdict(list)
    for words, row in zip(windows, truth.tolist(), strict=True):
        for word, value in zip(words, row, strict=True):
            values[word].append(value)
    return np.array([fmean(values.get(pair.edited[pair.pivot], [0.0])) for pair in pairs], np.float32)


_STORED = ("top_random correlation", "quantile correlation", "counterfactual correlation", "counterfactual agreement")


def table(found: Sequence[Row]) -> str:
    """A Markdown table, a line per neuron: means over the corpora, and the worst agreement; then who met the goal."""
    lines = [
        "| kind | neuron | natural ≤ ¼ | natural balanced | pairs | agreement (worst) | token table "
        "| r top+random | r quantile | r pairs | stored agreement | explanation (first corpus) |",
        "|---|---|" + "--:|" * 9 + "---|",
    ]
    by_neuron: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        by_neuron[row.neuron].append(row)
    for name, group in by_neuron.items():
        worst = min((row.agreement for row in group if row.agreement is not None), default=None)
        cells = [
            _mean([row.within for row in group]), _mean([row.balanced for row in group]),
            str(sum(row.pairs for row in group)),
            f"{_mean([row.agreement for row in group])} ({_mean([worst])})", _mean([row.table_agreement for row in group]),
            *(_mean([(row.scores or {}).get(key) for row in group]) for key in _STORED),
        ]  # fmt: skip
        said = f"{group[0].explanation}" if group[0].rule else f"({group[0].status}) {group[0].explanation}"
        lines.append(f"| {group[0].kind} | {name} | {' | '.join(cells)} | {said.replace('|', '&#124;')} |")
    return "\n".join([*lines, "", verdict(found)])


def verdict(found: Sequence[Row]) -> str:
    """How many kinds met the goal on every corpus, and whether the others were abstained on."""
    kinds = dict.fromkeys(row.kind for row in found if row.kind not in ABSTAINED)
    met = [kind for kind in kinds if all((row.agreement or 0) >= GOAL for row in found if row.kind == kind)]
    silent = [row for row in found if ABSTAINED.get(row.kind)]
    right = sum(row.status == ABSTAINED[row.kind] for row in silent)
    return (
        f"{len(met)} of {len(kinds)} kinds with an answer agree with the truth on at least {GOAL:.0%} of the edited "
        f"tokens, on every corpus; {right} of {len(silent)} always-on and dead neurons abstained on."
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.3f}" if known else "–"


@click.command(help=__doc__ and __doc__.split("\n\n")[0])
@click.option("--seeds", default=3, show_default=True, help="Corpora to label the neurons on.")
@click.option("--documents", default=400, show_default=True, help="Documents in each corpus.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
def main(seeds: int, documents: int, *, as_json: bool) -> None:
    found = list(rows(seeds=seeds, documents=documents))
    click.echo(json.dumps([asdict(row) for row in found], ensure_ascii=False) if as_json else table(found))


if __name__ == "__main__":
    main()
