"""`neuronaut label` and `neuronaut score`: explain features, and score explanations."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from ..subject.pace import duration
from . import display
from .common import (
    Form,
    Progress,
    Row,
    all_of,
    as_json,
    chosen_features,
    emit,
    interruptible,
    on_option,
    open_store,
    parse_minutes,
    result_options,
    say,
)
from .label_setup import open_setup, open_workers
from .llm_options import LLMOptions, batch_api, format_spent, llm_options, split_options

if TYPE_CHECKING:
    from ..labelling.agenda import WorkerItem
    from ..labelling.estimate import Estimate
    from ..labelling.label import Outcome, Result
    from ..labelling.setup import LabelSetup
    from ..labelling.workers import Workers
    from ..llm.client import LLMClient
    from ..rules.choose import Size

MANY = 1000
"""Features from which on a run says first what it will take."""
subject_options = all_of(
    click.option("--model", metavar="PATH", help="Where the model lies, if not where it was harvested from."),
    click.option("--sae", metavar="PATH", help="Where the dictionary lies, if not where it was harvested from."),
    click.option("--norm-scale", type=float, metavar="X", help="As the dictionary was harvested with."),
    click.option("--allow-pickle", is_flag=True, help="Read a dictionary that is a pickle."),
    click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps."),
    click.option("--dtype", metavar="T", help="float32, bfloat16 or float16; as it was harvested with."),
)
scorer_option = click.option(
    "-s",
    "--scorers",
    default="simulation",
    show_default=True,
    metavar="NAMES",
    help="Scorers, with commas between: simulation, rule, detection, fuzzing, intruder, embedding, output.",
)
budget_option = click.option(
    "--budget", "limit", metavar="usd=X,tokens=N,calls=N,minutes=N", help="Ask no more once any of these is spent."
)


def _parse_rule_size(_: click.Context, __: click.Parameter, given: str | None) -> "Size":
    if given is None or given == "best":
        return given
    if given.isascii() and given.isdigit() and int(given) >= 1:
        return int(given)
    raise click.BadParameter(f'"{given}"; wanted a number of clauses from 1 on, or best')


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURES...")
@click.option(
    "-e",
    "--explainer",
    metavar="NAME",
    help="rule, guided, oneshot, highlight, contrastive, output, combined, best-of-N:NAME or refine:NAME; guided with "
    "-m, rule without.",
)
@click.option(
    "--rule-size",
    metavar="N|best",
    callback=_parse_rule_size,
    help="Clauses of a learned rule, or as many as predict best; by default the fewest that are as good.",
)
@scorer_option
@llm_options
@budget_option
@click.option("--batch", is_flag=True, help="Ask through the server's batch API, at half the price; come back later.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it would cost; ask nobody.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), default=1, metavar="N", help="Worker processes, each with its own model."
)
@on_option
@click.option(
    "--batch-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens of a forward pass, filled with windows of several features: 32768 or so fill a GPU.",
)
@click.option("--redo", is_flag=True, help="Explain also what this explainer has explained; the best one is shown.")
@subject_options
@result_options
def label(
    features: tuple[str, ...],
    explainer: str | None,
    rule_size: "Size",
    scorers: str,
    limit: str | None,
    batch: bool,
    dry_run: bool,
    jobs: int,
    on: str | None,
    batch_tokens: int | None,
    redo: bool,
    database: str,
    form: Form,
    **options: Any,
) -> None:
    """Explain features, and score the explanations.

    Scores come from text that the explainer never saw. FEATURES are addresses MODEL:SITE:INDEX, where the index
    may be 17, 0-99, 5,17,40-60, alive, all or random:100; a source alone means those alive. What is labelled
    already is skipped. Every call to a language model is written down with its reply, and one that went well is never
    paid again; features are stored as they are done, so a command that was stopped goes on when it is given again.

    \b
    Examples:
      neuronaut label demo:mlp.2:random:100
      neuronaut label gpt2:resid_pre.8@res-jb --budget minutes=30
      neuronaut label gpt2:mlp.5:0-99 -e highlight -s simulation,detection -m openai:gpt-4o-mini --budget usd=2
      neuronaut label gpt2:mlp.5:0-99 -e refine:contrastive -m hf:models/Qwen3-8B -s simulation,fuzzing
      neuronaut label demo:mlp.1:0-9 demo:mlp.2:17 --nl | jq .explanation
    """
    if batch and options["llm"] is None:
        raise click.UsageError("--batch asks a language model; name one with -m, for example -m openai:gpt-4o-mini")
    explainer = explainer or ("rule" if options["llm"] is None else "guided")
    mode = "rehearsal" if dry_run else "deferred" if batch else "live"
    minutes = parse_minutes(limit) if options["llm"] is None else None
    with open_setup(
        features,
        database,
        scorers=scorers,
        explainer_name=explainer,
        rule_size=rule_size,
        batch_tokens=batch_tokens,
        limit=limit,
        mode=mode,
        options=options,
    ) as setup:
        if dry_run:
            _estimate(setup, form, redo=redo, batch=batch, jobs=jobs)
        elif not batch or _collect_batches(setup, split_options(options)[0]):
            with open_workers(
                jobs,
                features,
                database,
                scorers=scorers,
                explainer_name=explainer,
                rule_size=rule_size,
                batch_tokens=batch_tokens,
                redo=redo,
                options=options,
                on=on,
            ) as workers:
                _label_features(setup, form, redo=redo, minutes=minutes, workers=workers)
            if batch:
                _send_batch(setup, split_options(options)[0])


def _estimate(setup: "LabelSetup", form: Form, *, redo: bool, batch: bool, jobs: int) -> None:
    from ..llm.prices import BATCH_DISCOUNT

    with Progress("dry run", total=None, unit="features") as progress:
        estimated = _rehearse(setup, setup.client, progress, redo=redo, jobs=jobs)
    if batch and estimated.usd is not None:
        estimated = replace(estimated, usd=estimated.usd * BATCH_DISCOUNT)
    emit([asdict(estimated)], form, lambda _: _format_estimate(estimated))


def _rehearse(
    setup: "LabelSetup", client: "LLMClient | None", progress: Progress, *, redo: bool, jobs: int
) -> "Estimate":
    from ..labelling.estimate import estimate

    assert setup.explainer is not None
    return estimate(
        setup.features,
        setup.store,
        setup.subject,
        explainer=setup.explainer,
        scorers=setup.scorers,
        client=client,
        chooser=setup.chooser,
        sources=setup.sources,
        redo=redo,
        jobs=jobs,
        on_progress=progress.doing,
    )


def _say_plan(setup: "LabelSetup", progress: Progress, *, redo: bool, jobs: int) -> None:
    """Say what a long run will take; the time for that is not part of it."""
    client = setup.client and setup.client.rehearsal()
    say(_format_estimate(_rehearse(setup, client, progress, redo=redo, jobs=jobs), verb="will"))
    progress.restart()


def _label_features(
    setup: "LabelSetup",
    form: Form,
    *,
    redo: bool,
    minutes: float | None = None,
    workers: "Workers[WorkerItem, list[Outcome]] | None" = None,
) -> None:
    """Label, and print what comes; of many features it is said first what they will take."""
    from ..labelling.agenda import BLOCK
    from ..labelling.label import label as label_features

    assert setup.explainer is not None
    left, count = len(setup.features), len(workers) if workers else 0
    # What is limited by time takes that time; to reckon it would be part of it.
    timed = minutes is not None or (setup.client is not None and setup.client.budget.minutes is not None)

    def skip(done: int) -> None:
        nonlocal left
        left -= done
        progress.expect(left, block=BLOCK)
        if left >= MANY and not timed:
            _say_plan(setup, progress, redo=redo, jobs=count or 1)

    with Progress("label", total=left, unit="features", workers=count) as progress:
        results = label_features(
            setup.features,
            setup.store,
            setup.subject,
            explainer=setup.explainer,
            scorers=setup.scorers,
            client=setup.client,
            chooser=setup.chooser,
            sources=setup.sources,
            workers=workers,
            redo=redo,
            minutes=minutes,
            on_skip=skip,
            on_progress=progress.doing,
        )
        rows = print_results(
            results, progress, form, setup.client, kept_note=f"whatever was labelled is stored in {setup.store.path}"
        )
    if form == "json":
        # Features that wait for replies are finished in any order; a file of them is in the order given.
        places = {str(feature): place for place, feature in enumerate(setup.features)}
        emit(sorted(rows, key=lambda row: places[row["feature"]]), form, lambda _: "")
    _say_end(rows, left, len(setup.features) - left, setup.client)


@click.command()
@click.argument("features", nargs=-1, required=True, metavar="FEATURES...")
@scorer_option
@llm_options
@budget_option
@click.option("--from-stored", is_flag=True, help="Compute the metrics again from stored judgements; ask nobody.")
@subject_options
@result_options
def score(
    features: tuple[str, ...],
    scorers: str,
    limit: str | None,
    from_stored: bool,
    database: str,
    form: Form,
    **options: Any,
) -> None:
    """Score explanations again.

    The best explanation of each of FEATURES gets further scores; features without one are passed over. A score equal
    to one that is there is not stored twice.

    \b
    Examples:
      neuronaut score demo:mlp.2:17
      neuronaut score gpt2:mlp.5:0-99 -s detection,fuzzing -m openai:gpt-4o-mini
      neuronaut score gpt2:mlp.5:0-99 --from-stored
    """
    from ..labelling.label import score as score_features
    from ..labelling.label import score_from_stored

    if limit is not None and (from_stored or options["llm"] is None):
        raise click.UsageError("--budget limits what a language model is asked, and none is; leave it out, or add -m")
    client, kept = None, f"whatever was scored is stored in {database}"
    if from_stored:
        with open_store(database, write=True) as store:
            chosen = chosen_features(store, features)
            with Progress("score", total=len(chosen), unit="features") as progress:
                rows = print_results(score_from_stored(chosen, store), progress, form, kept_note=kept)
    else:
        with open_setup(
            features, database, scorers=scorers, explainer_name=None, limit=limit, mode="live", options=options
        ) as setup:
            chosen, client = setup.features, setup.client
            with Progress("score", total=len(chosen), unit="features") as progress:
                results = score_features(
                    chosen,
                    setup.store,
                    setup.subject,
                    scorers=setup.scorers,
                    client=setup.client,
                    sources=setup.sources,
                    on_progress=progress.doing,
                )
                rows = print_results(results, progress, form, client, kept_note=kept)
    if form == "json":
        emit(rows, form, lambda _: "")
    _say_scored(len({row["feature"] for row in rows}), len(chosen), client)


def _say_scored(scored: int, total: int, client: "LLMClient | None") -> None:
    if client is not None:
        say(format_spent(client.spent, priced=client.price is not None))
    if client is not None and client.stopped:
        say(f"{scored:,} scored of {total:,}: {client.stopped}; give the command again to go on")
    else:
        say(f"{scored:,} scored, {total - scored:,} have nothing that could be scored")


def _collect_batches(setup: "LabelSetup", language: LLMOptions) -> bool:
    """Put the replies of ended batches into the log; returns whether none is under way."""
    from ..labelling.batch_api import collect

    assert setup.client is not None
    with closing(batch_api(language)) as api:
        reports = collect(setup.client, api)
    for report in reports:
        state = "collected" if report.collected else "under way"
        why = f" ({report.reason})" if report.reason else ""
        say(f"batch {', '.join(report.remote)}: {state}, {report.answered:,} of {report.requests:,} answered{why}")
    if all(report.collected for report in reports):
        return True
    say("come back later and give the command again")
    return False


def _send_batch(setup: "LabelSetup", language: LLMOptions) -> None:
    from ..labelling.batch_api import send

    assert setup.client is not None
    with closing(batch_api(language)) as api:
        report = send(setup.client, api)
    if report is not None:
        say(f"sent {report.requests:,} requests as batch {', '.join(report.remote)}; give the command again to collect")
    if setup.client.stopped:
        say(f"no more was asked: {setup.client.stopped}")


def _format_estimate(cost: "Estimate", *, verb: str = "would") -> str:
    line = f"{verb} label {cost.left:,} of {cost.features:,} features, {cost.done:,} are done already"
    if cost.seconds is not None:
        time = duration(cost.seconds)
        return f"{line}: {cost.forwards:,} forward passes of {cost.forward_tokens:,} tokens, about {time}"
    if not cost.calls and not cost.cached:
        return line
    dollars = "price not known (--price in=X,out=Y)" if cost.usd is None else f"${cost.usd:,.4f}"
    tokens = f"{cost.input_tokens:,} tokens in and {cost.output_tokens:,} out"
    return f"{line}: {cost.calls:,} calls, {tokens}, {dollars}; {cost.cached:,} answers are in the log"


def _say_end(rows: list[Row], left: int, done: int, client: "LLMClient | None") -> None:
    counts = Counter(row["status"] for row in rows)
    if rows or not left:
        say(_format_summary(counts, skipped=done))
    if client is not None:
        say(format_spent(client.spent, priced=client.price is not None))
    if len(rows) < left and (client is None or client.mode == "live"):
        stopped = client.stopped if client is not None else None
        if rows or stopped:
            why = f"{stopped or 'the time is spent'}; give the command again to go on"
        else:
            why = "the time was spent before the first was done; give it more minutes, or fewer features"
        say(f"{left - len(rows):,} features are left: {why}")
    if rows and counts["failed"] == len(rows):
        raise click.exceptions.Exit(1)


def print_results(
    results: "Iterator[Result]",
    progress: Progress,
    form: Form | None,
    client: "LLMClient | None" = None,
    *,
    kept_note: str,
) -> list[Row]:
    """Print each result as it comes, and return their rows; JSON is left to the end, and None prints nothing.

    `kept_note` says, where the user stops it, what is kept.
    """
    rows: list[Row] = []
    pointed, unscored = list[float](), defaultdict[str, list[str]](list)
    counts, failures = Counter[str](), Counter[str]()
    with interruptible(lambda: kept_note if rows or client else "no feature is finished yet"):
        for result in results:
            rows.append(result.to_row())
            pointed += [score.point_values for score in result.scores if score.point_values]
            failures.update([result.explanation.reason or ""] if rows[-1]["status"] == "failed" else [])
            for scorer, reason in _find_unscored(result):
                unscored[scorer].append(reason)
            counts[rows[-1]["status"]] += 1
            note = [f"{count} {status}" for status, count in counts.items()]
            if client is not None:
                note.append(
                    format_spent(client.spent, priced=client.price is not None, share=progress.share(len(rows)))
                )
            progress.reach(len(rows), ", ".join(note))
            if form == "nl":
                progress.echo(as_json(rows[-1]))
            elif form == "table":
                progress.echo(_format_line(rows[-1], result))
    if pointed:
        say(
            f"point values in {len(pointed):,} scores: the server gave no log-probabilities for up to "
            f"{max(pointed):.0%} of the tokens, where the number that was written counts"
        )
    for reason, count in failures.items():
        say(f"{count:,} failed: {reason}")
    for scorer, reasons in unscored.items():
        say(f"no score by {scorer} for {len(reasons):,} of {len(rows):,} features, the last time for: {reasons[-1]}")
    return rows


def _find_unscored(result: "Result") -> "Iterator[tuple[str, str]]":
    """The scorers that have no value at all for a result, each with the reason."""
    for scorer in dict.fromkeys(score.scorer for score in result.scores):
        scores = [score for score in result.scores if score.scorer == scorer]
        if all(score.value is None for score in scores):
            yield scorer, scores[0].reason or ""


def _format_line(row: Row, result: "Result") -> str:
    """One line of a result; where there is a text but no score, the reason for that stands before it."""
    score = f"{display.score(row):18}  baseline {display.hundredths(row['baseline']):>5}"
    text = row["headline"] or row["explanation"] or result.explanation.reason or ""
    unscored = next((score for score in result.scores if score.examples != "select"), None)
    if result.score is None and unscored is not None:
        text = f"(no {unscored.metric}: {unscored.reason}) {text}"
    return display.cut(f"{row['feature']}  {row['status']:9}  {score}  {display.visible(text)}")


def _format_summary(counts: Counter[str], *, skipped: int) -> str:
    done = ", ".join(f"{count:,} {status}" for status, count in counts.most_common()) or "nothing to label"
    return done + (f"; {skipped:,} were done already" if skipped else "")
