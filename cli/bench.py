"""`neuronaut bench`: measures how right explanations are, where the truth is known."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..subject.errors import NeuronautError
from .common import Progress, debug_option, interruptible, open_store, say
from .llm_options import format_spent, llm_options, open_client, split_options

if TYPE_CHECKING:
    from ..benchmarks.investigations import Line, Plan
    from ..llm.client import LLMClient


@click.group(invoke_without_command=True)
@debug_option
@click.pass_context
def bench(ctx: click.Context) -> None:
    """Measure how right explanations are, where the truth is known.

    Without a name, lists the benchmarks there are.

    \b
    Examples:
      neuronaut bench
      neuronaut bench planted --levels 1-3 --units 20
    """
    if ctx.invoked_subcommand is None:
        for name, command in bench.commands.items():
            click.echo(f"{name}  {command.get_short_help_str(100)}")


class Levels(click.ParamType):
    """Levels as `3`, `1-4` or `1,3,5-6`."""

    name = "levels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read the levels, each once, in order."""
        levels: set[int] = set()
        try:
            for part in str(value).split(","):
                first, _, last = part.partition("-")
                levels |= set(range(int(first), int(last or first) + 1))
        except ValueError:
            levels = set()
        if not levels:
            self.fail(f"{value!r} is no level or range of levels; wanted for example 3, 1-4 or 1,3,5-6", param, ctx)
        return tuple(sorted(levels))


def _suite_options(*, levels: str, policies: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options that suites of known units share."""
    options = (
        click.option(
            "--levels", type=Levels(), default=levels, show_default=True, help="A level, a range, or several."
        ),
        click.option(
            "--seed",
            default="0",
            show_default=True,
            metavar="S",
            help="What is drawn: a number is public, for development; other text is private.",
        ),
        click.option(
            "--policies",
            metavar="A,B,...",
            help="Who explains: scripted, one-shot, text-only, random, swapped, token-only, llm.  "
            f"[default: {policies}; with -m also llm]",
        ),
        click.option(
            "--budget",
            metavar="usd=X,tokens=N,calls=N,fwd=N,experiments=N,minutes=N",
            help="The most that each investigation may use.  [default: experiments=60]",
        ),
        click.option(
            "--out",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Write every result here as it comes, and make none again that is there.",
        ),
        click.option(
            "--keep",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="FOLDER",
            help="Keep the databases here, so that investigations can be looked at with `sessions`.",
        ),
        llm_options,
        click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of tables."),
        debug_option,
    )
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


@bench.command()
@click.option("--units", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Of each level.")
@_suite_options(levels="1-6", policies="all but llm")
def planted(units: int, out: Path | None, keep: Path | None, *, as_json: bool, **options: Any) -> None:
    """Grade policies on models whose units are known.

    Worlds are drawn from a seed, level by level: sets of tokens and positions (1), pairs of tokens (2), exceptions,
    quotes and repeats (3), what the corpus hides (4), a superposed dictionary (5), units grafted into a trained
    model (6). Each policy explains the same units; what it says is graded by the truth. The headline is the share
    of counterfactual pairs told rightly, of which half flip; 0.5 is chance.

    \b
    Examples:
      neuronaut bench planted --levels 1 --units 4
      neuronaut bench planted --out planted.jsonl --keep planted
      neuronaut bench planted --seed "a phrase that nobody has seen" -m openai:gpt-4o-mini --budget usd=0.2
    """
    from ..benchmarks.investigations import Plan

    _bench_suite("Planted units", partial(Plan, units=units), options, out, keep, as_json=as_json)


@bench.command()
@_suite_options(levels="1-4", policies="scripted, one-shot, token-only")
def functions(out: Path | None, keep: Path | None, *, as_json: bool, **options: Any) -> None:
    """Grade policies on functions of text with unit tests.

    Twenty functions are drawn from a seed, five a level: of what a word looks like (1), of numbers (2), of concepts
    and relations of words (3), and the same with noise, lapses and exceptions (4). Each policy explains the same
    ones, as black boxes; its rule is run on texts that it did not see. A unit test is passed where the rule is
    on the function's side of half its scale at every token; half of the tests are silent but for one changed word.

    \b
    Examples:
      neuronaut bench functions --levels 1
      neuronaut bench functions --out functions.jsonl -m openai:gpt-4o-mini --budget usd=0.2
    """
    from ..benchmarks.functions import FunctionPlan

    _bench_suite("Functions with unit tests", FunctionPlan, options, out, keep, as_json=as_json)


@bench.command()
@click.option(
    "--policies", default="scripted,circuit", show_default=True, metavar="A,B", help="Who looks for the circuits."
)
@click.option(
    "--programs", default="all", show_default=True, metavar="A,B", help="previous, fraction, count, balance, first."
)
@click.option("--pairs", type=click.IntRange(8), default=24, show_default=True, metavar="N", help="Of each program.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts, and of the search.")
@click.option("--budget", metavar="fwd=N,experiments=N,minutes=N", help="Of each session.  [default: experiments=60]")
@click.option("--json", "as_json", is_flag=True, help="Print the grades as JSON instead of a table.")
@debug_option
def compiled(policies: str, programs: str, pairs: int, seed: int, budget: str | None, *, as_json: bool) -> None:
    """Grade circuits of programs that were compiled into a model.

    Five programs in RASP were compiled by Tracr and stand side by side in one model, so that the heads and MLPs that
    each uses are known. `circuit` is the search alone, `scripted` a session on the behaviour.

    \b
    Examples:
      neuronaut bench compiled
      neuronaut bench compiled --programs balance --policies circuit
    """
    from ..agent.session import InvestigationConfig
    from ..benchmarks.compiled import grade_programs, grades_to_json, table
    from ..benchmarks.compiled.programs import PROGRAMS
    from .investigate import parse_limits

    columns, names = ([part.strip() for part in text.split(",")] for text in (policies, programs))
    names = list(PROGRAMS) if programs == "all" else names
    config = InvestigationConfig(limits=parse_limits(budget, asks=False), seed=seed)
    grades = []
    with (
        interruptible(lambda: "nothing is kept"),
        Progress("bench", total=len(columns) * len(names), unit="circuits") as progress,
    ):
        for grade in grade_programs(columns, config, programs=names, pairs=pairs):
            grades.append(grade)
            progress.reach(len(grades), f"{grade.program} {grade.column}")
    click.echo(json.dumps(grades_to_json(grades)) if as_json else table(grades))


def _bench_suite(
    title: str,
    plan: "Callable[..., Plan]",
    options: dict[str, Any],
    out: Path | None,
    keep: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run a suite with its policies, and print its tables."""
    from ..benchmarks.comparing import summary, table
    from ..benchmarks.investigations import format_seed

    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        made, client = _make_plan(plan, options, stack, keep)
        seed = format_seed(made.seed)
        say(f"{made.units} units each of level {', '.join(map(str, made.levels))}, {seed}")
        lines = _run_plan(made, out, keep)
        if client is not None:
            say(format_spent(client.spent, priced=client.price is not None))
    if as_json:
        figures = {"benchmark": made.suite, "seed": seed, "units": made.units, **summary(lines)}
        click.echo(json.dumps(figures))
    else:
        click.echo(f"{title}, {seed}.\n\n{table(lines)}")


def _run_plan(plan: "Plan", out: Path | None, keep: Path | None) -> "list[Line]":
    """Run the plan with progress."""
    from ..benchmarks.investigations import run

    kept_note = "nothing is kept without --out" if out is None else f"what was measured is in {out}"
    done = 0
    with interruptible(lambda: kept_note), Progress("bench", total=plan.total, unit="results") as progress:

        def on_line(line: "Line") -> None:
            nonlocal done
            done += 1
            progress.reach(done, f"level {line.grade.level} {line.column}")

        return run(plan, out=out, keep=keep, hear=on_line)


def _make_plan(
    plan: "Callable[..., Plan]", options: dict[str, Any], stack: ExitStack, keep: Path | None
) -> "tuple[Plan, LLMClient | None]":
    """Read the options into a plan, and open the client where a language model is named."""
    from ..agent.policies.llm import LLMPolicy
    from ..agent.session import InvestigationConfig
    from .investigate import parse_limits

    language, rest = split_options(options)
    limits = parse_limits(rest["budget"], asks=language.llm is not None)
    client = policy = None
    if language.llm is not None:
        calls = str(keep / "calls.db") if keep is not None else ":memory:"
        client = stack.enter_context(
            open_client(language, stack.enter_context(open_store(calls, create=True)), budget=None)
        )
        assert client is not None, "a model was named"
        policy = LLMPolicy(client, temperature=language.temperature_value)
    names = rest["policies"]
    default = plan().columns
    columns = default if names is None else tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    if names is None and policy is not None:
        columns += ("llm",)
    if policy is not None and "llm" not in columns:
        raise NeuronautError("-m names a language model, but llm is not among --policies; add it, or leave -m out")
    seed = rest["seed"]
    made = plan(
        levels=rest["levels"],
        seed=int(seed) if seed.lstrip("-").isdigit() else seed,
        columns=columns,
        config=InvestigationConfig(policy, limits, client=client),
    )
    return made, client
