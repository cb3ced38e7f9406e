"""The explorer's computing side: numbers of pages and commands are the same, sessions are followed as they go.

A real server, its model process and its session process run on a planted model.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.cli.main import main
from neuronaut.data.store.journal_values import Charge
from neuronaut.data.store.store import Store
from neuronaut.web.app import create_app
from neuronaut.web.jobs import Job, JobQueue
from neuronaut.web.sessions import look_at
from neuronaut.web.settings import LanguageModel, Settings
from neuronaut.web.worker import ModelProcess
from tests import journals, planted
from tests.test_jobs import open_arithmetic

RIVER = "planted:mlp.2:3"
TEXT = "the dry river and the river"
RIVER_RULE = {"any": [{"when": [{"token": [" river", "river"]}], "value": 1.0}]}
PATIENCE = 120.0
"""Seconds until a test gives up."""


class Served(NamedTuple):
    database: str
    client: httpx2.Client
    pid: int

    def rows(self, *arguments: object) -> list[dict[str, Any]]:
        return rows_of(*arguments, "-d", self.database)

    def act(self, path: str, **form: str) -> httpx2.Response:
        return self.client.post(path, data={"csrf": self.csrf, **form})

    def compute(self, operation: str, **arguments: Any) -> httpx2.Response:
        return self.client.post(f"/compute/{operation}", json=arguments, headers={"X-CSRF-Token": self.csrf})

    @property
    def csrf(self) -> str:
        return self.client.get("/capabilities").json()["csrf"]

    def session(self, id: str) -> dict[str, Any]:
        return self.client.get(f"/investigations/{id}?format=json").json()


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code in (0, 3), result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("live")
    model, corpus = planted.build(documents=60).save(folder)
    database = str(folder / "planted.db")
    rows_of("harvest", model, "mlp.2", "--corpus", corpus, "--window", 32, "-d", database, "--device", "cpu")
    rows_of("label", "planted:mlp.2:2,3", "-d", database)
    return database


@pytest.fixture(scope="module")
def served(database: str) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "neuronaut", "serve", "-d", database, "--port", str(port)]
    with (
        subprocess.Popen([*command, "--allow-compute", "--allow-write"]) as server,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client,
    ):
        until(lambda: _answers(client))
        yield Served(database, client, server.pid)
        server.send_signal(signal.SIGINT)
        assert server.wait(PATIENCE) == 0


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/capabilities").status_code == 200
    except httpx2.TransportError:
        return False


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(client: TestClient, answer: httpx2.Response) -> str:
    """Path of the session that a form has started, once it has begun."""
    assert answer.status_code == 303, answer.json()
    location = answer.headers["location"]
    if "follow=" not in location:
        return location
    address = location.partition("#")[0]
    links: list[str] = []

    def look() -> bool:
        links[:] = re.findall(r'href="([^"]*)" data-begun', client.get(f"{address}&part=started").text)
        return bool(links)

    until(look)
    return links[0]


def events(response: httpx2.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


# The model


def test_numbers_are_those_of_the_commands_to_the_digit(served: Served) -> None:
    tried = served.compute("try", feature=RIVER, texts=[TEXT, "a cat"]).json()
    assert tried["rows"] == served.rows("try", RIVER, TEXT, "a cat")
    page = served.client.get("/find", params={"text": TEXT, "format": "json"})
    found = served.rows("find", "planted", TEXT, "-n", 10)
    assert page.json()["rows"] == found and found
    apart = served.client.get("/find", params={"text": TEXT, "against": "a cat", "format": "json"}).json()
    assert apart["rows"] == served.rows("find", "planted", TEXT, "--against", "a cat", "-n", 10)


def test_pictures_of_the_causal_page_are_drawn_from_the_commands_rows(served: Served) -> None:
    def shown(view: str, **given: str) -> list[dict[str, Any]]:
        query = {"view": view, "prompt": TEXT, "format": "json", **given}
        return served.client.get("/causal", params=query).json()["rows"]

    model = [Path(served.database).with_name("planted"), TEXT]
    assert shown("lens") == rows_of("lens", *model, "--positions", "all", "--top", 5)
    assert shown("attribute", split="mlp.2") == rows_of("attribute", *model, "--split", "mlp.2")[:30]
    assert shown("inputs") == rows_of("attribute", *model, "--inputs", "integrated")
    assert shown("attention", head="head.0:0") == rows_of("heads", *model, "--show", "head.0:0")
    page = served.client.get("/causal", params={"view": "lens", "prompt": TEXT})
    assert page.status_code == 200 and TEXT in page.text


def test_steering_shows_what_is_written_before_and_after(served: Served) -> None:
    given = {"edit": f"{RIVER}+=1q", "prompts": [TEXT], "strengths": [0, 4], "tokens": 3, "controls": 0}
    before, after = served.compute("steer", **given).json()["rows"]
    assert (before["strength"], after["strength"]) == (0, 4) and before["kl"] < 1e-6 < after["kl"]
    assert len(before["texts"]) == len(after["texts"]) == 1
    page = served.client.get(f"/feature/{RIVER}").text
    assert f'data-steer="{RIVER}"' in page and f'data-try="{RIVER}"' in page


def test_the_server_itself_loads_no_torch(served: Served) -> None:
    for path in ("/", "/features", f"/feature/{RIVER}", "/find", "/investigations"):
        assert served.client.get(path).status_code == 200
    assert "libtorch" not in Path(f"/proc/{served.pid}/maps").read_text()


def test_progress_comes_as_events_and_whoever_leaves_cancels(served: Served) -> None:
    headers = {"X-CSRF-Token": served.csrf, "Accept": "text/event-stream"}
    given = {"feature": RIVER, "texts": [TEXT]}
    with served.client.stream("POST", "/compute/try", json=given, headers=headers) as response:
        states = [state for _, state in events(response)]
    assert states[-1]["state"] == "done" and states[-1]["result"]["rows"][0]["text"] == TEXT
    _kill_children(served.pid)
    # The process is started anew, which takes long enough to leave before it has answered.
    with served.client.stream("POST", "/compute/try", json=given, headers=headers) as response:
        job = next(state for _, state in events(response))
    until(lambda: served.client.get(f"/jobs/{job['id']}").json()["state"] == "cancelled")
    assert served.client.get(f"/jobs/{job['id']}").json()["error"] == "the client left"
    assert served.compute("try", **given).status_code == 200


def _kill_children(pid: int) -> None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize(
    ("operation", "given", "code", "message"),
    [
        ("try", {"feature": RIVER}, 400, "texts is missing"),
        ("try", {"feature": RIVER, "texts": ["x" * 5000]}, 400, "at most 4000"),
        ("try", {"feature": "planted:mlp.9:1", "texts": ["a"]}, 400, "planted:mlp.9 is not in the database"),
        ("show", {"feature": RIVER}, 404, "no operation 'show' of the model"),
        ("label", {}, 404, "no operation 'label' of the model"),
    ],
)
def test_a_wrong_request_is_told_in_a_line(
    served: Served, operation: str, given: dict[str, Any], code: int, message: str
) -> None:
    answer = served.compute(operation, **given)
    assert answer.status_code == code and message in answer.json()["error"]


def test_many_clients_read_while_labels_are_written(served: Served) -> None:
    command = [sys.executable, "-m", "neuronaut", "label", "planted:mlp.2:0-9", "-d", served.database]
    paths = ("/", "/features", f"/feature/{RIVER}", "/investigations", "/find?text=river&format=json")
    with subprocess.Popen(command) as writing, ThreadPoolExecutor(32) as clients:
        codes = list(clients.map(lambda number: served.client.get(paths[number % len(paths)]).status_code, range(96)))
        assert writing.wait(PATIENCE) == 0
    assert set(codes) == {200}


# Sessions


def test_a_session_of_the_command_line_is_followed(served: Served) -> None:
    command = [sys.executable, "-m", "neuronaut", "investigate", RIVER, "-d", served.database]
    with subprocess.Popen([*command, "--budget", "experiments=8", "--json"], stdout=subprocess.PIPE) as running:
        until(lambda: bool(_sessions(served)))
        (id,) = _sessions(served)
        with served.client.stream("GET", f"/investigations/{id}/events") as response:
            told = list(events(response))
        assert running.stdout is not None
        (report,) = json.loads(running.stdout.read())
    assert told[-1] == ("end", {"standing": report["status"]})
    with Store(served.database) as store:
        journal = store.journal.events(id)
    lines = [event for name, event in told if name == "journal"]
    assert [event["seq"] for event in lines] == [event["seq"] for event in journal]
    assert [event["kind"] for event in lines] == [event["kind"] for event in journal]
    assert served.session(id) == report | {"standing": report["status"]}
    assert served.rows("sessions", "show", id) == [report]
    with served.client.stream("GET", f"/investigations/{id}/events", headers={"Last-Event-ID": "3"}) as response:
        assert next(event["seq"] for name, event in events(response) if name == "journal") == 4


def _sessions(served: Served) -> list[str]:
    return [row["id"] for row in served.client.get("/investigations?format=json").json()["investigations"]]


def test_a_session_is_started_stopped_resumed_and_forked(served: Served) -> None:
    path = begun(served.client, served.act("/investigations", target="planted:mlp.2:2", experiments="12"))
    id = path.rpartition("/")[2]
    assert served.session(id)["target"] == "planted:mlp.2:2"
    assert served.act(f"{path}/stop").status_code == 303
    until(lambda: served.session(id)["standing"] != "running")
    assert served.session(id)["standing"] == "interrupted"
    assert "it is interrupted" in served.act(f"{path}/stop?format=json").json()["error"]
    assert served.act(f"{path}/resume").headers["location"] == path
    until(lambda: served.session(id)["standing"] not in ("running", "interrupted"))
    assert served.session(id)["status"] in ("supported", "open")
    refused = served.act(f"{path}/resume?format=json")
    assert refused.status_code == 409 and "nothing to resume" in refused.json()["error"]
    forked = served.act(f"{path}/fork", step="1", seed="3").headers["location"].rpartition("/")[2]
    assert served.session(forked)["parent"] == id and served.session(forked)["standing"] == "interrupted"
    both = served.client.get("/investigations/beside", params={"id": [id, forked], "format": "json"}).json()
    assert [report["id"] for report in both] == [id, forked]
    assert served.client.get("/investigations/beside", params={"id": [id, forked]}).status_code == 200


def test_a_session_that_is_being_opened_says_so_and_can_be_cancelled(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuronaut.web.sessions.BEGIN_SECONDS", 0.0)
    first = served.act("/investigations", target="planted:mlp.2:1", experiments="500")
    second = served.act("/investigations", target="planted:mlp.2:3", experiments="1")
    job = second.headers["location"].partition("follow=")[2].partition("#")[0]
    waits = served.client.get("/investigations?part=started").text
    assert "planted:mlp.2:3" in waits and "waits behind" in waits and f'data-cancels="{job}"' in waits
    served.client.delete(f"/jobs/{job}", headers={"X-CSRF-Token": served.csrf})
    assert "planted:mlp.2:3" not in served.client.get("/investigations?part=started").text

    path = begun(served.client, first)
    assert served.act(f"{path}/stop").status_code == 303
    until(lambda: served.session(path.rpartition("/")[2])["standing"] == "interrupted")
    told: list[str] = []
    assert served.act(f"{path}/resume").headers["location"] == path

    def resumed() -> bool:
        told.append(served.client.get(f"{path}?part=started").text)
        return served.session(path.rpartition("/")[2])["standing"] == "running"

    until(resumed)
    assert any("is being started: " in text for text in told), told
    assert served.act(f"{path}/stop").status_code == 303
    until(lambda: served.session(path.rpartition("/")[2])["standing"] == "interrupted")

    short = {"target": "planted:mlp.2:7", "experiments": "1"}
    path = begun(served.client, served.act("/investigations", **short))
    until(lambda: served.session(path.rpartition("/")[2])["standing"] != "running")
    # What was investigated before is not run again, and its page is found by the target.
    again = served.act("/investigations", **short).headers["location"].partition("#")[0]
    until(lambda: "It has ended: " in served.client.get(f"{again}&part=started").text)
    assert 'href="/investigations?target=planted%3Amlp.2%3A7"' in served.client.get(f"{again}&part=started").text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"target": "planted:mlp.9:1"}, "not in the database"),
        ({"target": RIVER, "policy": "llm"}, "no policy 'llm' here"),
        ({"target": RIVER, "experiments": "many"}, "no number from 0 to 1000"),
    ],
)
def test_a_wrong_start_is_told_in_a_line(served: Served, form: dict[str, str], message: str) -> None:
    answer = served.act("/investigations?format=json", **form)
    assert answer.status_code == 400 and message in answer.json()["error"]


@pytest.mark.parametrize(
    ("arguments", "progress", "seen"),
    [
        (["demo:mlp.1:2"], "", (None, False, "")),
        (["demo:mlp.1:2"], "opening demo", (None, False, "opening demo")),
        (["demo:mlp.1:2"], "{'no': <json>}", (None, False, "{'no': <json>}")),
        (["demo:mlp.1:2"], '{"investigation": "3fa92b"}', ("3fa92b", True, "")),
        (["--resume", "3fa92b"], "opening demo", ("3fa92b", False, "opening demo")),
    ],
)
def test_what_a_session_has_told_is_read(arguments: list[str], progress: str, seen: tuple[object, ...]) -> None:
    assert look_at(Job("investigate", {"arguments": arguments}, 1, progress=progress)) == seen


# Without a model


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[tuple[Store, TestClient]]:
    """A store with sessions, and a client of a server that may do nothing but read."""
    path = str(tmp_path / "sessions.db")
    with Store(path) as store, TestClient(create_app(Settings(path)), base_url="http://localhost") as client:
        yield store, client


def test_what_is_not_allowed_says_how_to_start_the_server(quiet: tuple[Store, TestClient]) -> None:
    store, client = quiet
    id = journals.fill(store.journal, until="observed")
    headers = {"X-CSRF-Token": client.get("/capabilities").json()["csrf"]}
    for path in ("/compute/try", "/investigations", f"/investigations/{id}/stop", f"/investigations/{id}/fork"):
        answer = client.post(f"{path}?format=json", headers=headers, json={})
        assert answer.status_code == 403 and "--allow-compute" in answer.json()["error"], path
    for path in ("/find", "/investigations"):
        assert "--allow-compute" in client.get(path).text
    assert f"neuronaut investigate --resume {id}" in client.get(f"/investigations/{id}").text
    assert client.post("/investigations", data={"target": RIVER}).status_code == 403


def test_one_request_more_than_may_wait_gets_429(database: str) -> None:
    app = create_app(Settings(database, allow_compute=True))
    with TestClient(app, base_url="http://localhost") as client:
        full = JobQueue(ModelProcess(open_arithmetic), most_waiting=0)
        app.state.compute.requests.close()
        app.state.compute.requests = full
        headers = {"X-CSRF-Token": client.get("/capabilities").json()["csrf"]}
        answer = client.post("/compute/try", json={"feature": RIVER, "texts": ["a"]}, headers=headers)
    assert answer.status_code == 429 and "try again in a moment" in answer.json()["error"]
    assert answer.headers["retry-after"]


def test_text_that_is_out_to_break_a_page_is_only_ever_text(quiet: tuple[Store, TestClient]) -> None:
    store, client = quiet
    id, other = journals.fill(store.journal), journals.fill(store.journal, seed=1)
    paths = ("/investigations", f"/investigations/{id}", f"/investigations/{id}?part=report")
    for path in (*paths, f"/investigations/beside?id={id}&id={other}", f"/investigations/{id}/prompts"):
        page = client.get(path)
        assert page.status_code == 200
        assert "<script>alert" not in page.text and " style=" not in page.text, path
    assert "&lt;script&gt;alert" in client.get(f"/investigations/{id}").text


def test_what_judges_cost_stands_beside_the_prompts(quiet: tuple[Store, TestClient]) -> None:
    store, client = quiet
    id = journals.fill(store.journal)
    before = client.get(f"/investigations/{id}/prompts?format=json").json()["judged"]
    store.journal.charge(id, "judging", "holdout", Charge(calls=5, tokens=1200, usd=0.25))
    after = client.get(f"/investigations/{id}/prompts?format=json").json()["judged"]
    more = {kind: after[kind] - before[kind] for kind in after}
    assert more == pytest.approx({"calls": 5, "tokens": 1200, "usd": 0.25})
    page = client.get(f"/investigations/{id}/prompts").text
    assert f"took {after['calls']} calls with {after['tokens']:,} tokens" in page
    assert client.get(f"/investigations/{id}?format=json").json()["spent"]["calls"] >= after["calls"]


def test_which_ended_open_for_the_same_reason(quiet: tuple[Store, TestClient]) -> None:
    store, client = quiet
    ended = {}
    for seed, (status, question) in enumerate([("open", "context"), ("open", "evidence"), ("open", "context")]):
        id = journals.fill(store.journal, seed=seed, target=f"demo:mlp.2:{seed}", until="observed")
        store.journal.event(id, "concluded", {"question": question}, key="concluded")
        store.journal.finish(id, status, reason=f"the {question} of it")
        ended[id] = question
    ids = list(ended)

    def found(**query: str) -> set[str]:
        rows = client.get("/investigations", params={**query, "format": "json"}).json()["investigations"]
        return {row["id"] for row in rows}

    assert found(status="open", question="context") == {ids[0], ids[2]}
    assert found(q="CONTEXT of") == {ids[0], ids[2]}
    assert found(q="unless dry") == set(ids)
    assert found(q="unless nothing-like-this") == set()
    assert found(target="demo:mlp.2:1") == {ids[1]}
    ends = client.get("/investigations?format=json").json()["ends"]
    assert ends == [
        {"status": "open", "question": "context", "count": 2},
        {"status": "open", "question": "evidence", "count": 1},
    ]


# Sessions that ask a language model


@pytest.fixture
def asking(database: str) -> Iterator[tuple[TestClient, FaultServer]]:
    """A client of a server whose sessions may ask a planted language model, which proposes what is planted."""

    def decide(_: object) -> list[tuple[str, dict[str, Any]]]:
        return [
            ("propose", {"hypotheses": [{"text": "fires on ` river`", "rule": RIVER_RULE}]}),
            ("submit", {"answer": "H1"}),
        ]

    with FaultServer(calls=decide) as server:
        options = ("-m", "openai:planted", "--base-url", server.url)
        language = LanguageModel("openai:planted", options, {"calls": 30, "tokens": 400_000})
        app = create_app(Settings(database, allow_compute=True, allow_write=True, language=language))
        with TestClient(app, base_url="http://localhost", follow_redirects=False) as client:
            yield client, server


def test_a_session_asks_the_servers_language_model_within_its_budget(
    asking: tuple[TestClient, FaultServer], monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    client, server = asking
    monkeypatch.setenv("OPENAI_API_KEY", "planted")
    csrf = client.get("/capabilities").json()
    assert csrf["language_model"] == "openai:planted"
    page = client.get("/investigations").text
    assert "calls=30,tokens=400000" in page.replace("tokens=400000,calls=30", "calls=30,tokens=400000")

    def start(**form: str) -> httpx2.Response:
        given = {"csrf": csrf["csrf"], "target": "planted:mlp.2:6", "policy": "llm", "experiments": "4", **form}
        return client.post("/investigations?format=json", data=given)

    refused = start(budget="calls=31")
    assert refused.status_code == 400 and "calls=31, left 30" in refused.json()["error"]
    assert "positive" in start(budget="calls=0").json()["error"]
    id = begun(client, start(budget="calls=12")).rpartition("/")[2]

    def report() -> dict[str, Any]:
        return client.get(f"/investigations/{id}?format=json").json()

    until(lambda: report()["standing"] not in ("running", "interrupted"))
    assert report()["policy"] == "llm" and report()["limits"]["calls"] == 12
    assert report()["limits"]["tokens"] == 400_000
    assert 0 < report()["spent"]["calls"] <= 12 and server.seen
    left = client.get("/investigations?format=json").json()["left"]
    with Store(database) as store:
        used = sum(row["calls"] for row in store.calls.statistics())
    assert f"calls={30 - used}" in left and used >= report()["spent"]["calls"]
