"""`neuronaut demo`: harvests, labels and searches on the built-in subject, in about two minutes."""

from typing import TYPE_CHECKING

import click

from . import display
from .common import Form, Progress, Row, chosen_features, emit, form_options, open_store, say

if TYPE_CHECKING:
    from ..data.store.store import Store
    from ..subject.model import Subject

SITES = ("mlp", "resid_post.2@sae")
TOKENS, WINDOW = 1_000_000, 64
NEURONS, LATENTS = 8, 24
"""Features that are labelled of each layer's neurons, and of the dictionary."""
QUERY = "self"


@click.command()
@click.option(
    "-d", "--db", "--database", "database", default="demo.db", show_default=True, metavar="FILE", help="The database."
)
@form_options
def demo(database: str, form: Form) -> None:
    """See the whole work on the built-in model.

    Harvest, label, score and search, which takes about two minutes on two cores. The model was trained on the
    source code of Python's standard library, which is also the text that is read. Nothing is downloaded. A second
    run does only what is missing.

    \b
    Examples:
      neuronaut demo
      neuronaut demo --db try.db
    """
    from ..labelling.opening import LoadOptions, load_subject

    say("1/4 loading the built-in model")
    subject = load_subject("demo", LoadOptions())
    with open_store(database, create=True, write=True) as store:
        selections = _harvest(subject, store)
        rows = _label_features(subject, store, selections)
        matches = store.search_rows(QUERY, limit=3)
    emit(rows, form, lambda rows: display.table(rows, _COLUMNS))
    say(f"4/4 searching for {QUERY!r}: " + (", ".join(row["feature"] for row in matches) or "nothing is found"))
    say(_next_steps(rows, database))


_COLUMNS = [display.key("feature"), display.SCORE, display.BASELINE, display.EXPLANATION]


def _harvest(subject: "Subject", store: "Store") -> list[str]:
    """Harvest what is not there, and name the features to label."""
    from ..labelling.opening import LoadOptions, load_corpus, open_sources, pass_gate
    from .harvest import collect

    sources = open_sources(subject, SITES, LoadOptions(), name=None)
    here = {row["source"]: row["model_revision"] for row in store.sources() if row["harvested"]}
    missing = [source for source in sources if here.get(str(source.id)) != subject.revision]
    say(f"2/4 harvesting {len(missing)} sources" + ("" if missing else ": all are there"))
    if missing:
        corpus = load_corpus("demo", None, tokens=TOKENS, text_column="text", encoding="utf-8")
        for line in pass_gate(subject, missing, corpus, window=WINDOW, force=False):
            say(line)
        collect(subject, missing, corpus, store, tokens=TOKENS, window=WINDOW, seed=0, paths={})
    return [f"{source.id}:random:{LATENTS if source.id.dictionary else NEURONS}" for source in sources]


def _label_features(subject: "Subject", store: "Store", texts: list[str]) -> list[Row]:
    """Label and score the features that are not done, and read the rows of all of them."""
    from ..explainers.rule import RuleExplainer
    from ..labelling.label import label
    from ..scorers.simulation import RuleSimulator
    from .label import print_results

    features = chosen_features(store, texts)
    say(f"3/4 labelling {len(features)} features")
    with Progress("label", total=len(features), unit="features") as progress:
        results = label(
            features,
            store,
            subject,
            explainer=RuleExplainer(subject),
            scorers=[RuleSimulator()],
            on_skip=lambda done: progress.expect(len(features) - done),
            on_progress=progress.doing,
        )
        print_results(results, progress, None, kept_note=f"whatever was labelled is stored in {store.path}")
    wanted = {str(feature) for feature in features}
    return [row for row in store.list_rows() if row["feature"] in wanted]


def _next_steps(rows: list[Row], database: str) -> str:
    shown = [row for row in rows if "`self`" in (row["headline"] or "")]
    best = max(shown or rows, key=lambda row: row["score"] or 0.0)["feature"]
    return "\n".join(
        (
            "Try next:",
            f"  neuronaut show {best} -d {database}",
            f'  neuronaut try {best} "def __init__(self, name):" -d {database}',
            f"  neuronaut search 'import' -d {database}",
            f"  neuronaut label {best.rpartition(':')[0]}:random:50 -d {database}",
            "See all of it in a browser:",
            f"  neuronaut serve -d {database}",
        )
    )
