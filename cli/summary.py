"""`neuronaut summary`: pools how many features are explained, how well beside every baseline, and at what cost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from . import display
from .common import Form, Row, emit, open_store, result_options, say

if TYPE_CHECKING:
    from ..data.store.summary import Control, Cost, Group, GroupScore, Interval, Summary


@click.command()
@click.argument("source", required=False)
@click.option("--figure", metavar="FILE", help="Draw the distributions of the scores into this .png, .svg or .pdf.")
@result_options
def summary(source: str | None, figure: str | None, database: str, form: Form) -> None:
    """Sum up what is explained, how well, and at what cost.

    By source, by layer and by model: how many features are explained, weak, abstained or failed; medians of the
    scores beside those of each baseline, with 95% intervals over features, and how many explanations beat it; words;
    and what language models cost. Of one SOURCE with its controls (`harvest --randomize`), or of all.

    \b
    Examples:
      neuronaut summary
      neuronaut summary demo:mlp.2 --figure scores.png
      neuronaut summary --json | jq '.[] | {group, explained, weak}'
    """
    from ..data.store.summary import summarise

    with open_store(database) as store:
        summed = summarise(store, source)
    emit(make_rows(summed), form, lambda _: page(summed))
    if figure is not None:
        _draw(summed, figure)
        say(f"the distributions are drawn in {figure}")
    if not summed.groups:
        say("nothing is harvested yet")


def make_rows(summed: "Summary") -> list[Row]:
    """Make a row of every group; a control's holds the comparison, and the last one is the cost."""
    rows: list[Row] = [
        {
            "group": group.name,
            "level": group.level,
            "features": group.features,
            **{status: group.statuses.get(status, 0) for status in ("explained", "weak", "failed", "unlabelled")},
            "abstained": group.abstained,
            "scores": [_score_row(score) for score in group.scores],
            "words": _interval_row(group.words),
            "headline_words": _interval_row(group.headline_words),
            "against_trained": [_control_row(c) for c in summed.controls if c.random == group.name],
        }
        for group in summed.groups
    ]
    return [*rows, {"group": "language models", "level": "database", **summed.cost._asdict()}]


def _interval_row(interval: "Interval | None") -> Row | None:
    if interval is None:
        return None
    return {"median": interval.value, "ci_low": interval.low, "ci_high": interval.high, "n": interval.n}


def _score_row(score: "GroupScore") -> Row:
    baselines = {
        role: {**(_interval_row(baseline.median) or {}), "beaten": baseline.beaten}
        for role, baseline in score.baselines.items()
    }
    return {
        "scorer": score.scorer,
        "metric": score.metric,
        **(_interval_row(score.median) or {}),
        "baselines": baselines,
    }


def _control_row(control: "Control") -> Row:
    auroc = control.auroc
    return {
        "trained": control.trained,
        "scorer": control.scorer,
        "metric": control.metric,
        "auroc": auroc.value,
        "ci_low": auroc.low,
        "ci_high": auroc.high,
    }


def page(summed: "Summary") -> str:
    """Format a summary as text: counts, scores, controls, costs."""
    parts = [_format_counts(summed.groups), _format_scores(summed.groups), _format_controls(summed.controls)]
    return "\n\n".join(part for part in (*parts, _format_cost(summed.cost)) if part)


def _format_counts(groups: "Sequence[Group]") -> str:
    rows: list[Row] = [
        {
            "group": group.name,
            "features": group.features,
            **{name: group.statuses.get(name, 0) for name in ("explained", "weak", "failed", "unlabelled")},
            "headline words": _format_median(group.headline_words),
            "words": _format_median(group.words),
            "abstained": ", ".join(f"{count:,} {status}" for status, count in sorted(group.abstained.items())) or "0",
        }
        for group in groups
    ]
    names = ("features", "explained", "weak", "failed", "unlabelled", "headline words", "words")
    return display.table(
        rows, [display.key("group"), *(display.key(name, right=True) for name in names), display.key("abstained")]
    )


def _format_median(interval: "Interval | None") -> str:
    return display.NOTHING if interval is None else f"{interval.value:.0f}"


def _format_scores(groups: "Sequence[Group]") -> str:
    rows: list[Row] = [
        {
            "group": group.name,
            "score": f"{score.scorer} {score.metric}",
            "n": score.median.n,
            "median": str(score.median),
            **{role: f"{b.median}, {b.beaten}/{b.median.n}" for role, b in score.baselines.items()},
        }
        for group in groups
        for score in group.scores
    ]
    if not rows:
        return ""
    roles = list(dict.fromkeys(role for group in groups for score in group.scores for role in score.baselines))
    columns = [display.key("group"), display.key("score"), display.key("n", right=True), display.key("median")]
    columns += [display.Column(role, lambda row, role=role: row.get(role, display.NOTHING)) for role in roles]
    note = "Medians over features with 95% intervals; of a baseline also how many explanations score above it."
    return f"{display.table(rows, columns)}\n{note}"


def _format_controls(controls: "Sequence[Control]") -> str:
    rows: list[Row] = [
        {
            "control": control.random,
            "score": f"{control.scorer} {control.metric}",
            "trained": f"{control.trained_median}, n {control.trained_median.n}",
            "random": f"{control.random_median}, n {control.random_median.n}",
            "AUROC": str(control.auroc),
        }
        for control in controls
    ]
    note = "AUROC: the chance that a trained feature scores above a random one; 0.5 is no difference."
    columns = [display.key(name) for name in ("control", "score", "trained", "random", "AUROC")]
    return f"{display.table(rows, columns)}\n{note}" if rows else ""


def _format_cost(cost: "Cost") -> str:
    if not cost.calls:
        return ""
    dollars = "price not known" if cost.usd is None else f"${cost.usd:,.4f}"
    tokens = f"{cost.input_tokens:,} tokens in and {cost.output_tokens:,} out"
    return f"language models, of the whole database: {cost.calls:,} calls, {tokens}, {dollars}"


def _draw(summed: "Summary", path: str) -> None:
    from ..causal.pictures import distributions

    panels = {
        f"{group.name}, n {score.median.n}\n{score.scorer} {score.metric}": {
            "explanation": score.values,
            **{role: values for role, values in score.baseline_values.items() if role.startswith("token")},
        }
        for group in summed.groups
        if group.level == "source"
        for score in group.scores
    }
    distributions(panels, title="Scores of explanations beside their baselines", path=path, x_label="score")
