"""`neuronaut circuit`: the few parts of a model that do a task by themselves."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..common import Form, emit, form_options
from .inputs import metric_option, output_option, pair_options, picture_option, seed_option, task_of, write
from .setup import dictionary_options, open_dictionaries, open_subject, subject_options

if TYPE_CHECKING:
    from ...causal.circuits.find import CircuitReport
    from ...causal.circuits.nodes import Node
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
@click.option("--controls", type=click.IntRange(1), default=100, show_default=True, help="Random circuits.")
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
    controls: int,
    seed: int,
    picture: str | None,
    record: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Find the parts that do a task.

    From pairs of prompts (see `patch`), the few heads and MLPs of MODEL that do the task when all others are cut:
    every node is patched by itself in both directions, then what is not needed is pruned away. Half of the pairs
    are for the search, half for the verdict: faithfulness (the circuit alone), completeness (the model without it),
    minimality (what each node adds), and the rank among random circuits of as many nodes of each sort.

    \b
    Examples:
      neuronaut circuit demo --task induction
      neuronaut circuit demo --task brackets --threshold 0.8 --picture circuit.png
      neuronaut circuit demo --task induction --given head.2:0 --given head.3:1-3
      neuronaut circuit gpt2 --pairs ioi.jsonl --ablation mean --json
    """
    from ...causal.circuits.find import CircuitSettings, evaluate_circuit, find_circuit
    from ...causal.records import run as run_trial

    settings = CircuitSettings(threshold=threshold, ablation=ablation, metric=metric, controls=controls, seed=seed)
    subject = open_subject(model, options)
    universe = _nodes(subject, nodes)
    named = [f"{node.site}@{node.dictionary}" for node in universe if node.dictionary]
    sources = open_dictionaries(subject, named, options)
    task = task_of(subject, options, seed=seed)
    if given:
        chosen = _nodes(subject, given)
        found = evaluate_circuit(subject, task, chosen, nodes=universe, settings=settings, sources=sources)
    else:
        found = find_circuit(subject, task, nodes=universe, settings=settings, sources=sources)
    if picture is not None:
        _draw(subject, found, picture)
    if record is not None:
        write(record, run_trial(subject, found.trial, sources=sources).model_dump_json(indent=1))
    emit([json.loads(json.dumps(found.to_json()))], form, lambda _: found.table())


def _nodes(subject: "Subject", texts: Sequence[str]) -> "list[Node]":
    from ...causal.circuits.nodes import KINDS, nodes_of, parse_nodes

    found = [node for text in texts for node in (nodes_of(subject, [text]) if text in KINDS else parse_nodes(text))]
    return list(dict.fromkeys(found))


def _draw(subject: "Subject", found: "CircuitReport", picture: str) -> None:
    """What each node does by itself, in both directions; those of the circuit are marked."""
    from ...causal.pictures import points

    scores = sorted(found.scores, key=lambda one: -max(abs(one.noise.recovered or 0), abs(one.denoise.recovered or 0)))
    shown = scores[:40]
    sides = {"denoise": [one.denoise for one in shown], "noise": [one.noise for one in shown]}
    points(
        {name: [one.recovered for one in effects] for name, effects in sides.items()},
        intervals={name: [one.interval for one in effects] for name, effects in sides.items()},
        labels=[f"● {one.node}" if one.node in found.circuit else str(one.node) for one in shown],
        title=f"Nodes of {subject.name} for {found.task}, each patched by itself; ● in the circuit",
        path=picture,
        unit=f"{shown[0].noise.metric}, fraction recovered",
    )
