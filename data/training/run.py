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
from ...subject.model import Edit, Subject
from ..corpus import Corpus
from ..harvest.activations import ROWS, mark_counted, read_counted, with_bos
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
    """With the site's vectors as the dictionary rebuilds them."""
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
    window: int = 64,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained | None:
    """Train the dictionary `id` on its site's vectors, and write it to `folder` as SAELens does, with a card.

    The same call again goes on where the last one was stopped; None where `stop` says so before the end. Raises
    NeuronautError where another run's checkpoint or dictionary is in the folder.
    """
    recipe.check()
    watch = watch or _Silent()
    feed = _Feed.open(subject, id.site, corpus, recipe, window=window)
    feed.stop = stop
    about = {"recipe": asdict(recipe), "site": id.site, "corpus": feed.digest, "window": window}
    about |= {"model_revision": subject.revision}
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, about)
    try:
        return _run(feed, id, corpus.name, folder, recipe, about, watch)
    except _Stopped:
        return None


def _run(
    feed: "_Feed", id: SourceId, corpus: str, folder: Path, recipe: Recipe, about: dict[str, Any], watch: Watch
) -> Trained:
    trainer, place = _begin(folder, feed, recipe, watch)
    saved = time.monotonic()
    while True:
        vectors, order = feed.read(place.round, watch)
        for number in range(place.batch, len(order) // recipe.batch):
            chosen = vectors[order[number * recipe.batch : (number + 1) * recipe.batch]]
            unexplained = trainer.step(chosen, chosen)
            place = replace(place, batch=number + 1)
            watch.trains(trainer.seen, unexplained, trainer.dead_share)
            if trainer.seen >= recipe.tokens:
                return _finish(feed, trainer, id, folder, about, corpus, vectors[order[: 4 * recipe.batch]])
            stopping = feed.stop()
            if stopping or time.monotonic() - saved > CHECKPOINT_SECONDS:
                _save(folder, trainer, place, about)
                saved = time.monotonic()
            if stopping:
                raise _Stopped
        place = _Place(place.round + 1)


def _begin(folder: Path, feed: "_Feed", recipe: Recipe, watch: Watch) -> tuple[Trainer, _Place]:
    """A trainer at the beginning, or where the checkpoint left it."""
    place, state = _load(folder / CHECKPOINT)
    vectors, order = feed.read(place.round, watch)
    if state is None and len(order) < recipe.batch:
        raise NeuronautError(
            f"the corpus has {len(order)} vectors to train on, less than a batch of {recipe.batch}; give a larger one"
        )
    sample = vectors[order[: 16 * recipe.batch]]
    trainer = Trainer(recipe, sample, sample, auto=True)
    return trainer.restore(state) if state else trainer, place


def _load(path: Path) -> tuple[_Place, dict[str, Tensor] | None]:
    """The place in the data and the trainer's state of a checkpoint; the beginning where there is none."""
    if not path.exists():
        return _Place(), None
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return _Place(**json.loads(file.metadata()["place"])), {name: file.get_tensor(name) for name in names}


def _save(folder: Path, trainer: Trainer, place: _Place, about: dict[str, Any]) -> None:
    part = folder / f"{CHECKPOINT}.part"
    state = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
    save_file(state, part, metadata={"place": json.dumps(asdict(place)), "about": json.dumps(about)})
    os.replace(part, folder / CHECKPOINT)


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


@dataclass(slots=True)
class _Feed:
    """The vectors of a run, buffer by buffer."""

    subject: Subject
    site: str
    seed: int
    rows: NDArray[np.int32]
    """Windows to train on, (window, position)."""
    holdout: NDArray[np.int32]
    digest: str
    """Of the corpus."""
    stop: Callable[[], bool] = lambda: False
    held: tuple[NDArray[np.int64], Tensor] | None = None
    """The windows last read, and their vectors."""

    @classmethod
    def open(cls, subject: Subject, site: str, corpus: Corpus, recipe: Recipe, *, window: int) -> "_Feed":
        """Cut the corpus, or a sample of the size that the recipe needs, into windows."""
        check_window(subject, window)
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
        return cls(subject, site, recipe.seed, tokens[~held_out], tokens[held_out], splits.digest)

    def read(self, round: int, watch: Watch) -> tuple[Tensor, Tensor]:
        """The vectors of a buffer (vector, width), and the order in which they are trained on (vector,)."""
        size = max(1, min(BUFFER_TOKENS, BUFFER_NUMBERS // self.subject.width(self.site)) // self.rows.shape[1])
        count = -(-len(self.rows) // size)
        epoch, part = divmod(round, count)
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        chosen = np.sort(shuffled[part * size : (part + 1) * size])
        if self.held is None or not np.array_equal(self.held[0], chosen):
            self.held = None
            self.held = chosen, self._read(self.rows[chosen], watch)
        vectors = self.held[1]
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed((self.seed << 32) + round))
        return vectors, order.to(vectors.device)

    def _read(self, rows: NDArray[np.int32], watch: Watch) -> Tensor:
        parts: list[Tensor] = []
        for start in range(0, len(rows), ROWS):
            if self.stop():
                raise _Stopped
            watch.reads(start * rows.shape[1], rows.size)
            parts.append(read_counted(self.subject, self.site, rows[start : start + ROWS]))
        return torch.cat(parts)


def _finish(
    feed: _Feed, trainer: Trainer, id: SourceId, folder: Path, about: dict[str, Any], corpus: str, sample: Tensor
) -> Trained:
    """Measure the dictionary on holdout documents, and write it."""
    rows = feed.holdout[: max(1, MEASURED // feed.holdout.shape[1])]
    dictionary = trainer.dictionary(id, sample)
    gate = check(dictionary, read_counted(feed.subject, id.site, rows), force=True)
    loss = measure_loss(feed.subject, dictionary, rows)
    metadata = {"model_name": id.model, "dataset_path": corpus}
    save_dictionary(dictionary, folder, metadata=metadata, dtype=torch.float32)
    card = asdict(gate) | {"loss": loss._asdict() | {"recovered": loss.recovered}}
    card |= {"dead_in_training": trainer.dead_share, "corpus_name": corpus, **about}
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return Trained(dictionary, gate, loss)


@torch.inference_mode()
def measure_loss(subject: Subject, dictionary: Dictionary, rows: NDArray[np.integer]) -> Loss:
    """The model's loss on windows (row, position), as it is, with a site rebuilt, and with zeros there.

    Only positions that count are rebuilt or put to zero: massive ones carry no text (data/harvest/massive.py).
    """
    ways: tuple[Edit, ...] = (lambda vectors: vectors, partial(_rebuild, dictionary), torch.zeros_like)
    sums, count = np.zeros(3), 0
    for start in range(0, len(rows), _LOSS_ROWS):
        part = rows[start : start + _LOSS_ROWS]
        tokens, opening = with_bos(subject, part), np.zeros((len(part), len(subject.bos_prefix)), bool)
        counted = np.concatenate([opening, mark_counted(subject, dictionary.id.site, part)], axis=1)
        known = torch.from_numpy(np.concatenate([~opening, part >= 0], axis=1)[:, 1:]).to(subject.device)
        where = torch.from_numpy(counted).to(subject.device)[:, :, None]
        sums += [_loss(subject, tokens, known, dictionary.id.site, partial(_change, where, way)) for way in ways]
        count += int(known.sum())
    return Loss(*(sums / count).tolist())


def _rebuild(dictionary: Dictionary, vectors: Tensor) -> Tensor:
    return dictionary.reconstruct(vectors.flatten(0, 1).float()).view(vectors.shape).to(vectors.dtype)


def _change(where: Tensor, way: Edit, vectors: Tensor) -> Tensor:
    return torch.where(where, way(vectors), vectors)


def _loss(subject: Subject, tokens: Tensor, known: Tensor, site: str, edit: Edit) -> float:
    """The sum of the cross-entropy at the tokens that are known."""
    with subject.editing({site: edit}):
        logits = subject.logits(tokens)[:, :-1]
    return float(cross_entropy(logits[known].float(), tokens[:, 1:][known], reduction="sum"))
