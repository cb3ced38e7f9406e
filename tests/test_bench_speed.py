"""The benchmarks of speed run at small size, and their arithmetic is right; no figure of time is looked at."""

import json
from pathlib import Path

import pytest

from neuronaut.benchmarks import gpu
from neuronaut.benchmarks.harvest import Duration, Stretch, compare

LIMIT = Duration(1e-3, 2e-3)


def test_a_ratio_is_of_what_is_done_for_each_token_and_once() -> None:
    once = [Stretch(0, Duration(10.0, 10.0), LIMIT), Stretch(0, Duration(5.0, 30.0), LIMIT)]
    each = [Stretch(1000, Duration(cost, 2.2), LIMIT) for cost in (1.1, 1.1, 1.1, 9.0)]
    wall, cpu = (compare([*once, *each], 100_000, clock) for clock in ("wall", "cpu"))
    assert (wall.reading, wall.once) == (1.1, 0.15), "one slow stretch does not move the median"
    assert wall.ratio == pytest.approx(1 / 1.25, abs=1e-3)
    assert wall.low <= wall.ratio <= wall.high
    assert cpu.ratio == pytest.approx(1 / (1.1 + 0.2), abs=1e-3)


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    slower = [Stretch(1000, Duration(1.2 * n, 1.0), Duration(1e-3 * n, 1e-3)) for n in (1, 2, 5)]
    assert compare(slower, 3000, "wall").ratio == pytest.approx(1 / 1.2, abs=1e-3)


def test_the_script_for_accelerators_runs_at_small_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--small", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["model"], row["width"]) for row in found["rows"]] == [
        (model, width) for model in ("gemma-2-2b", "llama-3.1-8b") for width in (64, 128)
    ]
    narrow = [row for row in found["rows"] if row["width"] == 64]
    most = 0 if found["device"] == "cpu" else 1e-2
    assert all(row["difference"] <= most for row in narrow), "a CPU agrees with itself to the last bit"
    assert all(row["labels_per_second"] and row["patches_per_second"] for row in narrow)
    assert capsys.readouterr().out.startswith("| model | latents |")
