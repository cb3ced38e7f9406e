"""The public benchmark: graded by the truth, written as it comes, and never made twice."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.session import InvestigationConfig
from neuronaut.benchmarks import columns, investigations
from neuronaut.benchmarks.columns import Finding, rescale_rule, swap_findings
from neuronaut.benchmarks.comparing import difference, figures, summary, table
from neuronaut.benchmarks.investigations import Line, Plan, format_seed, grade_finding, read, run
from neuronaut.benchmarks.suite import Unit, World, grader
from neuronaut.cli.main import main
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Clause, Rule, Token
from neuronaut.subject.errors import NeuronautError

PLAN = Plan(
    levels=(1,),
    units=3,
    seed="tests",
    documents=30,
    columns=("scripted", "one-shot", "swapped", "token-only"),
    config=InvestigationConfig(limits=Limits(experiments=10)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[Line]:
    return run(PLAN, out=folder / "planted.jsonl", keep=folder)


def of(lines: list[Line], column: str) -> list[Line]:
    return [line for line in lines if line.column == column]


def test_every_unit_has_a_line_in_every_column(lines: list[Line]) -> None:
    assert {column: len(of(lines, column)) for column in PLAN.columns} == dict.fromkeys(PLAN.columns, 3)
    assert len(lines) == PLAN.total


def test_investigations_find_simple_units_and_swapped_explanations_do_not(lines: list[Line]) -> None:
    answered = [line for line in of(lines, "scripted") if line.grade.counterfactual is not None]
    assert len(answered) == 2
    for line in answered:
        assert line.grade.counterfactual is not None and line.grade.counterfactual >= 0.95
        assert line.found.brier is not None and line.found.brier < 0.5
        assert line.found.experiments > 0 and line.forwards > 100 and line.found.investigation
    for line in of(lines, "swapped"):
        assert line.grade.counterfactual is None or line.grade.counterfactual < 0.8


def test_a_column_has_a_database_of_its_own_that_is_kept(lines: list[Line], folder: Path) -> None:
    (database,) = folder.glob("world1-*-scripted.db")
    with Store(str(database)) as store:
        assert {row["id"] for row in store.journal.rows()} == {
            line.found.investigation for line in of(lines, "scripted")
        }
    with Store(str(next(folder.glob("world1-*-one-shot.db")))) as store:
        assert store.journal.rows() == []


def test_what_is_in_the_file_is_not_made_again(
    lines: list[Line], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "planted.jsonl"
    assert read(file) == lines

    def build(*_: object, **__: object) -> World:
        raise AssertionError("no world needs to be built")

    with monkeypatch.context() as patch:
        patch.setattr(World, "build", build)
        assert sorted(map(str, run(PLAN, out=file))) == sorted(map(str, lines))
    assert len(file.read_text().splitlines()) == len(lines)


def test_a_line_that_was_cut_off_is_made_again_and_no_other(
    lines: list[Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, plan = tmp_path / "cut.jsonl", replace(PLAN, columns=("one-shot", "token-only"))
    whole = [*of(lines, "one-shot"), *of(lines, "token-only")]
    file.write_text("".join(json.dumps(asdict(line)) + "\n" for line in whole)[:-20])
    asked, explain = [], columns.TokenOnly.explain

    def counted(self: columns.TokenOnly, units: Sequence[Unit], *rest: Any) -> Iterator[tuple[Unit, Finding]]:
        asked.append([unit.address for unit in units])
        return explain(self, units, *rest)

    monkeypatch.setattr(columns.TokenOnly, "explain", counted)
    monkeypatch.setattr(columns.OneShot, "explain", None)
    again = [replace(line, seconds=0, forwards=0) for line in run(plan, out=file)]
    assert asked == [[whole[-1].grade.unit]]
    assert again == [replace(line, seconds=0, forwards=0) for line in whole]
    assert len(read(file)) == 6


def test_other_settings_are_other_findings() -> None:
    other = replace(PLAN, config=InvestigationConfig(limits=Limits(experiments=30)))
    assert PLAN.settings("scripted") != other.settings("scripted")
    assert PLAN.settings("swapped") == PLAN.settings("scripted")
    assert PLAN.settings("one-shot") == other.settings("one-shot")


def test_figures_and_table(lines: list[Line]) -> None:
    found = summary(lines)
    assert set(found["columns"]) == set(PLAN.columns)
    scripted = found["columns"]["scripted"]["all"]
    assert scripted["units"] == 3 and sum(scripted["statuses"].values()) == 3
    assert scripted["counterfactual"][0] >= 0.95 and scripted["counterfactual"][3] == 2
    assert found["difference"]["all"][3] == 2
    shown = table(lines)
    assert "scripted − one-shot" in shown and "| 1 | 3 |" in shown and "supported" in shown
    json.dumps(found)


def line_of(lines: list[Line], *, status: str, abstained: bool, right: bool, counterfactual: float | None) -> Line:
    grade = replace(
        lines[0].grade, abstained=abstained, abstention_right=right, counterfactual=counterfactual, promoted=None
    )
    return replace(lines[0], grade=grade, found=replace(lines[0].found, status=status))


def test_abstentions_and_support_are_counted_by_hand(lines: list[Line]) -> None:
    made = [
        line_of(lines, status="supported", abstained=False, right=True, counterfactual=1.0),
        line_of(lines, status="open", abstained=False, right=True, counterfactual=0.6),
        line_of(lines, status="no_explanation", abstained=True, right=False, counterfactual=0.5),
        line_of(lines, status="no_explanation", abstained=True, right=True, counterfactual=None),
        line_of(lines, status="supported", abstained=False, right=False, counterfactual=None),
    ]
    found = figures(made)
    assert found["counterfactual"][0] == pytest.approx(0.7, abs=1e-4) and found["counterfactual"][3] == 3
    assert found["abstention_precision"] == [1, 2] and found["abstention_recall"] == [1, 2]
    assert found["supported"] == [1, 3] and found["supported_counterfactual"][0] == 1.0
    assert found["supported_without_answer"] == [1, 2]


def test_the_difference_is_of_the_same_units(lines: list[Line]) -> None:
    def named(unit: str, column: str, value: float) -> Line:
        line = line_of(lines, status="open", abstained=False, right=True, counterfactual=value)
        return replace(line, column=column, grade=replace(line.grade, unit=unit))

    made = [
        named("a", "scripted", 1.0),
        named("b", "scripted", 0.9),
        named("a", "one-shot", 0.5),
        named("c", "one-shot", 0.0),
    ]
    found = difference(made)
    assert found is not None and found.value == pytest.approx(0.5) and found.n == 1


def test_swapped_rules_come_from_another_unit_at_this_ones_scale() -> None:
    world = World.build(1, "tests", units=3, documents=30)
    rule = Rule(any=(Clause(when=(Token(any=("a",)),), value=2.0, gains={"a": 4.0}),), floor=1.0)
    assert rescale_rule(rule, 0.5) == Rule(
        any=(Clause(when=(Token(any=("a",)),), value=1.0, gains={"a": 2.0}),), floor=0.5
    )
    one, other, _ = world.units
    found = {u.address: Finding("supported", None, "x", rule.to_json() if u == other else None) for u in world.units}
    taken = {unit.address: given for unit, given in swap_findings(world.units, found)}
    assert taken[one.address].rule == rescale_rule(rule, one.scale / other.scale).to_json()
    assert taken[other.address].rule is None


def test_causal_claims_count_where_there_is_something_to_claim_or_something_was_claimed() -> None:
    world = World.build(1, "tests", units=3, documents=30)
    with Store(":memory:") as store:
        world.harvest(store)
        judge = grader(world, store)
    unit = next(unit for unit in world.units if unit.promotes and not unit.upstream)
    base = {"place": "", "column": "", "settings": "", "forwards": 0, "seconds": 0.0}
    nothing = grade_finding(unit, Finding("open", None, None, None, (), (), ()), judge, **base).grade
    assert nothing.promoted == 0 and nothing.upstream is None
    right = grade_finding(
        unit, Finding("open", None, None, None, unit.promotes, (), ("head.0:1",)), judge, **base
    ).grade
    assert right.promoted == 1 and right.upstream is False
    silent = grade_finding(unit, Finding("explained", None, None, None), judge, **base).grade
    assert silent.upstream is None and silent.suppressed is None


def test_a_private_seed_is_not_told() -> None:
    assert format_seed(7) == "public seed 7" and format_seed("7/1") == "public seed 7, part 1"
    assert "swordfish" not in format_seed("swordfish/2") and format_seed("swordfish") in format_seed("swordfish/2")


def test_units_are_spread_evenly_over_worlds() -> None:
    plan = replace(PLAN, units=2 * investigations.SIZE + 1, levels=(1, 4))
    sizes = [place.units for place in plan.places() if place.level == 4]
    assert sum(sizes) == plan.units and max(sizes) - min(sizes) <= 1
    assert len({place.name for place in plan.places()}) == 6


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"columns": ("best",)}, "no policy 'best'"),
        ({"columns": ("swapped",)}, "name scripted, too"),
        ({"columns": ("llm",)}, "name one with -m"),
        ({"levels": (9,)}, "no level 9"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(wrong: dict[str, tuple[object, ...]], said: str) -> None:
    with pytest.raises(NeuronautError, match=said):
        replace(PLAN, **wrong)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(NeuronautError, match="does not hold results"):
        read(tmp_path / "x.jsonl")


def test_the_command(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["bench"])
    assert listed.exit_code == 0 and {line.split()[0] for line in listed.stdout.splitlines()} >= {
        "planted",
        "functions",
    }
    arguments = [
        "bench",
        "planted",
        "--levels",
        "1",
        "--units",
        "3",
        "--seed",
        "a secret",
        "--policies",
        "token-only",
        "--out",
        str(tmp_path / "out.jsonl"),
    ]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "private seed with sha256" in shown.stdout and "a secret" not in shown.output
    again = CliRunner().invoke(main, [*arguments, "--json"])
    found = json.loads(again.stdout)
    assert found["columns"]["token-only"]["all"]["units"] == 3
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--levels", "x"], "wanted for example 3, 1-4"),
        (["--levels", "7"], "no level 7"),
        (["--budget", "usd=1"], "none is named"),
    ],
)
def test_faults_are_told_in_a_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["bench", "planted", *arguments])
    assert result.exit_code != 0 and said in result.output
