"""What the server refuses, and that text of a corpus or a model is only ever text."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError
from neuronaut.web.pages import HERE
from neuronaut.web.settings import Settings, is_loopback
from neuronaut.web.text import LONGEST_TOKEN, described, shown

from .test_web_pages import PAGES, with_json
from .web_world import FEATURE, HOSTILE, SOURCE, client, make_database

TOKEN = "correct-horse-battery"
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("web") / "web.db"
    make_database(path)
    return path


@pytest.fixture(scope="module")
def web(database: Path) -> Iterator[TestClient]:
    with client(database) as made:
        yield made


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("page", [*PAGES, "/search?q=%3Cscript%3Ealert(3)%3C/script%3E", "/feature/%3Cscript%3E"])
def test_hostile_text_is_only_text(web: TestClient, page: str) -> None:
    answer = web.get(page)
    elements = Elements(answer.text)
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert all(str(attributes.get("src", "")).startswith("/static/") for attributes in scripts)
    assert not {"img", "marquee", "iframe", "object"} & {tag for tag, _ in elements.tags}
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    assert not [tag for tag, attributes in elements.tags if tag == "style" or "style" in attributes]
    assert COMMANDS.search(answer.text) is None
    assert len(answer.text) < 400_000


def test_a_feature_shows_what_does_not_print(web: TestClient) -> None:
    page = web.get(f"/feature/{FEATURE}?n=100").text
    for sign in (
        "&lt;script&gt;alert(1)",
        "\\u202egnp.exe",
        "\\x1b[31mred",
        "\\u2066",
        "{{ 7 * 7 }}",
        "(cut: 1,000,000",
    ):
        assert sign in page, sign
    assert "49" not in re.findall(r"<span[^>]*>(49)</span>", page)
    assert "x" * (LONGEST_TOKEN + 1) not in page


def test_json_has_the_text_as_it_is(web: TestClient) -> None:
    groups = web.get(with_json(f"/feature/{FEATURE}?n=100")).json()["windows"]
    tokens = {token for group in groups for window in group["windows"] for token in window["tokens"]}
    assert tokens >= set(HOSTILE)


def test_templates_cannot_forget_to_spell_out() -> None:
    assert shown("a\u202eb\x1bc\n") == "a\\u202eb\\x1bc\n"
    assert shown(described("`<i>` \u202e")) == "<code>&lt;i&gt;</code> \\u202e"
    assert len(shown("y" * 1_000_000)) < 20_000


def test_no_template_marks_text_as_safe() -> None:
    sources = [path.read_text(encoding="utf-8") for path in HERE.glob("templates/*.html")]
    assert sources and not [text for text in sources if re.search(r"\|\s*safe|autoescape|style=|\son\w+=", text)]


def test_every_answer_forbids_what_a_page_does_not_need(web: TestClient) -> None:
    for page in ("/", "/static/style.css", "/nothing", "/capabilities"):
        headers = web.get(page).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    embedded = web.get(f"/embed/{FEATURE}").headers
    assert "frame-ancestors *" in embedded["content-security-policy"] and "x-frame-options" not in embedded


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.0.7:8420", "[::2]:8420", ""])
def test_a_name_that_another_pointed_here_is_refused(web: TestClient, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8420", "127.0.0.1", "127.8.8.8:1", "[::1]:8420", "demo.localhost"])
def test_names_of_this_machine_are_answered(web: TestClient, host: str) -> None:
    assert web.get("/", headers={"host": host}).status_code == 200


def post(web: TestClient, headers: dict[str, str] | None = None, **fields: str) -> int:
    form = {"feature": FEATURE, "text": "fires on commas", "author": "Anna", **fields}
    return web.post("/explanations", data=form, headers=headers or {}, follow_redirects=False).status_code


def test_a_change_wants_a_page_of_this_server(tmp_path: Path) -> None:
    make_database(tmp_path / "a.db")
    with client(tmp_path / "a.db", allow_write=True) as web:
        csrf = web.get("/capabilities").json()["csrf"]
        assert post(web) == post(web, csrf="wrong") == 403
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://127.0.0.1:9999"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
        ):
            assert post(web, headers, csrf=csrf) == 403
        with Store(tmp_path / "a.db") as store:
            assert len(store.explanations(store.feature(FEATURE))) == 1
        assert post(web, {"origin": "http://127.0.0.1:8420", "sec-fetch-site": "same-origin"}, csrf=csrf) == 303
        assert post(web, {"x-csrf-token": csrf}, text="another") == 303
        assert web.get(f"/explanations?feature={FEATURE}&text=x&author=y&csrf={csrf}").status_code == 405


def test_a_server_that_only_reads_writes_nothing(database: Path) -> None:
    with client(database) as web:
        csrf = web.get("/capabilities").json()["csrf"]
        assert post(web, csrf=csrf) == 403
        assert 'action="/explanations"' not in web.get(f"/feature/{FEATURE}").text
        with web.app.state.stores.reading() as store, pytest.raises(NeuronautError, match="can only be read"):
            store.rate(1, 5, author="Anna")


def test_a_long_body_is_refused(database: Path) -> None:
    with client(database, allow_write=True) as web:
        csrf = web.get("/capabilities").json()["csrf"]
        assert post(web, csrf=csrf, text="x" * 2_000_000) == 413
        chunks = (b"text=" + b"x" * 300_000 for _ in range(5))
        headers = {"x-csrf-token": csrf, "content-type": "application/x-www-form-urlencoded"}
        assert web.post("/explanations", content=chunks, headers=headers).status_code == 413


def test_another_address_wants_a_token() -> None:
    with pytest.raises(NeuronautError, match="add --token"):
        Settings("a.db", host="0.0.0.0")
    with pytest.raises(NeuronautError, match="wanted at least"):
        Settings("a.db", token="short")
    assert not Settings("a.db", host="0.0.0.0", token=TOKEN).loopback
    assert is_loopback("LOCALHOST.") and not is_loopback("") and not is_loopback("localhost.evil.example")


def test_all_but_style_is_behind_the_token(database: Path) -> None:
    with client(database, token=TOKEN, host="0.0.0.0") as web:
        web.follow_redirects = False
        for page in (*PAGES, "/capabilities", "/openapi.json"):
            refused = web.get(page)
            assert refused.status_code == 401 and refused.headers["cache-control"] == "no-store"
            assert SOURCE not in refused.text
        assert web.get("/static/style.css").status_code == 200
        assert web.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert web.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
        asked = web.get("/features?sort=score", headers={"accept": "text/html"})
        assert asked.headers["location"] == "/enter?to=%2Ffeatures%3Fsort%3Dscore"


def test_the_form_lets_a_browser_in(database: Path) -> None:
    with client(database, token=TOKEN) as web:
        form = web.get("/enter?to=/features")
        assert database.name not in form.text
        csrf = re.findall(r'name="csrf" value="([^"]+)"', form.text)[0]
        assert web.post("/enter", data={"token": "wrong", "csrf": csrf}).status_code == 403
        entered = web.post("/enter", data={"token": TOKEN, "to": "/features", "csrf": csrf}, follow_redirects=False)
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
        assert entered.headers["location"] == "/features" and web.get("/features").status_code == 200


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil"])
def test_the_form_leads_nowhere_else(database: Path, target: str) -> None:
    with client(database, token=TOKEN) as web:
        csrf = re.findall(r'name="csrf" value="([^"]+)"', web.get("/enter").text)[0]
        entered = web.post("/enter", data={"token": TOKEN, "to": target, "csrf": csrf}, follow_redirects=False)
        assert entered.headers["location"] == "/"


def test_a_link_with_the_token_loses_it(database: Path) -> None:
    with client(database, token=TOKEN) as web:
        entered = web.get(f"/features?sort=score&token={TOKEN}", follow_redirects=False)
        assert (entered.status_code, entered.headers["location"]) == (303, "/features?sort=score")
        assert web.get("/features").status_code == 200
