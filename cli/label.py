"""`neuronaut label` and `neuronaut score`: explain a batch of features, and score what is explained."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import display
from .common import Form, Progress, Row, all_of, as_json, budget, emit, keeping, opened, result_options, say

if TYPE_CHECKING:
    from ..agent.label import Result

T = TypeVar("T")

subject_options = all_of(
    click.option("--model", metavar="PATH", help="Where the model lies, if not where it was harvested from."),
    click.option("--sae", metavar="PATH", help="Where the dictionary lies, if not where it was harvested from."),
    click.option("--norm-scale", type=float, metavar="X", help="As the dictionary was harvested with."),
    click.option("--allow-pickle", is_flag=True, help="Read a dictionary that is a pickle."),
    click.option("--device", metavar="D", help="cpu, cuda or cuda:1; a GPU where there is one."),
    click.option("--dtype", metavar="T", help="float32, bfloat16 or float16; as it was harvested with."),
)
scorer_option = click.option(
    "-s", "--scorers", default="simulation", show_default=True, metavar="NAMES", help="Scorers, with commas between."
)


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURES...")
@click.option("-e", "--explainer", default="rule", show_default=True, metavar="NAME", help="Who explains.")
@scorer_option
@click.option("--budget", "limit", metavar="minutes=N", help="Begin nothing further after so many minutes.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and whether all that it needs is there.")
@click.option("--redo", is_flag=True, help="Explain also what this explainer has explained; the best one is shown.")
@subject_options
@result_options
def label(
    features: tuple[str, ...], explainer: str, scorers: str, limit: str | None, dry_run: bool, redo: bool,
    database: str, form: Form, **opening: Any,
) -> None:  # fmt: skip
    """Explain features, and score the explanations.

    Scores come from text that the explainer never saw. FEATURES are addresses MODEL:SITE:INDEX, where the index
    may be 17, 0-99, 5,17,40-60, alive, all or random:100; a source alone means those alive. What is labelled
    already is skipped. Features are stored as they are done, so a command that was stopped goes on when it is
    given again.

    \b
    Examples:
      neuronaut label demo:mlp.2:random:100
      neuronaut label gpt2:resid_pre.8@res-jb --budget minutes=30
      neuronaut label demo:mlp.1:0-9 demo:mlp.2:17 --nl | jq .explanation
    """
    from ..agent.label import label as label_features
    from .opening import EXPLAINERS, SCORERS, Opening, chosen_features, stored_sources, stored_subject

    minutes = budget(limit)
    make, judges = _known(EXPLAINERS, [explainer], "-e")[0], _known(SCORERS, scorers.split(","), "-s")
    options = Opening(**opening)
    with opened(database, write=True) as store:
        chosen = chosen_features(store, features)
        subject = stored_subject(store, chosen[0].source.model, options)
        sources = stored_sources(store, subject, chosen, options)
        left = len(chosen)

        def skip(done: int) -> None:
            nonlocal left
            left -= done
            progress.expect(left)

        with Progress("label", total=left, unit="features") as progress:
            results = label_features(
                chosen, store, subject, explainer=make(subject), scorers=[judge() for judge in judges], sources=sources,
                redo=redo, minutes=0.0 if dry_run else minutes, on_skip=skip,
            )  # fmt: skip
            # Without time to spend, a dry run opens all that is needed, hears what is done, and labels nothing.
            rows = tell(results, progress, form, kept=f"whatever was labelled is stored in {database}")
    done = len(chosen) - left
    if dry_run:
        plan = {"features": len(chosen), "done": done, "left": left}
        emit([plan], form, lambda _: f"would label {left:,} of {len(chosen):,} features, {done:,} are done already")
        return
    if form == "json":
        emit(rows, form, lambda _: "")
    say(_summary(Counter(row["status"] for row in rows), skipped=done))
    if len(rows) < left:
        say(f"{left - len(rows):,} features are left, the time is spent; give the command again to go on")


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURES...")
@scorer_option
@subject_options
@result_options
def score(features: tuple[str, ...], scorers: str, database: str, form: Form, **opening: Any) -> None:
    """Score explanations again.

    The best explanation of each of FEATURES gets further scores. Features that have no explanation with a rule are
    passed over. A score equal to one that is there is not stored twice.

    \b
    Examples:
      neuronaut score demo:mlp.2:17
      neuronaut score demo:mlp.2:alive -s simulation
    """
    from ..agent.rescore import score as score_features
    from .opening import SCORERS, Opening, chosen_features, stored_sources, stored_subject

    judges = _known(SCORERS, scorers.split(","), "-s")
    options = Opening(**opening)
    with opened(database, write=True) as store:
        chosen = chosen_features(store, features)
        subject = stored_subject(store, chosen[0].source.model, options)
        sources = stored_sources(store, subject, chosen, options)
        results = score_features(chosen, store, subject, scorers=[judge() for judge in judges], sources=sources)
        with Progress("score", total=len(chosen), unit="features") as progress:
            rows = tell(results, progress, form, kept=f"whatever was scored is stored in {database}")
    if form == "json":
        emit(rows, form, lambda _: "")
    say(f"{len(rows):,} scored, {len(chosen) - len(rows):,} have no rule to score")


def _known(table: Mapping[str, T], names: Sequence[str], option: str) -> list[T]:
    """The entries of these names."""
    for name in names:
        if name not in table:
            raise click.UsageError(f"{option} {name}: there is none of this name, there are: {', '.join(table)}")
    return [table[name] for name in names]


def tell(results: "Iterator[Result]", progress: Progress, form: Form | None, *, kept: str) -> list[Row]:
    """Print each result as it comes, and return their rows; JSON is left to the end, and None prints nothing."""
    rows: list[Row] = []
    with keeping(lambda: kept):
        for result in results:
            rows.append(row_of(result))
            counts = Counter(row["status"] for row in rows)
            progress.reach(len(rows), ", ".join(f"{count} {status}" for status, count in counts.items()))
            if form == "nl":
                progress.echo(as_json(rows[-1]))
            elif form == "table":
                progress.echo(_line(rows[-1], result.explanation.reason))
    return rows


def row_of(result: "Result") -> Row:
    """A result as a row of `list`."""
    best, made = result.score, result.explanation
    measured = [value for value in best.baselines.values() if value is not None] if best else []
    return {
        "feature": str(result.feature), "status": made.status, "explanation": made.text, "explainer": made.explainer,
        "score": best and best.value, "ci_low": best and best.ci_low, "ci_high": best and best.ci_high,
        "metric": best and best.metric, "scorer": best and best.scorer, "baseline": max(measured, default=None),
        "n": best and best.n,
    }  # fmt: skip


def _line(row: Row, reason: str | None) -> str:
    measured = f"{display.score(row):18}  baseline {display.hundredths(row['baseline']):>5}"
    said = row["explanation"] or reason or ""
    return display.cut(f"{row['feature']}  {row['status']:9}  {measured}  {display.visible(said)}")


def _summary(counts: Counter[str], *, skipped: int) -> str:
    told = ", ".join(f"{count:,} {status}" for status, count in counts.most_common()) or "nothing to label"
    return told + (f"; {skipped:,} were done already" if skipped else "")
