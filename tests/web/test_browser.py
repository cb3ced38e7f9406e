"""The explorer in a real browser: Debian's Chromium, driven by Playwright. Run by `make test-web`."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import uvicorn

from neuronaut.data.store.maps import TokenPoint
from neuronaut.data.store.store import Store
from neuronaut.web.app import create_app
from neuronaut.web.settings import Settings
from tests.browsers import CHROMIUM, need_browser
from tests.web_world import FEATURE, HEADLINE, HOSTILE, OTHER, SOURCE, drawn_map, make_database

need_browser()

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402

PAGES = (
    "/",
    "/features",
    f"/features?source={SOURCE}&sort=score",
    f"/feature/{FEATURE}",
    f"/feature/{SOURCE}:4",
    f"/similar/{FEATURE}",
    "/search?q=number",
    f"/map?source={SOURCE}&of=decoder&feature={FEATURE}",
    f"/map?source={SOURCE}&of=activations",
    "/map?of=explanations",
    f"/compare?a={SOURCE}:0&b={FEATURE}",
    f"/compare?a={SOURCE}&b={OTHER}",
    f"/embed/{FEATURE}",
    "/nothing",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a server that may be written to listens."""
    database = tmp_path_factory.mktemp("browser") / "web.db"
    make_database(database)
    with Store(database) as store:
        store.keep_map(drawn_map())
        store.keep_map(
            drawn_map(kind="activations", tokens=[TokenPoint("number", token[:9], "x") for token in HOSTILE])
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(Settings(str(database), port=port, allow_write=True))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    """A page that fails the test where a script of the text ran, something was blocked, or another host was asked."""
    context = chromium.new_context(base_url=address, viewport={"width": 1280, "height": 800})
    opened, wrong = context.new_page(), []
    context.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    context.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("request", lambda request: None if request.url.startswith(address) else wrong.append(request.url))
    yield opened
    context.close()
    assert [line for line in wrong if "404 (Not Found)" not in line] == []


def test_a_newcomer_finds_a_feature(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("/")
    page.keyboard.type("number")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Search")
    page.get_by_role("link", name=f"{SOURCE}:0").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{SOURCE}:0")
    expect(page.locator("blockquote")).to_have_text("fires on number 0")


def test_keys_move_and_go(page: Page) -> None:
    page.goto("/features")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("j")
    expect(page.locator("tr.at")).to_contain_text(f"{SOURCE}:1")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(FEATURE)
    page.wait_for_load_state()
    page.keyboard.press("]")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{SOURCE}:2")
    page.wait_for_load_state()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.keyboard.press("s")
    expect(page.get_by_role("heading", level=1)).to_have_text("Search")


def test_the_colours_stay_as_chosen(page: Page) -> None:
    page.goto("/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.goto("/features")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark != light


def test_similar_features_load_in_place_and_windows_unfold(page: Page) -> None:
    page.goto(f"/feature/{FEATURE}")
    page.get_by_role("heading", name="Similar features").scroll_into_view_if_needed()
    expect(page.get_by_role("heading", name="Fire on the same text")).to_be_visible()
    assert page.evaluate("document.querySelectorAll('script:not([src])').length") == 0


def test_a_map_tells_its_points_under_the_pointer_and_the_arrow_keys(page: Page) -> None:
    page.goto(f"/map?source={SOURCE}&of=decoder")
    figure, tip = page.locator("[data-map][data-ready]"), page.locator(".tip")
    figure.focus()
    page.keyboard.press("ArrowRight")
    expect(tip.get_by_role("link")).to_have_text(f"{SOURCE}:4")
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text(re.compile(f"{SOURCE}:[02]"))
    page.keyboard.press("+")
    page.get_by_role("button", name="Larger").click()
    expect(page.locator(".map svg")).to_have_attribute("viewBox", re.compile(r" 240 140$"))
    figure.focus()
    for key in "--":
        page.keyboard.press(key)
    expect(page.locator(".map svg")).to_have_attribute("viewBox", "0 0 960 560")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    box, view = page.locator(".map svg").bounding_box(), (960, 560)
    assert box is not None
    scale = min(box["width"] / view[0], box["height"] / view[1])
    # The second point lies at the right end of the picture, at its bottom.
    x = box["x"] + box["width"] / 2 + scale * (view[0] / 2 - 14)
    page.mouse.move(x + 3, box["y"] + box["height"] / 2 + scale * (view[0] - 28) / 4)
    expect(tip).to_contain_text(HEADLINE.replace("`", ""))
    expect(tip.locator("marquee")).to_have_count(0)
    page.mouse.down()
    page.mouse.up()
    expect(page.get_by_role("heading", level=1)).to_have_text(FEATURE)


def test_tokens_on_a_map_are_text_and_a_mark_shows_where_a_feature_is(page: Page) -> None:
    page.goto(f"/map?source={SOURCE}&of=activations")
    page.locator("[data-map][data-ready]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".tip mark")).to_be_visible()
    page.goto(f"/feature/{FEATURE}")
    page.get_by_role("link", name="decoders by PCA").click()
    expect(page.locator(".map .marked")).to_be_visible()
    page.locator("select[name=status]").select_option("weak")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".legend")).to_have_text("weak 1")


def test_a_person_adds_and_rates_an_explanation(page: Page) -> None:
    page.goto(f"/feature/{SOURCE}:3")
    page.get_by_label("Your explanation").fill("fires on the third token. Nowhere else.")
    page.locator("form.stack").get_by_label("Your name").fill("Anna")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("blockquote")).to_have_text("fires on the third token")
    expect(page.locator("form.stack").get_by_label("Your name")).to_have_value("Anna")
    page.get_by_label("Rate the explanation above").select_option("4")
    page.get_by_role("button", name="Rate").click()
    expect(page.get_by_role("row", name="fires on the third token")).to_contain_text("Anna 4/5")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("place", PAGES)
def test_axe_finds_nothing_serious_and_a_phone_shows_all(page: Page, place: str, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(place)
    found = Axe().run(page).response["violations"]
    serious = [(v["id"], [node["html"][:150] for node in v["nodes"]]) for v in found if v["impact"] in GRAVE]
    assert serious == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


GRAVE = ("serious", "critical")


def test_pages_work_without_scripts(chromium: Browser, address: str) -> None:
    context = chromium.new_context(base_url=address, java_script_enabled=False)
    plain = context.new_page()
    plain.goto("/")
    plain.get_by_role("searchbox", name="Search explanations").fill("number")
    plain.keyboard.press("Enter")
    plain.get_by_role("link", name=f"{SOURCE}:2").click()
    plain.get_by_role("link", name="Features that fire on the same text").click()
    expect(plain.get_by_role("heading", level=1)).to_contain_text("Similar to")
    context.close()


@pytest.fixture
def other_site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Where another server listens, and the folder that it serves."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_port}", tmp_path
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("place", "framed"), [(f"/feature/{FEATURE}", False), (f"/embed/{FEATURE}", True)])
def test_another_site_can_frame_the_small_page_alone(
    chromium: Browser, address: str, other_site: tuple[str, Path], place: str, framed: bool
) -> None:
    outside, folder = other_site
    (folder / "index.html").write_text(f'<iframe src="{address}{place}"></iframe>')
    context = chromium.new_context()
    opened = context.new_page()
    if framed:
        opened.goto(outside)
        expect(opened.frame_locator("iframe").get_by_role("heading", level=1)).to_have_text(FEATURE)
    else:
        with opened.expect_console_message(lambda message: "frame-ancestors" in message.text):
            opened.goto(outside)
    context.close()
