"""`neuronaut sessions`: lists investigations, shows them, judges them again, forks and exports them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from . import display
from .causal.inputs import output_option, pair_options, task_of, write
from .common import (
    Form,
    Listing,
    Row,
    as_json,
    database_option,
    debug_option,
    emit,
    limit_option,
    open_store,
    result_options,
    say,
)
from .investigate import PAIRS
from .label import subject_options

if TYPE_CHECKING:
    from ..agent.rerun import Rerun
    from ..agent.summary import SessionSummary
    from ..data.store.store import Store


@click.group(cls=Listing)
def sessions() -> None:
    """Look at investigations.

    An ID may be cut short. Without a verb they are listed.

    \b
    Examples:
      neuronaut sessions
      neuronaut sessions show 3fa92b --html report.html
      neuronaut sessions summary
      neuronaut sessions replay 3fa92b
      neuronaut sessions fork 3fa92b --step 4
      neuronaut sessions export 3fa92b --format inspect --output log.json
    """


@sessions.command("list")
@limit_option(default=20)
@result_options
def list_(limit: int, database: str, form: Form) -> None:
    """List investigations, the latest first.

    \b
    Examples:
      neuronaut sessions list --limit 5 --json
    """
    from ..agent.loop.resuming import current_status

    names = ("id", "created", "ended", "kind", "target", "policy", "status", "reason", "parent")
    with open_store(database) as store:
        rows = [{name: row[name] for name in names} for row in store.journal.rows(limit=limit)]
        for row in rows:
            row["status"] = current_status(store.path, row["id"], row["status"])
            if row["status"] == "interrupted":
                row["reason"] = _tell_resumption(row["id"])
    emit(rows, form, _format_table)


def _tell_resumption(id: str) -> str:
    return f"go on with: neuronaut investigate --resume {id}"


@sessions.command()
@click.argument("id")
@output_option("--html", "Write the report as a page, too.")
@result_options
def show(id: str, html: str | None, database: str, form: Form) -> None:
    """Show the report of an investigation; every number in it names its source.

    \b
    Examples:
      neuronaut sessions show 3fa92b
      neuronaut sessions show 3fa92b --json | jq .[0].claims
    """
    from ..agent.loop.resuming import current_status
    from ..agent.report.assemble import assemble
    from .session_view import write_page

    with open_store(database) as store:
        report = assemble(store.journal, id)
        report = replace(report, status=current_status(store.path, report.id, report.status))
        if html is not None:
            write_page(store, report, html)
    emit([report.to_json()], form, lambda _: str(report))
    if report.status == "interrupted":
        say(_tell_resumption(report.id))


@sessions.command()
@result_options
def summary(database: str, form: Form) -> None:
    """Sum up all investigations: how they ended, what stayed open, and which tools told most for their cost.

    What a tool told is the largest change of a rival's log odds, in nats, summed over its experiments.

    \b
    Examples:
      neuronaut sessions summary
      neuronaut sessions summary --json | jq .[0].groups
    """
    from ..agent.summary import summarise

    with open_store(database) as store:
        summed = summarise(store.journal)
    emit([asdict(summed)], form, lambda _: _format_summary(summed))


@sessions.command()
@click.argument("id")
@click.option("--rerun", is_flag=True, help="Measure everything again on the model, too.")
@pair_options(rows=64)
@subject_options
@result_options
@click.pass_context
def replay(ctx: click.Context, id: str, rerun: bool, database: str, form: Form, **options: Any) -> None:
    """Judge an investigation again from what it wrote down, and compare to the bit.

    Nobody is asked and nothing is run: the odds of every round, status and reason, the texts of hypotheses, the frozen
    hash, the holdout's scores, the ledger and the order of times are made again or held against each other, and every
    row against the seal that was made when the investigation ended. Each difference is one line. What only the model
    can tell is said; --rerun measures it again (of a behaviour with the --task or --pairs that it was begun with).
    Ends with 1 where anything comes out otherwise.

    \b
    Examples:
      neuronaut sessions replay 3fa92b
      neuronaut sessions replay 3fa92b --rerun
    """
    from ..agent.replay import replay as judge_again

    with open_store(database) as store:
        replayed = judge_again(store.journal, id)
        row = {**replayed._asdict(), "same": replayed.same, "rerun": None}
        if rerun and replayed.readable:
            again = _rerun(store, replayed.id, options)
            row |= {"rerun": again._asdict(), "same": replayed.same and not again.faults}
    emit([row], form, _format_replay)
    ctx.exit(0 if row["same"] else 1)


def _rerun(store: "Store", id: str, options: dict[str, Any]) -> "Rerun":
    from ..agent.rerun import rerun
    from ..labelling.opening import LoadOptions, stored_sources, stored_subject
    from ..subject.address import Feature

    row = store.journal.row(id)
    pairs = {name: options.pop(name) for name in PAIRS}
    load_options, target = LoadOptions(**options), row["target"]
    if row["kind"] == "behaviour":
        subject = stored_subject(store, target.partition(" ")[0], load_options)
        return rerun(store, id, subject, task=task_of(subject, pairs, seed=row["settings"].get("seed", 0)))
    feature = Feature.parse(target)
    subject = stored_subject(store, feature.source.model, load_options, sources=[feature.source])
    return rerun(store, id, subject, sources=stored_sources(store, subject, [feature], load_options))


@sessions.command()
@click.argument("id")
@click.option("--step", type=click.IntRange(0), required=True, help="The first decision that is taken anew.")
@click.option("--seed", type=click.IntRange(0), help="Draw with another seed: decisions stay, and are measured anew.")
@result_options
def fork(id: str, step: int, seed: int | None, database: str, form: Form) -> None:
    """Copy an investigation up to a decision, to go on otherwise from there.

    \b
    Examples:
      neuronaut sessions fork 3fa92b --step 4 --seed 1
    """
    from ..agent.forking import fork as copy

    with open_store(database, write=True) as store:
        new = copy(store.journal, id, step=step, seed=seed)
    emit([{"id": new.id, "parent": new.parent, "step": step}], form, lambda rows: rows[0]["id"])
    pairs = " with the --task or --pairs that it was begun with" if new.kind == "behaviour" else ""
    say(f"go on with: neuronaut investigate --resume {new.id}{pairs}")


@sessions.command()
@click.argument("id")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("jsonl", "inspect")),
    default="jsonl",
    show_default=True,
    help="JSON lines with everything, or a log that `inspect view` opens.",
)
@output_option("--output", "The file; standard output where none is named.")
@database_option
@debug_option
def export(id: str, kind: str, output: str | None, database: str) -> None:
    """Write an investigation for other programs.

    \b
    Examples:
      neuronaut sessions export 3fa92b > session.jsonl
      neuronaut sessions export 3fa92b --format inspect --output log.json
    """
    with open_store(database) as store:
        lines = [as_json(row) for row in _export_lines(store, id)] if kind == "jsonl" else [_export_log(store, id)]
    if output is None:
        click.echo("\n".join(lines))
    else:
        write(output, "\n".join(lines))


def _export_lines(store: "Store", id: str) -> Iterator[Row]:
    from ..agent.report.export import to_lines
    from ..subject.address import Feature

    row = store.journal.row(id)
    splits = None
    if row["kind"] == "feature" and any(s["source"] == row["target"].rpartition(":")[0] for s in store.sources()):
        evidence = store.evidence(Feature.parse(row["target"]))
        splits = Counter(example.split for example in evidence.examples)
    return to_lines(store.journal, row["id"], splits=splits)


def _export_log(store: "Store", id: str) -> str:
    from ..agent.report.export import to_inspect

    return json.dumps(to_inspect(store.journal, id), ensure_ascii=False, allow_nan=False)


def _format_table(rows: list[Row]) -> str:
    if not rows:
        return "no investigations"
    return display.table(
        rows,
        [
            display.key("id"),
            display.Column("begun", lambda row: row["created"][:16].replace("T", " ")),
            display.key("target"),
            display.key("policy"),
            display.key("status"),
            display.key("reason"),
        ],
    )


def _format_summary(summed: "SessionSummary") -> str:
    if not summed.groups:
        return "no investigations"
    groups = [asdict(group) for group in summed.groups]
    tools = [{**asdict(tool), "rate": tool.nats_per_1000} for tool in summed.tools]
    failures = [{"reason": reason, "count": count} for reason, count in [*summed.failures.items()][:FAILURES]]
    blocks = [display.table(groups, GROUP_COLUMNS), display.table(tools, TOOL_COLUMNS)]
    if failures:
        columns = [display.key("count", right=True), display.key("reason", "failed or refused")]
        blocks.append(display.table(failures, columns))
    return "\n\n".join(blocks)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or display.NOTHING


FAILURES = 12
"""Reasons that are shown."""
GROUP_COLUMNS = (
    display.key("name", "source"),
    display.key("policy"),
    display.key("sessions", right=True),
    display.Column("ends", lambda row: _counts(row["ends"])),
    display.Column("what stayed open", lambda row: _counts(row["open"])),
    display.key("ungraded", right=True),
    display.Column("forwards", lambda row: f"{row['forwards']:,.0f}", right=True),
    display.Column("tokens", lambda row: f"{row['tokens']:,.0f}", right=True),
    display.Column("minutes", lambda row: f"{row['minutes']:.1f}", right=True),
)
TOOL_COLUMNS = (
    display.key("tool"),
    display.key("experiments", right=True),
    display.key("forwards", right=True),
    display.key("nats", right=True),
    display.key("rate", "nats per 1,000 forwards", right=True),
    display.key("failed", right=True),
)


def _format_replay(rows: list[Row]) -> str:
    from ..agent.rerun import TOLERANCE

    row: dict[str, Any] = rows[0]
    head = f"{row['rounds']} rounds judged again, the same to the bit: {row['answer']}, {row['leader']}"
    lines = [f"{row['id']}: {f'{head} (before holdout and controls)' if not row['faults'] else 'not the same:'}"]
    lines += [f"  {line}" for line in row["faults"]]
    if (rerun := row["rerun"]) is not None:
        same = f"the same within {TOLERANCE:g}" if not rerun["faults"] else "not the same:"
        lines.append(f"{rerun['experiments']} experiments, the baseline, holdout and controls run again: {same}")
        lines += [f"  {line}" for line in rerun["faults"]]
        lines += [f"not run again: {line}" for line in rerun["left_out"]]
    lines += [f"not vouched for: {line}" for line in row["unvouched"]]
    if rerun is None:
        lines += [f"not judged again without the model: {line}; measure them with --rerun" for line in row["measured"]]
    return "\n".join(map(display.visible, lines))
