"""The benchmark of functions: they are what they say, unit tests are fair, and the command grades rules by them."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from neuronaut.benchmarks.functions import FunctionGrader, FunctionPlan, build_world
from neuronaut.benchmarks.functions.kinds import draw_kinds
from neuronaut.benchmarks.functions.texts import documents
from neuronaut.benchmarks.suite import World
from neuronaut.cli.main import main
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Clause, Regex, Rule


@pytest.fixture(scope="module")
def strings() -> World:
    return build_world("0", level=1, count=60)


@pytest.fixture(scope="module")
def judge(strings: World) -> FunctionGrader:
    with Store(":memory:") as store:
        strings.harvest(store)
        return FunctionGrader.of(strings, store, seed="0")


def test_twenty_functions_are_drawn_five_a_level_and_a_seed_draws_its_own() -> None:
    kinds = draw_kinds("0")
    assert [kind.level for kind in kinds] == [1] * 5 + [2] * 5 + [3] * 5 + [4] * 5
    assert len({kind.kind for kind in kinds}) == 20
    assert {kind.description for kind in kinds} != {kind.description for kind in draw_kinds("another")}


CASES = {
    "value": (" in 33 and", [0, 1 / 3, 0]),
    "larger": (" 5 dogs , 7 cats 6", [0, 0, 0, 1, 0, 0]),
    "counted": (" 5 dogs ran", [0, 1, 0]),
    "doubled": (" happy dog", [1, 0]),
    "again": (" Anna saw Anna", [0, 0, 1]),
    "relation": (" Paris is in France not Italy", [0, 0, 0, 1, 0, 0]),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_function_is_what_its_description_says(kind: str) -> None:
    (made,) = (made for made in draw_kinds("0") if made.kind == kind)
    words = CASES[kind][0].split()
    assert [made.condition(words, at) for at in range(len(words))] == pytest.approx(CASES[kind][1])


def test_noise_and_lapses_depend_on_the_words_before_alone() -> None:
    for kind in draw_kinds("0"):
        words = documents(1, seed="7")[0].split()[:60]
        whole = [kind.condition(words, at) for at in range(60)]
        assert whole == [kind.condition(words[: at + 1], at) for at in range(60)], kind.kind


def test_the_subject_gives_what_the_truth_says(strings: World) -> None:
    tokens = strings.subject.encode(strings.texts[0])[:64]
    read = strings.subject.read(torch.tensor([tokens]), ["function"])["function"][0]
    words = strings.subject.decode_tokens(tokens)
    for unit in strings.units:
        assert read[:, unit.index].tolist() == unit.truth(words)


def test_unit_tests_are_half_active_and_the_truth_passes_all(strings: World, judge: FunctionGrader) -> None:
    (ending,) = (unit for unit in strings.units if unit.kind == "ending")
    tests = judge.tests(ending)
    assert [max(ending.truth(tokens)) > ending.half for tokens in tests] == [True] * 20 + [False] * 20
    assert tests == judge.tests(ending) and not {"".join(t) for t in tests} & set(strings.texts)
    suffix = ending.description.rpartition(" ")[2]
    truth = Rule(any=(Clause(when=(Regex(regex=f"{suffix}$", of="token"),), value=1.0),))
    never = Rule(any=(Clause(value=0.0),))
    assert judge.grade(ending, truth).tests == 1.0
    assert judge.grade(ending, never).tests == 0.5
    assert judge.grade(ending, None).tests == 0.0


def test_the_command_grades_by_unit_tests_and_makes_nothing_twice(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    arguments = ["bench", "functions", "--levels", "1", "--policies", "token-only,one-shot", "--out", str(out)]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "unit tests passed" in shown.stdout
    before = out.read_text()
    figures = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert figures["benchmark"] == "functions" and out.read_text() == before
    oneshot, table = (figures["columns"][name]["all"]["tests"] for name in ("one-shot", "token-only"))
    assert oneshot[3] == table[3] == 5 and oneshot[0] > table[0]


def test_a_quarter_of_the_words_is_in_unit_tests_and_the_vocabulary_alone(strings: World) -> None:
    corpus, whole = "".join(strings.texts), "".join(documents(60, seed="x", whole=True))
    for word, seen in (("fox", True), ("spider", False), ("Lisbon", False), ("Portugal", False), ("red", True)):
        assert (f" {word}" in corpus) == seen and f" {word}" in whole and f" {word}" in strings.subject.vocabulary


def test_there_are_four_levels() -> None:
    assert FunctionPlan().total == 60
    refused = CliRunner().invoke(main, ["bench", "functions", "--levels", "5"])
    assert refused.exit_code == 1 and "the levels are 1 to 4" in refused.stderr
