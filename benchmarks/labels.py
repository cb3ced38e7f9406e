"""How well the rule explainer's labels predict activations of a real model, and their cost.

    python -m neuronaut.benchmarks.labels [DATABASE] [--model demo] [--neurons 100] [--latents 100]
                                          [--figure FILE.png] [--json]
    python -m neuronaut.benchmarks.labels smol.db --model models/smollm2-135m --neurons 8 --latents 0

Random alive neurons (the same number from every layer) and random alive latents of the database's
dictionaries are explained and scored on their holdout. Nothing is stored. Without a database the built-in
subject is harvested first. Medians are over the features that got a rule, with a 95% bootstrap interval
over features; the baselines are scored on the same windows of the same features, and so is, for orientation
only, a table of bigrams (measure.py).

The figure shows the whole distribution of the correlations, one panel per layer and one for the latents. Each
curve is an empirical distribution: the height at x is the share of features with a correlation of at most x, so
a curve further to the right is better. A dot marks the median.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click

from ..causal.pictures import distributions
from ..data.corpus import Corpus
from ..data.harvest.harvest import harvest
from ..data.store.store import Store
from ..data.store.summary import median
from ..subject.address import SourceId
from ..subject.model import Subject
from ..subject.opening import BUILT_IN, open_source
from .measure import Costs, Labelled, choose, measure

SETS = ("top_random", "quantile", "counterfactual")
CORRELATIONS = {
    "correlation": "explanation",
    "token_table": "token table",
    "bigram_table": "bigram table",
    "token_rule": "token rule",
    "other_rule": "other rule",
}
OTHER_METRICS = {"explained_variance": "explained variance", "auroc": "AUROC", "agreement": "agreement"}
"""In both, the key of a score within its set, and its name in a table."""
STATUSES = ("explained", "dead", "too_rare", "dense", "no_pattern")


def group_features(features: Sequence[Labelled]) -> dict[str, list[Labelled]]:
    """Features by source, and where there are several layers of neurons, all of them together."""
    split: dict[str, list[Labelled]] = {}
    for labelled in features:
        split.setdefault(labelled.group, []).append(labelled)
    layers = [name for name in split if "@" not in name]
    if len(layers) > 1:
        split["all neurons"] = [labelled for name in layers for labelled in split[name]]
    return split


def format_report(features: Sequence[Labelled], costs: Costs) -> str:
    """Four Markdown tables: correlations, other metrics, statuses and lengths, costs."""
    split = group_features(features)
    shares = [_status_row(name, group) for name, group in split.items()]
    parts = [
        _medians("median correlation", split, CORRELATIONS),
        _medians("median of other metrics", split, OTHER_METRICS),
        _table(["labels", "features", *(f"{status} %" for status in STATUSES), "words", "rule length"], shares),
        _cost_table(costs, len(features)),
    ]
    return "\n\n".join(parts)


def _medians(title: str, split: Mapping[str, Sequence[Labelled]], keys: Mapping[str, str]) -> str:
    rows = [
        [name, kind, *_cells(group, [f"{kind} {key}" for key in keys])]
        for name, group in split.items()
        for kind in SETS
    ]
    return _table([title, "set", "n", *keys.values()], rows)


def _cells(group: Sequence[Labelled], keys: Sequence[str]) -> list[str]:
    medians = [median([labelled.scores.get(key) for labelled in group]) for key in keys]
    return [str(medians[0].n if medians[0] else 0), *(str(value) if value else "–" for value in medians)]


def _status_row(name: str, group: Sequence[Labelled]) -> list[str]:
    counts = Counter(labelled.status for labelled in group)
    shares = [f"{100 * counts[status] / len(group):.0f}" for status in STATUSES]
    lengths = [median([labelled.words for labelled in group]), median([labelled.length for labelled in group])]
    return [name, str(len(group)), *shares, *(f"{length.value:.0f}" if length else "–" for length in lengths)]


def _cost_table(costs: Costs, features: int) -> str:
    rows = [
        [stage, f"{seconds:.1f}", f"{1000 * seconds / features:.0f}", f"{costs.forwards[stage] / seconds:.0%}"]
        for stage, seconds in costs.stages.items()
    ]
    total, forwards = sum(costs.stages.values()), sum(costs.forwards.values())
    rows.append(["all", f"{total:.1f}", f"{1000 * total / features:.0f}", f"{forwards / total:.0%}"])
    told = f"{total / features:.2f} s a feature, {total / forwards:.2f} times the bare forwards of the same windows"
    return _table(["stage", "seconds", "ms a feature", "in forwards"], rows) + f"\n\n{told}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


@contextmanager
def open_database(database: Path | None, model: str, *, tokens: int) -> Iterator[tuple[Store, Subject]]:
    """The database's store and its subject; without a database the built-in subject, harvested in memory."""
    subject = Subject.load(model)
    with Store(database or ":memory:", create=database is None) as store:
        if database is None:
            latents = [SourceId(*key) for key in BUILT_IN if key[0] == model]
            sites = [site for site in subject.sites if site.startswith("mlp.")]
            sources = [open_source(subject, source) for source in latents]
            harvest(subject, [*sites, *sources], Corpus.load("stdlib"), store, tokens=tokens)
        yield store, subject


@click.command(help=__doc__ and __doc__.split("\n\n")[0])
@click.argument("database", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False)
@click.option("--model", default="demo", show_default=True, help="Name or folder of the model that was harvested.")
@click.option("--neurons", default=100, show_default=True, help="Neurons to label, spread over the layers.")
@click.option("--latents", default=100, show_default=True, help="Dictionary latents to label.")
@click.option("--tokens", default=1_000_000, show_default=True, help="Tokens to harvest where there is no database.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of features.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the distributions into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def main(
    database: Path | None,
    model: str,
    neurons: int,
    latents: int,
    tokens: int,
    seed: int,
    figure: Path | None,
    *,
    as_json: bool,
) -> None:
    """Label, and print tables or JSON."""
    costs = Costs()
    with open_database(database, model, tokens=tokens) as (store, subject):
        chosen = choose(store, subject.name, neurons=neurons, latents=latents, seed=seed)
        features = list(measure(chosen, store, subject, costs))
    if figure is not None:
        groups = {name: group for name, group in group_features(features).items() if name != "all neurons"}
        draw(groups, figure, model=subject.name)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "features": [asdict(labelled) for labelled in features],
                    "costs": {"seconds": dict(costs.stages), "in_forwards": dict(costs.forwards)},
                }
            )
        )
    else:
        click.echo(format_report(features, costs))


CURVES = {"correlation": "rule (the explanation)", "token_table": "token table", "token_rule": "best single-token rule"}
"""Score key and name."""


def draw(groups: Mapping[str, Sequence[Labelled]], path: Path, *, model: str, examples: str = "top_random") -> None:
    """Write the figure to `path`, in the format of its suffix."""
    panels = {}
    for name, group in groups.items():
        explained = sum(labelled.status == "explained" for labelled in group)
        panels[f"{name}: {explained} of {len(group)} features explained"] = {
            curve: [v for labelled in group if (v := labelled.scores.get(f"{examples} {key}")) is not None]
            for key, curve in CURVES.items()
        }
    sets = {"top_random": "top and random windows", "quantile": "active windows", "counterfactual": "minimal pairs"}
    title = f"How well labels of {model} predict activations on held-out {sets[examples]}"
    distributions(panels, title=title, path=path, x_label="correlation with the true activation")


if __name__ == "__main__":
    main()
