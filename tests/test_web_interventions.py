"""Pages of sweeps, circuits and doses: what they ask for is what the commands compute, to the digit."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from neuronaut.data.store.store import Store
from neuronaut.web.app import create_app
from neuronaut.web.operations.context import Context, ModelCache
from neuronaut.web.settings import Settings
from tests.test_operations import ON_COMMAND_LINE, PAIR, PROMPT, SELF, on_command_line, prepare, rows


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("interventions") / "demo.db")


@pytest.fixture(scope="module")
def context(database: Path) -> Iterator[Context]:
    with Store(database, create=False) as store:
        yield Context(store, ModelCache())


@pytest.fixture(scope="module")
def web(database: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(str(database))), base_url="http://localhost") as client:
        yield client


def asked_by(web: TestClient, page: str, query: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The operation that a page asks for once it is open, and its arguments."""
    text = web.get(page, params=query).text
    found = re.search(r'data-operation="([^"]*)" data-arguments="([^"]*)"( data-asked)?', text)
    assert found is not None and found[3]
    return found[1], json.loads(html.unescape(found[2]))


LINES = "\n".join(json.dumps(pair) for pair in (PAIR, {**PAIR, "clean": "y = [a, b", "corrupted": "y = (a, b"}))
SAME: tuple[tuple[str, dict[str, Any], tuple[object, ...]], ...] = (
    (
        "/causal/sweep",
        {"task": "induction", "rows": "4", "edit": "head=patch@last", "over": "layers,units", "clean": "not this"},
        ("sweep", "demo", "head=patch@last", "--over", "layers,units", "--task", "induction", "--rows", 4),
    ),
    (
        "/causal/sweep",
        {**PAIR, "rows": "", "edit": "resid_post=patch", "over": "layers,positions", "metric": "log_probability"},
        ("sweep", "demo", "resid_post=patch", "--over", "layers,positions", "--metric", "log_probability")
        + tuple(ON_COMMAND_LINE),
    ),
    (
        "/causal/circuit",
        {"task": "induction", "rows": "16", "given": "head.2:0 head.3:1-3 mlp_out.0", "controls": "2", "roles": "no"},
        ("circuit", "demo", "--task", "induction", "--rows", 16, "--controls", 2, "--no-roles")
        + ("--given", "head.2:0", "--given", "head.3:1-3", "--given", "mlp_out.0"),
    ),
    (
        "/causal/dose",
        {"prompt": PROMPT, "edit": SELF, "strengths": "-1,0,2", "answer": " name", "metric": "loss", "tokens": "2"},
        ("steer", "demo", f"{SELF}+=1q", PROMPT, "--strengths=-1,0,2", "--answer", " name", "--metric", "loss")
        + ("--tokens", 2, "--controls", 10, "--text-rows", 8),
    ),
)


@pytest.mark.parametrize(("page", "query", "command"), SAME, ids=[f"{case[0]}-{n}" for n, case in enumerate(SAME)])
def test_a_page_shows_what_the_command_prints(
    web: TestClient, context: Context, page: str, query: dict[str, Any], command: tuple[object, ...]
) -> None:
    operation, arguments = asked_by(web, page, query)
    assert rows(context, operation, **arguments) == on_command_line(*command)


def test_several_pairs_come_as_lines(web: TestClient, context: Context, tmp_path: Path) -> None:
    operation, arguments = asked_by(web, "/causal/sweep", {"pairs": LINES, "edit": "mlp_out=patch", "over": "layers"})
    (tmp_path / "pairs.jsonl").write_text(LINES)
    printed = on_command_line("sweep", "demo", "mlp_out=patch", "--over", "layers", "--pairs", tmp_path / "pairs.jsonl")
    assert rows(context, operation, **arguments) == printed and len(printed) == 4


@pytest.mark.parametrize("page", ["/causal/sweep", "/causal/circuit", "/causal/dose"])
def test_a_page_without_a_question_is_a_form_that_says_how_to_compute(web: TestClient, page: str) -> None:
    shown = web.get(page)
    assert shown.status_code == 200 and "--allow-compute" in shown.text and "data-asked" not in shown.text
    assert web.get(f"{page}?format=json").json()["asked"] is False
    asked = web.get(page, params={"task": "induction", "prompt": "x", "edit": SELF, "format": "json"})
    assert asked.status_code == 403 and "--allow-compute" in asked.json()["error"]


@pytest.mark.parametrize(
    ("page", "status", "words"),
    [
        ("/causal/sweep?over=layers,rows", 422, "over: came 'layers,rows'"),
        ("/causal/sweep?pairs=x", 400, "line 1 of the pairs is no JSON"),
        ("/causal/circuit?threshold=2", 422, "threshold"),
        ("/causal/dose?strengths=a,b", 400, "'a,b' are no numbers"),
        ("/causal/dose?metric=taste", 422, "metric: came 'taste'"),
    ],
)
def test_a_wrong_question_is_told_in_a_line(web: TestClient, page: str, status: int, words: str) -> None:
    answer = web.get(f"{page}&format=json")
    assert answer.status_code == status and words in answer.json()["error"]


def test_a_feature_of_the_negative_tail_is_steered_as_its_unit(web: TestClient) -> None:
    _, arguments = asked_by(web, "/causal/dose", {"prompt": "x", "edit": "demo:mlp.2:17-"})
    assert arguments["edit"] == "demo:mlp.2:17+=1q" and arguments["model"] == "demo"


def test_the_page_of_a_feature_leads_to_its_doses(database: Path) -> None:
    app = create_app(Settings(str(database), allow_compute=True))
    with TestClient(app, base_url="http://localhost") as client:
        assert (
            f"/causal/dose?edit={SELF.replace(':', '%3A').replace('@', '%40')}" in client.get(f"/feature/{SELF}").text
        )
