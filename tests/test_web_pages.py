"""The explorer's pages: each tells the same as HTML and as JSON, and the same as the store."""

import json
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from neuronaut.cli.main import main
from neuronaut.data.store.overview import read_overview
from neuronaut.data.store.search import Embedder, refresh
from neuronaut.data.store.store import Store
from neuronaut.data.store.summary import summarise
from neuronaut.labelling.inspect import describe
from neuronaut.rules.evaluate import simulate
from neuronaut.rules.language import parse_rule
from neuronaut.web.text import matches

from .stored import explanation, harvest_result, score
from .web_world import FEATURE, OTHER, SOURCE, WIDTH, client, make_database

PAGES = (
    "/",
    "/features",
    f"/feature/{FEATURE}",
    f"/similar/{FEATURE}",
    f"/embed/{FEATURE}",
    "/search",
    "/search?q=number",
    "/compare",
    f"/compare?a={SOURCE}:0&b={SOURCE}:1",
    f"/compare?a={SOURCE}&b={OTHER}",
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "web.db"
    make_database(path)
    return path


@pytest.fixture(scope="module")
def web(database: Path) -> Iterator[TestClient]:
    with client(database) as made:
        yield made


def with_json(page: str) -> str:
    return page + ("&" if "?" in page else "?") + "format=json"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_html_and_json(web: TestClient, page: str) -> None:
    html, data = web.get(page), web.get(with_json(page))
    assert html.status_code == data.status_code == 200
    assert html.headers["content-type"].startswith("text/html") and "<h1" in html.text
    assert data.headers["content-type"] == "application/json" and isinstance(data.json(), dict)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(web: TestClient, page: str) -> None:
    links = {link.replace("&amp;", "&") for link in re.findall(r'(?:href|src)="(/[^"#]*)', web.get(page).text)}
    assert links >= {"/static/style.css"}
    assert {link: web.get(link).status_code for link in links if web.get(link).status_code != 200} == {}


def test_the_row_of_a_feature_is_that_of_show(web: TestClient, database: Path) -> None:
    data = web.get(with_json(f"/feature/{FEATURE}")).json()
    with Store(database) as store:
        row = json.loads(json.dumps(describe(store, store.feature(FEATURE))))
    assert {key: data[key] for key in row if key != "examples"} == {k: v for k, v in row.items() if k != "examples"}


def test_windows_carry_what_the_rule_predicts(web: TestClient, database: Path) -> None:
    groups = web.get(with_json(f"/feature/{FEATURE}?n=100")).json()["windows"]
    assert {group["kind"] for group in groups} == {"top", "bottom"}
    with Store(database) as store:
        evidence, best = store.evidence(store.feature(FEATURE)), store.best(store.feature(FEATURE))
    assert best is not None
    rule = parse_rule(best.explanation.rule or "")
    shown = {window["window"]: window for group in groups if group["kind"] == "top" for window in group["windows"]}
    for example in (example for example in evidence.examples if example.kind == "top"):
        window = shown[example.window]
        assert window["predicted"] == pytest.approx(simulate(rule, example.tokens))
        assert window["activations"] == pytest.approx(example.activations.tolist(), abs=1e-4)
    assert any(max(window["predicted"]) > 0 for window in shown.values())


def test_an_explanation_has_a_permalink(web: TestClient) -> None:
    best = web.get(with_json(f"/feature/{FEATURE}")).json()["shown"]
    chosen = web.get(with_json(f"/feature/{FEATURE}?explanation={best['id']}")).json()["shown"]
    assert chosen == best
    missing = web.get(with_json(f"/feature/{FEATURE}?explanation=999"))
    assert missing.status_code == 404 and "no explanation 999" in missing.json()["error"]


@pytest.mark.parametrize(
    ("page", "status", "words"),
    [
        ("/feature/demo:mlp.9:1", 404, "not in the database"),
        (f"/feature/{SOURCE}:{WIDTH}", 404, "wanted an index from 0"),
        ("/feature/nonsense", 404, "an example"),
        ("/features?source=demo:mlp.9", 404, "not in the database"),
        ("/features?after=nonsense", 404, "an example"),
        ("/features?status=happy", 422, "status"),
        ("/features?min_score=high", 422, "min_score"),
        ("/search?q=number&by=meaning", 400, "--allow-compute"),
        (f"/compare?a={SOURCE}&b={FEATURE}", 400, "two of one kind"),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_errors_are_one_line_in_both_forms(web: TestClient, page: str, status: int, words: str) -> None:
    html, data = web.get(page), web.get(with_json(page))
    assert html.status_code == data.status_code == status
    assert words in data.json()["error"] and "\n" not in data.json()["error"]
    assert "Traceback" not in html.text and "<h1>" in html.text


def test_capabilities_and_navigation_name_the_pages_that_there_are(web: TestClient) -> None:
    told = web.get("/capabilities").json()
    assert told["compute"] is told["write"] is told["token"] is False
    assert {"/", "/features", "/search", "/compare"} <= set(told["pages"].values())
    assert all(web.get(page).status_code == 200 for page in told["pages"].values())
    assert {f"/{path}" for path in ("features", "search", "compare")} <= set(web.get("/openapi.json").json()["paths"])


def test_search_marks_the_words_and_json_does_not(web: TestClient) -> None:
    assert "<mark>number</mark>" in web.get("/search?q=number").text
    (first, *_) = web.get(with_json("/search?q=number")).json()["results"]
    assert "fires on number" in first["explanation"]
    assert "No explanation holds" in web.get("/search?q=unheard").text


def test_home_says_what_summary_says(web: TestClient, database: Path) -> None:
    data = web.get(with_json("/")).json()
    with Store(database) as store:
        groups = [group for group in summarise(store).groups if group.level == "source"]
    for source, group in zip(data["sources"], groups, strict=True):
        assert (source["source"], source["statuses"]) == (group.name, dict(group.statuses))
    (kind,) = data["scores"]
    (own,) = groups[0].scores
    assert sorted(kind["values"]) == sorted(own.values) and tuple(kind["median"].values()) == own.median
    assert kind["beaten"] == {role: baseline.beaten for role, baseline in own.baselines.items()}


def test_home_is_read_again_where_the_database_has_changed(tmp_path: Path) -> None:
    make_database(tmp_path / "a.db")
    with client(tmp_path / "a.db") as web:
        stores = web.app.state.stores
        assert web.get(with_json("/")).json()["explained"] == 3
        with Store(tmp_path / "a.db") as store:
            store.add_result(explanation(3, source=SOURCE), [score(0.4)])
        stores._remembered = {name: known._replace(took=0.0) for name, known in stores._remembered.items()}
        assert web.get(with_json("/")).json()["explained"] == 4


def test_the_sample_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "b.db") as store:
        store.write_harvest(harvest_result(SOURCE, width=60))
        for index in range(60):
            store.add_result(explanation(index, f"number {index}", source=SOURCE), [score(index / 60)])
        whole = read_overview(store)
        monkeypatch.setattr("neuronaut.data.store.overview.SAMPLE", 20)
        part = read_overview(store)
    assert (whole.explained, len(whole.sample)) == (60, 60)
    assert part.explained == 60 and 10 <= len(part.sample) <= 20
    assert {one.feature for one in part.sample} < {one.feature for one in whole.sample}


class Planted(Embedder):
    """Vectors of texts by their first digit: 0 and 2 are near each other."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([{"0": (1, 0), "2": (0.8, 0.6)}.get(text[-2], (0, 1)) for text in texts], np.float32)


def test_features_that_are_explained_alike_are_found_by_stored_vectors(tmp_path: Path) -> None:
    make_database(tmp_path / "a.db")
    with Store(tmp_path / "a.db") as store:
        assert refresh(store, Planted("planted")) == 3
    with client(tmp_path / "a.db") as web:
        found = web.get(with_json(f"/similar/{SOURCE}:0")).json()["by_explanation"]
        assert [row["feature"] for row in found] == [f"{SOURCE}:2", FEATURE]
        assert [row["similarity"] for row in found] == pytest.approx([0.8, 0.0], abs=1e-3)
        assert "Are explained alike" in web.get(f"/similar/{SOURCE}:0").text


@pytest.mark.parametrize("sort", ["feature", "score", "worst", "density", "peak"])
@pytest.mark.parametrize("size", [1, 3, 10])
def test_pages_one_after_the_other_are_the_list(web: TestClient, database: Path, sort: str, size: int) -> None:
    with Store(database) as store:
        listed = [row["feature"] for row in store.list_rows(sort=sort)]
    pages, after = [], ""
    while after is not None:
        page = web.get(f"/features?format=json&sort={sort}&size={size}&after={after}").json()
        pages.append([row["feature"] for row in page["features"]])
        after = page["after"]
    assert [feature for page in pages for feature in page] == listed and len(listed) == 2 * WIDTH
    assert all(len(page) == size for page in pages[:-1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-d", "none.db"], "there is no database none.db"),
        (["--host", "0.0.0.0"], "add --token"),
        (["--token", "short"], "wanted at least 12"),
        ([], "name another one with --port"),
    ],
)
def test_serve_says_what_to_do(database: Path, options: list[str], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["serve", "-d", str(database), "--port", str(taken.getsockname()[1]), *options]
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and words in done.stderr and "\n" not in done.stderr.strip()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-m", "openai:x", "--budget", "usd=1"], "add --allow-compute and --allow-write"),
        (["-m", "openai:x", "--allow-compute", "--allow-write"], "-m needs --budget"),
        (["--budget", "usd=1", "--allow-compute", "--allow-write"], "--budget needs -m"),
        (["-m", "openai:x", "--budget", "minutes=1", "--allow-compute", "--allow-write"], "limits none of usd"),
    ],
)
def test_serve_wants_a_language_model_with_a_budget(database: Path, options: list[str], words: str) -> None:
    done = CliRunner().invoke(main, ["serve", "-d", str(database), *options], env={"NEURONAUT_LLM": None})
    assert done.exit_code in (1, 2) and words in done.stderr


@pytest.mark.parametrize(
    ("text", "matched"),
    [
        (
            "fires on `a; \ue000b\ue001`; never on `;`; weakly on `\ue000b\ue001`",
            "fires on `a; \ue000b\ue001`; weakly on `\ue000b\ue001`",
        ),
        ("fires on `a`; never", ""),
        ("a ` \ue000b\ue001", "\ue000b\ue001"),
        (None, ""),
    ],
)
def test_the_parts_of_a_description_that_a_search_matched(text: str | None, matched: str) -> None:
    assert matches(text) == matched
