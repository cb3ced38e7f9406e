"""`neuronaut investigate`: puts rival explanations of a feature or a behaviour to experiments until one stands."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..subject.errors import NeuronautError
from .causal.inputs import output_option, pair_options, seed_option, task_of
from .common import Form, Progress, chosen_features, emit, interruptible, on_option, open_store, result_options, say
from .label import scorer_option, subject_options
from .llm_options import format_spent, llm_options, open_client, server_of, split_options
from .progress_view import Watch
from .session_view import (
    EXITS,
    event_handler,
    format_line,
    format_plan,
    format_pooled,
    format_result,
    page_file,
    pool_runs,
    seconds_between,
    tell_events,
    write_page,
)

if TYPE_CHECKING:
    from ..agent.loop.budget import Limits
    from ..agent.loop.policy import Policy
    from ..agent.loop.run import Settings
    from ..agent.session import InvestigationConfig, Session, SessionItem
    from ..data.store.journal_values import InvestigationRecord
    from ..data.store.store import Store
    from ..labelling.opening import LoadOptions
    from ..labelling.workers import Workers
    from ..llm.client import LLMClient
    from ..scorers.controls import ControlMode
    from ..subject.address import Feature, SourceId
    from ..subject.model import Subject
    from ..subject.sources import Source
    from .llm_options import LLMOptions

POLICIES = ("scripted", "llm", "random", "replay")
_WORST = (0, 3, 4, 1)
"""Exit codes, the best first."""


PAIRS = ("task", "rows", "pairs", "clean", "corrupted", "answer", "wrong")
"""Options that give the pairs of a behaviour."""


@dataclass(frozen=True, slots=True)
class InvestigationRequest:
    """The options of one call, read."""

    targets: tuple[str, ...]
    policy: str
    transcript: str | None
    """Id of the investigation whose decisions are taken, of policy replay."""
    limits: "Limits"
    settings: "Settings"
    seed: int
    scorers: str
    pairs: Mapping[str, Any]
    load_options: "LoadOptions"
    temperature: float | None = 0.0
    """Temperature of the language model."""
    embedder: str | None = None
    controls: "ControlMode" = "sample"
    calibrated: bool = True
    """Whether a judge must pass on built-in units."""
    resumed: "InvestigationRecord | None" = None
    """The investigation to go on with."""
    runs: int = 1
    """Investigations of each feature, each with the next seed."""

    @property
    def of_behaviour(self) -> bool:
        """Whether pairs were given, so that the target is a model."""
        return any(self.pairs[name] is not None for name in PAIRS if name != "rows")


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
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Investigate each feature so often, with other seeds and orders, and pool what comes of it.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Processes that investigate features side by side.",
)
@on_option
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
    jobs: int,
    on: str | None,
    **options: Any,
) -> None:
    """Find out what a feature or a behaviour is, and prove it.

    Rival hypotheses say what they expect of every experiment before it is run; code judges by what is then seen, and
    the one that stands is frozen and scored once on text that nobody saw. TARGETS are features, as for `label`; or
    one MODEL with --task or --pairs (see `patch`) for a behaviour. The same command again goes on where the last one
    stopped. Of several --runs the one answer is the rule that is right most often on all that they measured, with the
    dissent. --nl prints every event as it comes, --json the reports. Ends with 0 where all are supported, 3 where one
    stays open or has no explanation, 4 where a budget was spent before, 1 on an error.

    \b
    Examples:
      neuronaut investigate demo:mlp.2:17
      neuronaut investigate gpt2:mlp.5:0-9 -m openai:gpt-4o-mini --budget usd=1,experiments=40 --hide-names
      neuronaut investigate demo --task induction --html induction.html
      neuronaut investigate demo:mlp.2:random:50 -j 2
      neuronaut investigate demo:mlp.2:17 --runs 10
      neuronaut investigate --resume 3fa92b
    """
    _check_options(targets, options, resume=resume, budget=budget, apart=jobs > 1 or on is not None)
    with (
        open_store(database, create=options["task"] is not None or options["pairs"] is not None, write=True) as store,
        interruptible(lambda: f"all that was done is stored in {store.path}"),
    ):
        finished = _run(store, targets, options, resume=resume, budget=budget, form=form, html=html, jobs=jobs, on=on)
        pooled = pool_runs(store, finished) if options["runs"] > 1 else []
    if form == "json":
        emit([*(session.report.to_json() for session in finished), *map(asdict, pooled)], form, lambda _: "")
    elif pooled:
        click.echo("\n".join(map(format_pooled, pooled)))
    if len(finished) > 1:
        statuses = [session.status for session in finished]
        say(", ".join(f"{statuses.count(s)} {s.replace('_', ' ')}" for s in EXITS if s in statuses))
    ctx.exit(max((EXITS[session.status] for session in finished), key=_WORST.index))


def _check_options(
    targets: tuple[str, ...], options: Mapping[str, Any], *, resume: str | None, budget: str | None, apart: bool
) -> None:
    """Refuse what does not go together before anything is opened."""
    policy = options["policy"]
    if not targets and resume is None:
        raise click.UsageError("nothing to investigate; name a feature, for example demo:mlp.2:17, or --resume ID")
    if resume is not None and (targets or budget is not None or policy not in (None, "replay")):
        raise click.UsageError("--resume ID has its target, policy and budget from the beginning; leave the others out")
    if policy is not None and (policy == "replay") != (options["transcript"] is not None):
        raise click.UsageError("--policy replay takes the decisions of --transcript ID; give both, or neither")
    of_behaviour = any(options[name] is not None for name in PAIRS if name != "rows")
    if (apart or options["runs"] > 1) and (of_behaviour or resume is not None):
        raise click.UsageError("-j, --on and --runs are for features; leave them out with --resume or pairs of prompts")
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
    jobs: int,
    on: str | None,
) -> "list[Session]":
    request = _read_request(store, targets, options, resume=resume, budget=budget)
    language, _ = split_options(options)
    with (
        open_client(language, store, budget=None) as client,
        Watch(lambda id: _hypothesis_texts(store, id)) as watch,
        _open_workers(jobs, str(store.path), request, language, on=on) as workers,
    ):
        finished = list(_show_sessions(store, request, client, watch, form, workers=workers))
        watch.clear()
        if client is not None:
            say(format_spent(client.spent, priced=client.price is not None))
    if html is not None:
        for session in finished:
            write_page(store, session.report, html if len(finished) == 1 else page_file(html, session.report.target))
    return finished


def _show_sessions(
    store: "Store",
    request: InvestigationRequest,
    client: "LLMClient | None",
    watch: Watch,
    form: Form,
    *,
    workers: "Workers[SessionItem, str] | None",
) -> "Iterator[Session]":
    """Investigate, and show each session that ends; of several the plan, and how far they are."""
    several, before = False, {row["id"] for row in store.journal.rows() if row["ended"] is not None}

    def begin(done: int, total: int) -> None:
        nonlocal several
        several = total > 1 or workers is not None
        if several:
            seconds = seconds_between(store, request.policy, request.limits)
            say(format_plan(total - done, done, request.limits, seconds=seconds))
            watch.expect(total - done)

    handler = event_handler(watch, form)
    for session in run_sessions(store, request, client, handler, workers=workers, on_begin=begin):
        watch.clear()
        if session.id in before:
            if not several:
                say(f"{session.id} was investigated before: nothing was run; another --seed investigates anew")
        elif workers is not None and form == "nl":
            tell_events(store, session.id)
        if form == "table":
            click.echo(format_line(session) if several else format_result(session))
        if several and workers is None and session.id not in before:
            watch.end_one()
        yield session


def _read_request(
    store: "Store", targets: tuple[str, ...], options: dict[str, Any], *, resume: str | None, budget: str | None
) -> InvestigationRequest:
    from ..agent.loop.run import Settings
    from ..labelling.opening import LoadOptions

    language, rest = split_options(options)
    pairs = {name: rest.pop(name) for name in PAIRS}
    choices = {name: rest.pop(name) for name in ("policy", "transcript", "seed", "scorers", "runs")}
    policy = choices["policy"] or ("scripted" if language.llm is None else "llm")
    settings = Settings(hide_names=rest.pop("hide_names"))
    request = InvestigationRequest(
        targets=targets,
        policy=policy,
        transcript=choices["transcript"],
        limits=parse_limits(budget, asks=language.llm is not None),
        settings=settings,
        seed=choices["seed"],
        scorers=choices["scorers"],
        pairs=pairs,
        load_options=LoadOptions(**rest),
        temperature=language.temperature_value,
        embedder=language.embedder,
        controls=language.control_mode,
        calibrated=not language.no_calibration,
        runs=choices["runs"],
    )
    return request if resume is None else _resume_request(store, resume, request)


def _resume_request(store: "Store", id: str, request: InvestigationRequest) -> InvestigationRequest:
    """Read back the request that an investigation was begun with."""
    from ..agent.loop.budget import Limits
    from ..agent.loop.run import Settings
    from ..data.store.journal_values import InvestigationRecord

    row = store.journal.row(id)
    settings = row["settings"]
    resumed = InvestigationRecord(
        **{name: row[name] for name in ("id", "kind", "target", "policy", "settings", "provenance", "parent")}
    )
    if (row["kind"] == "behaviour") != request.of_behaviour:
        kind = (
            "a behaviour; give its pairs again, with --task or --pairs" if row["kind"] == "behaviour" else "a feature"
        )
        raise NeuronautError(f"{row['id']} is about {kind}")
    target = row["target"].partition(" ")[0] if request.of_behaviour else row["target"]
    return replace(
        request,
        targets=(target,),
        policy=row["policy"],
        limits=Limits(**settings["limits"]),
        settings=Settings(**settings["settings"]),
        seed=settings["seed"],
        resumed=resumed,
    )


def run_sessions(
    store: "Store",
    request: InvestigationRequest,
    client: "LLMClient | None",
    on_event: Callable[[Mapping[str, Any]], None],
    *,
    workers: "Workers[SessionItem, str] | None" = None,
    on_begin: Callable[[int, int], None] = lambda *_: None,
) -> "Iterator[Session]":
    """Investigate all targets, one after another or by workers; `on_begin` is told how many of how many are done."""
    if request.of_behaviour:
        yield _run_behaviour(store, request, client, on_event)
        return
    features = chosen_features(store, request.targets)
    say(f"opening {features[0].source.model}")
    from ..agent.session import investigate_all
    from ..agent.tools.table import tools_for

    count = len(workers) if workers else 0
    with Progress("investigate", total=None, unit="sessions", workers=count) as progress:
        ready = _open_features(store, features, request, client)
        if not ready.subject.inside:
            without = (name for name, tool in tools_for("feature").items() if tool.inside)
            say(f"{ready.subject.name} has no model to look into: {', '.join(without)} are not offered")
        config = replace(ready.config, on_event=on_event, on_progress=progress.doing)
        seeds = range(request.seed, request.seed + request.runs)
        total, before = len(ready.features) * request.runs, 0

        def begin(done: int) -> None:
            nonlocal before
            before = done
            progress.skip(done)
            on_begin(done, total)

        sessions = investigate_all(
            ready.features,
            ready.subject,
            store,
            config,
            sources=ready.sources,
            fork=request.resumed,
            workers=workers,
            seeds=seeds,
            on_skip=begin,
        )
        if workers is not None:
            progress.expect(total)
        for done, session in enumerate(sessions, start=1):
            if workers is not None:
                progress.reach(max(done, before))
            yield session


class _Ready(NamedTuple):
    """What sessions on features need."""

    features: "Sequence[Feature]"
    subject: "Subject"
    sources: "Mapping[SourceId, Source]"
    config: "InvestigationConfig"


def _open_features(
    store: "Store", features: "Sequence[Feature]", request: InvestigationRequest, client: "LLMClient | None"
) -> _Ready:
    from ..agent.session import InvestigationConfig
    from ..labelling.opening import stored_sources, stored_subject
    from ..scorers.factory import ScorerOptions, make_scorers

    subject = stored_subject(
        store, features[0].source.model, request.load_options, sources=[feature.source for feature in features]
    )
    sources = stored_sources(store, subject, features, request.load_options)
    options = ScorerOptions(
        client and client.llm,
        subject,
        sources,
        store.chosen_prompts(),
        controls=request.controls,
        first=features[0],
        calibrated=request.calibrated,
        embedder=request.embedder,
    )
    config = InvestigationConfig(
        policy=_make_policy(store, request, client),
        limits=request.limits,
        seed=request.seed,
        client=client,
        scorers=make_scorers(request.scorers, options),
        settings=request.settings,
    )
    return _Ready(features, subject, sources, config)


@contextmanager
def _open_workers(
    count: int, database: str, request: InvestigationRequest, language: "LLMOptions", *, on: str | None
) -> "Generator[Workers[SessionItem, str] | None]":
    """Start workers that investigate, here or `on` a Ray cluster; None where this process does the work."""
    if count == 1 and on is None:
        yield None
        return
    from ..labelling.pools import start_workers

    asked = replace(language, base_url=server_of(language))
    open_worker = partial(_open_worker, str(Path(database).resolve()), request, asked)
    with start_workers(count, open_worker, on=on) as workers:
        yield workers


@contextmanager
def _open_worker(
    database: str, request: InvestigationRequest, language: "LLMOptions"
) -> "Generator[Callable[[SessionItem], str]]":
    from ..agent.session import perform_session

    with open_store(database, write=True) as store, open_client(language, store, budget=None) as client:
        ready = _open_features(store, chosen_features(store, request.targets), request, client)
        yield perform_session(store, ready.subject, ready.config, ready.sources)


def _run_behaviour(
    store: "Store",
    request: InvestigationRequest,
    client: "LLMClient | None",
    on_event: Callable[[Mapping[str, Any]], None],
) -> "Session":
    from ..agent.session import InvestigationConfig
    from ..agent.session import investigate as investigate_behaviour
    from ..labelling.opening import stored_subject

    if len(request.targets) != 1:
        raise NeuronautError(
            f"{len(request.targets)} targets came with pairs of prompts; wanted one model, as in: "
            "neuronaut investigate demo --task induction"
        )
    (model,) = request.targets
    subject = stored_subject(store, model, request.load_options, name=request.resumed and model)
    task = task_of(subject, request.pairs, seed=request.seed)
    if request.resumed is not None and request.resumed.target != f"{subject.name} {task.name}":
        raise NeuronautError(f"{request.resumed.id} is about {request.resumed.target}, not {subject.name} {task.name}")
    config = InvestigationConfig(
        policy=_make_policy(store, request, client),
        limits=request.limits,
        seed=request.seed,
        client=client,
        settings=request.settings,
        on_event=on_event,
    )
    return investigate_behaviour(task, subject, store, config, fork=request.resumed)


def _make_policy(store: "Store", request: InvestigationRequest, client: "LLMClient | None") -> "Policy":
    """Make the policy; that of a resumed investigation must be the same as then."""
    from ..agent.policies.factory import PolicyOptions, make_policy

    transcript = request.transcript
    decisions = None if transcript is None else store.journal.decisions(store.journal.row(transcript)["id"])
    policy = make_policy(
        request.policy,
        "behaviour" if request.of_behaviour else "feature",
        PolicyOptions(client, request.temperature, request.seed, decisions),
    )
    resumed = request.resumed
    if resumed is not None and json.loads(json.dumps(dict(policy.settings))) != (before := resumed.settings["policy"]):
        model = f"; it asked {before['model']}" if "model" in before else ""
        raise NeuronautError(
            f"{resumed.id} was begun with another {request.policy} policy{model}; give the options that it was begun "
            "with, or investigate anew"
        )
    return policy


def parse_limits(budget: str | None, *, asks: bool) -> "Limits":
    """Read the budget; refuses limits on a language model where none is asked."""
    from ..agent.loop.budget import Limits

    if budget is None:
        return Limits()
    limits = Limits.parse(budget)
    of_llm = [name for name in ("usd", "tokens", "calls") if asdict(limits)[name] is not None]
    if of_llm and not asks:
        raise NeuronautError(
            f"--budget {budget} limits a language model, and none is named; add -m, or limit fwd, experiments, minutes"
        )
    return limits


def _hypothesis_texts(store: "Store", id: str) -> dict[str, str]:
    return {row["name"]: row["body"]["text"] for row in store.journal.hypotheses(id)}
