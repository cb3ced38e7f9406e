"""Answers at a prompt's end: their tokens, the way of writing that leads, and pairs that the subject gets wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from neuronaut.causal.answers import Answer, answer_after, read_answers, splits, ways_of
from neuronaut.causal.circuits.tasks import next_token
from neuronaut.cli.main import main
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject

PROMPT = "def __init__(self, name): self.name ="
GAP = f"{PROMPT} "


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject.load("demo")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def test_an_answer_is_read_where_it_stands(subject: Subject) -> None:
    assert subject.decode_tokens(answer_after(subject, PROMPT, " name").ids) == (" name",)
    assert subject.decode_tokens(answer_after(subject, PROMPT, "name").ids) == ("name",)
    assert splits(subject, PROMPT, " name") and not splits(subject, GAP, "name")
    with pytest.raises(NeuronautError, match="has no token"):
        answer_after(subject, PROMPT, "")
    with pytest.raises(NeuronautError, match="'.* name, x' is [2-9] tokens"):
        next_token(subject, PROMPT, " name, x")


def test_both_ways_of_writing_it_are_read(subject: Subject) -> None:
    assert [way.text for way in ways_of(subject, PROMPT, "name")] == ["name", " name"]
    assert [way.text for way in ways_of(subject, PROMPT, " name")] == [" name", "name"]
    given, running = ways_of(subject, GAP, "name")
    assert given.prompt == tuple(subject.encode(GAP)) and subject.decode_tokens(given.ids) == ("name",)
    assert running.prompt == tuple(subject.encode(PROMPT)) and running.text == " name"


def test_log_probabilities_are_the_sums_over_forwards_of_one_token_more(subject: Subject) -> None:
    answers = [answer_after(subject, PROMPT, text) for text in (" name", " name\n        self", "None")]
    answers.append(answer_after(subject, "import", " os"))
    for answer, reading in zip(answers, read_answers(subject, answers), strict=True):
        ids, total = [*subject.bos_prefix, *answer.prompt], 0.0
        for id in answer.ids:
            total += float(subject.logits(torch.tensor([ids]))[0, -1].log_softmax(-1)[id])
            ids.append(id)
        assert reading.log_probability == pytest.approx(total, abs=1e-4)
        assert reading.tokens == subject.decode_tokens(answer.ids) and 0 < reading.probability < 1


def test_an_answer_to_nothing_is_refused(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "convention", replace(subject.convention, bos=False))
    with pytest.raises(NeuronautError, match="follows no token"):
        read_answers(subject, [Answer("a", (5,), ())])


def test_run_says_which_way_leads_and_what_the_tokens_are() -> None:
    silent = run("run", "demo", PROMPT, "--answer", " name")
    assert "the answer is" not in silent.stderr
    for prompt in (PROMPT, GAP):
        said = run("run", "demo", prompt, "--answer", "name").stderr
        assert (
            'the answer is "name"' in said and '" name" is likelier, 0.9' in said and said.count("the answer is") == 1
        )
    (row,) = json.loads(run("run", "demo", PROMPT, "--answer", "name", "--json").stdout)
    assert row["answer"] == "name" and [way["tokens"] for way in row["answers"]] == [["name"], [" name"]]
    assert row["answers"][1]["probability"] == pytest.approx(row["next"][0]["before"], abs=1e-5)


def test_run_gives_the_log_probability_of_several_tokens_and_nothing_takes_the_first_one() -> None:
    text = " name\n        self"
    result = run("run", "demo", PROMPT, "--answer", text, "--json")
    (row,) = json.loads(result.stdout)
    assert row["answer"] == text and len(row["answers"][0]["tokens"]) > 1
    assert f"log-probability {row['answers'][0]['log_probability']:.3f}" in result.stderr
    pair = ["--clean", PROMPT, "--corrupted", PROMPT.replace("name)", "path)"), "--answer", text, "--wrong", " path"]
    for arguments in (
        ["run", "demo", PROMPT, "--answer", text, "--edit", "mlp.1=0"],
        ["run", "demo", PROMPT, "--answer", " name", "--wrong", text],
        ["attribute", "demo", PROMPT, "--answer", text],
        ["lens", "demo", PROMPT, "--target", text],
        ["steer", "demo", "mlp.3:104+=1q", PROMPT, "--answer", text],
        ["patch", "demo", "head.3=patch", *pair],
        ["sweep", "demo", "head=patch", "--over", "layers", *pair],
        ["circuit", "demo", *pair],
    ):
        (line,) = run(*arguments, code=1).stderr.splitlines()
        assert line.startswith("Error: answer ' name\\n") and " tokens (" in line


PAIRS = tuple(
    {"clean": f"{name} = [{inside}", "corrupted": f"{name} = ({inside}", "answer": "]", "wrong": ")"}
    for name in "xyzku"
    for inside in ("1, 2", "a, b")
)


def swapped(row: dict[str, str]) -> dict[str, str]:
    return {**row, "answer": row["wrong"], "wrong": row["answer"]}


def written(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


VERBS = (
    ("patch", "demo", "head.3=patch@last", "--controls", 0),
    ("sweep", "demo", "head=patch@last", "--over", "layers"),
    ("sweep", "demo", "head=patch@last", "--over", "layers", "--predict"),
    ("circuit", "demo"),
)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[-1] if verb[-1] == "--predict" else verb[0])
def test_pairs_that_the_subject_gets_wrong_are_refused_by_all_alike(verb: tuple[object, ...], tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", map(swapped, PAIRS))
    *_, line = run(*verb, "--pairs", file, code=1).stderr.splitlines()  # after what is told of the progress
    assert "demo does not do pairs.jsonl: the answer is above the wrong one in 0% of 10 clean prompts" in line


def test_some_wrong_pairs_are_counted(tmp_path: Path) -> None:
    file = written(tmp_path / "pairs.jsonl", [*PAIRS[:9], swapped(PAIRS[9])])
    for verb in VERBS[:3]:
        said = run(*verb, "--pairs", file).stderr
        assert "demo gets 1 of 10 pairs of pairs.jsonl wrong" in said
    assert "wrong" not in run(*VERBS[0], "--pairs", written(tmp_path / "right.jsonl", PAIRS)).stderr


def test_pairs_whose_prompts_end_in_a_space_are_told(tmp_path: Path) -> None:
    row = {"clean": GAP, "corrupted": f"{PROMPT.replace('name)', 'path)')} ", "answer": "name", "wrong": "path"}
    result = CliRunner().invoke(main, ["patch", "demo", "head.3=patch", "--pairs", str(written(tmp_path / "p", [row]))])
    assert "in 1 of 1 pairs the prompt's last token is another when the answer follows" in result.stderr


def test_integrated_gradients_judge_their_own_completeness() -> None:
    arguments = ["attribute", "demo", "data = list[name, key", "--answer", "]", "--inputs", "integrated"]
    one, many = (json.loads(run(*arguments, "--steps", steps, "--json").stdout)[0] for steps in (1, 64))
    assert one["steps"] == 1 and many["steps"] == 64
    for row in (one, many):
        difference = row["metric"] - row["at_baseline"]
        assert row["completeness_error"] == pytest.approx(sum(row["values"]) - difference, abs=1e-4)
        assert row["missed"] == pytest.approx(abs(row["completeness_error"] / difference))
        assert row["complete"] is (row["missed"] <= 0.05)
    assert not one["complete"] and many["complete"] and many["missed"] < one["missed"]
    said = run(*arguments, "--steps", 1).stderr
    assert "Warning: the values of" in said and "allowed 5%; take more --steps than 1, or occlusion" in said
    assert "Warning" not in run(*arguments, "--steps", 64).stderr
    (line,) = run(*arguments[:-1], "occlusion", "--steps", 3, code=2).stderr.splitlines()[-1:]
    assert "--steps are those of --inputs integrated" in line
