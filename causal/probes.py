"""Linear probes: whether a yes-or-no property of prompts can be read off a site along one direction, and which.

    mean_difference   w = mean of the true examples - mean of the false;  cut halfway between the two
    ridge             w minimises sum (x . w + c - y)² + penalty |w|² with y = +1 or -1;  cut where the fit is 0.
                      The penalty is that of PENALTIES with the smallest leave-one-out error, which the hat matrix
                      gives in closed form (Allen's PRESS, 1974)

The probe is fitted on some examples and judged on others, never on its own. Its control is itself: fitted in the same
way, penalty included, to labels shuffled among the examples of each part (Hewitt & Liang 2019 on why a probe needs
one). That a property can be read does not show that the subject reads it; add the direction, and see.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .controls import ControlRank, rank_among
from .measures import RESAMPLES, Mean, mean, percentile_interval
from .prompts import Batch, where

Method = Literal["ridge", "mean_difference"]

PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Of ridge, in units of the mean square of the training examples' singular values."""
_NO_GAP = 1e-9
"""The largest difference of means, in units of the largest coordinate, that is put down to rounding."""
AT_ONCE = 64
"""Rows of a forward."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A direction that tells true examples from false, and how well it does so on examples it has not seen."""

    site: str
    positions: str
    """The rule by which an example's vector was read; the mean where it means several positions."""
    method: Method
    direction: Tensor
    """(width of the site,), float32, from false to true. It is as long as the two classes' means are apart along it,
    so that as a direction of an edit, `+=1` moves a vector from where false examples are to where true ones are."""
    threshold: float
    """An example is called true where it contains the direction more than this many times."""
    accuracy: Mean
    """On the test examples, with its 95% interval over them."""
    auroc: Mean
    """The chance that a true test example is further along than a false one (a tie counts half); its 95% interval
    is over resampled examples of each class."""
    base_rate: float
    """What calling every test example by the more frequent label would score in accuracy."""
    control: ControlRank
    """The AUROC among those of probes fitted to shuffled labels."""
    trained: int
    """How many examples it was fitted on."""

    def contained(self, vectors: Tensor) -> Tensor:
        """How many times the direction is in each vector. (example, width) -> (example,)."""
        return vectors.float().cpu() @ self.direction / self.direction.square().sum()


class _Fit(NamedTuple):
    """Probes of the same vectors for several labellings."""

    weights: Tensor
    """(width, labelling)."""
    cuts: Tensor
    """(labelling,): an example is true where it times the weights is above."""


def probe(
    subject: Subject,
    batch: Batch,
    labels: Sequence[bool],
    *,
    site: str,
    positions: str = "last",
    method: Method = "ridge",
    test_share: float = 0.3,
    shuffles: int = 100,
    seed: int = 0,
) -> Probe:
    """Fit a probe and test it, for a property that row i of the batch has where `labels[i]`.

    Each class is parted by itself, `test_share` of it for the test. Raises NeuronautError where a class has fewer than
    two examples in a part, and where two examples are the same as far as the site can see, which would let the test
    see what was trained on.

    >>> batch = Batch.of(subject, [f"{word} = {i}" for i in range(8) for word in ("alpha", "beta")])
    >>> fitted = probe(subject, batch, [True, False] * 8, site="resid_post.1", shuffles=5)
    >>> 0 <= fitted.auroc.value <= 1
    True
    """
    vectors = read_examples(subject, batch, site=site, positions=positions)
    return fit_probe(
        vectors,
        labels,
        site=site,
        positions=positions,
        method=method,
        test_share=test_share,
        shuffles=shuffles,
        seed=seed,
    )


def read_examples(subject: Subject, batch: Batch, *, site: str, positions: str = "last") -> Tensor:
    """One vector for each row, the mean over the positions that the rule means: (row, width), float32, on the CPU."""
    mask = where(subject, batch, positions)
    _check_distinct(batch, mask)
    means: list[Tensor] = []
    for part in torch.arange(len(batch)).split(AT_ONCE):
        vectors = subject.read(batch.tokens[part], [site])[site].float().cpu()
        chosen = mask[part, :, None]
        means.append((vectors * chosen).sum(1) / chosen.sum(1))
    return torch.cat(means)


def fit_probe(
    vectors: Tensor,
    labels: Sequence[bool],
    *,
    site: str,
    positions: str,
    method: Method = "ridge",
    test_share: float = 0.3,
    shuffles: int = 100,
    seed: int = 0,
) -> Probe:
    """As `probe`, of vectors (example, width) that have been read."""
    truth = torch.as_tensor(labels, dtype=torch.bool)
    if method not in _FITS or shuffles < 1:
        raise NeuronautError(
            f"no probe by {method!r} with {shuffles} shuffles; methods are {', '.join(_FITS)}, with at least 1 shuffle"
        )
    generator = torch.Generator().manual_seed(seed)
    train, test = _split_examples(truth, len(vectors), test_share, generator)
    inputs = vectors.double().cpu()
    train_labels, test_labels = (_shuffle_labels(truth[part], shuffles, generator) for part in (train, test))
    fit = _FITS[method](inputs[train], train_labels)
    along = inputs[test] @ fit.weights
    aurocs = [float(_compare_classes(*columns).mean()) for columns in zip(along.T, test_labels.T, strict=True)]
    direction, length = _scale_direction(inputs[train], truth[train], fit.weights[:, 0], site)
    correct = (along[:, 0] > fit.cuts[0]) == truth[test]
    share = float(truth[test].double().mean())
    return Probe(
        site=site,
        positions=positions,
        method=method,
        direction=direction.float(),
        threshold=float(fit.cuts[0]) / length,
        accuracy=mean(correct.double(), seed=seed),
        auroc=_measure_auroc(along[:, 0], truth[test], seed),
        base_rate=max(share, 1 - share),
        control=rank_among(aurocs[0], aurocs[1:]),
        trained=len(train),
    )


def _scale_direction(inputs: Tensor, truth: Tensor, weights: Tensor, site: str) -> tuple[Tensor, float]:
    """The weights at the length that the class means are apart along them, and what turns cuts into its multiples."""
    unit = weights / weights.norm().clamp_min(1e-300)
    gap = float((inputs[truth].mean(0) - inputs[~truth].mean(0)) @ unit)
    if not gap > _NO_GAP * float(inputs.abs().max()):
        raise NeuronautError(f"true and false examples have the same mean at {site}; probe another site or position")
    return unit * gap, gap * float(weights.norm())


def _fit_mean_difference(inputs: Tensor, labels: Tensor) -> _Fit:
    """inputs: (example, width), labels: (example, labelling), bool."""
    true, false = (inputs.T @ (chosen / chosen.sum(0)) for chosen in (labels.double(), (~labels).double()))
    weights = true - false
    return _Fit(weights, ((true + false) / 2 * weights).sum(0))


def _fit_ridge(inputs: Tensor, labels: Tensor) -> _Fit:
    """inputs: (example, width), labels: (example, labelling), bool."""
    targets = 2 * labels.double() - 1
    middle, offset = inputs.mean(0), targets.mean(0)
    left, sizes, right = torch.linalg.svd(inputs - middle, full_matrices=False)
    turned = left.T @ (targets - offset)
    best = torch.full_like(offset, torch.inf)
    weights = torch.zeros(inputs.shape[1], len(offset), dtype=inputs.dtype)
    for penalty in PENALTIES:
        shrunk = sizes.square() + penalty * sizes.square().mean().clamp_min(1e-300)
        shrinkage = sizes.square() / shrunk
        leverage = (left.square() @ shrinkage + 1 / len(inputs))[:, None]
        errors = (targets - offset - left @ (shrinkage[:, None] * turned)) / (1 - leverage).clamp_min(1e-12)
        press = errors.square().mean(0)
        solution = right.T @ ((sizes / shrunk)[:, None] * turned)
        weights = torch.where(press < best, solution, weights)
        best = torch.minimum(best, press)
    return _Fit(weights, middle @ weights - offset)


_FITS: Mapping[str, Callable[[Tensor, Tensor], _Fit]] = {"ridge": _fit_ridge, "mean_difference": _fit_mean_difference}


def _split_examples(truth: Tensor, count: int, test_share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the examples to train on, and of those to test on."""
    if len(truth) != count:
        raise NeuronautError(f"there are {count} examples and {len(truth)} labels; wanted one label an example")
    train, test = [], []
    for value, name in ((True, "true"), (False, "false")):
        members = (truth == value).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        tested = round(len(members) * test_share)
        if tested < 2 or len(members) - tested < 2:
            raise NeuronautError(
                f"{len(members)} examples are {name}, {tested} of them to test on; wanted at least 2 to train on and 2 "
                "to test on; give more examples"
            )
        test.append(members[:tested])
        train.append(members[tested:])
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def _shuffle_labels(labels: Tensor, shuffles: int, generator: torch.Generator) -> Tensor:
    """The labels themselves, then shuffled: (example, 1 + shuffles)."""
    orders = [torch.randperm(len(labels), generator=generator) for _ in range(shuffles)]
    return torch.stack([labels, *(labels[order] for order in orders)], dim=1)


def _compare_classes(along: Tensor, truth: Tensor) -> Tensor:
    """1 where a true example is above a false one, 1/2 where they are level: (true, false)."""
    true, false = along[truth][:, None], along[~truth]
    return (true > false).double() + (true == false).double() / 2


def _measure_auroc(along: Tensor, truth: Tensor, seed: int) -> Mean:
    above, generator = _compare_classes(along, truth), torch.Generator().manual_seed(seed)
    true, false = (_draw_shares(count, generator) for count in above.shape)
    drawn = ((true @ above) * false).sum(1)
    return Mean(float(above.mean()), percentile_interval(drawn), len(along))


def _draw_shares(count: int, generator: torch.Generator) -> Tensor:
    """How large a share of each resample each of `count` examples has: (resample, example)."""
    drawn = torch.randint(count, (RESAMPLES, count), generator=generator)
    return torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.full_like(drawn, 1 / count, dtype=torch.float64)
    )


def _check_distinct(batch: Batch, mask: Tensor) -> None:
    """Raise NeuronautError for two examples that a causal model cannot tell apart at the last position probed."""
    first_rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for row, ids in enumerate(batch.ids()):
        places = tuple(mask[row].nonzero()[:, 0].tolist())
        if not places:
            raise NeuronautError(f"the rule means no position of example {row}; name one that every example has")
        first = first_rows.setdefault((tuple(ids[: places[-1] + 1]), places), row)
        if first != row:
            raise NeuronautError(
                f"examples {first} and {row} are the same up to the probed position {places[-1]}, so a test would see "
                "what was trained on; leave one out, or probe a later position"
            )
