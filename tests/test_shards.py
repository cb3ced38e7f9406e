"""Shards harvested apart, in workers or by hand, make the database of one process, bit for bit."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import neurons
from neuronaut.data.harvest.shards import Part, Shard, collect_shard, read_parts
from neuronaut.data.harvest.state import read_about
from neuronaut.data.splits import assign, find_digest
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject

WORDS = ["self", "return", "the", "import", "and", "class", "of", "in", "if", "not", "for", "while", "error", "value"]
HARVEST = ("harvest", "demo", "mlp.1", "resid_post.2@sae", "--tokens", "5k", "--window", "32")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    texts = ["\n".join(" ".join(rng.choice(WORDS, 12)) for _ in range(12)) for _ in range(40)]
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text("".join(f'{{"text": {line!r}}}\n'.replace("'", '"') for line in texts))
    return file


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("alone") / "one.db"
    run(*HARVEST, "--corpus", str(corpus), "-d", str(database))
    return database


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.output


def content(database: Path) -> dict[str, list[str]]:
    """Every table's rows without the times of writing."""
    with closing(sqlite3.connect(database)) as file:
        named = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%fts%'"
        tables = [name for (name,) in file.execute(named)]
        return {table: _rows(file, table) for table in tables}


def _rows(file: sqlite3.Connection, table: str) -> list[str]:
    columns = [row[1] for row in file.execute(f"PRAGMA table_info([{table}])")]
    chosen = ", ".join(f"[{name}]" for name in columns if name not in ("created", "applied_at"))
    return sorted(map(repr, file.execute(f"SELECT {chosen} FROM [{table}]")))


def assert_equal(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> None:
    assert ours.keys() == theirs.keys()
    assert {table: set(ours[table]) ^ set(theirs[table]) for table in ours if ours[table] != theirs[table]} == {}


def test_shards_by_hand_make_the_database_of_one_process(alone: Path, corpus: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / f"part{number}.npz") for number in (1, 2, 3)]
    for number, file in enumerate(files, 1):
        assert f"shard {number}/3" in run(*HARVEST, "--corpus", str(corpus), "--shard", f"{number}/3", "-o", file)
    theirs = content(alone)
    database = str(tmp_path / "three.db")
    missing = run("db", "absorb", files[2], files[0], "-d", database, code=1)
    assert "of 3 shards 2 are missing" in missing
    (tmp_path / "elsewhere").mkdir()
    moved = corpus.rename(tmp_path / "elsewhere" / corpus.name)
    try:
        absorbed = ("db", "absorb", files[2], files[0], files[1], "-d", database)
        run(*absorbed, code=1)
        run(*absorbed, "--corpus", str(moved))
    finally:
        moved.rename(corpus)
    assert any(len(rows) > 100 for rows in theirs.values())
    assert_equal(content(tmp_path / "three.db"), theirs)


def test_workers_make_the_database_of_one_process(alone: Path, corpus: Path, tmp_path: Path) -> None:
    database = tmp_path / "two.db"
    run(*HARVEST, "--corpus", str(corpus), "-j", "2", "-d", str(database))
    assert_equal(content(database), content(alone))
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == []


def test_ray_workers_make_the_database_of_one_process(alone: Path, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    database = tmp_path / "ray.db"
    run(*HARVEST, "--corpus", str(corpus), "-j", "2", "--on", "ray", "-d", str(database))
    assert_equal(content(database), content(alone))


def harvested(file: Path, shard: Shard, *, sites: tuple[str, ...] = ("mlp.1",), tokens: int | None = None) -> Part:
    subject, rng = Subject.load("demo"), np.random.default_rng(1)
    text = Corpus.of("words", [" ".join(rng.choice(WORDS, 14)) for _ in range(60)])
    own = assign(text)
    return collect_shard(file, shard, subject, neurons(subject, sites), text, splits=own, window=4, tokens=tokens)


def test_a_shard_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped after its first checkpoint; what it has then is said to be no whole shard."""
    from neuronaut.data.harvest import harvest as module

    whole = harvested(tmp_path / "whole.npz", Shard(1, 2))
    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", -1.0)
    scan, batches = module.scan_batch, iter(range(100))

    def stop_later(*arguments: Any) -> None:
        if next(batches) == 1:
            raise KeyboardInterrupt
        scan(*arguments)

    monkeypatch.setattr(module, "scan_batch", stop_later)
    file = tmp_path / "part.npz"
    with pytest.raises(KeyboardInterrupt):
        harvested(file, Shard(1, 2))
    part = Part.read(file)
    assert not part.whole and 0 < part.tokens < whole.tokens
    with pytest.raises(NeuronautError, match="give its harvest again, it goes on"):
        read_parts([file, tmp_path / "whole.npz"])
    monkeypatch.setattr(module, "scan_batch", scan)
    assert harvested(file, Shard(1, 2))._replace(path=whole.path) == whole
    with np.load(file) as ours, np.load(whole.path) as theirs:
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs.files if name != "batches")


def test_what_is_no_harvest_in_shards_is_refused(tmp_path: Path) -> None:
    one, two = (harvested(tmp_path / f"{n}.npz", Shard(n, 2)) for n in (1, 2))
    other = harvested(tmp_path / "other.npz", Shard(2, 2), sites=("mlp.2",))
    assert [part.shard for part in read_parts([two.path, one.path])] == [Shard(1, 2), Shard(2, 2)]
    for files, fault in (
        ([], "no shard is named"),
        ([one.path, other.path], "are not of one harvest"),
        ([one.path, one.path, two.path], "shard 1/2 is named twice"),
        ([two.path], "of 2 shards 1 are missing"),
        ([tmp_path / "none.npz"], "there is no file"),
    ):
        with pytest.raises(NeuronautError, match=fault):
            read_parts(files)
    with pytest.raises(NeuronautError, match="is of another harvest"):
        harvested(one.path, Shard(2, 2))
    assert read_about(one.path)["shard"] == "1/2"
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(NeuronautError, match="holds no part of a harvest"):
        Part.read(tmp_path / "text.npz")


@pytest.mark.parametrize("text", ["", "3", "0/4", "5/4", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(NeuronautError, match="is no shard; wanted"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--shard", "1/2"), "go together"),
        (("--shard", "1/2", "-o", "x.npz", "-j", "2"), "by one process"),
        (("-j", "2", "--close"), "--close ends a harvest of one process"),
        (("-j", "2", "--corpus", "-"), "stdin cannot be read by several"),
        (("-j", "3", "--devices", "cpu,cpu"), "leave -j out"),
        (("--shard", "1/2", "-o", "x.txt"), "ends in .npz"),
        (("-j", "2", "--on", "slurm"), "--on slurm is not known"),
    ],
)
def test_what_does_not_go_together_is_refused(options: tuple[str, ...], fault: str, tmp_path: Path) -> None:
    corpus = () if "--corpus" in options else ("--corpus", "stdlib")
    result = CliRunner().invoke(main, ("harvest", "demo", "mlp.1", *options, *corpus, "-d", str(tmp_path / "x.db")))
    assert result.exit_code in (1, 2) and fault in result.output
    assert not (tmp_path / "x.db").exists() or "--on" in fault


def test_digests_of_a_corpus_agree() -> None:
    text = Corpus.of("words", ["one two", "three four", "five six"])
    assert find_digest(text) == assign(text, seed=3).digest != find_digest(Corpus.of("words", ["one two"]))
