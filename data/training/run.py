"""A training run: reads a site's vectors as the model computes them, trains on them, stops and goes on.

Windows are drawn from the whole corpus, those of holdout documents left out, and shuffled. They are read buffer by
buffer, and each buffer's vectors are shuffled again; a corpus that one buffer holds is read once, however often it
is gone through. Special tokens and massive positions are no training data (data/harvest/massive.py).

All of it follows from the seed, so a run that was killed goes on from its last checkpoint to the same weights. The
checkpoint is a safetensors file of weights, Adam's moments and the place in the data, put in place by one rename. On
holdout documents the finished dictionary is measured: unexplained variance, L0, dead features, and how much of
the model's loss it keeps.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.errors import NeuronautError
from ...subject.formats import save_dictionary
from ...subject.gate import Gate, check
from ...subject.model import Subject
from ..corpus import Corpus
from ..harvest.activations import ROWS, mark_counted, read_together, with_bos
from ..harvest.massive import norm_limits, sample_windows
from ..harvest.windows import check_window, windows
from ..records import SPLITS
from ..splits import assign
from .trainer import Recipe, Trainer

BUFFER_TOKENS, BUFFER_NUMBERS = 1 << 18, 1 << 28
"""Vectors in a buffer, and numbers in all of them, at most: a gigabyte."""
CHECKPOINT_SECONDS = 30.0
MEASURED = 8192
"""Holdout tokens that the dictionary is measured on."""
_LOSS_ROWS = 8
"""Windows whose logits are held at once."""
CHECKPOINT, CARD = "training.safetensors", "card.json"


class Loss(NamedTuple):
    """The model's mean cross-entropy on holdout text, nats a token."""

    clean: float
    rebuilt: float
    """With the vectors, of the site that it writes, as the dictionary rebuilds them."""
    zero: float
    """With zeros in their place."""

    @property
    def recovered(self) -> float:
        """The share of what the site is worth that the dictionary keeps: 1 as the model itself, 0 as zeros."""
        return (self.zero - self.rebuilt) / (self.zero - self.clean)


class Trained(NamedTuple):
    """What came of a run."""

    dictionary: Dictionary
    gate: Gate
    loss: Loss


class _Stopped(Exception):
    """The run was told to stop; what it had to keep is kept."""


class Watch(Protocol):
    """Is told how far a run is."""

    def reads(self, tokens: int, of: int) -> None:
        """So many tokens of a buffer were read."""

    def trains(self, seen: int, unexplained: float, dead: float) -> None:
        """So many vectors were trained on; the last batch's unexplained variance, and the share of dead features."""


class _Silent:
    """A watch that does nothing."""

    def reads(self, tokens: int, of: int) -> None: ...

    def trains(self, seen: int, unexplained: float, dead: float) -> None: ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the data a run is."""

    round: int = 0
    """Buffers that are done."""
    batch: int = 0
    """Batches of the present one that are done."""


def train(
    subject: Subject,
    id: SourceId,
    corpus: Corpus,
    folder: Path,
    recipe: Recipe,
    *,
    target: str | None = None,
    window: int = 64,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained | None:
    """Train the dictionary `id` on its site's vectors, and write it to `folder` as SAELens does, with a card.

    With a `target`, another site, it is a transcoder: it learns to give that one's vectors.

    The same call again goes on where the last one was stopped; None where `stop` says so before the end. Raises
    NeuronautError where another run's checkpoint or dictionary is in the folder.
    """
    recipe.check()
    if target is not None and recipe.kind == "topk":
        raise NeuronautError(
            "SAELens' layout has no TopK transcoder, so a transcoder keeps by thresholds; wanted batchtopk or jumprelu"
        )
    if target is not None and subject.width(target) and not _comes_after(subject, target, id.site):
        raise NeuronautError(f"{target} does not come after {id.site}; a transcoder writes behind what it reads")
    feed = _Feed.open(subject, id.site, corpus, recipe, target=target, window=window)
    feed.stop = stop
    about = {"recipe": asdict(recipe), "site": id.site, "target": target, "corpus": feed.digest, "window": window}
    about |= {"model_revision": subject.revision}
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, about)
    try:
        return _Run(id, feed, recipe, folder, corpus=corpus.name, about=about, watch=watch or _Silent()).run()
    except _Stopped:
        return None


def _comes_after(subject: Subject, later: str, site: str) -> bool:
    subject.width(site)
    return subject.sites.index(later) > subject.sites.index(site)


class _Run(NamedTuple):
    """One run, from its checkpoint or its beginning to the end."""

    id: SourceId
    feed: "_Feed"
    recipe: Recipe
    folder: Path
    corpus: str
    about: dict[str, Any]
    """What tells this run from another one."""
    watch: Watch

    def run(self) -> Trained:
        """Train to the end; raises _Stopped, with a checkpoint written, where the feed is told to stop."""
        trainer, place = self._begin()
        batch, saved = self.recipe.batch, time.monotonic()
        while True:
            vectors, order = self.feed.read(place.round, self.watch)
            for number in range(place.batch, len(order) // batch):
                if trainer.seen >= self.recipe.tokens:
                    break
                chosen = order[number * batch : (number + 1) * batch]
                unexplained = trainer.step(vectors.inputs[chosen], vectors.targets[chosen])
                place = replace(place, batch=number + 1)
                self.watch.trains(trainer.seen, unexplained, trainer.dead_share)
                stopping = self.feed.stop()
                if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save(trainer, place)
                    saved = time.monotonic()
                if stopping:
                    raise _Stopped
            done = trainer.seen >= self.recipe.tokens
            place = place if done else _Place(place.round + 1)
            # What comes now takes its time: to read the next buffer, or to measure.
            self._save(trainer, place)
            if done:
                return self._finish(trainer, vectors.inputs[order[: 4 * batch]])

    def _begin(self) -> tuple[Trainer, _Place]:
        """A trainer at the beginning, or where the checkpoint left it."""
        place, state = _load(self.folder / CHECKPOINT)
        vectors, order = self.feed.read(place.round, self.watch)
        if state is None and len(order) < self.recipe.batch:
            raise NeuronautError(
                f"the corpus has {len(order)} vectors to train on, less than a batch of {self.recipe.batch}; "
                "give a larger one"
            )
        sample = order[: 16 * self.recipe.batch]
        auto = self.feed.target is None
        trainer = Trainer(self.recipe, vectors.inputs[sample], vectors.targets[sample], auto=auto)
        return trainer.restore(state) if state else trainer, place

    def _save(self, trainer: Trainer, place: _Place) -> None:
        part = self.folder / f"{CHECKPOINT}.part"
        state = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
        save_file(state, part, metadata={"place": json.dumps(asdict(place)), "about": json.dumps(self.about)})
        os.replace(part, self.folder / CHECKPOINT)

    def _finish(self, trainer: Trainer, sample: Tensor) -> Trained:
        """Measure the dictionary on holdout documents, and write it."""
        rows = self.feed.holdout[: max(1, MEASURED // self.feed.holdout.shape[1])]
        dictionary = trainer.dictionary(self.id, sample, target=self.feed.target)
        inputs, targets = self.feed.read_rows(rows, _Silent())
        gate = check(dictionary, inputs, targets=targets, force=True)
        loss = measure_loss(self.feed.subject, dictionary, rows)
        metadata = {"model_name": self.id.model, "dataset_path": self.corpus}
        save_dictionary(dictionary, self.folder, metadata=metadata, dtype=torch.float32)
        card = asdict(gate) | {"loss": loss._asdict() | {"recovered": loss.recovered}}
        card |= {"dead_in_training": trainer.dead_share, "corpus_name": self.corpus, **self.about}
        (self.folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return Trained(dictionary, gate, loss)


def _load(path: Path) -> tuple[_Place, dict[str, Tensor] | None]:
    """The place in the data and the trainer's state of a checkpoint; the beginning where there is none."""
    if not path.exists():
        return _Place(), None
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return _Place(**json.loads(file.metadata()["place"])), {name: file.get_tensor(name) for name in names}


def _check_folder(folder: Path, about: dict[str, Any]) -> None:
    """Refuse a folder that holds something else than the beginning of this run."""
    if (folder / CARD).exists():
        raise NeuronautError(f"{folder} holds a dictionary that is trained; give another --out, or remove it")
    path = folder / CHECKPOINT
    if not path.exists():
        return
    with safe_open(path, framework="pt") as file:
        before = json.loads(file.metadata()["about"])
    if before != about:
        flat, other = _flatten(about), _flatten(before)
        changed = ", ".join(
            f"{key} {other.get(key)}, now {flat.get(key)}" for key in flat if flat[key] != other.get(key)
        )
        raise NeuronautError(f"{path} is of another training ({changed}); give another --out, or remove it")


def _flatten(about: dict[str, Any]) -> dict[str, Any]:
    return {**about, **about["recipe"], "recipe": None}


class _Vectors(NamedTuple):
    """What a dictionary is trained on."""

    inputs: Tensor
    """(vector, d_in)."""
    targets: Tensor
    """(vector, d_out); the inputs themselves for an autoencoder."""


@dataclass(slots=True)
class _Feed:
    """The vectors of a run, buffer by buffer."""

    subject: Subject
    site: str
    target: str | None
    seed: int
    rows: NDArray[np.int32]
    """Windows to train on, (window, position)."""
    holdout: NDArray[np.int32]
    digest: str
    """Of the corpus."""
    stop: Callable[[], bool] = lambda: False
    held: tuple[NDArray[np.int64], _Vectors] | None = None
    """The windows last read, and their vectors."""

    @classmethod
    def open(
        cls, subject: Subject, site: str, corpus: Corpus, recipe: Recipe, *, target: str | None, window: int
    ) -> "_Feed":
        """Cut the corpus, or a sample of the size that the recipe needs, into windows."""
        check_window(subject, window)
        for name in filter(None, (site, target)):
            subject.width(name)
        splits = assign(corpus, seed=recipe.seed, fewest=2)
        limits = norm_limits(subject, [site], sample_windows(subject, splits.sample, window=window))
        subject = subject.with_convention(replace(subject.convention, norm_limits=limits))
        # The holdout's share is drawn too.
        budget = max(window, 2 * (recipe.tokens + MEASURED))
        batches = list(windows(corpus, subject, splits, window=window, tokens=budget))
        tokens = np.concatenate([batch.tokens for batch in batches]).astype(np.int32)
        if not any((batch.split == SPLITS.index("holdout")).any() for batch in batches):
            raise NeuronautError("no document is held out to measure the dictionary on; give a larger corpus")
        held_out = np.concatenate([batch.split for batch in batches]) == SPLITS.index("holdout")
        return cls(subject, site, target, recipe.seed, tokens[~held_out], tokens[held_out], splits.digest)

    def read(self, round: int, watch: Watch) -> tuple[_Vectors, Tensor]:
        """The vectors of a buffer, and the order in which they are trained on (vector,)."""
        numbers = sum(self.subject.width(site) for site in (self.site, self.target) if site)
        size = max(1, min(BUFFER_TOKENS, BUFFER_NUMBERS // numbers) // self.rows.shape[1])
        count = -(-len(self.rows) // size)
        epoch, part = divmod(round, count)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        chosen = np.sort(shuffled[part * size : (part + 1) * size])
        if self.held is None or not np.array_equal(self.held[0], chosen):
            self.held = None
            self.held = chosen, self.read_rows(self.rows[chosen], watch)
        vectors = self.held[1]
        order = torch.randperm(len(vectors.inputs), generator=torch.Generator().manual_seed((self.seed << 32) + round))
        return vectors, order.to(vectors.inputs.device)

    def read_rows(self, rows: NDArray[np.int32], watch: Watch) -> _Vectors:
        """The vectors of windows (window, position) at the positions that count."""
        parts: list[dict[str, Tensor]] = []
        writes = self.target or self.site
        for start in range(0, len(rows), ROWS):
            if self.stop():
                raise _Stopped
            watch.reads(start * rows.shape[1], rows.size)
            part = rows[start : start + ROWS]
            parts.append(read_together(self.subject, [self.site, writes], part, at=self.site))
        inputs = torch.cat([part[self.site] for part in parts])
        return _Vectors(inputs, torch.cat([part[writes] for part in parts]) if self.target else inputs)


@torch.inference_mode()
def measure_loss(subject: Subject, dictionary: Dictionary, rows: NDArray[np.integer]) -> Loss:
    """The model's loss on windows (row, position): as it is, with the site that is written rebuilt, with zeros there.

    Only positions that count are rebuilt or put to zero: massive ones carry no text (data/harvest/massive.py).
    """
    site = dictionary.id.site

    def measure(span: slice) -> tuple[NDArray[np.float64], int]:
        part, sums = rows[span], np.zeros(3)
        tokens, opening = with_bos(subject, part), np.zeros((len(part), len(subject.bos_prefix)), bool)
        counted = np.concatenate([opening, mark_counted(subject, site, part)], axis=1)
        known = torch.from_numpy(np.concatenate([~opening, part >= 0], axis=1)[:, 1:]).to(subject.device)
        where = torch.from_numpy(counted).to(subject.device)[:, :, None]
        rebuilt = dictionary.reconstruct(subject.read(tokens, [site])[site].flatten(0, 1).float())
        for place, values in enumerate((None, rebuilt, torch.zeros_like(rebuilt))):
            with subject.editing({dictionary.writes: partial(_put, values, where)}):
                logits = subject.logits(tokens)[:, :-1]
            sums[place] += float(cross_entropy(logits[known].float(), tokens[:, 1:][known], reduction="sum"))
        return sums, int(known.sum())

    measured = [*subject.room.batches(len(rows), _LOSS_ROWS, measure, work="rows with logits")]
    count = sum(known for _, known in measured)
    return Loss(*(np.sum([sums for sums, _ in measured], axis=0) / count).tolist())


def _put(values: Tensor | None, where: Tensor, vectors: Tensor) -> Tensor:
    return vectors if values is None else torch.where(where, values.view_as(vectors).to(vectors.dtype), vectors)
