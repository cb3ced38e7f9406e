"""Pages of interventions in a real browser, on the built-in model."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from click.testing import CliRunner

from tests.browsers import need_browser

need_browser()

from playwright.sync_api import Locator  # noqa: E402

from neuronaut.cli.main import main  # noqa: E402
from tests.test_web_live import PATIENCE, until  # noqa: E402
from tests.web.test_browser import GRAVE, Axe, Browser, Page, chromium, expect  # noqa: E402, F401
from tests.web.test_browser_live import MILLISECONDS, patient_page  # noqa: E402

SWEEP = {"task": "induction", "rows": "2", "edit": "head=patch@last", "over": "layers,units"}
CIRCUIT = {"task": "induction", "rows": "16", "nodes": "head", "controls": "3", "roles": "no"}
FEATURE, PROMPT = "demo:mlp.2:17", "def __init__(self, name): self"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server that may compute listens."""
    database = tmp_path_factory.mktemp("interventions") / "demo.db"
    done = CliRunner().invoke(main, ["harvest", "demo", "mlp.2", "--tokens", "1k", "-d", str(database)])
    assert done.exit_code == 0, done.output
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "neuronaut", "serve", "-d", str(database), "--port", str(port)]
    with subprocess.Popen([*command, "--allow-compute"]) as server:
        until(lambda: _answers(port))
        yield f"http://127.0.0.1:{port}"
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE) == 0


def _answers(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/capabilities").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:  # noqa: F811
    yield from patient_page(chromium, address)


def check(page: Page) -> None:
    """Nothing serious for those who see little, in both colours, and nothing beyond a phone's edge."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in GRAVE]
        assert [(violation["id"], violation["nodes"][0]["html"][:150]) for violation in serious] == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def rows(page: Page) -> list[dict[str, Any]]:
    """What the page in view answers as JSON, which is what its command prints."""
    answer = page.request.get(f"{page.url}&format=json", timeout=MILLISECONDS)
    assert answer.status == 200, answer.text()
    return answer.json()["rows"]


def test_a_sweep_is_a_table_of_its_rows(page: Page) -> None:
    page.goto(f"/causal/sweep?{urlencode(SWEEP)}")
    expect(page.locator(".heat-map td")).to_have_count(2 * 16)
    told = {row["edit"]: row["effects"] for row in rows(page)}
    names = [f"head.{layer}:{head}=patch@last" for layer in (3, 2, 1, 0) for head in range(4)]
    for number in range(2):
        cells = page.locator(".heat-map").nth(number).locator("td").all()
        titles = [(cell.get_attribute("title") or "").split(" of ")[0].partition(": ") for cell in cells]
        wanted = [
            (effect["value"], [effect["ci_low"], effect["ci_high"]]) for effect in (told[n][number] for n in names)
        ]
        assert [title[0] for title in titles] == names
        assert [read_spanned(title[2]) for title in titles] == wanted
    page.locator(".heat-map td[tabindex='0']").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".cell-told").first).to_contain_text("head.3:1=patch@last")
    check(page)


def test_a_circuit_is_drawn_with_its_numbers_and_nodes_are_cut_by_a_click_and_by_enter(page: Page) -> None:
    page.goto(f"/causal/circuit?{urlencode(CIRCUIT)}")
    parts = page.locator(".circuit-map .part")
    expect(parts.first).to_be_visible()
    (report,) = rows(page)
    circuit, scores = report["circuit"], {score["node"]: score for score in report["scores"]}
    assert {part.get_attribute("data-node") for part in parts.all()} == {*circuit}
    table = page.locator(".by-node tbody")
    assert table.locator("td:first-child code").all_text_contents() == circuit
    for column, direction in ((2, "noise"), (3, "denoise")):
        told = titles(table.locator(f"td:nth-child({column}) .number"))
        assert told == [(scores[node][direction]["recovered"], []) for node in circuit]
    evaluation, verdict = report["evaluation"], page.locator(".verdict td .number")
    parties = [evaluation["faithfulness"], evaluation["ablated"]]
    assert titles(verdict) == [(party["recovered"], party["interval"]) for party in parties]
    first, second = circuit[:2]
    page.locator(f"[data-node='{first}']").click()
    expect(verdict).to_have_count(8)
    assert titles(verdict) == shown(cut(page, report, []), cut(page, report, [first]))
    page.locator(f"[data-node='{second}']").press("Enter")
    expect(page.locator(".verdict p code")).to_have_text([first, second])
    expect(page.locator(".part[aria-pressed='true']")).to_have_count(2)
    assert titles(verdict) == shown(cut(page, report, []), cut(page, report, [first, second]))
    check(page)


def cut(page: Page, report: dict[str, Any], nodes: list[str]) -> dict[str, Any]:
    """What is left of a circuit and of the model without these nodes, as the command's function says."""
    given = {"task": "induction", "rows": 16, "nodes": ["head"], "circuit": report["circuit"], "cut": nodes}
    script = "async (given) => (await (await import('/static/jobs.js')).compute('cut', given)).rows[0]"
    return page.evaluate(script, given)


def shown(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[float, list[float]]]:
    """The numbers of two cuts as the page lays them side by side."""
    ends = [(part, one[part]) for part in ("alone", "model") for one in (before, after)]
    lines = [[(row["recovered"], [row["ci_low"], row["ci_high"]]) for _, row in pair] for pair in (ends[:2], ends[2:])]
    levels = [[(row["patched"], []) for _, row in pair] for pair in (ends[:2], ends[2:])]
    return [*lines[0], *levels[0], *lines[1], *levels[1]]


def titles(cells: Locator) -> list[tuple[float, list[float]]]:
    """The numbers of cells, and their intervals, to the last digit."""
    return [read_spanned(cell.get_attribute("title") or "") for cell in cells.all()]


def test_a_dose_is_told_its_cost_run_and_drawn_with_its_numbers(page: Page) -> None:
    page.goto("/causal/dose")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Feature, or an edit").fill(FEATURE)
    page.get_by_label("Strengths").fill("-1,0,2,2")
    page.get_by_label("Rows of unrelated text").fill("4")
    page.get_by_label("Tokens to write").fill("2")
    expect(page.locator("[data-cost]")).to_contain_text("the prompt 34 times, 1,024 tokens of unrelated text (4 rows")
    page.get_by_role("button", name="Measure").click()
    expect(page.locator(".plot")).to_have_count(3)
    told = rows(page)
    curves = [[row for row in told if row["readout"] == name] for name in ("log_probability", "kl")]
    lines = page.locator(".doses tbody tr").all()
    assert [row["strength"] for row in curves[0]] == [-1, 0, 2] and curves[0][1]["max_change"] == 0
    for line, row, other in zip(lines, *curves, strict=True):
        ranks = [[] if one["percentile"] is None else [one["percentile"]] for one in (row, other)]
        wanted = [row["response"], *ranks[0], other["response"], *ranks[1], row["kl"], row["loss"], row["max_change"]]
        assert [value for value, _ in titles(line.locator("[title]"))] == wanted
    expect(lines[1].get_by_text("–")).to_have_count(2)
    dots = page.locator(".plot").first.locator("title").all_text_contents()
    assert [text for text in dots if f"strength 2: {curves[0][2]['response']}" in text]
    expect(page.locator("[data-output] [tabindex]")).to_have_count(0)
    check(page)
    page.set_viewport_size({"width": 300, "height": 800})
    expect(page.locator(".wide:has(.doses)")).to_have_attribute("tabindex", "0")


def read_spanned(text: str) -> tuple[float, list[float]]:
    """A number and its interval, if it has one, of what stands where the pointer rests."""
    value, _, interval = text.partition(" ")
    return json.loads(value), json.loads(interval or "[]")
