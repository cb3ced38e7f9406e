"""Work that runs out of memory goes on in smaller batches, and gives what it gives where memory is enough."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from neuronaut.causal.attribution_patching import Line, attribution_patching
from neuronaut.causal.circuits.find import CircuitSettings, find_circuit
from neuronaut.causal.circuits.nodes import nodes_of
from neuronaut.causal.circuits.runs import CircuitRuns
from neuronaut.causal.clamp import Clamp, steer
from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Grid, sites_of
from neuronaut.causal.heads import head_scores, repeated_tokens
from neuronaut.causal.intervene import Materials
from neuronaut.causal.measures import fidelity
from neuronaut.causal.probes import read_examples
from neuronaut.causal.prompts import Batch
from neuronaut.causal.readouts import token_set
from neuronaut.causal.runs import separately
from neuronaut.causal.saliency import Logit, integrated_gradients, occlusion
from neuronaut.causal.steering import dose_response
from neuronaut.causal.sweeps import sweep
from neuronaut.cli.main import main
from neuronaut.data.harvest.activations import neurons, read_columns, read_last, read_own
from neuronaut.data.harvest.ending import finish
from neuronaut.data.harvest.harvest import collect
from neuronaut.data.training.run import train
from neuronaut.data.training.trainer import Recipe
from neuronaut.labelling.concepts import fit_direction
from neuronaut.labelling.find import find
from neuronaut.llm.local.local import LocalLLM
from neuronaut.llm.types import Chat, Message, Sampling
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.memory import Batching, DoesNotFitError
from neuronaut.subject.model import Subject
from tests.circuits import induction
from tests.families import tiny_subject, tiny_tokens
from tests.test_circuits import task_of
from tests.test_edits import dictionary
from tests.test_harvest import WINDOW, corpus, splits
from tests.test_local_llm import folder_of
from tests.test_sweeps import random_pairs

ROWS = 3
"""That the tiny models have memory for."""


def _refuse_on_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")


def _refuse_on_mps() -> None:
    raise RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB). Tried to allocate 1")


def _refuse_on_cpu() -> None:
    torch.empty(2**50)  # A petabyte is refused by the allocator itself.


REFUSALS = {"cuda": _refuse_on_cuda, "mps": _refuse_on_mps, "cpu": _refuse_on_cpu}


@contextmanager
def room_for(rows: int, model: nn.Module, *, by: str = "cpu") -> Generator[list[int]]:
    """Within the block, the model's second block has memory for so many rows; gives the rows it had none for."""
    refused: list[int] = []

    def check(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = next(value for value in [*args, *kwargs.values()] if isinstance(value, Tensor))
        if len(hidden) > rows:
            refused.append(len(hidden))
            REFUSALS[by]()

    handle = model.get_submodule("model.layers.1").register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject("llama")


TOKENS = tiny_tokens(9, 12, seed=3).numpy()
PROMPTS = [[0, *row] for row in tiny_tokens(8, 6, seed=4).tolist()]
SAE = dictionary()
MATERIALS = Materials(sources={"resid_post.1@sae": SAE})


def _harvest(subject: Subject, _folder: Path) -> object:
    sources = [*neurons(subject, ["mlp.1"]), SAE]
    state = collect(subject, sources, corpus(), splits(), window=WINDOW)
    result = finish(subject, sources, corpus(), state)
    lists = [part for source in result.sources for _, part in sorted(source.lists.items())]
    parts = [array for part in lists for array in (part.features, part.windows, part.activations)]
    return [*parts, *(array for source in result.sources for array in (source.count, source.mean, source.histogram))]


def _read(subject: Subject, _folder: Path) -> object:
    (source,) = neurons(subject, ["mlp.1"])
    own = read_own(subject, source, TOKENS, np.arange(len(TOKENS)))
    alike = [(5, 6, 7, last) for last in range(40)]
    return read_columns(subject, source, TOKENS, [1, 2]), own, read_last(subject, source, alike, [3])


def _find(subject: Subject, _folder: Path) -> object:
    text = " ".join(document.text for _, document in zip(range(6), (part for _, part in corpus()), strict=False))
    return [asdict(hit) for hit in find(subject, neurons(subject, ["mlp.1"]), text, count=3)]


def _fit(subject: Subject, _folder: Path) -> object:
    positive, negative = ([f"{word} {number}" for number in range(8)] for word in ("light", "dark"))
    fitted = fit_direction(subject, positive, negative, site="resid_post.1", name="light", shuffles=10)
    return fitted.found.row


def _train(subject: Subject, folder: Path) -> object:
    recipe = Recipe("topk", width=16, k=4, tokens=512, batch=64)
    trained = train(subject, SourceId("tiny", "resid_post.1", "own"), corpus(), folder, recipe, window=WINDOW)
    assert trained is not None
    return trained.dictionary.W_dec, list(trained.loss)


def _sweep(subject: Subject, _folder: Path) -> object:
    grid = Grid.of(Edit.parse("head.0=patch"), sites=sites_of(subject, "head"), units=range(4))
    return sweep(subject, random_pairs(subject, rows=5), grid, metrics=["log_probability"]).values(
        "log_probability", "denoise"
    )


def _separate(subject: Subject, _folder: Path) -> object:
    batch, edits = Batch.of(subject, PROMPTS[:2]), [Edit.parse(f"mlp.1:{unit}=0") for unit in range(5)]
    readings, reports = separately(subject, batch, edits, lambda logits: logits[:, 0])
    return readings, [report.max_change for report in reports]


def _attribute(subject: Subject, _folder: Path) -> object:
    grid = Grid.of(Edit.parse("head.0=patch"), sites=sites_of(subject, "head"), units=range(4))
    lines = [None, Line("embed", 4), Line("site", 4)]
    pairs = random_pairs(subject, rows=5)
    found = [attribution_patching(subject, pairs, grid, line=line, sample=2, top=1) for line in lines]
    return [node.scores for one in found for node in one.nodes]


def _saliency(subject: Subject, _folder: Path) -> object:
    row, target = PROMPTS[0], Logit(7)
    gradients = integrated_gradients(subject, row, target, baseline=5, steps=8)
    return gradients.values, occlusion(subject, row, target, baseline=5).values


def _heads(subject: Subject, _folder: Path) -> object:
    return [score.score.value for score in head_scores(subject, repeated_tokens(subject, rows=5, period=4))]


def _probe(subject: Subject, _folder: Path) -> object:
    return read_examples(subject, Batch.of(subject, PROMPTS), site="resid_post.1")


def _rebuild(subject: Subject, _folder: Path) -> object:
    return list(asdict(fidelity(subject, SAE, Batch.of(subject, PROMPTS))).values())


def _dose(subject: Subject, _folder: Path) -> object:
    batch, text = Batch.of(subject, PROMPTS[:2]), Batch.of(subject, PROMPTS)
    found = dose_response(
        subject, batch, Edit.parse("mlp.1:3+=1"), token_set([4]), text=text, strengths=(0.0, 2.0), controls=2
    )
    return [(dose.response.value, dose.kl.value, dose.loss.value) for dose in found.doses]


def _clamp(subject: Subject, _folder: Path) -> object:
    clamps = [Clamp(Feature(SAE.id, index), 4.0) for index in range(4)]
    return steer(subject, SAE, clamps, [row[1:] for row in PROMPTS[:1]], tokens=4).steered


PATHS: dict[str, Callable[[Subject, Path], object]] = {
    "harvest": _harvest,
    "read": _read,
    "find": _find,
    "directions fit": _fit,
    "train": _train,
    "sweep": _sweep,
    "edits": _separate,
    "attribution": _attribute,
    "saliency": _saliency,
    "heads": _heads,
    "probe": _probe,
    "fidelity": _rebuild,
    "dose": _dose,
    "clamp": _clamp,
}


def flat(found: object) -> Iterator[float | str]:
    """The numbers and words in what a path gives, in their order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, Tensor | np.ndarray):
        yield from found.flatten().tolist()
    elif isinstance(found, list | tuple):
        for part in found:
            yield from flat(part)
    elif found is None or isinstance(found, float | int):
        yield float("nan") if found is None else float(found)
    else:
        yield str(found)


@pytest.mark.parametrize("path", PATHS)
def test_work_goes_on_in_smaller_batches(path: str, subject: Subject, tmp_path: Path, caplog: Any) -> None:
    subject.batching = Batching()
    wanted = list(flat(PATHS[path](subject, tmp_path / "wanted")))
    with room_for(ROWS, subject.model) as refused, caplog.at_level(logging.WARNING):
        found = list(flat(PATHS[path](subject, tmp_path / "found")))
        tried = len(refused)
        PATHS[path](subject, tmp_path / "again")
    assert refused and len(refused) == tried, "the smaller batch is kept"
    said = [record.getMessage() for record in caplog.records if "do not fit" in record.getMessage()]
    assert said and len(set(said)) == len(said), said
    assert [type(one) for one in found] == [type(one) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4, abs=1e-5, nan_ok=True))


def test_a_circuit_is_the_same_in_smaller_batches() -> None:
    planted = induction("llama", rows=8)
    nodes, settings = nodes_of(planted.subject, ("head", "mlp")), CircuitSettings(subsets=2, controls=4)
    wanted = find_circuit(planted.subject, task_of(planted), nodes=nodes, settings=settings)
    with room_for(8, planted.subject.model) as refused:
        found = find_circuit(planted.subject, task_of(planted), nodes=nodes, settings=settings)
    assert refused and {*found.circuit} == {*wanted.circuit}
    assert found.evaluation.faithfulness.recovered == pytest.approx(wanted.evaluation.faithfulness.recovered, abs=1e-5)


def test_sets_of_nodes_are_cut_in_fewer_rows_than_the_task_has() -> None:
    planted = induction("llama", rows=8)
    nodes = nodes_of(planted.subject, ("head", "mlp"))

    def cut() -> tuple[Tensor, list[float]]:
        runs = CircuitRuns(planted.subject, task_of(planted), nodes)
        return runs.cut([frozenset({node}) for node in nodes]), [*runs.predict_losses(frozenset(nodes[:3])).values()]

    wanted = cut()
    with room_for(ROWS, planted.subject.model) as refused:
        found = cut()
    assert refused
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by", REFUSALS)
def test_every_device_has_its_own_way_to_say_so(by: str, subject: Subject) -> None:
    subject.batching = Batching()
    (source,) = neurons(subject, ["mlp.1"])
    wanted = read_columns(subject, source, TOKENS, [1])
    with room_for(ROWS, subject.model, by=by):
        np.testing.assert_allclose(read_columns(subject, source, TOKENS, [1]), wanted, atol=1e-5)


def test_one_row_that_does_not_fit_is_an_error_that_says_what_to_do(subject: Subject) -> None:
    subject.batching = Batching()
    (source,) = neurons(subject, ["mlp.1"])
    with room_for(0, subject.model), pytest.raises(DoesNotFitError, match=r"room for 1 rows.*shorter windows.*dtype"):
        read_columns(subject, source, TOKENS, [1])


def test_prompts_that_share_a_draw_are_never_parted(subject: Subject) -> None:
    subject.batching = Batching()
    grid = Grid.of(Edit.parse("mlp.1=resample"), sites=["mlp.1"])
    with room_for(ROWS, subject.model), pytest.raises(DoesNotFitError, match="room for 5 edited rows"):
        sweep(subject, random_pairs(subject, rows=5), grid)


def test_other_errors_are_not_taken_for_it(subject: Subject) -> None:
    def fail(part: slice) -> None:
        raise RuntimeError(f"shape of {part} is wrong")

    with pytest.raises(RuntimeError, match="is wrong"):
        list(subject.batching.batches(3, 2, fail, work="rows"))


@pytest.mark.parametrize("by", REFUSALS)
def test_a_local_language_model_answers_the_same(by: str, tmp_path: Path) -> None:
    llm = LocalLLM(str(folder_of(tmp_path)))
    chats = [Chat((Message("user", "x" * size),), Sampling(max_tokens=3)) for size in range(1, 8)]
    try:
        wanted = [future.result().text for future in [llm.submit(chat) for chat in chats]]
        with room_for(ROWS, llm._engine()._forward.model, by=by) as refused:
            assert [future.result().text for future in [llm.submit(chat) for chat in chats]] == wanted
            tried = len(refused)
            assert [future.result().text for future in [llm.submit(chat) for chat in chats]] == wanted
        assert tried and len(refused) <= tried
    finally:
        llm.close()


def test_the_command_line_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object, **__: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(main, "get_command", lambda *_: click.Command("models", callback=fill))
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "memory has no room for this" in result.stderr and "--dtype bfloat16" in result.stderr
