"""The causal verbs of the command line: on the demo subject, and on linear worlds whose answers are known."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from neuronaut.cli.main import main

PROMPT = "def __init__(self, name): self.name ="
PNG = b"\x89PNG\r\n"
PAIR = ["--clean", "x = [1, 2", "--corrupted", "x = (1, 2", "--answer", "]", "--wrong", ")"]
INDUCTION = ["--task", "induction", "--rows", "16"]


def run(*arguments: object, code: int = 0, **options: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], **options)
    assert result.exit_code == code, result.output
    return result


def rows_of(*arguments: object) -> list[dict[str, Any]]:
    return json.loads(run(*arguments, "--json").stdout)


def refused(*arguments: object, code: int = 1) -> str:
    """The one line that says what is wrong."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    *usage, line = result.stderr.splitlines()
    assert line.startswith("Error: ") and (code == 2 or not usage)
    return line


def drawn(picture: Path) -> bool:
    return picture.read_bytes().startswith(PNG) and picture.stat().st_size > 5000


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Run


def test_run_shows_what_comes_next():
    (row,) = rows_of("run", "demo", PROMPT, "--top", 3)
    assert tuple(row) == ("prompt", "tokens", "answer", "next", "measures", "edits", "dictionaries", "controls")
    assert row["answer"] == " name" == row["next"][0]["token"] and row["tokens"][-2:] == ["name", " ="]
    assert row["next"][0]["before"] > 0.9 and row["next"][0]["after"] is None and len(row["next"]) == 3
    assert '" name"' in run("run", "demo", PROMPT).stdout.splitlines()[2]


def test_run_compares_before_and_after(tmp_path):
    picture = tmp_path / "next.png"
    arguments = ["run", "demo", PROMPT, "--edit", "head.3=0", "--controls", 5, "--picture", picture]
    (row,) = rows_of(*arguments)
    first = row["next"][0]
    assert first["token"] == " name" and first["before"] > 0.9 and first["after"] < 0.3
    assert row["measures"]["kl"]["after"] > 1 and row["measures"]["kl"]["before"] == 0
    (done,) = row["edits"]
    assert done["edit"] == "head.3=0" and done["fired"] == 1 and done["places"] == {"0": [*range(1, 13)]}
    (control,) = row["controls"]
    assert control["controls"] == "random directions" and control["n"] == 5 and control["percentile"] == 100
    assert control["effect"] == pytest.approx(row["measures"]["kl"]["after"], abs=1e-5)
    assert drawn(picture)
    table = run(*arguments).stdout
    assert "before  after  change" in table and "1-12" in table and "random directions" in table


def test_run_takes_a_features_full_address_and_its_quantiles():
    edit = "demo:resid_post.2@sae:188=2q"
    (row,) = rows_of("run", "demo", PROMPT, "--edit", edit, "--controls", 3, "--reference-tokens", "2k")
    assert row["edits"][0]["edit"] == "resid_post.2@sae:188=2q"
    assert [one["controls"] for one in row["controls"]] == ["random directions"]
    trust = row["dictionaries"]["resid_post.2@sae"]
    assert 0 < trust["unexplained"] < 1 and trust["rebuilt_loss"] > trust["loss"]


def test_run_patches_from_a_donor():
    arguments = [
        "x = (1, 2",
        "--source-run",
        "x = [1, 2",
        "--edit",
        "resid_post.3=patch@last",
        "--answer",
        "]",
        "--wrong",
        ")",
    ]
    (row,) = rows_of("run", "demo", *arguments)
    (other,) = rows_of("run", "demo", "x = [1, 2", "--top", 3)
    assert {one["token"]: one["after"] for one in row["next"]}[other["next"][0]["token"]] == pytest.approx(
        other["next"][0]["before"], abs=1e-5
    )
    assert row["measures"]["logit_difference"]["before"] < 0 < row["measures"]["logit_difference"]["after"]


def test_several_prompts_have_their_own_rows(tmp_path):
    file = lines(tmp_path / "p.jsonl", {"prompt": "x = [1, 2", "answer": "]"}, {"prompt": PROMPT})
    found = rows_of("run", "demo", "import", "--prompts", file, "--edit", "mlp.3=0@last", "--edit", "head.0:1=0")
    assert [row["prompt"] for row in found] == ["import", "x = [1, 2", PROMPT]
    assert [row["answer"] for row in found][1:] == ["]", " name"] and found[0]["controls"] == []
    assert found[0]["edits"][0]["places"] == {"0": [1], "1": [6], "2": [12]}
    assert run("run", "demo", "import", "--prompts", file, "--nl").stdout.count("\n") == 3


def test_a_record_is_run_again_to_the_bit(tmp_path):
    record = tmp_path / "r.json"
    edit = ["--edit", "resid_post.2@sae:188=0", "--edit", "mlp.1:3=mean@last"]
    run("run", "demo", PROMPT, *edit, "--reference-tokens", "512", "--record", record)
    again = run("run", "demo", "--replay", record)
    assert "the same to the bit" in again.stderr and PROMPT in again.stdout
    assert rows_of("run", "demo", "--replay", record)[0]["metric"] == "kl"
    stored = json.loads(record.read_text())
    stored["after"]["kl"][0] += 1e-7
    record.write_text(json.dumps(stored))
    assert "other results" in refused("run", "demo", "--replay", record)
    stored["provenance"]["revision"] = "0" * 16
    record.write_text(json.dumps(stored))
    assert "revision" in refused("run", "demo", "--replay", record)


# Lens, attribution, heads


def test_the_lens_ends_with_what_the_model_says(tmp_path):
    picture = tmp_path / "lens.png"
    found = rows_of("lens", "demo", PROMPT, "--picture", picture)
    assert tuple(found[0]) == ("prompt", "position", "token", "site", "kl", "target", "rank", "probability", "top")
    assert found[-1]["site"] == "resid_post.3" and abs(found[-1]["kl"]) < 1e-4 < found[0]["kl"]
    assert found[-1]["top"][0]["token"] == " name" == found[0]["target"] and found[-1]["rank"] == 0
    assert drawn(picture)
    few = rows_of("lens", "demo", PROMPT, "x =", "--site", "resid_post", "--positions", "-2,-1", "--target", " None")
    assert len(few) == 2 * 2 * 4 and {row["target"] for row in few} == {" None"}
    assert 'target " name"' in run("lens", "demo", PROMPT).stdout.splitlines()[1]


def test_attribution_adds_up_to_the_logit(tmp_path):
    picture = tmp_path / "parts.png"
    split = ["--split", "head", "--split", "mlp.3"]
    result = run("attribute", "demo", PROMPT, *split, "--wrong", " None", "--picture", picture)
    found = rows_of("attribute", "demo", PROMPT, *split, "--wrong", " None")
    assert tuple(found[0]) == ("component", "value", "ci_low", "ci_high", "n")
    assert len(found) == 16 + 4 + 512 + 1 + 3 + 2 and found[0]["ci_low"] is None
    total = sum(row["value"] for row in found)
    assert f'" name" over " None": {total:.3g}' in result.stderr
    assert "the other" in result.stdout.splitlines()[-1] and drawn(picture)


def test_attribution_over_prompts_has_intervals():
    found = rows_of(
        "attribute", "demo", "x = [1, 2", "y = [a, b", "z = [k, v", "--answer", "]", "--split", "resid_post.2@sae"
    )
    assert all(row["n"] == 3 and row["ci_low"] <= row["value"] + 1e-6 for row in found)
    assert any(row["component"].startswith("resid_post.2@sae:") for row in found)


@pytest.mark.parametrize("method", ["gradient", "integrated", "occlusion"])
def test_inputs_of_a_logit(method, tmp_path):
    picture = tmp_path / "tokens.png"
    (row,) = rows_of("attribute", "demo", PROMPT, "--inputs", method, "--picture", picture)
    assert tuple(row) == (
        "prompt",
        "target",
        "method",
        "tokens",
        "values",
        "metric",
        "unit",
        "at_baseline",
        "completeness_error",
        *(("missed", "complete", "steps") if method == "integrated" else ()),
    )
    assert len(row["values"]) == len(row["tokens"]) == 13 and row["target"] == 'logit of " name"' and drawn(picture)
    assert (row["completeness_error"] is not None) is (method == "integrated")


def test_inputs_of_a_features_activation():
    feature = "demo:mlp.3:104"
    arguments = ["attribute", "demo", "x = (1, 2", "--inputs", "occlusion", "--feature", feature, "--baseline", ","]
    (row,) = rows_of(*arguments)
    assert row["target"] == f"activation of {feature}" and row["unit"] == "activation" and row["metric"] > 0
    assert "measured" in run(*arguments).stdout.splitlines()[-1]
    silent = ["--inputs", "gradient", "--feature", "demo:resid_post.2@sae:188"]
    assert "is silent at the end of" in run("attribute", "demo", PROMPT, *silent).stderr


def test_heads_names_the_induction_heads(tmp_path):
    picture = tmp_path / "heads.png"
    found = rows_of("heads", "demo", "--rows", 4, "--picture", picture)
    assert tuple(found[0]) == ("kind", "head", "score", "ci_low", "ci_high", "n") and len(found) == 4 * 16
    best = {kind: next(row for row in found if row["kind"] == kind) for kind in ("previous", "induction")}
    assert best["previous"]["head"] == "head.2:0" and best["previous"]["score"] > 0.7
    assert best["induction"]["head"] == "head.3:1" and best["induction"]["score"] > 0.9
    assert drawn(picture) and run("heads", "demo", "--kind", "first", "--top", 2).stdout.count("\n") == 3


def test_heads_shows_a_pattern(tmp_path):
    picture = tmp_path / "pattern.png"
    found = rows_of("heads", "demo", PROMPT, "--show", "head.3:1", "--picture", picture)
    assert tuple(found[0]) == ("position", "token", "attention", "keys")
    assert [len(row["attention"]) for row in found] == [*range(1, 14)]
    assert all(sum(row["attention"]) == pytest.approx(1, abs=1e-4) for row in found)
    assert found[-1]["keys"][0]["token"] == " name" and drawn(picture)


# Probes


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    names = "args base code context data encoding event file index item key level line".split()  # noqa: SIM905
    opened = [("[", False), ("(", True)]
    return lines(
        tmp_path / "labelled.jsonl",
        *({"prompt": f"{name} = {bracket}1, 2", "label": label} for name in names for bracket, label in opened),
    )


def test_a_probe_becomes_a_direction_of_an_edit(labelled, tmp_path):
    picture, saved = tmp_path / "probe.png", tmp_path / "round.json"
    arguments = ["probe", "demo", "--prompts", labelled, "--shuffles", 20]
    found = rows_of(*arguments, "--picture", picture)
    assert tuple(found[0]) == (
        "site",
        "positions",
        "method",
        "auroc",
        "ci_low",
        "ci_high",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "base_rate",
        "shuffled",
        "percentile",
        "p",
        "trained",
        "tested",
        "threshold",
        "direction",
    )
    assert drawn(picture) and found[2]["auroc"] == 1 and found[2]["p"] < 0.1
    saved.write_text(run(*arguments, "--site", "resid_post.2", "--json").stdout)
    edit = ["--edit", "resid_post.2:round+=2@last", "--direction", f"round={saved}", "--answer", "]", "--wrong", ")"]
    (row,) = rows_of("run", "demo", "x = [1, 2", *edit, "--controls", 0)
    unused = ["--edit", "mlp.1:1=0", "--direction", f"round={saved}"]
    assert "no edit names round" in refused("run", "demo", "x", *unused)
    several = tmp_path / "several.json"
    several.write_text(json.dumps(found))
    assert "holds no direction" in refused("run", "demo", "x", *edit[:2], "--direction", f"round={several}")
    assert row["measures"]["logit_difference"]["after"] < 0 < row["measures"]["logit_difference"]["before"]
    assert "resid_post.1  1.00" in run(*arguments).stdout


# Patching, sweeps, circuits


def test_patch_in_both_directions():
    found = rows_of("patch", "demo", "head.3:1-3=patch@last", *INDUCTION, "--controls", 4)
    assert tuple(found[0]) == (
        "direction",
        "metric",
        "formula",
        "clean",
        "corrupted",
        "patched",
        "recovered",
        "ci_low",
        "ci_high",
        "reason",
        "n",
        "values",
        "edits",
        "controls",
        "dictionaries",
    )
    assert [(row["direction"], row["metric"]) for row in found[::3]] == [
        ("denoise", "logit_difference"),
        ("noise", "logit_difference"),
    ]
    assert all(row["recovered"] > 0.9 and row["n"] == 16 for row in found)
    assert [one["controls"] for one in found[0]["controls"]] == ["random directions"]
    assert found[0]["controls"][0]["percentile"] == 100


def test_patch_of_one_pair_and_of_a_file(tmp_path):
    one = run("patch", "demo", "resid_post.0=patch@3", *PAIR, "--metric", "kl").stdout
    assert one.startswith("one pair\n") and "denoise" in one and "one example has no interval" in one
    pair = {"clean": "x = [1, 2", "corrupted": "x = (1, 2", "answer": "]", "wrong": ")"}
    file = lines(tmp_path / "pairs.jsonl", pair, {**pair, "clean": "y = [1, 2", "corrupted": "y = (1, 2"})
    (row, other) = rows_of("patch", "demo", "head.3:0=patch", "--pairs", file, "--metric", "logit_difference")
    assert row["n"] == 2 == other["n"]
    assert {one["controls"]: one["n"] for one in row["controls"]} == {"other units": 3, "random directions": 20}


def test_sweep_of_pairs_finds_the_heads(tmp_path):
    picture, output = tmp_path / "heads.png", tmp_path / "heads.json"
    arguments = ["sweep", "demo", "head=patch@last", "--over", "layers,units", *INDUCTION]
    result = run(*arguments, "--json", "--picture", picture, "--output", output)
    found = json.loads(result.stdout)
    assert tuple(found[0]) == ("site", "unit", "edit", "max_change", "effects")
    assert tuple(found[0]["effects"][0]) == (
        "direction",
        "metric",
        "formula",
        "clean",
        "corrupted",
        "patched",
        "ci_low",
        "ci_high",
        "reason",
        "n",
        "value",
    )
    assert {row["edit"] for row in found[:3]} == {f"head.3:{head}=patch@last" for head in (1, 2, 3)}
    assert drawn(picture) and len(json.loads(output.read_text())["cells"]) == 16
    assert "16 cells in" in result.stderr and "(one by one: 34)" in result.stderr
    table = run(*arguments, "--top", 2, "--only", "noise").stdout
    assert table.count("\n") == 3 and "noise, recovered" in table and "denoise" not in table


def test_sweep_over_positions_shows_tokens(tmp_path):
    picture = tmp_path / "positions.png"
    found = rows_of("sweep", "demo", "resid_post=patch", "--over", "layers,positions", *PAIR, "--picture", picture)
    assert {row["position"] for row in found if row["site"] == "resid_post.0"} == {
        "1 'x'",
        "2 ' ='",
        "3 ' ['",
        "4 '1'",
        "5 ','",
        "6 ' 2'",
    }
    (best,) = [row for row in found if row["site"] == "resid_post.0" and abs(row["effects"][0]["value"]) > 0.5]
    assert best["position"] == "3 ' ['" and drawn(picture)


def test_sweep_of_prompts_and_of_listed_edits():
    found = rows_of("sweep", "demo", "head.3:1=0", "head.0:0=0", "--prompt", PROMPT, "--answer", " name")
    assert tuple(found[0]) == ("edit", "max_change", "effects")
    assert [row["edit"] for row in found] == ["head.3:1=0", "head.0:0=0"]
    assert found[0]["effects"][0].keys() == {"direction", "metric", "formula", "value", "ci_low", "ci_high", "n"}
    table = run("sweep", "demo", "resid_post.2@sae:188,577=0", "--over", "units", "--prompt", PROMPT).stdout
    assert "188" in table and "of the variance is not rebuilt" in table


def test_sweep_predicts_by_gradients():
    arguments = ["mlp.3=patch@last", "--over", "units", "--task", "brackets", "--rows", 8, "--predict", "--top", 3]
    result = run("sweep", "demo", *arguments, "--json")
    found = json.loads(result.stdout)
    assert tuple(found[0]) == (
        "unit",
        "edit",
        "predicted",
        "exact",
        "recovered",
        "ci_low",
        "ci_high",
        "direction",
        "metric",
    )
    assert [row["exact"] is not None for row in found] == [True] * 3 + [False] * 509
    # After the last layer's neurons only the final norm is not linear.
    assert all(row["predicted"] == pytest.approx(row["exact"], rel=0.1) for row in found[:3])
    assert "(Spearman)" in result.stderr
    other = rows_of("sweep", "demo", *arguments, "--line", "site:2")
    assert {row["edit"]: row["predicted"] for row in other} != {row["edit"]: row["predicted"] for row in found}


def test_circuit_is_found_and_tested(tmp_path):
    picture, record = tmp_path / "circuit.png", tmp_path / "circuit.json"
    few = [*INDUCTION, "--controls", 5, "--node", "head"]
    (found,) = rows_of("circuit", "demo", *few, "--picture", picture, "--record", record)
    assert {"head.2:0", "head.3:1", "head.3:3"} <= {*found["circuit"]} and len(found["circuit"]) < 16
    assert found["evaluation"]["faithfulness"]["recovered"] > 0.7 and drawn(picture)
    assert "the same to the bit" in run("run", "demo", "--replay", record).stderr
    table = run("circuit", "demo", *few, "--given", "head.3:0-3").stdout
    assert table.startswith("circuit of induction in demo: 4 of 16 nodes")


def test_circuit_ranks_by_gradients_and_tells_how_long_it_takes():
    result = run("circuit", "demo", *INDUCTION, "--node", "head", "--ranked", "--controls", 0)
    assert "backed up by" not in result.stdout and "\ncontrol " not in result.stdout
    assert " s left, runs the pairs" in result.stderr.splitlines()[0]


def test_an_interrupted_circuit_prints_what_is_known(monkeypatch):
    def begin(_work, doing, **_options):
        if doing.startswith("tests"):
            raise KeyboardInterrupt

    monkeypatch.setattr("neuronaut.causal.work.Work.begin", begin)
    result = run("circuit", "demo", *INDUCTION, "--node", "head", code=130)
    assert result.stdout.startswith(
        "PARTIAL: stopped before the end of evaluation, roles\ncircuit of induction in demo"
    )
    assert "Stopped: run it again with: neuronaut circuit demo" in result.stderr


# Steering


def test_steer_from_weak_to_strong(tmp_path):
    picture = tmp_path / "steer.png"
    few = ["--controls", 3, "--reference-tokens", "1k", "--tokens", 4, "--strengths", "0,1,2"]
    arguments = ["steer", "demo", "mlp.3:104+=1q", "x = [1, 2", "y = [a, b", "--answer", "]", "--wrong", ")", *few]
    found = rows_of(*arguments, "--picture", picture)
    assert tuple(found[0]) == (
        "edit",
        "strength",
        "readout",
        "response",
        "effect",
        "ci_low",
        "ci_high",
        "n",
        "percentile",
        "p",
        "kl",
        "loss",
        "max_change",
        "texts",
    )
    assert [row["strength"] for row in found] == [0, 1, 2] and abs(found[0]["effect"]) < 1e-5
    assert found[2]["effect"] < found[1]["effect"] < 0 < found[1]["kl"] < found[2]["kl"]
    assert all(len(row["texts"]) == 2 for row in found) and drawn(picture)
    result = run(*arguments)
    assert "KL elsewhere" in result.stdout and '"y = [a, b"' in result.stdout and "is falling" in result.stderr


def test_steering_that_changes_what_is_written():
    edit = ["steer", "demo", "resid_post.2@sae:188+=1q", PROMPT, "--strengths", "0,4", "--controls", 0, "--tokens", 4]
    found = rows_of(*edit, "--reference-tokens", "1k")
    assert found[0]["texts"][0].startswith(" name") and found[1]["texts"] != found[0]["texts"]
    assert found[1]["readout"] == "kl" and found[1]["percentile"] is None


# Mistakes, in one line each

MISTAKES = {
    ("run", "demo"): "no prompt is given",
    ("run", "demo", "x", "--edit", "nonsense"): "is not SITE",
    ("run", "demo", "x", "--edit", "mlp.9:1=0"): "has no site 'mlp.9'",
    ("run", "demo", "x", "--edit", "mlp.1:1=0*"): "is not SITE",
    ("run", "demo", "x", "--edit", "resid_post.1@mine:1=0"): "give its folder or repository with --sae",
    ("run", "demo", "x", "--edit", "mlp.1:1=0", "--sae", "eye"): "nothing names one",
    ("run", "demo", "x", "--edit", "mlp.1:1=0", "--reference", "stdlib"): "no edit needs --reference",
    ("run", "demo", "x", "--edit", "mlp.1:1=0", "--source-run", "y"): "1 source runs for 1 prompts",
    ("run", "demo", "x", "--edit", "mlp.1=patch"): "0 source runs for 1 prompts",
    ("run", "demo", "x", "--edit", "mlp.1:up+=1"): "no direction 'up'",
    ("run", "demo", "x", "--edit", "mlp.1:up+=1", "--direction", "up=/nowhere.json"): "/nowhere.json cannot be read",
    ("run", "demo", "x", "--edit", "mlp.1:up+=1", "--direction", "up"): "is not NAME=FILE",
    (
        "run",
        "demo",
        "x",
        "--answer",
        "antidisestablishment",
        "--edit",
        "mlp.1=0",
    ): "wanted one, often with a leading space",
    ("run", "demo", "x", "--record", "r.json"): "--record goes with an edit",
    ("run", "demo", "x", "--controls", "5"): "--controls goes with an edit",
    ("run", "demo", "x", "--picture", "p.gif"): "end it in .png, .svg, .pdf",
    ("run", "demo", "x", "--picture", "/nowhere/p.png"): "its folder does not exist",
    ("run", "demo", "x", "y", "--picture", "p.png"): "a picture shows one prompt",
    ("run", "demo", "x", "--edit", "mlp.1:1=0", "--edit", "mlp.1:2=0", "--controls", "3"): "run them one by one",
    ("run", "demo", "--prompts", "/nowhere.jsonl"): "/nowhere.jsonl cannot be read",
    ("run", "demo", "--replay", "/nowhere.json"): "/nowhere.json cannot be read",
    ("run", "no/such/folder", "x"): "there is no folder",
    ("lens", "demo", "x", "--site", "mlp.1"): "none of its sites",
    ("lens", "demo", "x", "--positions", "9"): "position 9 is outside row 0",
    ("lens", "demo", "x", "--top", "9999"): "cannot show the top 9999",
    ("attribute", "demo", "x", "--split", "resid_post.1"): "no units to attribute to",
    ("attribute", "demo", "x", "--inputs", "gradient", "--baseline", ","): "has no baseline",
    ("attribute", "demo", "x", "--inputs", "gradient", "--feature", "gpt2:mlp.1:3"): "wanted one of demo",
    ("heads", "demo", "--kind", "nose"): "no head score of kind nose",
    ("heads", "demo", "--period", "500"): "period 500 cannot be made",
    ("heads", "demo", "x", "--show", "head.3:9"): "is no head of demo",
    ("probe", "demo", "--prompts", "/nowhere.jsonl"): "/nowhere.jsonl cannot be read",
    ("patch", "demo", "head.3:1=patch", "--task", "knitting"): "there are induction",
    ("patch", "demo", "head.3:1=patch", "--pairs", "/nowhere.jsonl"): "/nowhere.jsonl",
    ("patch", "demo", "mlp.3=0", *PAIR[:3], "x = (1, 2, 3", *PAIR[4:]): "not aligned",
    ("patch", "demo", "mlp.3=0", *PAIR, "--metric", "taste"): "there is no metric 'taste'",
    ("sweep", "demo", "head=patch", "--over", "layers,rows", *PAIR): "no axis 'rows'",
    ("sweep", "demo", "head=patch", "--over", "units", *PAIR): "names no layer",
    ("sweep", "demo", "mlp.1:1=0", "mlp.1:2=0", "--over", "units", *PAIR): "over goes with one edit",
    ("sweep", "demo", "mlp.1:1=patch", *PAIR, "--predict", "--line", "8"): "--line 8 is no line",
    ("sweep", "demo", "mlp.1:1=patch", "--prompt", "x"): "takes values from a counterpart",
    ("sweep", "demo", "mlp.1=0", "--over", "positions", "--prompt", "x", "--prompt", "x y"): "rows have",
    ("circuit", "demo", "--task", "induction", "--node", "knee"): "has no site 'knee'",
    ("circuit", "demo", "--task", "induction", "--budget", "hours=1"): "--budget hours=1 is not known",
    ("circuit", "demo", "--task", "induction", "--given", "head.9:1"): "is not among the 20 nodes",
    ("steer", "demo", "mlp.1:1=patch", "x"): "has no strength to vary",
    ("steer", "demo", "mlp.1:1+=1", "x", "--strengths", "a,b"): "are no numbers",
    ("steer", "demo", "mlp.1:1+=1"): "no prompt is given",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line(arguments):
    assert MISTAKES[arguments] in refused(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "demo", "x", "--replay", "r.json"),
        ("patch", "demo", "head.3:1=patch"),
        ("patch", "demo", "head.3:1=patch", *PAIR[:2]),
        ("patch", "demo", "head.3:1=patch", *PAIR, "--task", "induction"),
        ("sweep", "demo", "mlp.1=0", "--prompt", "x", "--task", "induction"),
        ("sweep", "demo", "mlp.1=0", *PAIR, "--line", "site:3"),
        ("attribute", "demo", "x", "--feature", "demo:mlp.1:3"),
        ("attribute", "demo", "x", "--inputs", "gradient", "--split", "head"),
        ("attribute", "demo", "x", "--inputs", "gradient", "--feature", "demo:mlp.1:3", "--answer", "y"),
        ("probe", "demo"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_usage_errors(arguments):
    refused(*arguments, code=2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "p.jsonl:2: prompt, label is missing"),
        ({"prompt": "x", "label": "yes"}, 'p.jsonl:2: label is "yes"'),
        (["x"], "p.jsonl:2: this is no object"),
    ],
)
def test_a_line_that_is_wrong_is_named(row, said, tmp_path):
    file = lines(tmp_path / "p.jsonl", {"prompt": "x", "label": True}, row)
    assert said in refused("probe", "demo", "--prompts", file)
    file.write_text("no json")
    assert "p.jsonl:1: this is no JSON" in refused("probe", "demo", "--prompts", file)
