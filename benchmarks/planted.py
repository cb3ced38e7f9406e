"""How often the rule explainer finds the truth, on neurons of which the truth is known.

    python -m neuronaut.benchmarks.planted [--seeds 3] [--documents 400] [--json]

The hand-written model (tests/planted.py) is harvested, labelled and scored over several corpora of its
grammar. Each learned rule is then held against the neuron's predicate, not only against the model:

    natural  every token of the holdout pool: how often the rule is within a quarter of the unit of the
             truth, and the balanced accuracy of "above half of the unit"
    pairs    edits of holdout windows (pairs.py), half of which flip the truth, so that a rule that always
             says the same gets 0.5. The agreement is the share of edited pivots that the rule puts on the
             right side of half the unit.

Beside it stands what a table of the mean truth of every token, taken from the very windows that are
edited, gets on the same pairs: what can be had without reading context.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

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
from ..tests.planted import PlantedNeuron, build
from .pairs import Pair, counterfactuals
from .suite.pairs import at_pivots, told

ABSTAINED: Mapping[str, str | None] = {"always_on": "dense", "dead": "dead", "noise": None}
"""Kinds without an answer, with the status that is right for them; noise may be explained or not."""
GOAL = 0.95


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
            f"{_mean([row.agreement for row in group])} ({_mean([worst])})",
            _mean([row.table_agreement for row in group]),
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
