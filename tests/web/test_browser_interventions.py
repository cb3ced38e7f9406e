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

from neuronaut.cli.main import main  # noqa: E402
from tests.test_web_live import PATIENCE, until  # noqa: E402
from tests.web.test_browser import GRAVE, Axe, Browser, Page, chromium, expect  # noqa: E402, F401
from tests.web.test_browser_live import MILLISECONDS, patient_page  # noqa: E402

SWEEP = {"task": "induction", "rows": "2", "edit": "head=patch@last", "over": "layers,units"}


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


def read_spanned(text: str) -> tuple[float, list[float]]:
    """A number and its interval, of what stands where the pointer rests."""
    value, _, interval = text.partition(" ")
    return json.loads(value), json.loads(interval)
