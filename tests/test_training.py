"""Training dictionaries: planted features found, a stopped run goes on to the same weights, the loss that it keeps."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.activations import with_bos
from neuronaut.data.training import run
from neuronaut.data.training.run import measure_loss, train
from neuronaut.data.training.trainer import KINDS, Kind, Recipe, Trainer
from neuronaut.subject.address import SourceId
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.formats import load_dictionary
from neuronaut.subject.model import Subject

ID = SourceId("m", "resid_post.0", "mine")
WIDTH, PLANTED, ACTIVE = 32, 60, 3
"""Coordinates, features among them (many more), and how many of these a vector has."""
TRUE = normalize(torch.randn(PLANTED, WIDTH, generator=torch.Generator().manual_seed(9)), dim=1)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Sparse sums of planted features, off the origin and of no particular size."""
    on = torch.rand(count, PLANTED, generator=generator) < ACTIVE / PLANTED
    return 7 * ((on * (0.5 + torch.rand(count, PLANTED, generator=generator))) @ TRUE + 0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_planted_features_are_found(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(1)
    recipe = Recipe(kind, width=96, k=ACTIVE, tokens=400 * 256, batch=256, rate=4e-3)
    sample = draw(4096, generator)
    trainer = Trainer(recipe, sample, sample, auto=True)
    while trainer.seen < recipe.tokens:
        batch = draw(recipe.batch, generator)
        trainer.step(batch, batch)
    test = draw(2048, generator)
    dictionary = trainer.dictionary(ID, sample)
    found = (normalize(dictionary.W_dec, dim=1) @ TRUE.T).amax(0) > 0.9
    assert found.double().mean() > 0.75
    codes = dictionary.encode(test)
    assert 0.6 * ACTIVE < (codes > 0).sum(1).double().mean() < 1.4 * ACTIVE
    error, spread = test - dictionary.reconstruct(test), test - test.mean(0)
    assert error.square().sum() / spread.square().sum() < 0.35


def test_the_vectors_own_scale_is_folded_back() -> None:
    """The dictionary of vectors that are a hundred times as long has activations that are."""
    small, large = (Trainer(Recipe("topk", 32, 2, 512, batch=256), x, x, auto=True) for x in (_few(), 100 * _few()))
    for trainer, factor in ((small, 1), (large, 100)):
        trainer.step(factor * _few(), factor * _few())
    one, other = (trainer.dictionary(ID, _few()) for trainer in (small, large))
    torch.testing.assert_close(other.reconstruct(100 * _few()), 100 * one.reconstruct(_few()), rtol=1e-3, atol=1e-2)


def _few() -> Tensor:
    return draw(256, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("changes", [{"k": 0}, {"k": 32}, {"tokens": 100}])
def test_a_recipe_that_trains_nothing_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(NeuronautError, match="wanted k from 1 to less than|less than a batch"):
        Recipe(**{"kind": "topk", "width": 32, "k": 2, "tokens": 2048} | changes).check()


@pytest.fixture(scope="module")
def demo() -> Subject:
    return Subject.load("demo")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    lines = Path(torch.__file__).with_name("functional.py").read_text(encoding="utf-8").splitlines()
    return Corpus.of("lines", ["\n".join(lines[i : i + 20]) for i in range(0, 1200, 20)])


@pytest.fixture(autouse=True)
def measured_on_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few windows tell the same story."""
    monkeypatch.setattr(run, "MEASURED", 512)


RECIPE = Recipe("topk", width=64, k=8, tokens=6000, batch=256)
SITE = SourceId("demo", "resid_post.1", "mine")


class Log:
    """Notes what a run says."""

    def __init__(self) -> None:
        self.read, self.seen = 0, 0

    def reads(self, tokens: int, of: int) -> None:
        assert 0 <= tokens < of
        self.read += 1

    def trains(self, seen: int, unexplained: float, dead: float) -> None:
        assert seen == self.seen + RECIPE.batch and math.isfinite(unexplained) and 0 <= dead <= 1
        self.seen = seen

    def measures(self, tokens: int, of: int) -> None:
        assert 0 <= tokens < of


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_to_the_same_weights(
    demo: Subject, corpus: Corpus, tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several buffers and more than one pass over the corpus, stopped within a buffer and between two."""
    monkeypatch.setattr(run, "BUFFER_TOKENS", 1500)
    recipe = Recipe(kind, width=64, k=8, tokens=6000, batch=256)
    whole = train(demo, SITE, corpus, tmp_path / "whole", recipe)
    assert whole is not None
    for stop_at in (3, 9, 100):
        log = Log()
        log.seen = 256 * {3: 0, 9: 3, 100: 9}[stop_at]
        part = train(
            demo,
            SITE,
            corpus,
            tmp_path / "parts",
            recipe,
            watch=log,
            stop=lambda log=log, n=stop_at: log.seen >= 256 * n,
        )
        assert (part is None) == (stop_at < 100) and log.read
        assert (tmp_path / "parts" / "training.safetensors").exists() == (stop_at < 100)
    assert part is not None
    for name, tensor in whole.dictionary.tensors().items():
        assert torch.equal(part.dictionary.tensors()[name], tensor), name
    assert part.gate == whole.gate and part.loss == whole.loss
    again = load_dictionary(tmp_path / "parts", id=SITE, d_site=128)
    vectors = torch.randn(50, 128, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(again.encode(vectors), whole.dictionary.encode(vectors))
    card = json.loads((tmp_path / "parts" / "card.json").read_text(encoding="utf-8"))
    assert whole.loss is not None
    assert card["recipe"]["kind"] == kind and card["loss"]["recovered"] == whole.loss.recovered


def test_an_interrupt_waits_until_the_batch_is_kept(
    demo: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(demo, SITE, corpus, tmp_path / "whole", RECIPE)
    assert whole is not None
    log, step = Log(), Trainer.step

    def interrupted(trainer: Trainer, inputs: Tensor, targets: Tensor) -> float:
        if log.seen == 2 * RECIPE.batch:
            signal.raise_signal(signal.SIGINT)
        return step(trainer, inputs, targets)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupted)
        train(demo, SITE, corpus, tmp_path / "parts", RECIPE, watch=log)
    assert log.seen == 3 * RECIPE.batch, "and goes on behind it, as the log demands"
    parts = train(demo, SITE, corpus, tmp_path / "parts", RECIPE, watch=log)
    assert parts is not None
    for name, tensor in whole.dictionary.tensors().items():
        assert torch.equal(parts.dictionary.tensors()[name], tensor), name


def test_a_transcoder_stands_for_the_mlp(demo: Subject, corpus: Corpus, tmp_path: Path) -> None:
    """It gives mlp_out of mlp_in, and is read again; the loss is the model's with it in the MLP's place."""
    id = SourceId("demo", "mlp_in.1", "mine")
    recipe = Recipe("batchtopk", width=256, k=16, tokens=30_000, batch=256)
    with pytest.raises(NeuronautError, match="no layout for TopK transcoders"):
        train(demo, id, corpus, tmp_path, replace(recipe, kind="topk"), target="mlp_out.1")
    trained = train(demo, id, corpus, tmp_path, recipe, target="mlp_out.1")
    assert trained is not None and trained.gate.fvu < 0.7
    again = load_dictionary(tmp_path, id=id, d_site=128)
    assert again.writes == ("mlp_out.1",) and again.revision == trained.dictionary.revision
    rows = torch.randint(4, 2000, (5, 20), generator=torch.Generator().manual_seed(0)).numpy()
    tokens = with_bos(demo, rows)
    rebuilt = again.reconstruct(demo.read(tokens, ["mlp_in.1"])["mlp_in.1"].flatten(0, 1)).view(5, 21, 128)
    with demo.editing({"mlp_out.1": lambda x: torch.cat([x[:, :1], rebuilt[:, 1:]], dim=1)}):
        logits = demo.logits(tokens)
    nats = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:])
    assert measure_loss(demo, again, rows).rebuilt == pytest.approx(float(nats), rel=1e-5)


def test_what_a_short_budget_trains_is_kept(
    demo: Subject, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call is stopped while it reads its second buffer, and is further than the one before."""
    monkeypatch.setattr(run, "BUFFER_TOKENS", 1500)
    seen = 0
    for _ in range(2):
        log, asked = Log(), iter(range(100))
        log.seen = seen
        # It asks once for a buffer, and once for each of its five batches.
        assert train(demo, SITE, corpus, tmp_path, RECIPE, watch=log, stop=lambda asked=asked: next(asked) == 6) is None
        assert log.seen == seen + 5 * RECIPE.batch
        seen = log.seen


def test_what_a_transcoder_writes_comes_after_what_it_reads(demo: Subject, corpus: Corpus, tmp_path: Path) -> None:
    recipe = replace(RECIPE, kind="batchtopk")
    for target in ("mlp_in.1", "resid_pre.1"):
        with pytest.raises(NeuronautError, match=f"{target} does not come after mlp_in.1"):
            train(demo, SourceId("demo", "mlp_in.1", "mine"), corpus, tmp_path, recipe, target=target)
    assert not any(tmp_path.iterdir())


def test_what_lies_in_the_folder_is_not_written_over(demo: Subject, corpus: Corpus, tmp_path: Path) -> None:
    log = Log()
    assert train(demo, SITE, corpus, tmp_path, RECIPE, watch=log, stop=lambda: log.seen > 0) is None
    other = Recipe("topk", width=64, k=4, tokens=6000, batch=256)
    with pytest.raises(NeuronautError, match=r"another training \(k 8, now 4\)"):
        train(demo, SITE, corpus, tmp_path, other)
    assert train(demo, SITE, corpus, tmp_path, RECIPE) is not None
    with pytest.raises(NeuronautError, match="holds a dictionary that is trained"):
        train(demo, SITE, corpus, tmp_path, RECIPE)


def test_the_loss_is_the_models_own(demo: Subject, corpus: Corpus, tmp_path: Path) -> None:
    """Against plain PyTorch, with windows of two lengths."""
    trained = train(demo, SITE, corpus, tmp_path, RECIPE)
    assert trained is not None and trained.loss is not None and 0 < trained.loss.recovered < 1
    rows = torch.randint(4, 2000, (11, 20), generator=torch.Generator().manual_seed(0)).numpy()
    rows[3:, 15:] = -1
    loss = measure_loss(demo, trained.dictionary, rows)
    tokens = with_bos(demo, rows)
    nats = cross_entropy(demo.logits(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert loss.clean == pytest.approx(float(nats[torch.from_numpy(rows >= 0)].mean()), rel=1e-5)
    with demo.editing({"resid_post.1": lambda x: torch.cat([x[:, :1], torch.zeros_like(x[:, 1:])], dim=1)}):
        logits = demo.logits(tokens)
    nats = cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    assert loss.zero == pytest.approx(float(nats[torch.from_numpy(rows >= 0)].mean()), rel=1e-5)


def test_the_loss_is_told_as_it_is_measured(demo: Subject, corpus: Corpus, tmp_path: Path) -> None:
    """With a large vocabulary it takes longer than all else."""
    told: list[tuple[int, int]] = []

    class Listening(Log):
        def measures(self, tokens: int, of: int) -> None:
            told.append((tokens, of))

    assert train(demo, SITE, corpus, tmp_path / "own", RECIPE, watch=Listening()) is not None
    assert told[0][0] == 0 and [tokens for tokens, _ in told] == sorted({tokens for tokens, _ in told})
    assert {of for _, of in told} == {told[0][1]} and told[-1][0] < told[0][1]


def test_an_interrupt_before_anything_is_kept_does_not_say_that_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("neuronaut.data.training.run.train", interrupted)
    line = ["train", "demo", SITE.site, "--tokens", "4k", "--out", str(tmp_path / "own")]
    assert "Stopped: nothing of this training is kept yet; go on with" in CliRunner().invoke(main, line).stderr
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "training.safetensors").touch()
    kept = f"what was trained up to the last checkpoint is kept in {tmp_path / 'own'}"
    assert kept in CliRunner().invoke(main, line).stderr


def test_the_command_trains_stops_and_goes_on(corpus: Corpus, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": document.text}) + "\n" for _, document in corpus), encoding="utf-8")
    line = ["train", "demo", "resid_post.1", "--corpus", str(texts), "--width", "1x", "-k", "8", "--tokens", "4k"]
    line += ["--out", str(tmp_path / "own")]
    stopped = CliRunner().invoke(main, [*line, "--budget", "minutes=0.000001"])
    assert stopped.exit_code == 4 and "the same command goes on" in stopped.stderr
    done = CliRunner().invoke(main, [*line, "--json"])
    assert f"harvest demo --sae {tmp_path / 'own'} --corpus {texts}" in done.stderr
    (row,) = json.loads(done.stdout)
    assert row["features"] == 128 and row["l0"] == 8 and 0 < row["fvu"] < 1
    harvested = [
        "harvest",
        "demo",
        "--sae",
        row["path"],
        "--corpus",
        str(texts),
        "--force",
        "-d",
        str(tmp_path / "x.db"),
    ]
    assert "demo:resid_post.1@own: 128 features" in CliRunner().invoke(main, harvested).stdout
    for wrong, why in (("0x", "is no width"), ("x", "is no width")):
        assert why in CliRunner().invoke(main, [*line, "--width", wrong]).stderr
