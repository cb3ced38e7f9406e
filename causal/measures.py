"""Metrics of a run's answer, how far an edit moved them, and how sure that is.

A metric reads the logits at the answer's position, one number for each example; its sign and its unit stand beside its
formula's id. An effect keeps the raw values of every example beside the fraction

    denoising   (M_patched - M_corrupted) / (M_clean - M_corrupted)      a corrupted run, clean values written in
    noising     (M_clean - M_patched) / (M_clean - M_corrupted)          a clean run, corrupted values written in

with each M the mean over examples; where the denominator is too small to divide by, the fraction is withheld and says
why. Intervals are percentile bootstraps over examples, 95%, from a seed.

Fidelity is how far a dictionary can be trusted where it is used: what its reconstruction leaves out, and what that
costs. An error-preserving edit changes nothing but the feature, however bad the dictionary is; but what a feature is
taken to stand for is only as good as the reconstruction that it is a part of. So it stands beside every result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..subject.dictionary import Dictionary
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import join_vectors, split_vectors
from .prompts import Batch, where

RESAMPLES = 2000
EPSILON = 1e-3
"""The smallest |M_clean - M_corrupted| that a recovered fraction is divided by, in the metric's units."""

Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """The answers that the examples ask for."""

    answers: Tensor
    """(row,) ids."""
    wrong: Tensor | None = None
    """(row,) ids; for the metrics that set the answer against another one."""
    plain: Tensor | None = None
    """(row, token): logits of the run that KL compares with."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number for each example."""

    formula: str
    """The id of its formula, stored with every result; a changed formula gets another one."""
    compute: Callable[[Tensor, Question], Tensor]
    """(row, token) -> (row,), float32."""
    needs: tuple[str, ...] = ()
    """What of the question it needs beside the answers: `wrong`, `plain`."""

    def __call__(self, logits: Tensor, question: Question) -> Tensor:
        """The metric of each row's logits at its answer's position. (row, token) -> (row,), float32."""
        optional = {"wrong": question.wrong, "plain": question.plain}
        missing = next((name for name in self.needs if optional[name] is None), None)
        if missing is not None:
            raise NeuronautError(f"metric {self.formula} needs {missing!r} in the question; pass it, or choose another")
        return self.compute(logits.float(), question)


def _take_tokens(scores: Tensor, ids: Tensor | None) -> Tensor:
    assert ids is not None, "Metric checks what it needs"
    return scores.gather(1, ids.to(scores.device)[:, None])[:, 0]


BLOCK = 2**20
"""Probabilities whose divergence is computed at a time: what a processor's cache holds."""


def divergence(plain: Tensor, edited: Tensor) -> Tensor:
    """KL(plain || edited) in nats, never below 0, of log-probabilities: (row, ..., token) each -> (row, ...).

    The sum of p (log p - log q) loses small divergences in its rounding, which may be below 0. Since p and q sum to the
    same, it is also that of p (e^d - 1 - d) with d = log q - log p, whose terms are no less than 0 each.
    """
    blocks = (side.flatten(0, -2).split(max(1, BLOCK // plain.shape[-1])) for side in (plain, edited))
    return torch.cat([_divergence(*pair) for pair in zip(*blocks, strict=True)]).view(plain.shape[:-1])


def _divergence(plain: Tensor, edited: Tensor) -> Tensor:
    p, difference = plain.exp(), edited - plain
    near = difference.clamp_max(1)
    # Rounding may leave e^d - 1 a last digit below d; where d is large e^d has no room, and nothing cancels.
    terms = p * (near.expm1() - near).clamp_min(0)
    return torch.where(difference < 1, terms, edited.exp() - p - p * difference).sum(-1)


def _kl(logits: Tensor, question: Question) -> Tensor:
    assert question.plain is not None, "Metric checks what it needs"
    return divergence(question.plain.to(logits).log_softmax(-1), logits.log_softmax(-1))


def _rank(logits: Tensor, question: Question) -> Tensor:
    return (logits > _take_tokens(logits, question.answers)[:, None]).sum(-1).float()


METRICS: Mapping[str, Metric] = {
    "logit_difference": Metric(
        "logit[answer]-logit[wrong]/1", lambda x, q: _take_tokens(x, q.answers) - _take_tokens(x, q.wrong), ("wrong",)
    ),
    "log_probability": Metric("ln p[answer]/1", lambda x, q: _take_tokens(x.log_softmax(-1), q.answers)),
    "probability_difference": Metric(
        "p[answer]-p[wrong]/1",
        lambda x, q: _take_tokens(x.softmax(-1), q.answers) - _take_tokens(x.softmax(-1), q.wrong),
        ("wrong",),
    ),
    "kl": Metric("KL(plain||edited) nats/1", _kl, ("plain",)),
    "rank": Metric("tokens above answer/1", _rank),
    "loss": Metric("-ln p[answer]/1", lambda x, q: -_take_tokens(x.log_softmax(-1), q.answers)),
}
"""By name; all but `kl`, `rank` and `loss` grow as the answer is favoured."""


def metric(name: str) -> Metric:
    """The metric of this name, or an error that lists them."""
    if name not in METRICS:
        raise NeuronautError(f"there is no metric {name!r}; there are {', '.join(METRICS)}")
    return METRICS[name]


LOGITS = 2**26
"""Logits that are in memory at a time at most, or those of one row or place, where many are computed."""


def text_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean cross-entropy of each row's own next tokens, in nats. (row, position, token) -> (row,)."""
    if int(batch.lengths.min()) < 2:
        raise NeuronautError("a row has one token, so no next token to predict; give longer rows")
    targets = batch.tokens[:, 1:].to(logits.device)
    losses = cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    counted = batch.real[:, 1:].to(logits.device)
    return (losses * counted).sum(1) / counted.sum(1)


class Interval(NamedTuple):
    """The 95% interval of a statistic."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over examples."""

    value: float
    interval: Interval | None
    """None of a single example, which says nothing of others."""
    n: int


def mean(values: Sequence[float] | Tensor, *, seed: int = 0) -> Mean:
    """The mean of (example,) values with its interval."""
    data = _check_examples(values)
    drawn = data[_draw_resamples(len(data), seed)].mean(1)
    return Mean(float(data.mean()), percentile_interval(drawn) if len(data) > 1 else None, len(data))


@dataclass(frozen=True, slots=True)
class Effect:
    """How far an edit moved a metric from one run towards the other."""

    metric: str
    formula: str
    """The metric's formula id and the fraction's."""
    direction: Direction
    clean: tuple[float, ...]
    """By example, as `corrupted` and `patched`."""
    corrupted: tuple[float, ...]
    patched: tuple[float, ...]
    recovered: float | None
    """0 where the edit did nothing, 1 where it did as much as changing the whole prompt."""
    interval: Interval | None
    reason: str | None
    """Why `recovered` or its interval is withheld."""

    @property
    def n(self) -> int:
        """How many examples there are."""
        return len(self.patched)


def effect(
    name: str,
    *,
    clean: Tensor,
    corrupted: Tensor,
    patched: Tensor,
    direction: Direction,
    seed: int = 0,
    epsilon: float = EPSILON,
) -> Effect:
    """The effect on one metric, from its (example,) values in the three runs."""
    rows = torch.stack([_check_examples(part) for part in (clean, corrupted, patched)])
    numerator, denominator = _split_fraction(rows.mean(1, keepdim=True), direction)
    recovered, interval, reason = None, None, None
    if float(denominator.abs()) < epsilon:
        reason = f"clean and corrupted differ by {float(denominator.abs()):.2g} on average, below {epsilon:g}"
    else:
        recovered = float(numerator / denominator)
        interval, reason = _interval_of_fraction(rows, direction, seed, epsilon)
    raw = (tuple(part.tolist()) for part in rows)
    formula = f"{metric(name).formula} {direction}/1"
    return Effect(name, formula, direction, *raw, recovered=recovered, interval=interval, reason=reason)


def _split_fraction(rows: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the fraction; `rows` is (clean, corrupted, patched) x anything."""
    clean, corrupted, patched = rows
    return (patched - corrupted if direction == "denoise" else clean - patched), clean - corrupted


def _interval_of_fraction(
    rows: Tensor, direction: Direction, seed: int, epsilon: float
) -> tuple[Interval | None, str | None]:
    if rows.shape[1] < 2:
        return None, "one example has no interval"
    numerator, denominator = _split_fraction(rows[:, _draw_resamples(rows.shape[1], seed)].mean(2), direction)
    if bool((denominator.abs() < epsilon).any()) or bool((denominator > 0).any() and (denominator < 0).any()):
        return None, "clean and corrupted are no different in some resamples of the examples, so no interval is known"
    return percentile_interval(numerator / denominator), None


def _check_examples(values: Sequence[float] | Tensor) -> Tensor:
    data = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if data.ndim != 1 or not len(data) or not bool(data.isfinite().all()):
        raise NeuronautError(
            f"values of shape {tuple(data.shape)} are no finite numbers, one an example; a run is broken"
        )
    return data


def _draw_resamples(count: int, seed: int) -> Tensor:
    """(resample, example): indices drawn with replacement."""
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))


def percentile_interval(drawn: Tensor) -> Interval:
    """The 95% interval of a statistic's resampled values: (resample,)."""
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Interval(low, high)


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a dictionary rebuilds a site, over all tokens of some prompts but BOS."""

    unexplained: float | None
    """Share of the vectors' variance that the reconstruction misses; None of vectors that do not vary."""
    loss: float | None
    """The model's mean next-token loss over prompts of two tokens or more, in nats; None where there is none."""
    rebuilt_loss: float | None
    """The same with the reconstruction in the place of the vectors."""


@torch.inference_mode()
def fidelity(subject: Subject, dictionary: Dictionary, batch: Batch) -> Fidelity:
    """How well a dictionary rebuilds its sites on these prompts; four forwards, or more of parts.

    One layer of a cross-layer transcoder rebuilds no site, so of it nothing is told.
    """
    if dictionary.companions is not None:
        return Fidelity(None, None, None)
    writes, mask = dictionary.writes, where(subject, batch, "all").to(subject.device)

    def rebuild(part: slice) -> tuple[Tensor, Tensor]:
        read = subject.read(batch.tokens[part], [*dict.fromkeys((*dictionary.reads, *writes))])
        known = dictionary.join(read)[mask[part]]
        return join_vectors(read, writes)[mask[part]], dictionary.reconstruct(known)

    parts = [*subject.batching.batches(len(batch), len(batch), rebuild, work="plain rows")]
    vectors, rebuilt = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    centred = vectors.float() - vectors.float().mean(0)
    variance, missed = float(centred.square().sum()), float((vectors.float() - rebuilt).square().sum())
    unexplained = missed / variance if variance > 0 else None
    longer = batch.take((batch.lengths > 1).nonzero().flatten())
    if not len(longer):
        return Fidelity(unexplained, None, None)
    most = max(1, LOGITS // (longer.tokens.shape[1] * len(subject.vocabulary)))

    def measure(part: slice) -> Tensor:
        return _measure_losses(subject, dictionary, longer.take(torch.arange(part.start, part.stop)))

    losses = [*subject.batching.batches(len(longer), most, measure, work="rows with logits")]
    plain_loss, rebuilt_loss = torch.cat(losses, dim=1).mean(1).tolist()
    return Fidelity(unexplained, plain_loss, rebuilt_loss)


def _measure_losses(subject: Subject, dictionary: Dictionary, block: Batch) -> Tensor:
    """Each row's loss, plainly and with the sites rebuilt: (2, row)."""
    places = where(subject, block, "all").to(subject.device)
    known = dictionary.join(subject.read(block.tokens, dictionary.reads))[places]
    parts = split_vectors(dictionary.reconstruct(known), dictionary.writes)

    def rebuild(part: Tensor, tensor: Tensor) -> Tensor:
        return tensor.masked_scatter(places[..., None], part.to(tensor.dtype))

    plain = text_loss(subject.logits(block.tokens), block)
    with subject.editing({site: partial(rebuild, part) for site, part in parts.items()}):
        return torch.stack([plain, text_loss(subject.logits(block.tokens), block)])
