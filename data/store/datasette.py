"""What the database says of itself in Datasette: a metadata file with titles, descriptions, units and facets.

Datasette reads it with `--metadata`. Columns that are the same everywhere are described once. Tables that hold the
bookkeeping of runs, of no use to a reader, are hidden; they stay reachable.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .store import Store


class About(NamedTuple):
    """What is said of a table or view."""

    description: str
    columns: Mapping[str, str] = {}
    facets: tuple[str, ...] = ()
    sort: str | None = None
    """The column to sort by; a `-` in front of it sorts downwards."""
    label: str | None = None
    """The column that stands for a row where another table points to it."""


COMMON: Mapping[str, str] = {
    "feature": "Address of the feature: MODEL:SITE:INDEX, or MODEL:SITE@DICTIONARY:INDEX; a - behind it is the tail "
    "below zero",
    "feature_id": "The feature",
    "source_id": "The source that the feature is of",
    "idx": "Index of the feature in its source",
    "negative": "1: of the feature's negative tail",
    "explanation_id": "The explanation",
    "status": "explained, weak (may be worth nothing), dead, too_rare, dense, no_pattern, failed or unlabelled",
    "explanation": "The whole text",
    "headline": "Its first sentence, at most 15 words",
    "explainer": "Who wrote it: rule, oneshot, contrastive ...; import:NAME where it comes from elsewhere",
    "score": "The headline score, 0 to 1 for most metrics; null where it could not be measured",
    "ci_low": "Lower end of the 95% interval",
    "ci_high": "Upper end of the 95% interval",
    "metric": "What the score measures, such as correlation or auroc",
    "scorer": "How it was scored: simulation, detection, fuzzing ...",
    "backend": "How the judge was asked",
    "judge": "Who judged: a language model, or code that runs the rule",
    "baseline": "The best of the baselines on the same windows: a token table, another feature's explanation ...",
    "n": "Windows, or pairs of them, that the score rests on",
    "density": "Share of the corpus's tokens on which the activation is above zero",
    "peak": "Highest activation in the corpus, in the source's units",
    "count": "Tokens of the corpus with an activation above zero",
    "rule": "The executable rule, JSON; null where there is text alone",
    "reason": "Why there is no text or no value",
    "created": "UTC, ISO 8601",
    "provenance": "Where it comes from: model, corpus, seed, prompts and versions, JSON",
    "digest": "Hash of the content",
    "model": "Name of the model",
    "tokens": "Corpus tokens that were read",
    "investigation": "The session",
    "beats": "1: the score is above every baseline",
    **{f"by_{key}": f"Rows in its order are sorted by {key}" for key in ("score", "worst", "density", "peak")},
}

_ROWS = ("status", "explainer", "metric", "scorer", "judge")
TABLES: Mapping[str, About] = {
    "feature_rows": About("One row for each feature with its best explanation: what `neuronaut list` shows", {}, _ROWS),
    "feature_status": About("The status of each feature, with its best explanation", {}, ("status", "explainer")),
    "best_explanations": About("The best explanation of each feature that has one", {}, _ROWS, "-score"),
    "explanations": About(
        "Every explanation that was written, also those that lost, and what was tried and gave none",
        {
            "text": "The whole text; null where the explainer found none",
            "key": "Hash of all that determines it",
            "attempt": "Which try it was, where one was made again",
            "seen": "Windows that the explainer saw, by hash; a score on these is refused",
            "predictor": "The code that predicts activations in place of a rule, JSON",
        },
        ("explainer", "status"),
        "-created",
        "headline",
    ),
    "scores": About(
        "One row for each explanation, scorer, set of examples, metric and judge",
        {
            "examples": "Which windows: select compares candidates, holdout is read once, for the reported score",
            "value": "The score; null with a reason where it could not be measured",
            "coverage": "Share of the judge's answers that could be read",
            "baselines": "The same metric for other predictors on the same windows, JSON",
            "windows": "Hashes of the windows",
        },
        ("scorer", "metric", "examples", "judge"),
        "-value",
    ),
    "sources": About(
        "Families of features at a site of a model: neurons, a dictionary, directions",
        {
            "name": "Address of the source",
            "site": "Named point in the model, such as mlp.2 or resid_post.8",
            "dictionary": "Name of the dictionary; null for neurons",
            "kind": "neurons, dictionary, transcoder, directions or evidence (recorded elsewhere)",
            "width": "Features that it has",
            "signed": "1: activations may be below zero",
            "revision": "Hash of the dictionary",
            "model_revision": "Hash of the model's weights",
        },
        ("model", "kind"),
        None,
        "name",
    ),
    "harvests": About(
        "What each source was harvested on",
        {"corpus": "Name of the corpus", "window": "Tokens in a window"},
        ("corpus",),
    ),
    "features": About(
        "Statistics of each feature over its corpus",
        {
            "mean": "Mean activation over all tokens",
            "trough": "Lowest activation",
            "histogram": "Tokens in 64 log-spaced bins of activation, two an octave from 2^-16, int64",
        },
        (),
        "-peak",
    ),
    "top_tokens": About(
        "The tokens whose logits each feature raises and lowers the most, by its direct path",
        {
            "ids": "Token ids, int32: the most raised first, then the most lowered first",
            "effects": "Logits per unit of activation, above the vocabulary's mean, float32",
            "spread": "Standard deviation of these over the vocabulary",
        },
    ),
    "maps": About(
        "Points in the plane for the features of a source, or for tokens at its site: what `neuronaut map` drew",
        {
            "kind": "decoder, explanations or activations",
            "method": "pca or umap",
            "n": "Points",
            "members": "Indices of the features, int32, as a blob",
            "places": "float32, two a point, as a blob",
            "tokens": "Of activations: class, token and the text before it, JSON",
        },
        ("kind", "method"),
    ),
    "windows": About(
        "Every window of text once, by its tokens",
        {
            "hash": "Hash of the token ids",
            "tokens": "Token ids, as a blob",
            "split": "0 train, 1 select, 2 holdout",
            "document": "The document that it was cut from",
        },
        ("model", "split"),
    ),
    "examples": About(
        "The windows kept of each feature, with its activation at every token",
        {
            "kind": "top, quantile (a sample of active windows), bottom, near_miss or silent",
            "n": "How many windows",
            "windows": "Their ids, as a blob",
            "activations": "float16, window by window, as a blob",
            "keys": "Of heads: what the peak attends to most",
            "weights": "Of heads: how much it does",
        },
        ("kind",),
    ),
    "judgements": About(
        "What each judge answered, window by window, so that metrics can be computed again", {}, ("scorer", "role")
    ),
    "llm_calls": About(
        "Every call of a language model, with its reply and its cost",
        {
            "cost": "US dollars",
            "seconds": "How long the reply took",
            "input_tokens": "Tokens of the prompt",
            "output_tokens": "Tokens of the reply",
        },
        ("model", "prompt", "status"),
        "-created",
    ),
    "prompts": About(
        "Every prompt that was used, by its hash", {"text": "Markdown with places to fill"}, (), None, "name"
    ),
    "investigations": About(
        "Sessions in which an agent investigated a feature or a behaviour",
        {"target": "What was investigated", "policy": "Who decided", "ended": "UTC, ISO 8601"},
        ("kind", "status", "policy"),
        "-created",
        "target",
    ),
    "hypotheses": About("What a session put up as causes", {"body": "The hypothesis, JSON"}, ("origin",)),
    "experiments": About(
        "What a session measured, and why", {"purpose": "Why, in words", "tool": "With which tool"}, ("tool",)
    ),
    "predictions": About("What each hypothesis expected, written before the experiment was run"),
    "observations": About("What came of each experiment", {"result": "What was measured, JSON"}, ("status",)),
    "events": About("All that happened in a session, in order", {"payload": "JSON"}, ("kind",)),
    "ledger": About("What a session spent", {"usd": "US dollars"}),
    "decisions": About("What a session decided, step by step"),
}
HIDDEN = (
    *("embeddings", "explanations_fts", "llm_batch_requests", "llm_batches", "llm_claims", "peeks", "pool"),
    *("prompt_choices", "ranks", "seals", "vocabularies", "embedders", "embedding_batches", "listed", "listing"),
    *("tallies", "window_features", "window_harvests"),
)
"""Tables of a database that say nothing to a reader."""


def describe(store: Store, *, name: str) -> dict[str, Any]:
    """The metadata of a database that Datasette calls `name`, which is its file's name without the ending."""
    rows = store.columns()
    tables = {table: _describe_table(TABLES[table], columns) for table, columns in rows.items() if table in TABLES}
    hidden = {table: {"hidden": True} for table in rows if table in HIDDEN}
    models = ", ".join(store.models()) or "no model yet"
    return {
        "title": f"Neuronaut: {name}",
        "description": f"What the units inside {models} respond to, with evidence, scores and where they come from",
        "databases": {name: {"tables": {**tables, **hidden}}},
    }


def _describe_table(about: About, columns: list[str]) -> dict[str, Any]:
    known = {**COMMON, **about.columns}
    described: dict[str, Any] = {
        "description": about.description,
        "columns": {column: known[column] for column in columns if column in known},
    }
    if about.facets:
        described["facets"] = list(about.facets)
    if about.sort is not None:
        described["sort_desc" if about.sort.startswith("-") else "sort"] = about.sort.removeprefix("-")
    if about.label is not None:
        described["label_column"] = about.label
    return described


def database_name(path: str) -> str:
    """What Datasette calls a database file."""
    return Path(path).stem
