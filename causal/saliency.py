"""Input attribution: how much of a logit, or of a feature's activation, each token of the prompt accounts for.

A token is its vector at the site `embed` (its position's part is in there too, and stays where a baseline takes the
token's place). With M the metric, e the vectors of the prompt and b those of the baseline, token i is worth

    gradient x input       e_i . dM/de_i at e                                        (Simonyan et al. 2013)
    integrated gradients   (e_i - b_i) . mean over k of dM/de_i at b + (k - 1/2)/m (e - b), k = 1..m: midpoint rule
                           (Sundararajan et al. 2017); they sum to M(e) - M(b) up to an error of order 1/m², which is
                           judged. Where m is not given, parts of the line are cut until they add up: the slopes of
                           a part times its length must give what M differs by between its ends, which is measured
    occlusion              M(e) - M(e with b_i at i)                                 (Zeiler & Fergus 2013)

BOS is the same in every baseline, so it is worth 0 in the last two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ..subject.address import Feature
from ..subject.directions import checked_index
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source

Baseline = int | Literal["mean"]
"""What takes a token's place: another token, by its id, or the mean of all tokens' embeddings."""


@dataclass(frozen=True, slots=True)
class Logit:
    """The metric is a token's logit, or its difference to another's."""

    token: int
    against: int | None = None
    position: int = -1
    """Where it is read; negative from the end of the prompt."""

    def measure(self, subject: Subject, tokens: Tensor) -> Tensor:
        """In the caller's grad mode. (row, position) ids -> (row,)."""
        for token in (self.token, self.against):
            if token is not None and not 0 <= token < subject.model.config.vocab_size:
                raise NeuronautError(
                    f"token {token} is outside the vocabulary of {subject.name}, "
                    f"0 to {subject.model.config.vocab_size - 1}"
                )
        logits = subject.run(tokens, positions=[_resolve_position(self.position, tokens)])[:, 0].float()
        return logits[:, self.token] - (0.0 if self.against is None else logits[:, self.against])


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """The metric is a feature's activation; a negative tail's is counted downwards."""

    source: Source
    feature: Feature
    position: int = -1
    """Where it is read; negative from the end of the prompt."""

    def measure(self, subject: Subject, tokens: Tensor) -> Tensor:
        """In the caller's grad mode. (row, position) ids -> (row,)."""
        index = torch.tensor([checked_index(self.source, self.feature)], device=subject.device)
        place = _resolve_position(self.position, tokens)
        captured: dict[str, Tensor] = {}

        def capture(site: str, vectors: Tensor) -> Tensor:
            captured[site] = vectors
            return vectors

        with subject.editing({site: partial(capture, site) for site in self.source.reads}):
            subject.run(tokens, positions=[place])
        activation = self.source.encode(self.source.join(captured)[:, place], index)[:, 0].float()
        return -activation if self.feature.negative else activation


Target = Logit | Activation
COMPLETE = 0.05
"""Share of the metric's difference to the baseline that integrated gradients may miss."""
FINE = 0.01
"""Share that the parts of the line together may miss where their number is not given; their norm may miss COMPLETE."""
PARTS, MOST_PARTS, NARROW = 16, 512, 1e-6
"""Parts of the line at first and at most, and the narrowest that is cut, where their number is not given."""


@dataclass(frozen=True, slots=True)
class Saliency:
    """What each token is worth, in units of the metric (logits, or the feature's activation)."""

    method: str
    values: tuple[float, ...]
    """By token of the prompt; 0 after the position at which the metric is read."""
    metric: float
    """On the prompt."""
    at_baseline: float | None
    """With the baseline in place of every token; None where no baseline is used."""
    completeness_error: float | None
    """Sum of the values - (metric - at_baseline); None where the method does not promise that it is 0."""
    steps: int | None = None
    """Points at which the gradient was taken; None where it was not integrated."""

    @property
    def missed(self) -> float | None:
        """The size of the completeness error as a share of metric - at_baseline; None where there is none of these."""
        if self.completeness_error is None or self.at_baseline is None:
            return None
        return abs(self.completeness_error) / max(abs(self.metric - self.at_baseline), 1e-6)

    @property
    def complete(self) -> bool | None:
        """Whether no more than COMPLETE is missed; None where the method does not promise it."""
        return None if self.missed is None else self.missed <= COMPLETE


@torch.inference_mode(False)
def gradient_x_input(subject: Subject, tokens: Sequence[int], target: Target) -> Saliency:
    """One forward and one backward pass. `tokens` are ids, BOS first where the subject has one."""
    ids = _as_row(tokens)
    inputs = _read_embeddings(subject, ids)
    values, gradients = _take_gradients(subject, ids, inputs, target)
    worth = (inputs.float() * gradients.float()).sum(-1)[0]
    return Saliency("gradient_x_input", tuple(worth.tolist()), float(values), None, None)


@torch.inference_mode(False)
def integrated_gradients(
    subject: Subject,
    tokens: Sequence[int],
    target: Target,
    *,
    baseline: Baseline,
    steps: int | None = None,
    at_once: int = 8,
) -> Saliency:
    """`steps` forward and backward rows at equal distances, or as many, and where, as they are needed to add up.

    A norm makes the metric turn sharply near a short baseline, as the mean embedding is. `at_once` rows are in memory
    at a time, which changes nothing but rounding where `steps` are given.
    """
    if (steps is not None and steps < 1) or at_once < 1:
        raise NeuronautError(f"cannot integrate in {steps} steps, {at_once} at once; wanted at least 1 of each")
    ids = _as_row(tokens)
    inputs, start = _read_embeddings(subject, ids), _read_baseline(subject, ids, baseline)
    line = _Line(subject, ids, target, start=start.double(), difference=(inputs - start).double(), at_once=at_once)
    if steps is not None:
        worth = line.slopes((torch.arange(steps, dtype=torch.float64) + 0.5) / steps).sum(0) / steps
    else:
        steps, worth = _integrate(line)
    metric, at_baseline = _measure_inputs(subject, ids, torch.cat([inputs, start]), target).tolist()
    error = float(worth.sum()) - (metric - at_baseline)
    return Saliency("integrated_gradients", tuple(worth.tolist()), metric, at_baseline, error, steps=steps)


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """The straight line from the baseline, at 0, to the prompt's vectors, at 1."""

    subject: Subject
    ids: Tensor
    target: Target
    start: Tensor
    difference: Tensor
    """Float64, as `start`: (1, position, d_model)."""
    at_once: int

    def slopes(self, ways: Tensor) -> Tensor:
        """What each token adds to the metric's slope at places of the line: (way,) -> (way, position), float64."""

        def read(part: slice) -> Tensor:
            gradients = _take_gradients(self.subject, self.ids, self._points(ways[part]), self.target)[1]
            return (self.difference * gradients.double()).sum(-1).cpu()

        return self._join(ways, read, "rows with gradients")

    def values(self, ways: Tensor) -> Tensor:
        """The metric at places of the line: (way,) -> the same, float64."""

        def read(part: slice) -> Tensor:
            return _measure_inputs(self.subject, self.ids, self._points(ways[part]), self.target).double().cpu()

        return self._join(ways, read, "rows")

    def _points(self, ways: Tensor) -> Tensor:
        return (self.start + ways[:, None, None].to(self.start.device) * self.difference).to(self.subject.model.dtype)

    def _join(self, ways: Tensor, read: Callable[[slice], Tensor], work: str) -> Tensor:
        return torch.cat([*self.subject.batching.batches(len(ways), self.at_once, read, work=work)])


def _integrate(line: _Line) -> tuple[int, Tensor]:
    """How many slopes were taken, and what each token is worth, (position,).

    A part that misses much is cut in three: its own middle is that of the middle one.
    """
    ends = torch.linspace(0, 1, PARTS + 1, dtype=torch.float64)
    left, right, values = ends[:-1], ends[1:], line.values(ends)
    low, high, slopes = values[:-1], values[1:], line.slopes((ends[:-1] + ends[1:]) / 2)
    whole = max(abs(float(values[-1] - values[0])), 1e-6)
    while True:
        missed = high - low - (right - left) * slopes.sum(1)
        room = (MOST_PARTS - len(left)) // 2
        if room == 0 or (abs(missed.sum()) <= FINE * whole and missed.norm() <= COMPLETE * whole):
            return len(left), ((right - left)[:, None] * slopes).sum(0)
        worst = missed.abs().argsort(descending=True)[: min(room, line.at_once)]
        # A jump is in no slope: a part this narrow that still misses is not worth cutting.
        worst = worst[(missed[worst].abs() > FINE * whole / MOST_PARTS) & ((right - left)[worst] > NARROW)]
        if not len(worst):
            return len(left), ((right - left)[:, None] * slopes).sum(0)
        keep = torch.ones(len(left), dtype=torch.bool).index_fill(0, worst, False)  # noqa: FBT003
        a, d = left[worst], right[worst]
        b, c = a + (d - a) / 3, d - (d - a) / 3
        outer = line.slopes(torch.cat([(a + b) / 2, (c + d) / 2])).chunk(2)
        inner = line.values(torch.cat([b, c])).chunk(2)
        slopes = torch.cat([slopes[keep], outer[0], slopes[worst], outer[1]])
        low, high = torch.cat([low[keep], low[worst], *inner]), torch.cat([high[keep], *inner, high[worst]])
        left, right = torch.cat([left[keep], a, b, c]), torch.cat([right[keep], b, c, d])


@torch.inference_mode(False)
def occlusion(
    subject: Subject, tokens: Sequence[int], target: Target, *, baseline: Baseline, at_once: int = 32
) -> Saliency:
    """One forward row for each token that can matter, `at_once` of them in memory at a time."""
    if at_once < 1:
        raise NeuronautError(f"cannot run {at_once} rows at once; wanted at least 1")
    ids = _as_row(tokens)
    inputs, start = _read_embeddings(subject, ids), _read_baseline(subject, ids, baseline)
    metric, at_baseline = _measure_inputs(subject, ids, torch.cat([inputs, start]), target).tolist()
    worth = torch.zeros(ids.shape[1])
    changed = (inputs != start).any(-1)[0].cpu()
    changed[_resolve_position(target.position, ids) + 1 :] = False  # The metric cannot see these.
    occluded = changed.nonzero()[:, 0]

    def measure(part: slice) -> Tensor:
        places = occluded[part]
        rows = inputs.repeat(len(places), 1, 1)
        rows[torch.arange(len(places)), places] = start[0, places]
        return metric - _measure_inputs(subject, ids, rows, target).cpu()

    parts = [*subject.batching.batches(len(occluded), at_once, measure, work="rows")]
    worth[occluded] = torch.cat(parts) if parts else worth[occluded]
    return Saliency("occlusion", tuple(worth.tolist()), metric, at_baseline, None)


def _as_row(tokens: Sequence[int]) -> Tensor:
    if not tokens:
        raise NeuronautError("there is no token to attribute to; give a prompt of at least one")
    return torch.tensor([list(tokens)])


def _resolve_position(position: int, tokens: Tensor) -> int:
    count = tokens.shape[1]
    if not -count <= position < count:
        raise NeuronautError(f"position {position} is outside the prompt of {count} tokens, {-count} to {count - 1}")
    return position % count


def _read_embeddings(subject: Subject, ids: Tensor) -> Tensor:
    """The vectors at `embed`, free of inference mode: (1, position, d_model)."""
    return subject.read(ids, ["embed"])["embed"].clone()


def _read_baseline(subject: Subject, ids: Tensor, baseline: Baseline) -> Tensor:
    """The vectors at `embed` with every token but BOS replaced: (1, position, d_model)."""
    is_bos = ids == subject.bos_id if subject.bos_id is not None else torch.zeros_like(ids, dtype=torch.bool)
    is_bos[:, 1:] = False
    if baseline == "mean":
        before = _read_embeddings(subject, ids)
        table = subject.model.get_input_embeddings()
        shift = _average_embedding(subject, table) - table(ids.to(subject.device)).float()
        return torch.where(is_bos[..., None].to(before.device), before, before + shift.to(before.dtype))
    replaced = ids.masked_fill(~is_bos, baseline)
    if torch.equal(replaced, ids):
        raise NeuronautError(f"every token of the prompt is the baseline, {baseline}; choose another token")
    return _read_embeddings(subject, replaced)


def _average_embedding(subject: Subject, table: nn.Module) -> Tensor:
    """The mean embedding of the vocabulary, (d_model,), in parts so that a large one is never in memory twice."""
    count = subject.model.config.vocab_size
    rows = (table(part).double().sum(0) for part in torch.arange(count, device=subject.device).split(4096))
    return (torch.stack([*rows]).sum(0) / count).float()


def _measure_inputs(subject: Subject, ids: Tensor, inputs: Tensor, target: Target) -> Tensor:
    """The metric where the prompt's vectors at `embed` are `inputs` (row, position, d_model): (row,)."""
    with subject.editing({"embed": lambda _: inputs}):
        return target.measure(subject, ids.expand(len(inputs), -1))


def _take_gradients(subject: Subject, ids: Tensor, inputs: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """The metric, (row,), and its gradients (row, position, d_model) by the `inputs`."""
    with torch.enable_grad():
        points = inputs.clone().requires_grad_()
        values = _measure_inputs(subject, ids, points, target)
        # Rows do not see each other, so the gradient of the sum has each row's own.
        (gradients,) = torch.autograd.grad(values.sum(), points)
    return values.detach(), gradients
