"""Processes of benchmarks: what they print and cost, and their last words where they fail."""

import sys

import pytest

from neuronaut.benchmarks.processes import disk_mb, run_command


def test_a_command_says_what_it_printed_and_cost():
    """Peak memory is that of the process, not of this one."""
    run = run_command([sys.executable, "-c", "x = bytearray(200_000_000); print(len(x))"])
    assert run.printed.strip() == "200000000"
    assert 190 < run.peak_mb < 400
    assert run.cpu_seconds > 0


def test_a_command_that_fails_ends_with_its_last_words():
    """A failure is never a figure."""
    with pytest.raises(SystemExit, match=r"ended with 3:\nno such model"):
        run_command([sys.executable, "-c", "import sys; sys.stderr.write('no such model'); sys.exit(3)"])


def test_a_command_runs_with_so_many_threads():
    """The variable that torch and numpy read."""
    run = run_command([sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], threads=2)
    assert run.printed.strip() == "2"


def test_disk_counts_files_of_all_folders(tmp_path):
    """A file alone, and a folder with what lies below."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(bytes(1_500_000))
    (tmp_path / "two").write_bytes(bytes(500_000))
    assert disk_mb(tmp_path) == 2.0
    assert disk_mb(tmp_path / "two") == 0.5
