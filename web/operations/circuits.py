"""Operations on pairs of prompts that look at many parts of the model: sweep, circuit, cut."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ...subject.errors import NeuronautError
from .context import Context
from .prompts import EDIT_FORM, PAIRS, Edits, PairArguments, Seed, known_sources, open_edits, open_task
from .results import Result
from .running import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...causal.circuits.find import CircuitSettings
    from ...causal.circuits.nodes import Node
    from ...subject.model import Subject
    from ...subject.sources import Source

CELLS = 8192
"""Cells of a sweep."""
MINUTES = 4.0
"""Most minutes of a search for a circuit."""
Nodes = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=256)]


class SweepArguments(PairArguments):
    """Try an edit everywhere: at every layer, unit or position, each cell by itself, on pairs of prompts.

    A site may leave its layer out: head=patch@last over layers and units is every head at the last token, resid_post=
    patch over layers and positions the residual stream everywhere. Each cell has the fraction that it recovers of the
    behaviour, in both directions; see patch.
    """

    edits: Annotated[Edits, Field(min_length=1, description=f"One edit, or several without over: {EDIT_FORM}.")]
    over: Annotated[
        list[Literal["layers", "units", "positions"]], Field(max_length=3, description="What it is repeated over.")
    ] = []
    metric: Annotated[Metric, Field(description="What is recovered.")] = "logit_difference"
    seed: Seed = 0


class NodeArguments(PairArguments):
    """Pairs, and the nodes of a model that do them."""

    rows: Annotated[int, Field(ge=1, le=PAIRS, description="Pairs that the generator draws.")] = 64
    nodes: Annotated[
        Nodes, Field(min_length=1, description="What there is to choose from: head, mlp, neuron, or nodes: mlp.2:0-99.")
    ] = ["head", "mlp"]
    ablation: Annotated[
        Literal["corrupted", "mean", "zero"], Field(description="What a node that is cut puts out.")
    ] = "corrupted"
    metric: Annotated[Metric, Field(description="What is kept of the behaviour.")] = "logit_difference"
    seed: Seed = 0


class CircuitArguments(NodeArguments):
    """Find the few heads and MLPs that do a task when all others are cut, and put them to the test.

    Half of the pairs are for the search, half for the verdict: faithfulness (the circuit alone), completeness (the
    model without it), minimality (what each node adds), a rank among random circuits, and what each node does.
    """

    given: Annotated[Nodes, Field(description="Test the circuit of these instead: head.1:3, mlp_out.2.")] = []
    threshold: Annotated[float, Field(gt=0, lt=1, description="Faithfulness that the search keeps to.")] = 0.9
    controls: Annotated[int | None, Field(ge=0, le=200, description="Random circuits; as the work allows.")] = None
    roles: Annotated[bool, Field(description="Say what each head and MLP does.")] = True
    minutes: Annotated[float, Field(gt=0, le=MINUTES, description="Most minutes; what is known by then is given.")] = (
        MINUTES
    )


class CutArguments(NodeArguments):
    """Cut nodes out of a circuit and out of the whole model, and see what is left of the behaviour.

    On the pairs that circuit tests on, with the same pairs, nodes, ablation, metric and seed. `recovered` is the
    faithfulness: 1 where nothing is lost, 0 where all is.
    """

    circuit: Annotated[Nodes, Field(min_length=1, description="The circuit's nodes.")]
    cut: Annotated[Nodes, Field(description="The nodes that are cut; none if empty.")] = []


def sweep(context: Context, arguments: SweepArguments) -> Result:
    """Sweep an edit over pairs."""
    from ...causal.questions import count_wrong
    from ...causal.results.sweep import cell_rows, grid_of
    from ...causal.sweeps import sweep as run

    setup = open_edits(context, arguments.model, arguments.edits)
    with context.watch.over(setup.subject):
        task, notes = open_task(setup.subject, arguments, seed=arguments.seed)
        wrong = count_wrong(setup.subject, task, seed=arguments.seed)
    grid = grid_of(setup, arguments.over, task.pairs.clean)
    if len(grid.edits) > CELLS:
        raise NeuronautError(
            f"the sweep has {len(grid.edits):,} cells, and at most {CELLS:,} are swept here; name one layer, fewer "
            "units, or take neuronaut sweep --predict on the command line"
        )
    work = context.watch.work()
    with work.counted(setup.subject):
        result = run(
            setup.subject,
            task.pairs,
            grid,
            metrics=(arguments.metric,),
            materials=setup.materials,
            reference=setup.reference,
            seed=arguments.seed,
            work=work,
        )
    cost = result.cost
    took = f"{len(grid.edits):,} cells in {cost.forwards:,} forward passes (one by one: {cost.one_by_one:,})"
    return Result(cell_rows(result), (*notes, *filter(None, [wrong]), took))


def circuit(context: Context, arguments: CircuitArguments) -> Result:
    """Find a circuit, or test a given one."""
    from ...causal.circuits.find import CircuitSearch
    from ...causal.circuits.nodes import read_nodes

    subject, sources, universe = _open_nodes(context, arguments)
    task, notes = open_task(subject, arguments, seed=arguments.seed)
    work = context.watch.work(minutes=arguments.minutes)
    search = CircuitSearch(subject, task, nodes=universe, settings=_settings(arguments), sources=sources, work=work)
    search.run(read_nodes(subject, arguments.given) if arguments.given else None)
    report = search.report()
    if report.unfinished:
        parts = ", ".join(report.unfinished)
        notes = (*notes, f"not done to its end within {arguments.minutes:g} minutes: {parts}; the rest is whole")
    return Result([json.loads(json.dumps(report.to_json()))], notes)


def cut(context: Context, arguments: CutArguments) -> Result:
    """Cut nodes out of a circuit."""
    from ...causal.circuits.find import cut_circuit
    from ...causal.circuits.nodes import read_nodes
    from ...causal.results.circuit import cut_row

    subject, sources, universe = _open_nodes(context, arguments)
    with context.watch.over(subject):
        task, notes = open_task(subject, arguments, seed=arguments.seed)
        result = cut_circuit(
            subject,
            task,
            read_nodes(subject, arguments.circuit),
            read_nodes(subject, arguments.cut),
            nodes=universe,
            settings=_settings(arguments),
            sources=sources,
        )
    return Result([cut_row(result)], notes)


def _open_nodes(context: Context, arguments: NodeArguments) -> "tuple[Subject, Mapping[str, Source], Sequence[Node]]":
    """The model, the dictionaries that nodes are features of, and the nodes there are to choose from."""
    from ...causal.circuits.nodes import KINDS, parse_nodes, read_nodes

    model = context.choose_model(arguments.model)
    named = [node for text in arguments.nodes if text not in KINDS for node in parse_nodes(text)]
    ids = known_sources(context, model, (f"{node.site}@{node.dictionary}" for node in named if node.dictionary))
    subject = context.subject(model, ids.values())
    sources = {name: context.source(subject, id) for name, id in ids.items()}
    return subject, sources, read_nodes(subject, arguments.nodes)


def _settings(arguments: NodeArguments) -> "CircuitSettings":
    from ...causal.circuits.find import CircuitSettings

    given: dict[str, Any] = {name: getattr(arguments, name) for name in ("ablation", "metric", "seed")}
    if isinstance(arguments, CircuitArguments):
        given |= {name: getattr(arguments, name) for name in ("threshold", "controls", "roles")}
    return CircuitSettings(**given)
