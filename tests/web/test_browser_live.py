"""Computing and sessions in a real browser: try a text, steer, find, follow a session, start one and stop it."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.browsers import need_browser

need_browser()

from tests.test_web_live import PATIENCE, RIVER, TEXT, Served, database, served  # noqa: E402, F401
from tests.web.test_browser import Axe, Browser, Page, chromium, expect  # noqa: E402, F401

MILLISECONDS = 1000 * PATIENCE


def patient_page(chromium: Browser, address: str) -> Iterator[Page]:  # noqa: F811
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


@pytest.fixture
def page(chromium: Browser, served: Served) -> Iterator[Page]:  # noqa: F811
    yield from patient_page(chromium, str(served.client.base_url))


def test_a_text_is_tried_on_a_feature(page: Page, served: Served) -> None:  # noqa: F811
    page.goto(f"/feature/{RIVER}")
    part = page.locator("#try")
    part.get_by_label("Text").fill(TEXT)
    part.get_by_role("button", name="Measure").click()
    expect(part.locator(".token")).to_have_count(len(TEXT.split()))
    (row,) = served.rows("try", RIVER, TEXT)
    part.get_by_text("Numbers").click()
    told = [cell.get_attribute("title") for cell in part.locator("td:nth-child(3)").all()]
    assert [float(value or "") for value in told] == row["actual"]


def test_a_feature_is_steered(page: Page) -> None:
    page.goto(f"/feature/{RIVER}")
    part = page.locator("#steer")
    part.get_by_label("Prompt").fill(TEXT)
    part.get_by_label("Tokens to write").fill("3")
    part.get_by_label("Strength", exact=True).fill("4")
    expect(part.get_by_role("heading", name="After, strength 4")).to_be_visible()
    expect(part.locator("tbody tr")).to_have_count(2)


def test_features_are_found_by_text_and_by_token(page: Page) -> None:
    page.goto("/find")
    page.get_by_label("Text").fill(TEXT)
    page.get_by_role("button", name="Find").click()
    expect(page.locator("button.token")).to_have_count(len(TEXT.split()))
    page.locator("button.token").nth(2).click()
    expect(page.get_by_role("heading", name="Features on token 2")).to_be_visible()
    assert "token=2" in page.url


def test_the_lens_is_drawn(page: Page) -> None:
    page.goto(f"/causal?view=lens&prompt={TEXT}")
    expect(page.locator(".grid-table tbody tr").first.locator(".cell")).to_have_count(len(TEXT.split()))


def test_a_session_is_followed_as_it_goes(page: Page, served: Served) -> None:  # noqa: F811
    page.goto("/investigations")
    command = [sys.executable, "-m", "neuronaut", "investigate", "planted:mlp.2:5", "-d", served.database]
    with subprocess.Popen([*command, "--budget", "experiments=6"]) as running:
        link = page.locator("a[data-open]").first
        while not link.count():
            page.wait_for_timeout(200)
            page.reload()
        link.click()
        expect(page.locator("[data-badge]")).to_have_text(re.compile("supported|open|no explanation|budget"))
        running.wait(PATIENCE)
    expect(page.locator("#ledger")).to_be_visible()
    expect(page.locator("[data-report] > header .badge")).not_to_have_text("running")


def test_a_session_is_started_and_stopped(page: Page) -> None:
    page.goto("/investigations")
    page.get_by_label("Feature").fill("planted:mlp.2:4")
    page.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("/investigations/[0-9a-f]{10}"))
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.locator("[data-badge]")).to_have_text("interrupted")


@pytest.mark.parametrize("path", ["/find", "/causal", "/investigations", f"/feature/{RIVER}"])
def test_nothing_serious_for_those_who_see_little(page: Page, path: str) -> None:
    page.goto(path)
    serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert [(violation["id"], violation["nodes"][0]["html"]) for violation in serious] == []
