"""`neuronaut investigate`: rival explanations of a feature or a behaviour, put to experiments until one stands."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import display
from .causal.inputs import output_option, pair_options, seed_option, write
from .common import Form, as_json, emit, keeping, open_store, result_options, say
from .label import scorer_option, subject_options
from .llm_options import format_spent, llm_options, open_client, split
from .progress_view import Watch

if TYPE_CHECKING:
    from ..agent.report.report import Report
    from ..agent.session import Session
    from ..data.store.store import Store
    from .investigating import InvestigationRequest

POLICIES = ("scripted", "llm", "random", "replay")
EXITS: Mapping[str, int] = {"supported": 0, "open": 3, "no_explanation": 3, "budget": 4, "error": 1}
_WORST = (0, 3, 4, 1)
"""Exit codes, the best first."""


@click.command()
@click.argument("targets", nargs=-1, metavar="TARGETS...")
@llm_options
@click.option("--policy", type=click.Choice(POLICIES), help="Who decides.  [default: llm with -m, else scripted]")
@click.option("--transcript", metavar="ID", help="Whose decisions --policy replay takes.")
@click.option(
    "--budget",
    metavar="usd=X,tokens=N,calls=N,fwd=N,experiments=N,minutes=N",
    help="The most that each target may use.  [default: experiments=60]",
)
@click.option("--resume", metavar="ID", help="Go on with an investigation, or with a fork of one.")
@seed_option
@click.option("--hide-names", is_flag=True, help="Do not tell the policy what the target is called.")
@scorer_option
@pair_options(rows=64)
@output_option("--html", "Write the report as a page; of several, one each, with the target in its name.")
@subject_options
@result_options
@click.pass_context
def investigate(
    ctx: click.Context,
    targets: tuple[str, ...],
    html: str | None,
    database: str,
    form: Form,
    budget: str | None,
    resume: str | None,
    **options: Any,
) -> None:
    """Find out what a feature or a behaviour is, and prove it.

    Rival hypotheses say what they expect of every experiment before it is run; code judges by what is then seen, and
    the one that stands is frozen and scored once on text that nobody saw. TARGETS are features, as for `label`; or
    one MODEL with --task or --pairs (see `patch`) for a behaviour. The same command again goes on where the last one
    stopped. --nl prints every event as it comes, --json the reports. Ends with 0 where all are supported, 3 where one
    stays open or has no explanation, 4 where a budget was spent before, 1 on an error.

    \b
    Examples:
      neuronaut investigate demo:mlp.2:17
      neuronaut investigate gpt2:mlp.5:0-9 -m openai:gpt-4o-mini --budget usd=1,experiments=40 --hide-names
      neuronaut investigate demo --task induction --html induction.html
      neuronaut investigate --resume 3fa92b
    """
    _check(targets, options, resume=resume, budget=budget)
    with (
        open_store(database, create=options["task"] is not None or options["pairs"] is not None, write=True) as store,
        keeping(lambda: f"all that was done is stored in {store.path}"),
    ):
        found = _run(store, targets, options, resume=resume, budget=budget, form=form, html=html)
    if form == "json":
        emit([session.report.to_json() for session in found], form, lambda _: "")
    if len(found) > 1:
        statuses = [session.status for session in found]
        say(", ".join(f"{statuses.count(s)} {s.replace('_', ' ')}" for s in EXITS if s in statuses))
    ctx.exit(max((EXITS[session.status] for session in found), key=_WORST.index))


def _check(targets: tuple[str, ...], options: Mapping[str, Any], *, resume: str | None, budget: str | None) -> None:
    """Refuse what does not go together before anything is opened."""
    policy = options["policy"]
    if not targets and resume is None:
        raise click.UsageError("nothing to investigate; name a feature, for example demo:mlp.2:17, or --resume ID")
    if resume is not None and (targets or budget is not None or policy not in (None, "replay")):
        raise click.UsageError("--resume ID has its target, policy and budget from the beginning; leave the others out")
    if policy is not None and (policy == "replay") != (options["transcript"] is not None):
        raise click.UsageError("--policy replay takes the decisions of --transcript ID; give both, or neither")
    if policy == "llm" and options["llm"] is None:
        raise click.UsageError("--policy llm asks a language model; name one, for example -m openai:gpt-4o-mini")


def _run(
    store: "Store",
    targets: tuple[str, ...],
    options: dict[str, Any],
    *,
    resume: str | None,
    budget: str | None,
    form: Form,
    html: str | None,
) -> "list[Session]":
    from .investigating import sessions

    request = _wish(store, targets, options, resume=resume, budget=budget)
    language, _ = split(options)
    found: list[Session] = []
    heard: set[str] = set()
    with open_client(language, store, budget=None) as client, Watch(lambda id: _texts(store, id)) as watch:
        for session in sessions(store, request, client, _hearing(watch, form, heard)):
            found.append(session)
            watch.clear()
            if session.id not in heard:
                say(f"{session.id} was investigated before: nothing was run; another --seed investigates anew")
            if form == "table":
                click.echo(_line(session) if len(request.targets) > 1 or found[1:] else _result(session))
        watch.clear()
        if client is not None:
            say(format_spent(client.spent, priced=client.price is not None))
    if html is not None:
        for session in found:
            write_page(store, session.report, html if len(found) == 1 else _named(html, session.report.target))
    return found


def _named(html: str, target: str) -> str:
    """The file of one page of several."""
    path = Path(html)
    return str(path.with_name(f"{path.stem}-{re.sub('[^A-Za-z0-9._]+', '-', target)}{path.suffix}"))


def _wish(
    store: "Store", targets: tuple[str, ...], options: dict[str, Any], *, resume: str | None, budget: str | None
) -> "InvestigationRequest":
    from ..agent.loop.run import Settings
    from .investigating import PAIRS, InvestigationRequest, limits_of, resumed
    from .opening import LoadOptions

    language, rest = split(options)
    pairs = {name: rest.pop(name) for name in PAIRS}
    own = {name: rest.pop(name) for name in ("policy", "transcript", "seed", "scorers")}
    policy = own["policy"] or ("scripted" if language.llm is None else "llm")
    settings = Settings(hide_names=rest.pop("hide_names"))
    request = InvestigationRequest(
        targets=targets,
        policy=policy,
        transcript=own["transcript"],
        limits=limits_of(budget, asks=language.llm is not None),
        settings=settings,
        seed=own["seed"],
        scorers=own["scorers"],
        pairs=pairs,
        load_options=LoadOptions(**rest),
        degrees=language.degrees,
        embedder=language.embedder,
    )
    return request if resume is None else resumed(store, resume, request)


def _hearing(watch: Watch, form: Form, heard: set[str]) -> Callable[[Mapping[str, Any]], None]:
    """What hears the events: the watch, and with --nl standard output. `heard` is told of whom there are any."""

    def hear(event: Mapping[str, Any]) -> None:
        heard.add(event["investigation"])
        if form == "nl":
            watch.clear()
            click.echo(as_json(dict(event)))
        watch(event)

    return hear


def _texts(store: "Store", id: str) -> dict[str, str]:
    return {row["name"]: row["body"]["text"] for row in store.journal.hypotheses(id)}


def _line(session: "Session") -> str:
    report = session.report
    said = display.visible(report.text or session.reason)
    return display.cut(f"{report.target}  {session.status:14}  {session.id}  {said}")


def _result(session: "Session") -> str:
    """The verdict, the explanation, how it held, and where to see more."""
    report = session.report
    lines = [f"{report.target}: {session.status.replace('_', ' ')}"]
    if report.text is not None:
        lines.append(display.visible(report.text))
    lines.append(f"because {display.visible(session.reason)}")
    lines += [f"holdout {line}" for line in _held(report)]
    return "\n".join([*lines, f"see it all: neuronaut sessions show {session.id}  (--html FILE for a page)"])


def _held(report: "Report") -> list[str]:
    """What the holdout says in the first place."""
    from ..agent.report.report import HEADLINES

    return [
        f"{s['examples'].replace('_', ' ')} {s['metric'].replace('_', ' ')} "
        + display.score({**s, "score": s["value"]})
        + _beside(s["baselines"])
        for s in report.scores
        if s["value"] is not None and (s["examples"], s["metric"]) in HEADLINES
    ]


def _beside(baselines: Mapping[str, float | None]) -> str:
    known = [value for value in baselines.values() if value is not None]
    return f", best baseline {max(known):.2f}" if known else ""


def write_page(store: "Store", report: "Report", file: str) -> None:
    """The page of a report, with training examples where the feature is in the store."""
    from ..agent.report.page import page
    from ..subject.address import Feature

    examples = ()
    if report.kind == "feature" and any(row["source"] == report.target.rpartition(":")[0] for row in store.sources()):
        train = store.evidence(Feature.parse(report.target)).train
        examples = sorted({e.window: e for e in train}.values(), key=lambda e: -e.peak)
    write(file, page(report, examples=examples))
    say(f"the page is {file}")
