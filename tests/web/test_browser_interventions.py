"""Sweeps, circuits and doses in a real browser, on the built-in model."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlencode

import httpx2
import pytest

from tests.browsers import need_browser

need_browser()

from tests.test_operations import PROMPT, SELF, on_command_line, prepare  # noqa: E402
from tests.test_web_live import PATIENCE, until  # noqa: E402
from tests.web.test_browser import GRAVE, Axe, Browser, Page, chromium, expect  # noqa: E402, F401

MILLISECONDS = 1000 * PATIENCE
SWEEP = {"task": "induction", "rows": "4", "edit": "head=patch@last", "over": "layers,units"}
CIRCUIT = {"task": "induction", "rows": "16", "controls": "2", "given": "mlp_out.0 head.2:0 head.3:1-3 mlp_out.3"}
DOSE = {"prompt": PROMPT, "edit": SELF, "strengths": "-1,0,2", "controls": "0", "tokens": "2", "answer": " name"}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server that may compute listens."""
    database = prepare(tmp_path_factory.mktemp("interventions") / "demo.db")
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
    """A page that fails the test where something was blocked or a script failed."""
    context = chromium.new_context(base_url=address, viewport={"width": 1280, "height": 800})
    context.set_default_timeout(MILLISECONDS)
    expect.set_options(timeout=MILLISECONDS)
    opened, wrong = context.new_page(), []
    context.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    yield opened
    context.close()
    assert wrong == []


def check(page: Page) -> None:
    """Nothing serious for those who see little, in both colours, and nothing beyond a phone's edge."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in GRAVE]
        assert [(violation["id"], violation["nodes"][0]["html"][:150]) for violation in serious] == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_sweep_is_a_table_of_the_commands_numbers(page: Page) -> None:
    page.goto(f"/causal/sweep?{urlencode(SWEEP)}")
    cells = page.locator(".heat-map td")
    expect(cells).to_have_count(2 * 16)
    printed = on_command_line(
        "sweep", "demo", "head=patch@last", "--over", "layers,units", "--task", "induction", "--rows", 4
    )
    told = {
        (
            effect["direction"],
            row["edit"],
        ): f"{row['edit']}: {effect['value']} [{effect['ci_low']}, {effect['ci_high']}]"
        for row in printed
        for effect in row["effects"]
    }
    for number, direction in enumerate(("denoise", "noise")):
        titles = [
            cell.get_attribute("title") or "" for cell in page.locator(".heat-map").nth(number).locator("td").all()
        ]
        wanted = [told[direction, f"head.{layer}:{head}=patch@last"] for layer in (3, 2, 1, 0) for head in range(4)]
        assert [title.partition(" of ")[0] for title in titles] == wanted
    first = page.locator(".heat-map td[tabindex='0']").first
    first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".cell-told").first).to_contain_text("head.3:1=patch@last")
    check(page)


def test_nodes_of_a_circuit_are_cut_by_a_click_or_by_enter(page: Page) -> None:
    page.goto(f"/causal/circuit?{urlencode(CIRCUIT)}")
    expect(page.locator(".part")).to_have_count(6)
    expect(page.locator(".link").first).to_be_attached()
    page.locator("[data-node='head.3:1']").click()
    page.locator("[data-node='mlp_out.3']").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".verdict p").first).to_have_text("Cut: head.3:1 mlp_out.3 ")
    expect(page.locator(".part[aria-pressed='true']")).to_have_count(2)
    options = ["circuit", "demo", "--task", "induction", "--rows", 16, "--controls", 0, "--no-roles"]
    whole = ["mlp_out.0", "head.2:0", "head.3:1-3", "mlp_out.3"]

    def faithfulness(nodes: list[str]) -> str:
        (report,) = on_command_line(*options, *(part for node in nodes for part in ("--given", node)))
        found = report["evaluation"]["faithfulness"]
        return f"{found['recovered']} [{found['interval'][0]}, {found['interval'][1]}]"

    shown = [cell.get_attribute("title") for cell in page.locator(".verdict tbody tr").first.locator("span").all()]
    assert shown == [faithfulness(whole), faithfulness(["mlp_out.0", "head.2:0", "head.3:2-3"])]
    check(page)


def test_doses_are_drawn_with_all_points(page: Page) -> None:
    page.goto(f"/causal/dose?{urlencode(DOSE)}")
    expect(page.locator("figure")).to_have_count(3)
    feature = f"{SELF}+=1q"
    options = ["--strengths=-1,0,2", "--answer", " name", "--metric", "log_probability", "--controls", 0, "--tokens", 2]
    printed = on_command_line("steer", "demo", feature, PROMPT, *options)
    titles = [title.text_content() or "" for title in page.locator("figure").first.locator(".dot title").all()]
    assert [json.loads(title.rpartition(": ")[2]) for title in titles] == [row["response"] for row in printed]
    expect(page.get_by_role("heading", name="What is written")).to_be_visible()
    check(page)
