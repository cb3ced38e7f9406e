"""Compiled programs: exact in the GPT-2 class, right on their prompts, and graded by the parts that they use."""

import json
import random

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neuronaut.benchmarks.compiled import build_subject, compiled_programs
from neuronaut.benchmarks.compiled.grade import Found, grade_nodes, grade_programs, task_of
from neuronaut.benchmarks.compiled.model import Compiled
from neuronaut.benchmarks.compiled.programs import FOLDER, PROGRAMS
from neuronaut.causal.circuits.tasks import baseline
from neuronaut.cli.main import main
from neuronaut.subject.errors import NeuronautError


def answers_of(one: Compiled, prompt: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The answers' logits at every token, by the plain transformer and by the subject."""
    subject, program = build_subject().subject, one.program
    plain = one.forward(np.array([0, *(1 + program.tokens.index(token) for token in prompt)]))
    logits = subject.logits(torch.tensor([subject.row(" ".join(prompt))]))[0]
    return plain, logits[:, [subject.vocabulary.index(f" {answer}") for answer in program.answers]].numpy()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_the_same_with_norms_as_without_and_says_what_it_should(name: str) -> None:
    one, rng = compiled_programs()[name], random.Random(1)
    for _ in range(20):
        clean, _, answer, _ = one.program.draw(rng)
        plain, normed = answers_of(one, clean)
        assert np.abs(normed - plain).max() < 1e-3 * np.abs(plain).max()
        assert one.program.answers[int(normed[-1].argmax())] == answer


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_what_its_words_say_on_any_prompt(name: str) -> None:
    one, rng = compiled_programs()[name], random.Random(2)
    for _ in range(20):
        prompt = rng.choices(one.program.tokens, k=one.program.length)
        if (answer := one.program.compute(prompt)) is not None:
            assert one.program.answers[int(one.forward(_ids(one, prompt))[-1].argmax())] == answer


def _ids(one: Compiled, prompt: list[str]) -> np.ndarray:
    return np.array([0, *(1 + one.program.tokens.index(token) for token in prompt)])


def test_programs_use_parts_of_their_own_and_the_fixture_is_small() -> None:
    nodes = build_subject().nodes
    heads = [node for own in nodes.values() for node in own if node.startswith("head.")]
    assert len(heads) == len(set(heads)) == 6
    assert nodes["previous"] == {"head.0:0"}
    assert sum((FOLDER / f"programs.{kind}").stat().st_size for kind in ("json", "safetensors")) < 100_000


def test_the_model_does_every_task() -> None:
    subject = build_subject()
    for program in PROGRAMS.values():
        assert baseline(subject.subject, task_of(subject, program, pairs=16)).accuracy == 1.0


def test_the_search_finds_the_true_circuits() -> None:
    grades = list(grade_programs(("circuit",), programs=("previous", "balance"), pairs=16))
    assert [grade.accuracy for grade in grades] == [1.0, 1.0]
    assert grades[1].true == ("head.1:3", "head.1:4", "mlp_out.0", "mlp_out.1") == grades[1].found
    assert [grade.roles for grade in grades] == [1.0, 1.0]


def test_the_true_writers_are_those_that_the_weights_show() -> None:
    for name, one in compiled_programs().items():
        writers = {
            f"mlp_out.{layer}"
            for layer in range(one.layers)
            if np.abs(one.tensors[f"{layer}.down"] @ one.weights.T).max() > 1e-6
        }
        named = {site for site, role in PROGRAMS[name].roles.items() if role == "writer"}
        assert named == writers


def test_a_grade_counts_what_is_missed_and_what_is_too_many() -> None:
    wrong = {"claims": [{"node": "head.0:5", "role": "mover", "status": "proven"}]}
    found = Found("found", ["head.0:5", "head.0:1"], wrong)
    grade = grade_nodes(build_subject(), "first", "circuit", found, seconds=0.0)
    assert (grade.accuracy, grade.precision, grade.recall, grade.roles) == (12 / 14, 0.5, 0.5, 0.0)
    nothing = grade_nodes(build_subject(), "first", "circuit", Found("found", [], {}), seconds=0.0)
    assert (nothing.precision, nothing.recall, nothing.roles) == (None, 0.0, 0.5)


def test_the_command_and_its_faults() -> None:
    shown = CliRunner().invoke(
        main, ["bench", "compiled", "--policies", "circuit", "--programs", "first", "--pairs", "8", "--json"]
    )
    assert json.loads(shown.stdout)[0]["accuracy"] == 1.0
    refused = CliRunner().invoke(main, ["bench", "compiled", "--programs", "sort"])
    assert refused.exit_code == 1 and "no 'sort' here; there are previous" in refused.stderr
    with pytest.raises(NeuronautError, match="no 'guess' here"):
        next(grade_programs(("guess",)))
