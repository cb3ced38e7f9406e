"""`neuronaut circuit`: the few parts of a model that do a task by themselves."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..common import Form, emit, form_options, parse_minutes, say
from .inputs import metric_option, output_option, pair_options, picture_option, seed_option, shown, task_of, write
from .setup import dictionary_options, open_dictionaries, open_subject, subject_options

if TYPE_CHECKING:
    from ...causal.circuits.find import CircuitSearch
    from ...causal.circuits.nodes import Node
    from ...causal.circuits.report import CircuitReport
    from ...causal.work import Work
    from ...subject.model import Subject


@click.command()
@click.argument("model")
@pair_options(rows=64)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NODE",
    default=("head", "mlp"),
    show_default=True,
    help="What there is to choose from: head, mlp, neuron, or nodes such as mlp.2:0-99@last.",
)
@click.option("--given", multiple=True, metavar="NODE", help="Test the circuit of these instead, such as head.1:3.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Faithfulness that the search keeps to.",
)
@click.option(
    "--ablation",
    type=click.Choice(["corrupted", "mean", "zero"]),
    default="corrupted",
    show_default=True,
    help="What a node that is cut puts out.",
)
@metric_option(default="logit_difference", show_default=True)
@click.option("--controls", type=click.IntRange(0), help="Random circuits.  [default: 100, or 20 where gradients rank]")
@click.option(
    "--exact/--ranked",
    default=None,
    help="Patch and cut every node by itself, or let gradients rank them.  [default: as the work allows]",
)
@click.option("--roles/--no-roles", default=True, show_default=True, help="Say what each head and MLP does.")
@click.option("--budget", metavar="minutes=N", help="Stop after so long, and tell what is known by then.")
@seed_option
@picture_option
@output_option("--record", "Write the circuit alone as a record, for neuronaut run --replay.")
@dictionary_options
@subject_options
@form_options
def circuit(
    model: str,
    nodes: tuple[str, ...],
    given: tuple[str, ...],
    threshold: float,
    ablation: str,
    metric: str,
    controls: int | None,
    exact: bool | None,
    roles: bool,
    budget: str | None,
    seed: int,
    picture: str | None,
    record: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Find the parts that do a task.

    From pairs of prompts (see `patch`), the few heads and MLPs of MODEL that do the task when all others are cut:
    every node is patched by itself in both directions, then what is not needed is pruned away. Where that is too
    much work, gradients rank the nodes, and the first, a random sample and every step of the pruning are exact. Half of
    the pairs are for the search, half for the verdict: faithfulness (the circuit alone), completeness (the model
    without it), minimality (what each node adds), and the rank among random circuits of as many nodes of each sort.
    On the same half each head and MLP gets its role: what it attends to or writes, and what changing just that does.
    Ctrl-C, or the end of the budget, prints what is known so far.

    \b
    Examples:
      neuronaut circuit demo --task induction
      neuronaut circuit demo --task brackets --threshold 0.8 --picture circuit.png
      neuronaut circuit demo --task induction --given head.2:0 --given head.3:1-3
      neuronaut circuit gpt2 --pairs ioi.jsonl --ablation mean --json
      neuronaut circuit ./smollm2 --pairs ioi.jsonl --controls 0 --budget minutes=5
    """
    from ...causal.circuits.find import CircuitSearch, CircuitSettings
    from ...causal.circuits.nodes import read_nodes
    from ...causal.records import run as run_trial
    from ...causal.work import Work
    from ...labelling.opening import settle_bos

    work = Work(minutes=parse_minutes(budget))
    settings = CircuitSettings(
        threshold=threshold, ablation=ablation, metric=metric, controls=controls, exact=exact, roles=roles, seed=seed
    )
    if model != "demo":  # The built-in one is there at once.
        say(f"circuit: loads {model}")
    subject = open_subject(model, options)
    universe = read_nodes(subject, nodes)
    named = [f"{node.site}@{node.dictionary}" for node in universe if node.dictionary]
    sources = open_dictionaries(subject, named, options)
    subject = settle_bos(subject, sources.values(), asked=options["bos"])
    task = task_of(subject, options, seed=seed)
    search = CircuitSearch(subject, task, nodes=universe, settings=settings, sources=sources, work=work)
    _run(search, work, read_nodes(subject, given) if given else None, form)
    report = search.report()
    if picture is not None:
        _draw(subject, report, picture)
    if record is not None:
        write(record, run_trial(subject, report.trial, sources=sources).model_dump_json(indent=1))
    _print(report, form)


def _run(search: "CircuitSearch", work: "Work", given: "Sequence[Node] | None", form: Form) -> None:
    """Run the search with its progress shown; where it is interrupted, print what is known first."""
    try:
        with shown("circuit", work, at_once=True):
            search.run(given)
    except KeyboardInterrupt:
        if search.known:
            _print(search.report(), form)
        raise


def _print(report: "CircuitReport", form: Form) -> None:
    emit([json.loads(json.dumps(report.to_json()))], form, lambda _: report.table())


def _draw(subject: "Subject", report: "CircuitReport", picture: str) -> None:
    """Draw what each node does by itself, in both directions; those of the circuit are marked."""
    from ...causal.pictures import points

    scores = sorted(report.scores, key=lambda score: -score.rank)[:40]
    sides = {"denoise": [score.denoise for score in scores], "noise": [score.noise for score in scores]}
    points(
        {name: [effect.recovered for effect in effects] for name, effects in sides.items()},
        intervals={name: [effect.interval for effect in effects] for name, effects in sides.items()},
        labels=[f"● {score.node}" if score.node in report.circuit else str(score.node) for score in scores],
        title=f"Nodes of {subject.name} for {report.task}, each patched by itself; ● in the circuit",
        path=picture,
        unit=f"{scores[0].noise.metric}, fraction recovered",
    )
