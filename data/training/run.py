"""A training run: reads the vectors of a site, or of several, as the model computes them, and trains on them.

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
from collections.abc import Callable, Sequence
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
from ...subject.formats import save_crosscoder, save_dictionary
from ...subject.gate import Gate, check
from ...subject.model import Subject
from ...subject.sources import join_vectors, split_vectors
from ..corpus import Corpus
from ..harvest.activations import ROWS, mark_counted, read_together, with_bos
from ..harvest.massive import norm_limits, sample_windows
from ..harvest.windows import check_window, windows
from ..interrupts import Interrupts
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
NO_LOSS = "an encoder has no next-token loss"


class Loss(NamedTuple):
    """The model's mean cross-entropy on holdout text, nats a token."""

    clean: float
    rebuilt: float
    """With the vectors, of the sites that it writes, as the dictionary rebuilds them."""
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
    loss: Loss | None
    """None of an encoder, which has no next-token loss."""


class _Stopped(Exception):
    """The run was told to stop; what it had to keep is kept."""


class Watch(Protocol):
    """Is told how far a run is."""

    def reads(self, tokens: int, of: int) -> None:
        """So many tokens of a buffer were read."""

    def trains(self, seen: int, unexplained: float, dead: float) -> None:
        """So many vectors were trained on; the last batch's unexplained variance, and the share of dead features."""

    def measures(self, tokens: int, of: int) -> None:
        """The loss was measured on so many holdout tokens."""


class _Silent:
    """A watch that does nothing."""

    def reads(self, tokens: int, of: int) -> None: ...

    def trains(self, seen: int, unexplained: float, dead: float) -> None: ...

    def measures(self, tokens: int, of: int) -> None: ...


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
    sites: Sequence[str] = (),
    window: int = 64,
    watch: Watch | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained | None:
    """Train the dictionary `id` on its site's vectors, and write it to `folder` as SAELens does, with a card.

    With a `target`, another site, it is a transcoder: it learns to give that one's vectors. With `sites`, in the order
    of the forward pass and the last of them that of `id`, it is a crosscoder: it reads and rebuilds the vectors of all.

    The same call again goes on where the last one was stopped; None where `stop` says so before the end. SIGINT and
    SIGTERM wait until what was trained is kept. Raises NeuronautError where another run's checkpoint or dictionary is
    in the folder.
    """
    recipe.check()
    if (target is not None or sites) and recipe.kind == "topk":
        raise NeuronautError(
            "there is no layout for TopK transcoders and crosscoders, so these keep by thresholds; wanted batchtopk or "
            "jumprelu"
        )
    if sites:
        _check_sites(subject, id, sites, target)
    if target is not None and subject.width(target) and not _comes_after(subject, target, id.site):
        raise NeuronautError(f"{target} does not come after {id.site}; a transcoder writes behind what it reads")
    reads = tuple(sites) or (id.site,)
    feed = _Feed.open(subject, reads, (target,) if target else reads, corpus, recipe, window=window)
    about = {"recipe": asdict(recipe), "site": id.site, "target": target, "corpus": feed.digest, "window": window}
    about |= {"model_revision": subject.revision, **({"sites": list(sites)} if sites else {})}
    folder.mkdir(parents=True, exist_ok=True)
    _check_folder(folder, about)
    with Interrupts() as interrupts:
        feed.stop = lambda: interrupts.came or stop()
        try:
            return _Run(id, feed, recipe, folder, corpus=corpus.name, about=about, watch=watch or _Silent()).run()
        except _Stopped:
            pass
    if interrupts.came:
        raise KeyboardInterrupt  # its handler went on, but this is no dictionary
    return None


def _check_sites(subject: Subject, id: SourceId, sites: Sequence[str], target: str | None) -> None:
    """Refuse sites that make no crosscoder."""
    order, widths = [subject.sites.index(site) for site in sites if subject.width(site)], {*map(subject.width, sites)}
    if len(sites) < 2 or order != sorted(set(order)) or len(widths) > 1 or sites[-1] != id.site or target is not None:
        named = ", ".join(f"{site} ({subject.width(site)} wide)" for site in sites)
        raise NeuronautError(
            f"a crosscoder cannot be made of {named}; wanted two sites or more, of one width and in the order of the "
            "forward pass, and none that it writes beside them"
        )


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
        reads, writes = self.feed.reads, self.feed.writes
        trainer = Trainer(
            self.recipe, vectors.inputs[sample], vectors.targets[sample], auto=reads == writes, sites=len(reads)
        )
        return trainer.restore(state) if state else trainer, place

    def _save(self, trainer: Trainer, place: _Place) -> None:
        part = self.folder / f"{CHECKPOINT}.part"
        state = {name: tensor.contiguous() for name, tensor in trainer.state().items()}
        save_file(state, part, metadata={"place": json.dumps(asdict(place)), "about": json.dumps(self.about)})
        os.replace(part, self.folder / CHECKPOINT)

    def _finish(self, trainer: Trainer, sample: Tensor) -> Trained:
        """Measure the dictionary on holdout documents, and write it."""
        rows = self.feed.holdout[: max(1, MEASURED // self.feed.holdout.shape[1])]
        reads, writes = self.feed.reads, self.feed.writes
        several = len(reads) > 1
        dictionary = trainer.dictionary(
            self.id, sample, targets=writes if several or writes != reads else (), inputs=reads if several else ()
        )
        inputs, targets = self.feed.read_rows(rows, _Silent())
        gate = check(dictionary, inputs, targets=targets, force=True)
        subject, tell = self.feed.subject, self.watch.measures
        loss = measure_loss(subject, dictionary, rows, progress=tell) if subject.causal else None
        metadata = {"model_name": self.id.model, "dataset_path": self.corpus}
        if several:
            save_crosscoder(dictionary, self.folder, metadata=metadata)
        else:
            save_dictionary(dictionary, self.folder, metadata=metadata, dtype=torch.float32)
        card = _describe(gate) | _describe_loss(loss)
        card |= {"dead_in_training": trainer.dead_share, "corpus_name": self.corpus, **self.about}
        (self.folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return Trained(dictionary, gate, loss)


def _describe(gate: Gate) -> dict[str, Any]:
    """The gate's figures for the card; by site where there are several."""
    card = {name: value for name, value in asdict(gate).items() if name != "sites"}
    return card | ({"sites_rebuilt": {site: fit._asdict() for site, fit in gate.sites.items()}} if gate.sites else {})


def _describe_loss(loss: Loss | None) -> dict[str, Any]:
    if loss is None:
        return {"loss": None, "loss_reason": NO_LOSS}
    return {"loss": loss._asdict() | {"recovered": loss.recovered}}


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
    reads: tuple[str, ...]
    writes: tuple[str, ...]
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
        cls,
        subject: Subject,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        corpus: Corpus,
        recipe: Recipe,
        *,
        window: int,
    ) -> "_Feed":
        """Cut the corpus, or a sample of the size that the recipe needs, into windows."""
        check_window(subject, window)
        for site in (*reads, *writes):
            subject.width(site)
        splits = assign(corpus, seed=recipe.seed, fewest=2)
        limits = norm_limits(subject, reads, sample_windows(subject, splits.sample, window=window))
        subject = subject.with_convention(replace(subject.convention, norm_limits=limits))
        # The holdout's share is drawn too.
        budget = max(window, 2 * (recipe.tokens + MEASURED))
        batches = list(windows(corpus, subject, splits, window=window, tokens=budget))
        tokens = np.concatenate([batch.tokens for batch in batches]).astype(np.int32)
        if not any((batch.split == SPLITS.index("holdout")).any() for batch in batches):
            raise NeuronautError("no document is held out to measure the dictionary on; give a larger corpus")
        held_out = np.concatenate([batch.split for batch in batches]) == SPLITS.index("holdout")
        return cls(subject, reads, writes, recipe.seed, tokens[~held_out], tokens[held_out], splits.digest)

    def read(self, round: int, watch: Watch) -> tuple[_Vectors, Tensor]:
        """The vectors of a buffer, and the order in which they are trained on (vector,)."""
        numbers = sum(self.subject.width(site) for site in {*self.reads, *self.writes})
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
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        for start in range(0, len(rows), ROWS):
            if self.stop():
                raise _Stopped
            watch.reads(start * rows.shape[1], rows.size)
            part = rows[start : start + ROWS]
            read = read_together(self.subject, [*self.reads, *self.writes], part, at=self.reads)
            inputs.append(join_vectors(read, self.reads))
            if self.writes != self.reads:
                targets.append(join_vectors(read, self.writes))
        joined = torch.cat(inputs)
        return _Vectors(joined, torch.cat(targets) if targets else joined)


@torch.inference_mode()
def measure_loss(
    subject: Subject,
    dictionary: Dictionary,
    rows: NDArray[np.integer],
    *,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Loss:
    """The model's loss on windows (row, position): as it is, with the sites that are written rebuilt, with zeros there.

    Only positions that count are rebuilt or put to zero: massive ones carry no text (data/harvest/massive.py).
    `progress` is told tokens done, and of how many.
    """
    reads = dictionary.reads

    def measure(span: slice) -> tuple[NDArray[np.float64], int]:
        progress(span.start * rows.shape[1], rows.size)
        part, sums = rows[span], np.zeros(3)
        tokens, opening = with_bos(subject, part), np.zeros((len(part), len(subject.bos_prefix)), bool)
        counted = np.concatenate([opening, mark_counted(subject, reads, part)], axis=1)
        known = torch.from_numpy(np.concatenate([~opening, part >= 0], axis=1)[:, 1:]).to(subject.device)
        where = torch.from_numpy(counted).to(subject.device)[:, :, None]
        rebuilt = dictionary.reconstruct(join_vectors(subject.read(tokens, reads), reads).flatten(0, 1).float())
        for place, values in enumerate((None, rebuilt, torch.zeros_like(rebuilt))):
            parts = {} if values is None else split_vectors(values, dictionary.writes)
            with subject.editing({site: partial(_put, part, where) for site, part in parts.items()}):
                logits = subject.logits(tokens)[:, :-1]
            sums[place] += float(cross_entropy(logits[known].float(), tokens[:, 1:][known], reduction="sum"))
        return sums, int(known.sum())

    measured = [*subject.batching.batches(len(rows), _LOSS_ROWS, measure, work="rows with logits")]
    count = sum(known for _, known in measured)
    return Loss(*(np.sum([sums for sums, _ in measured], axis=0) / count).tolist())


def _put(values: Tensor, where: Tensor, vectors: Tensor) -> Tensor:
    return torch.where(where, values.reshape(vectors.shape).to(vectors.dtype), vectors)
