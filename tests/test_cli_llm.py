"""The command line with a language model: a server over HTTP, a tiny model in process, and mistakes."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from neuronaut.benchmarks.fault_server import FaultServer
from neuronaut.benchmarks.fault_shapes import SHAPES
from neuronaut.cli.main import main
from neuronaut.labelling import inputs, pools
from neuronaut.labelling.pools import start_workers
from neuronaut.subject.loading import DEMO
from tests import planted
from tests.test_label_llm import read_log, read_results, reader, served

FEATURES = "planted:mlp.2:0,3"
WHOLE = inputs.BACKGROUND, inputs.RANDOM_WINDOWS


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A planted model, harvested, and a tiny random language model that reads with its tokenizer."""
    folder = tmp_path_factory.mktemp("cli-llm")
    model, corpus = planted.build(documents=60).save(folder)
    before = inputs.BACKGROUND, inputs.RANDOM_WINDOWS
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = 96, 48
    run("harvest", model, "mlp.2", "--corpus", corpus, "--window", 32, "-d", folder / "p.db")
    yield folder
    inputs.BACKGROUND, inputs.RANDOM_WINDOWS = before


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with served() as server:
        yield server


@pytest.fixture(autouse=True)
def database(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = Path(shutil.copy(folder / "p.db", tmp_path / "p.db"))
    monkeypatch.setenv("NEURONAUT_DB", str(copy))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    return copy


def asked(server: FaultServer, *more: object) -> list[object]:
    return ["-m", "openai:reader", "--base-url", server.url, "--price", "in=1,out=2", *more]


def test_a_job_from_dry_run_to_reproduction(server: FaultServer) -> None:
    job = ["label", FEATURES, "-e", "highlight", "-s", "simulation,detection", *asked(server)]
    (plan,) = rows_of(*job, "--dry-run")
    assert plan["left"] == 2 and not server.seen
    labelled = run(*job)
    assert "2 explained" in labelled.stderr and "calls" in labelled.stderr and "$" in labelled.stderr
    assert plan["calls"] == pytest.approx(len(server.seen), rel=0.2)
    stats = {row["prompt"]: row for row in rows_of("llm", "stats")}
    assert stats.keys() == {"highlight", "simulate_json", "detection"} and stats["highlight"]["ok"] == 2
    assert plan["usd"] == pytest.approx(sum(row["cost"] for row in stats.values()), rel=0.2)
    (call,) = rows_of("llm", "log", "--prompt", "highlight", "--limit", 1)
    assert call["reply"].startswith("[EXPLANATION]:") and call["request"]["messages"][0]["role"] == "system"
    assert "=== reply ===" in run("llm", "log", "--limit", 1, "--full").stdout
    (shown,) = rows_of("show", "planted:mlp.2:3", "--provenance")
    assert shown["explainer"] == "highlight" and shown["scorer"] == "simulation"
    made = rows_of("reproduce", shown["provenance"]["explanation"]["id"])
    assert [one["prompt"] for one in made] == ["highlight"]
    assert made[0]["key"] in {call["key"] for call in rows_of("llm", "log", "--limit", 999)}
    before = len(server.seen)
    again = run("score", FEATURES, "--from-stored")
    assert "2 scored" in again.stderr and len(server.seen) == before
    assert len(rows_of("show", "planted:mlp.2:3")[0]["scores"]) == len(shown["scores"])


def test_prompts_of_ones_own(server: FaultServer, tmp_path: Path) -> None:
    text = run("prompts", "show", "detection").stdout
    mine = tmp_path / "mine.md"
    mine.write_text(text.replace("## system\n", "## system\nYou check a description. Mine.\n", 1))
    run("prompts", "use", "detection", mine)
    assert [row["name"] for row in rows_of("prompts", "list") if row["own"]] == ["detection"]
    run("label", "planted:mlp.2:3", "-e", "highlight", "-s", "detection", "--no-controls", *asked(server))
    (call, *_) = rows_of("llm", "log", "--prompt", "detection")
    assert "Mine." in call["request"]["messages"][0]["content"]
    assert run("prompts", "show", "detection").stdout == mine.read_text()
    run("prompts", "use", "detection", "--ours")
    assert not [row for row in rows_of("prompts", "list") if row["own"]]
    wrong = tmp_path / "wrong.md"
    wrong.write_text("## user\n$explanation $secret\n")
    assert "$secret" in run("prompts", "use", "detection", wrong, code=1).stderr


def test_a_budget_ends_a_run_that_goes_on_later(server: FaultServer) -> None:
    job = ["label", FEATURES, "-e", "highlight", "-s", "detection", *asked(server)]
    stopped = run(*job, "--budget", "calls=3")
    assert "the budget of calls is spent" in stopped.stderr and len(server.seen) == 3
    done = run(*job)
    assert "2 explained" in done.stderr and "answered from the log" in done.stderr
    assert len(rows_of("llm", "log", "--limit", 999)) == len(server.seen), "a call was paid twice"
    assert max(server.good.values()) == 1


def ray_workers(pid: int) -> Iterator[int]:
    """The workers of a process's own Ray cluster, as Linux lists them."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (thread / "children").read_text().split()):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::Performer"):
                yield child
            yield from ray_workers(child)


def test_a_ray_worker_that_is_killed_costs_no_call(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed as the server makes a reply; the budget holds for all workers, and the rest goes on without them.

    The workers' machines have no variable that names the server.
    """
    pytest.importorskip("ray")
    # Workers know nothing of what a test has set.
    monkeypatch.setattr(inputs, "BACKGROUND", WHOLE[0])
    monkeypatch.setattr(inputs, "RANDOM_WINDOWS", WHOLE[1])
    job = ["label", "planted:mlp.2:0-7", "-e", "highlight", "-s", "simulation,detection", "--no-calibration"]
    calm, numbers, killed = Path(shutil.copy(database, tmp_path / "calm.db")), count(1), list[int]()

    def answer(messages: Sequence[dict[str, Any]]) -> str:
        if next(numbers) == 20:
            killed.extend(list(ray_workers(os.getpid()))[:1])
            os.kill(killed[0], signal.SIGKILL)
        return reader(messages)

    with served() as server:
        run(*job, *asked(server), "-d", calm)

    def start_elsewhere(*given: Any, **named: Any) -> Any:
        monkeypatch.delenv("OPENAI_BASE_URL")
        return start_workers(*given, **named)

    with served(answer=answer) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setattr(pools, "start_workers", start_elsewhere)
        stopped = run(*job, "-m", "openai:reader", "-j", 2, "--on", "ray", "--budget", "calls=90")
        assert killed and len(server.seen) == 90 and "the budget of calls is spent" in stopped.stderr
        assert "features are left" in stopped.stderr and len(read_results(database)[0]) > 0
        run(*job, *asked(server))
        good = Counter(one.key for one in server.seen if one.good)
    assert set(good.values()) == {1} and good.keys() == read_log(calm) == read_log(database)
    assert read_results(database) == read_results(calm)


def test_a_model_in_process_simulates_by_the_probabilities_of_its_prompt(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=2048, n_embd=32, n_layer=2, n_head=2)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    run("label", "planted:mlp.2:3", "-e", "rule")
    scored = run(
        "score", "planted:mlp.2:3", "-s", "simulation", "--no-controls", *("-m", f"hf:{tmp_path / 'tiny'}"), code=1
    )
    assert "simulate_all" not in scored.stdout and "is refused as judge for simulation: correlation" in scored.stderr
    admitted = ["--controls", "none", "--no-calibration", "-m", f"hf:{tmp_path / 'tiny'}"]
    scored = run("score", "planted:mlp.2:3", "-s", "simulation", *admitted)
    assert "1 scored" in scored.stderr and "$0.0000" not in scored.stdout
    (shown,) = rows_of("show", "planted:mlp.2:3")
    probed = [s for s in shown["scores"] if s["examples"] == "random" and s["metric"] == "correlation"]
    assert probed and probed[0]["coverage"] == 1.0
    (stats,) = rows_of("llm", "stats")
    assert stats["prompt"] == "simulate_all" and stats["cost"] == 0.0 and stats["ok"] == 10 + 12


def test_the_rule_is_scored_by_name() -> None:
    run("label", "planted:mlp.2:3", "-e", "rule", "-s", "rule")
    run("score", "planted:mlp.2:3", "-s", "simulation:rule")
    (shown,) = rows_of("show", "planted:mlp.2:3")
    scores = {(s["scorer"], s["examples"], s["metric"]): s for s in shown["scores"]}
    assert {s["judge"] for s in scores.values()} == {"code"} and {s["backend"] for s in scores.values()} == {"rule"}
    for (scorer, examples, metric), found in scores.items():
        if scorer == "rule":
            assert found["value"] == scores["simulation", examples, metric]["value"]
    assert ("rule", "counterfactual", "agreement") in scores


MISTAKES = {
    "-e highlight": "asks a language model; name one with -m",
    "-e nothing -m openai:x": "there is none of this name",
    "-e best-of-1:highlight -m openai:x": "wanted 2 to 100 samples",
    "-e highlight -s fuzing -m openai:x": "-s fuzing: there is none of this name",
    "-e highlight -m gpt-4o": "wanted openai:NAME",
    "--no-controls --controls all": "--no-controls is --controls none",
    "-e highlight -m openai:x --base-url http://127.0.0.1:1/v1 --budget usd=1": "needs a price",
    "-e highlight -m openai:x --price in=1": "lacks out=",
    "-e highlight -m openai:x --budget euros=1": "unknown key 'euros'",
    "-e highlight -m openai:x --temperature hot": "is not from 0 to 2",
    "-e highlight -m hf:demo -s detection --batch": "wanted -m openai:NAME",
    "-e highlight -m openai:x -s simulation:probe": "use -m hf:PATH",
    "-e rule --budget usd=1": "limits a language model, and none is named",
    "-e highlight -s detection -m openai:x --base-url http://127.0.0.1:1/v1": "127.0.0.1:1",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(arguments: str) -> None:
    usage = any(part in MISTAKES[arguments] for part in ("none of this name", "--controls none"))
    failed = run("label", "planted:mlp.2:3", *arguments.split(), code=2 if usage else 1)
    (line,) = [line for line in failed.stderr.splitlines() if line.startswith("Error: ")]
    assert MISTAKES[arguments] in line and "Traceback" not in failed.stderr


def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    failed = run("label", "planted:mlp.2:3", "-e", "highlight", "-m", "openai:gpt-4o-mini", code=1)
    assert "OPENAI_API_KEY" in failed.stderr
    (plan,) = rows_of("label", "planted:mlp.2:3", "-e", "highlight", "-m", "openai:gpt-4o-mini", "--dry-run")
    assert plan["usd"] > 0, "a dry run needs no key"


def test_a_batch_ends_although_some_requests_have_no_answer() -> None:
    def refusing(messages: Sequence[dict[str, Any]]) -> str:
        return (
            "" if "find out what one unit" in messages[0]["content"] and "Monday" in str(messages) else reader(messages)
        )

    with served(answer=refusing, polls=0) as server:
        job = ["label", FEATURES, "-e", "highlight", "-s", "detection", *asked(server), "--batch"]
        *_, last = [CliRunner().invoke(main, [str(argument) for argument in job]) for _ in range(4)]
        assert "2 failed" in last.stderr and last.exit_code == 1
        assert "sent" not in last.stderr
        keys = [one.key for one in server.seen if one.path.startswith("/chat")]
        assert len(server.batches) <= 2 and not keys


def test_a_budget_bounds_what_a_batch_asks_and_a_dry_run_knows_its_price(server: FaultServer) -> None:
    job = ["label", "planted:mlp.2:0-9", "-e", "highlight", "-s", "detection", *asked(server)]
    live, batch = rows_of(*job, "--dry-run")[0], rows_of(*job, "--dry-run", "--batch")[0]
    assert batch["usd"] == pytest.approx(live["usd"] / 2)
    sent = run(*job, "--batch", "--budget", "calls=3")
    assert "sent 3 requests" in sent.stderr and "budget of calls" in sent.stderr
    assert not run("label", FEATURES, "--batch", code=2).stdout


def test_a_score_that_a_budget_stops_says_so(server: FaultServer) -> None:
    run("label", FEATURES, "-e", "highlight", "-s", "detection", *asked(server))
    stopped = run("score", FEATURES, "-s", "fuzzing", *asked(server), "--budget", "calls=1")
    assert "budget of calls is spent" in stopped.stderr and "nothing that could" not in stopped.stderr
    assert "leave it out" in run("score", FEATURES, "--budget", "minutes=1", code=2).stderr


def test_a_lone_surrogate_in_a_reply_is_the_same_for_whoever_reads_it() -> None:
    def broken(messages: Sequence[dict[str, Any]]) -> str:
        text = reader(messages)
        return text + " \ud83d" if text.startswith("[EXPLANATION]") else text

    with served(answer=broken) as server:
        run("label", FEATURES, "-e", "highlight", "-s", "detection", *asked(server))
        asked_then = len(server.seen)
        run("label", FEATURES, "-e", "highlight", "-s", "detection", *asked(server), "--redo")
        assert len(server.seen) == asked_then


def test_a_choice_by_log_probabilities_is_made_again(server: FaultServer) -> None:
    run("label", "planted:mlp.2:0", "-e", "best-of-2", "-s", "detection:logprobs", *asked(server))
    assert "the text is the same" in run("reproduce", 1).stderr


def test_a_run_goes_on_whatever_shape_replies_have() -> None:
    with served(faults=0.6, kinds=tuple(SHAPES), seed=3) as server:
        job = ["label", "planted:mlp.2:0-7", "-e", "highlight", "-s", "detection,simulation", *asked(server)]
        job.append("--no-calibration")
        done = run(*job)
        faults = {seen.fault for seen in server.seen}
        # What is left of it may well fail as a whole, which ends with 1.
        CliRunner().invoke(main, [str(argument) for argument in job])
    assert len(faults) > 10
    rows = rows_of("llm", "log", "--limit", 999)
    assert {row["status"] for row in rows} >= {"ok", "failed"} and all(row["input_tokens"] < 10**7 for row in rows)
    assert "estimated, since the server does not count" in done.stderr
    # A reply that could be read is never asked for again.
    assert {server.good[row["key"]] for row in rows if row["status"] == "ok"} == {1}
    assert all(row["status"] != "unlabelled" for row in rows_of("list", "planted:mlp.2") if row["explainer"])


def test_judges_that_cannot_be_read_are_said() -> None:
    with served(faults=1.0, kinds=("brackets-content",)) as server:
        done = run("label", "planted:mlp.2:0-1", "-e", "rule", "-s", "detection", "--no-calibration", *asked(server))
    assert "no score by detection for 2 of 2 features, the last time for: 20 unparsed" in done.stderr


def test_point_values_in_the_place_of_log_probabilities_are_said() -> None:
    with served(faults=1.0, kinds=("logprobs-null",)) as server:
        done = run("label", "planted:mlp.2:3", "-e", "highlight", "-s", "simulation:logprobs", *asked(server))
    assert "point values in 4 scores" in done.stderr and "no log-probabilities for up to 100%" in done.stderr
    (shown,) = rows_of("show", "planted:mlp.2:3")
    doubts = {score["doubt"] for score in shown["scores"]}
    assert "point values: no log-probabilities came for 100% of the tokens" in doubts
    assert "no log-probabilities came" in run("show", "planted:mlp.2:3").stdout
    with served(faults=1.0, kinds=("logprobs-null",)) as server:
        scored = run("score", "planted:mlp.2:3", "-s", "simulation:logprobs", *asked(server))
    assert "no log-probabilities for up to 100%" in scored.stderr
    assert {s["backend"] for s in shown["scores"] if s["scorer"] == "simulation"} == {"logprobs"}


def test_one_call_grades_all_excerpts_with_probabilities(server: FaultServer) -> None:
    job = ["label", "planted:mlp.2:3", "-e", "highlight", "--controls", "none", "--no-calibration", *asked(server)]
    run(*job, "-s", "detection:logprobs,fuzzing:logprobs")
    bodies = [seen.body for seen in server.seen if seen.body.get("logprobs")]
    assert len(bodies) == 2 and len(server.seen) == 3
    (shown,) = rows_of("show", "planted:mlp.2:3")
    scores = {(s["scorer"], s["metric"]): s for s in shown["scores"] if s["scorer"] != "rule"}
    assert scores.keys() == {(s, m) for s in ("detection", "fuzzing") for m in ("auroc", "balanced_accuracy")}
    for found in scores.values():
        assert found["backend"] == "logprobs" and found["coverage"] == 1.0
        assert found["judge"].startswith(f"reader @ {server.url} # ")
    assert scores["detection", "auroc"]["value"] > 0.7


def test_a_server_with_parameters_of_its_own_is_asked_in_its_way() -> None:
    job = ["label", "planted:mlp.2:3", "-e", "highlight", "-s", "detection"]
    with served(refuses={"max_tokens": "code", "temperature": "code"}) as server:
        done = run(*job, *asked(server))
        assert "1 explained" in done.stderr and "at the model's own temperature" in done.stderr
        assert [seen.fault for seen in server.seen].count("refused") <= 2 * 64
    with served(refuses={"max_tokens": "code", "temperature": "code"}) as server:
        fixed = [*job, "--redo", *asked(server), "--token-limit", "max_completion_tokens", "--temperature", "none"]
        run(*fixed)
        assert "refused" not in {seen.fault for seen in server.seen}
