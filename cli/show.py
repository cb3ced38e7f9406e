"""`neuronaut show`: prints everything that is known of one feature."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from . import display
from .common import Form, Row, emit, open_store, result_options

PARTS = ("tune", "holdout")
"""What the curve of a rule is taken on."""


@click.command()
@click.argument("feature")
@click.option("-n", "count", type=click.IntRange(min=0), default=10, show_default=True, help="Top examples to show.")
@click.option("--rule", is_flag=True, help="Show the rule as JSON, and the longer one that predicts better.")
@click.option("--provenance", is_flag=True, help="Show where every number comes from.")
@result_options
def show(feature: str, count: int, rule: bool, provenance: bool, database: str, form: Form) -> None:
    """Show all that is known of a feature.

    Its explanation, what a rule of fewer clauses would be worth, statistics, scores with their judges, and the text
    that activates it most.

    \b
    Examples:
      neuronaut show demo:mlp.2:17
      neuronaut show demo:mlp.2:17 --rule
      neuronaut show demo:mlp.2:17 -n 3 --provenance
      neuronaut show demo:mlp.2:17 --json | jq '.[0].scores'
    """
    from ..labelling.inspect import describe

    with open_store(database) as store:
        (row,) = store.with_names([describe(store, store.feature(feature), count=count)])
    emit([row], form, lambda _: page(row, rule=rule, provenance=provenance))


def page(row: Row, *, rule: bool, provenance: bool) -> str:
    """Format the row of `show` as text."""
    parts = [_format_head(row)]
    if row["curve"]:
        parts.append(_format_curve(row["curve"]))
    if rule:
        parts.append(_format_rules(row))
    parts.append(_format_statistics(row["stats"]))
    if "looks_at" in row:
        parts.append(_format_looks(row["looks_at"]))
    if "promoted" in row:
        parts.append(_format_top_tokens(row))
    if "writes" in row:
        parts.append(_format_writes(row["writes"]))
    if row["scores"]:
        parts.append(_format_scores(row["scores"]))
    if row["examples"]:
        parts.append(_format_examples(row["examples"], peak=row["stats"]["peak"]))
    if provenance:
        parts.append(json.dumps(row["provenance"], indent=2, ensure_ascii=False))
    return "\n\n".join(parts)


def _format_head(row: Row) -> str:
    explained = row["provenance"]["explanation"]
    name = f" ({display.visible(row['name'])})" if row.get("name") else ""
    lines = [
        f"{_bold(row['feature'])}{name}  {row['status']}" + (f" by {row['explainer']}" if row["explainer"] else "")
    ]
    if row["score"] is not None:
        lines[0] += f", {row['metric']} {display.score(row)}, baseline {display.hundredths(row['baseline'])}"
    if row.get("weak"):
        lines.append(f"weak: {row['weak']}")
    if row["explanation"]:
        lines.append(display.visible(row["explanation"]))
    elif explained:
        lines.append(display.visible(explained["reason"] or ""))
    return "\n".join(lines)


def _format_curve(curve: Sequence[Row]) -> str:
    """What the rule is worth with its first clause, its first two, and so on."""
    columns = [display.Column(name, lambda row, name=name: display.hundredths(row[name]), right=True) for name in PARTS]
    return display.table(curve, [display.key("clauses", right=True), *columns])


def _format_rules(row: Row) -> str:
    """Write the rule, and the longer one beside it, as JSON of one line each."""
    rules = {name: row[name] for name in ("rule", "predictor") if row[name]}
    lines = [f"{name}  {json.dumps(value, ensure_ascii=False)}" for name, value in rules.items()]
    return "\n".join(lines) or "the explanation has no rule"


def _format_statistics(stats: Mapping[str, Any]) -> str:
    values = {"peak": stats["peak"], "trough": stats["trough"], "mean": stats["mean"]}
    numbers = "  ".join(f"{name} {display.number(value)}" for name, value in values.items())
    shares = f"above zero on {stats['density']:.3%} of {stats['tokens']:,} tokens"
    if stats["active"] is not None:
        shares = f"above a tenth of its peak on {stats['active']:.3%}, {shares}"
    lines = [f"{shares}  {numbers}"]
    if any(stats["histogram"]):
        lines.append(_format_histogram(stats["histogram"], peak=stats["peak"]))
    return "\n".join(lines)


def _format_histogram(counts: Sequence[int], *, peak: float) -> str:
    """Draw the bins in use as a sparkline up to the peak; what is below a thousandth of it is one bar, from zero."""
    from ..data.harvest.histogram import edges

    used = [number for number, count in enumerate(counts) if count]
    last = used[-1] + 1
    first = min(max(used[0], int(edges().searchsorted(peak / 1000)) - 1), last - 1)
    below = sum(counts[: first + 1])
    low = edges()[first] if below == counts[first] and first else 0.0
    return f"activations {low:.2g} {display.sparkline([below, *counts[first + 1 : last]])} {display.number(peak)}"


def _format_scores(scores: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for score in scores for name in score["baselines"]))
    rows = [{**score, "score": score["value"]} for score in scores]
    columns = [
        display.key("scorer"),
        display.key("backend"),
        display.key("examples"),
        display.key("metric"),
        display.SCORE,
        display.key("n", right=True),
        *map(_baseline, names),
        display.key("judge"),
        display.Column("", _format_doubt),
    ]
    return display.table(rows, columns)


def _format_doubt(score: Mapping[str, Any]) -> str:
    """Why there is no value, or why it is not to be trusted."""
    return score["reason"] or score["doubt"] or ""


def _baseline(name: str) -> display.Column:
    return display.Column(name, lambda row: display.hundredths(row["baselines"].get(name)), right=True)


def _format_examples(examples: Sequence[Row], *, peak: float) -> str:
    room = display.width() - 18 if display.on_terminal() else None
    attended = [_format_attended(example) for example in examples]
    wide = max(map(len, attended))
    lines = [
        f"{display.number(e['peak']):>7}  {e['split']:7}  "
        + (f"{heads:{wide}}  " if heads else "")
        + display.highlighted(e["tokens"], e["activations"], peak=peak, room=room)
        for e, heads in zip(examples, attended, strict=True)
    ]
    return "\n".join(lines)


def _format_looks(looks: Mapping[str, float]) -> str:
    """Where a head looks from its peaks, the most frequent first."""
    places = {name: share for name, share in looks.items() if name not in ("mean weight", "n") and share}
    told = ", ".join(f"{name} {share:.0%}" for name, share in sorted(places.items(), key=lambda item: -item[1]))
    return f"from {looks['n']} peaks it looks most at {told}; mean weight {looks['mean weight']:.2f}"


def _format_writes(sites: Sequence[Row]) -> str:
    """How long the decoder is at each site, and as a multiple of the median feature's there."""
    told = ", ".join(f"{row['site']} {row['norm']:.3g} ({row['relative']:.2f} of the median)" for row in sites)
    return f"writes, by its decoder's norm: {told}"


def _format_top_tokens(row: Row) -> str:
    """The tokens whose logits it raises and lowers the most, in standard deviations over the vocabulary."""
    lines: list[str] = []
    for side, word in (("promoted", "promotes"), ("suppressed", "suppresses")):
        told = "  ".join(f"{display.quoted(own['token'])} {own['deviations']:+.1f}" for own in row[side])
        lines.append(f"{word:10} {display.cut(told, 11) if display.on_terminal() else told}")
    return "\n".join(lines)


def _format_attended(example: Row) -> str:
    """Where a head's peak takes what it writes from: destination, source and weight."""
    if (attended := example.get("attended")) is None:
        return ""
    destination, source = (json.dumps(attended[name], ensure_ascii=False) for name in ("destination", "source"))
    back = attended["back"]
    looked_at = "itself" if not back else "BOS" if attended["source_position"] < 0 else f"{source} {back} back"
    return f"{destination} <- {looked_at} {attended['weight']:.2f}"


def _bold(text: str) -> str:
    return click.style(text, bold=True) if display.in_colour() else text
