"""Operations: bounded, typed, the same as the command line's, and stopped when nobody waits any more."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from neuronaut.cli.main import main
from neuronaut.data.records import Explanation
from neuronaut.data.store.store import Store
from neuronaut.llm.client import LLMClient
from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.prices import Budget, Price
from neuronaut.rules.language import Clause, Rule, Token
from neuronaut.subject.address import Feature
from neuronaut.subject.errors import NeuronautError
from neuronaut.web.operations.allowance import Allowance
from neuronaut.web.operations.arguments import LONGEST_TEXT, ArgumentError
from neuronaut.web.operations.context import Cancelled, Context, ModelCache, Watch
from neuronaut.web.operations.registry import COMPUTE, OPERATIONS, WRITE, format_error, perform
from neuronaut.web.operations.results import Result, cut

SELF = "demo:resid_post.2@sae:635"
"""Fires on `self`."""
PROMPT = "def __init__(self, name): self.name ="


def prepare(path: Path) -> Path:
    """A small harvest of the built-in dictionary, in which one feature is explained."""
    arguments = ["harvest", "demo", "resid_post.2@sae", "mlp.2", "--tokens", "12k", "-d", str(path)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    rule = Rule(any=(Clause(when=(Token(any=("self", " self")),), value=3.0),)).to_json()
    with Store(path) as store:
        told = Explanation(Feature.parse(SELF), "fires on `self`", "rule", rule=rule, provenance={"key": "planted"})
        store.add_explanation(told)
    return path


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("operations") / "demo.db")


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache()


@pytest.fixture
def context(database: Path, models: ModelCache) -> Iterator[Context]:
    with Store(database, create=False) as store:
        yield Context(store, models)


def rows(context: Context, name: str, **arguments: Any) -> list[dict[str, Any]]:
    result = perform(name, arguments, context, granted=COMPUTE, characters=None).to_json()
    return json.loads(json.dumps(result, allow_nan=False))["rows"]


def on_command_line(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


PAIR = {"clean": "x = [1, 2", "corrupted": "x = (1, 2", "answer": "]", "wrong": ")"}
ON_COMMAND_LINE = [part for name, text in PAIR.items() for part in (f"--{name}", text)]
SAME: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("sources", {"provenance": True}, ("sources", "list", "-d", "DB")),
    ("search", {"query": "self"}, ("search", "self", "-d", "DB")),
    ("list", {"source": "demo:mlp.2", "limit": 3}, ("list", "demo:mlp.2", "--limit", "3", "-d", "DB")),
    ("show", {"feature": SELF, "count": 2, "provenance": True}, ("show", SELF, "-n", "2", "-d", "DB")),
    ("similar", {"feature": SELF, "limit": 3}, ("similar", SELF, "--limit", "3", "-d", "DB")),
    ("try", {"feature": SELF, "texts": [PROMPT]}, ("try", SELF, PROMPT, "-d", "DB")),
    ("find", {"text": PROMPT, "count": 5}, ("find", "demo", PROMPT, "-n", "5", "-d", "DB")),
    (
        "run",
        {"prompts": [PROMPT], "edits": [f"{SELF}=0"], "controls": 3},
        ("run", "demo", PROMPT, "--edit", f"{SELF}=0", "--controls", "3"),
    ),
    (
        "steer",
        {"prompts": [PROMPT], "edit": f"{SELF}+=1q", "strengths": [0, 2], "tokens": 4, "controls": 2},
        ("steer", "demo", f"{SELF}+=1q", PROMPT, "--strengths", "0,2", "--tokens", "4", "--controls", "2"),
    ),
    (
        "patch",
        {"edits": ["head.3:1=patch@last"], "task": "induction", "rows": 4, "values": True, "controls": 2},
        ("patch", "demo", "head.3:1=patch@last", "--task", "induction", "--rows", "4", "--controls", "2"),
    ),
    (
        "sweep",
        {"edits": ["head=patch@last"], "over": ["layers", "units"], "task": "induction", "rows": 4},
        ("sweep", "demo", "head=patch@last", "--over", "layers,units", "--task", "induction", "--rows", "4"),
    ),
    (
        "sweep",
        {"edits": ["resid_post=patch"], "over": ["layers", "positions"], **PAIR},
        ("sweep", "demo", "resid_post=patch", "--over", "layers,positions", *ON_COMMAND_LINE),
    ),
    (
        "circuit",
        {"task": "induction", "rows": 16, "controls": 2, "roles": False},
        ("circuit", "demo", "--task", "induction", "--rows", "16", "--controls", "2", "--no-roles"),
    ),
    ("lens", {"prompts": [PROMPT]}, ("lens", "demo", PROMPT)),
    ("heads", {"top": 16, "rows": 2}, ("heads", "demo", "--rows", "2")),
    (
        "attention",
        {"prompt": PROMPT, "head": "head.3:1", "whole": True},
        ("heads", "demo", PROMPT, "--show", "head.3:1"),
    ),
    (
        "attribute",
        {"prompts": [PROMPT], "split": ["head"], "top": 100},
        ("attribute", "demo", PROMPT, "--split", "head"),
    ),
    (
        "attribute",
        {"prompts": [PROMPT], "inputs": "occlusion", "feature": SELF},
        ("attribute", "demo", PROMPT, "--inputs", "occlusion", "--feature", SELF),
    ),
)


@pytest.mark.parametrize(("name", "arguments", "command"), SAME, ids=[f"{case[0]}-{n}" for n, case in enumerate(SAME)])
def test_an_operation_gives_what_the_command_prints(
    context: Context, database: Path, name: str, arguments: dict[str, Any], command: tuple[str, ...]
) -> None:
    printed = on_command_line(*(str(database) if part == "DB" else part for part in command))
    assert rows(context, name, **arguments) == printed
    assert printed


def test_cutting_nodes_gives_what_tests_of_given_circuits_print(context: Context) -> None:
    """Faithfulness is that of the circuit of the nodes that are left, and of the model without a circuit of these."""
    circuit, cut = ["mlp_out.0", "head.2:0", "head.3:1", "head.3:3", "mlp_out.3"], ["head.3:1", "mlp_out.3"]
    task = {"task": "induction", "rows": 16}
    (row,) = rows(context, "cut", circuit=circuit, cut=cut, **task)

    def tested(nodes: list[str]) -> dict[str, Any]:
        given = [part for node in nodes for part in ("--given", node)]
        options = ["--task", "induction", "--rows", "16", "--controls", "0", "--no-roles"]
        (report,) = on_command_line("circuit", "demo", *options, *given)
        return report["evaluation"]

    for found, printed in (
        (row["alone"], tested(["mlp_out.0", "head.2:0", "head.3:3"])["faithfulness"]),
        (row["model"], tested(cut)["ablated"]),
    ):
        assert found["recovered"] == printed["recovered"]
        assert [found["ci_low"], found["ci_high"]] == printed["interval"]
        assert found["patched"] == sum(printed["patched"]) / len(printed["patched"])
    assert 0 < row["model"]["recovered"] < 1
    (whole,) = rows(context, "cut", circuit=circuit, cut=[], **task)
    assert whole["model"]["recovered"] == 1 and whole["alone"]["recovered"] > row["alone"]["recovered"]


def test_several_readouts_are_the_curves_of_the_command_and_points_of_run(context: Context) -> None:
    strengths, answer = [-2.0, -0.5, 0.0, 1.0, 3.0], {"answer": " name", "wrong": ","}
    metrics = ["log_probability", "logit_difference", "probability_difference", "kl", "loss"]
    shared: dict[str, Any] = {"prompts": [PROMPT], **answer, "controls": 0}
    found = rows(context, "steer", edit=f"{SELF}+=1q", strengths=strengths, metrics=metrics, tokens=2, **shared)
    options = ["--answer", " name", "--wrong", ",", "--controls", 0, "--tokens", 2]
    joined = ",".join(map(str, strengths))
    curves = [
        on_command_line("steer", "demo", f"{SELF}+=1q", PROMPT, f"--strengths={joined}", "--metric", metric, *options)
        for metric in metrics
    ]
    assert found == [row for curve in curves for row in curve]
    assert [row["strength"] for row in curves[0]] == strengths
    for at, strength in enumerate(strengths):
        if strength:
            (point,) = rows(context, "run", edits=[f"{SELF}+={strength}q"], **shared)
            after = {name: value["after"] for name, value in point["measures"].items()}
            for metric, curve in zip(metrics, curves, strict=True):
                if metric in after:
                    # Strengths are run beside each other, which rounds otherwise in the last digits.
                    assert curve[at]["response"] == pytest.approx(after[metric], rel=1e-4, abs=1e-5)


def test_every_operation_is_among_those_compared_or_writes() -> None:
    assert set(OPERATIONS) == {case[0] for case in SAME} | {"cut", "label", "investigate"}


def test_pages_of_rows_follow_each_other(context: Context) -> None:
    whole = rows(context, "list", limit=6)
    first = perform("list", {"limit": 4}, context)
    assert first.more == "there are more rows; ask again with offset=4"
    assert [*first.rows, *rows(context, "list", limit=2, offset=4)] == whole
    assert perform("search", {"query": "self"}, context).more is None


# Errors


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("show", {}, r"feature is missing: Address of a.*; the arguments are feature \(needed\), count, provenance"),
    ("show", {"feature": SELF, "count": 99}, "count is 99: input should be less than or equal to 20"),
    ("show", {"feature": SELF, "colour": 1}, "colour is no argument; the arguments are feature"),
    ("show", {"feature": "self"}, "is not MODEL:SITE:INDEX; an example"),
    ("show", {"feature": "demo:mlp.9:1"}, "demo:mlp.9 is not in the database, which holds demo:mlp.2"),
    ("search", {"query": ""}, "query is '': string should have at least 1 character"),
    ("list", {"status": "good"}, "status is 'good': input should be 'explained', 'weak'"),
    ("try", {"feature": SELF, "texts": ["x" * (LONGEST_TEXT + 1)]}, "at most 4000 characters"),
    ("try", {"feature": SELF, "texts": ["x"] * 5}, "at most 4 items"),
    ("try", {"feature": SELF, "texts": ["\ud800"]}, "texts.0 is .*unicode"),
    ("run", {"prompts": ["x"], "edits": ["mlp.2:9999=0"]}, "there is no unit 9999 at demo:mlp.2, which has 0 to 511"),
    ("run", {"prompts": ["x"], "edits": ["mlp.2 off"]}, r"is not SITE\[:UNITS\]CHANGE.*; some that are: mlp.2:17=0"),
    ("run", {"prompts": ["x"], "edits": ["mlp.2@no:1=0"]}, "demo:mlp.2@no is not in the database, which holds"),
    ("run", {"prompts": ["x"], "model": "gpt2"}, "nothing of gpt2 is in the database; wanted model to be one of demo"),
    ("run", {"prompts": ["x"], "source_runs": ["y"]}, "source_runs go with an edit =patch; add it"),
    ("run", {"prompts": ["x " * 1000]}, "a row has 1002 tokens; demo takes at most 128"),
    ("patch", {"edits": ["head.3:1=patch"], "clean": "x"}, "wanted pairs in one way: a task, or pairs"),
    ("attention", {"prompt": "x", "head": "head.3:99"}, "is no head of demo; wanted head.L:H, H from 0 to 3"),
    ("attribute", {"prompts": ["x"], "feature": SELF}, "feature goes with inputs; add inputs=integrated"),
    ("find", {"text": "a", "against": "b", "token": "a"}, "leave out against, or token"),
    ("label", {"feature": SELF}, "label is not allowed here; whoever runs the server may start it with --allow-write"),
    ("delete", {}, "there is no operation 'delete'; wanted one of sources, search, list, show, similar, find, try"),
)


@pytest.mark.parametrize(("name", "arguments", "message"), WRONG)
def test_an_error_is_one_line_that_says_how_to_mend_the_call(
    context: Context, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        perform(name, arguments, context, granted=COMPUTE)
    line = format_error(caught.value)
    assert "\n" not in line and len(line) <= 1000


def test_arguments_are_checked_before_anything_is_opened(database: Path) -> None:
    class Unopened(ModelCache):
        def load(self, *_: object, **__: object) -> Any:
            raise AssertionError("the model was opened")

    with Store(database, create=False) as store, pytest.raises(ArgumentError):
        perform("try", {"feature": SELF}, Context(store, Unopened()), granted=COMPUTE)


def test_every_argument_is_described_and_every_text_and_list_has_a_bound() -> None:
    for name, operation in OPERATIONS.items():
        assert operation.description
        for argument, schema in operation.schema["properties"].items():
            assert schema.get("description"), (name, argument)
            for part in [schema, *schema.get("anyOf", [])]:
                bounds = {"string": ("maxLength", "enum", "pattern"), "array": ("maxItems",), "integer": ("maximum",)}
                wanted = bounds.get(part.get("type"), ())
                assert not wanted or any(bound in part for bound in wanted), (name, argument)


# Limits


TREE = st.lists(
    st.fixed_dictionaries({"tokens": st.lists(st.text(max_size=8), max_size=60), "text": st.text(max_size=20)}),
    min_size=1,
    max_size=8,
)


@given(TREE, st.integers(400, 3000))
@settings(max_examples=60, deadline=None)
def test_a_result_is_cut_to_its_limit_and_lists_stay_in_step(found: list[dict[str, Any]], characters: int) -> None:
    whole = [row | {"values": list(range(len(row["tokens"])))} for row in found]
    result = cut(Result(whole), characters, "ask for less")
    size = len(json.dumps(Result(whole).to_json(), ensure_ascii=False))
    if size <= characters:
        assert result == Result(whole)
        return
    assert result.more is not None and result.more.endswith("ask for less")
    assert len(json.dumps(result.to_json()["rows"], ensure_ascii=False)) <= characters
    for row, before in zip(result.rows, whole, strict=False):
        assert len(row["tokens"]) == len(row["values"])
        assert row["tokens"] == before["tokens"][: len(row["tokens"])]


def test_a_long_result_says_what_was_left_out(context: Context) -> None:
    result = perform("list", {"limit": 50}, context, characters=2000)
    assert result.more is not None
    assert f"cut to {len(result.rows)} of 50 rows, at 2,000 characters" in result.more
    assert "offset" in result.more


# Time and cancelling


def hooks(models: ModelCache) -> int:
    (subject,) = models._loaded.values()
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in subject.model.modules())


def test_a_cancelled_call_ends_before_its_next_forward_pass_and_leaves_the_model_as_it_was(
    database: Path, models: ModelCache
) -> None:
    with Store(database, create=False) as store:
        plain = rows(Context(store, models), "run", prompts=[PROMPT])
        before = hooks(models)
        watch = Watch()

        def cancel(*_: str) -> None:
            if watch.forwards == 3:
                watch.cancelled.set()

        watch.on_progress = cancel
        arguments = {"prompts": [PROMPT], "edits": [f"{SELF}=0"]}
        with pytest.raises(Cancelled):
            perform("run", arguments, Context(store, models, watch), granted=COMPUTE)
        assert watch.forwards == 4
        assert hooks(models) == before
        assert rows(Context(store, models), "run", prompts=[PROMPT]) == plain


@pytest.mark.parametrize(
    ("name", "arguments", "parts"),
    [
        (
            "steer",
            {"prompts": [PROMPT], "edit": "mlp.2:17*=1", "strengths": [0, 1, 2], "tokens": 4, "text_rows": 3},
            ["reads the reference text", "steers the prompts", "measures unrelated text", "writes"],
        ),
        ("sweep", {"edits": ["head=patch@last"], "over": ["layers", "units"], **PAIR}, ["runs 16 edits"]),
    ],
)
def test_long_operations_tell_how_much_there_is_and_run_that(
    context: Context, name: str, arguments: dict[str, Any], parts: list[str]
) -> None:
    lines: list[str] = []
    watch = Watch(on_progress=lambda _, line: lines.append(line))
    rows(replace(context, watch=watch), name, **arguments)
    told = [found.groups() for line in lines if (found := re.match(r"(.*), (\d+)% of ([\d,]+) tokens' work", line))]
    assert list(dict.fromkeys(part for part, _, _ in told)) == parts
    assert len({total for _, _, total in told}) == 1
    assert int(told[0][1]) < 50 and told[-1][1] == "100"


def test_a_call_that_takes_too_long_is_an_error_that_says_so(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watch, "late", True)
    with pytest.raises(NeuronautError, match="run was stopped after 300 s.*ask for less at a time"):
        perform("run", {"prompts": [PROMPT]}, context, granted=COMPUTE)


def test_the_model_is_loaded_once(database: Path) -> None:
    models = ModelCache()
    with Store(database, create=False) as store:
        first, second = (Context(store, models).subject("demo") for _ in range(2))
    assert first.model is second.model


# Writing


def test_labelling_writes_and_a_second_time_shows_what_is_there(tmp_path: Path, models: ModelCache) -> None:
    path = prepare(tmp_path / "own.db")
    with Store(path, create=False) as store:
        context = Context(store, models)
        feature = "demo:resid_post.2@sae:50"
        done = perform("label", {"feature": feature}, context, granted=WRITE)
        assert done.rows[0]["feature"] == feature and done.rows[0]["status"] in ("explained", "weak", "no_pattern")
        again = perform("label", {"feature": feature}, context, granted=WRITE)
        assert "labelled before" in again.notes[0]
        assert again.rows[0]["explanation"] == done.rows[0]["explanation"]


def test_an_allowance_is_spent_by_all_calls_together(context: Context) -> None:
    llm = OpenAIChat("reader", base_url="http://127.0.0.1:9/v1", api_key="k")
    budgets: list[Budget] = []

    def open_client(store: Store, left: Budget) -> Any:
        from contextlib import nullcontext

        budgets.append(left)
        return nullcontext(LLMClient(llm, store.calls, price=Price(1, 1), budget=left))

    allowance = Allowance(Budget(calls=3, usd=1.0), open_client)
    for _ in range(2):
        with allowance.client(context.store) as client:
            assert client is not None
            client.spent.calls, client.spent.usd = 2, 0.25
    assert budgets == [Budget(calls=3, usd=1.0), Budget(calls=1, usd=0.75)]
    with (
        pytest.raises(NeuronautError, match="the server's budget of calls=3 is spent"),
        allowance.client(context.store),
    ):
        pass
    llm.close()
