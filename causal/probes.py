"""Linear probes: whether a yes-or-no property of prompts can be read off a site along one direction, and which.

    mean_difference   w = mean of the true examples - mean of the false;  cut halfway between the two
    ridge             w minimises sum (x . w + c - y)² + penalty |w|² with y = +1 or -1;  cut where the fit is 0.
                      The penalty is that of PENALTIES with the smallest leave-one-out error, which the hat matrix
                      gives in closed form (Allen's PRESS, 1974)
    lda               w of ridge, which is that of Fisher's discriminant with a shrunken covariance; cut halfway between
                      the two means along it
    logistic          w minimises sum log(1 + exp(-y (x . w + c))) + penalty/8 |w|², the penalty that of ridge: at w = 0
                      the two losses have the same curvature; cut where the fit is 0

Examples may be texts of many tokens that a probe is fitted to one by one: a text is then left out as a whole, keeps
its label in every shuffle, and is judged by the mean of its tokens. Examples that are alike (`clusters`) are on one
side of the split and say what one says: a cluster of one label keeps one in every shuffle, in one of both labels they
are shuffled within it, and intervals count clusters, not examples. Intervals are Wilson's and Newcombe's
(separation.py), which have a width where nothing went wrong.

The probe is fitted on some examples and judged on others, never on its own. Its control is itself: fitted in the same
way, penalty included, to labels shuffled among the examples of each part (Hewitt & Liang 2019 on why a probe needs
one). That a property can be read does not show that the subject reads it; add the direction, and see.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .controls import ControlRank, rank_among
from .measures import Interval, Mean
from .prompts import Batch, where
from .separation import auroc_interval, rank_auroc, share_interval

Method = Literal["ridge", "mean_difference", "lda", "logistic"]

PENALTIES = tuple(10.0**power for power in range(-4, 5))
"""Of ridge, in units of the mean square of the training examples' singular values."""
_NO_GAP = 1e-9
"""The largest difference of means, in units of the largest coordinate, that is put down to rounding."""
_LOGISTIC_STEPS = 200
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
    """On the test examples, with its 95% interval over their clusters."""
    auroc: Mean
    """The chance that a true test example is further along than a false one (a tie counts half), with its 95%
    interval."""
    base_rate: float
    """What calling every test example by the more frequent label would score in accuracy."""
    control: ControlRank
    """The AUROC among those of probes fitted to shuffled labels."""
    trained: int
    """How many examples it was fitted on."""
    tested: int
    """How many it was judged on; those of `auroc` and `accuracy` count near-duplicates once."""

    def contained(self, vectors: Tensor) -> Tensor:
        """How many times the direction is in each vector. (example, width) -> (example,)."""
        return vectors.float().cpu() @ self.direction / self.direction.square().sum()


class Tokens(NamedTuple):
    """The tokens of examples, where a probe is fitted to each of them."""

    vectors: Tensor
    """(token, width)."""
    owners: Tensor
    """(token,): which example each is of."""


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
    _check_distinct(batch, mask, causal=subject.causal)

    def read(part: slice) -> Tensor:
        vectors = subject.read(batch.tokens[part], [site])[site].float().cpu()
        chosen = mask[part, :, None]
        return (vectors * chosen).sum(1) / chosen.sum(1)

    return torch.cat([*subject.batching.batches(len(batch), AT_ONCE, read, work="rows")])


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
    clusters: Sequence[int] | None = None,
    tokens: Tokens | None = None,
) -> Probe:
    """As `probe`, of vectors (example, width) that have been read.

    `clusters` has a number for each example, the same for those that are alike. With `tokens` the probe is fitted to
    these, and judged on the vectors, their means.
    """
    truth = torch.as_tensor(labels, dtype=torch.bool)
    if method not in _FITS or shuffles < 1:
        raise NeuronautError(
            f"no probe by {method!r} with {shuffles} shuffles; methods are {', '.join(_FITS)}, with at least 1 shuffle"
        )
    generator = torch.Generator().manual_seed(seed)
    together = torch.arange(len(vectors)) if clusters is None else torch.tensor(list(clusters))
    train, test = _split_examples(truth, len(vectors), test_share, generator, together=together)
    inputs = vectors.double().cpu()
    train_labels, test_labels = (
        shuffle_labels(truth[part], together[part], shuffles, generator) for part in (train, test)
    )
    fitted = _choose_inputs(inputs, train, train_labels, tokens)
    fit = _FITS[method](fitted)
    aurocs = [
        float(rank_auroc(along[labels][:, None], along[~labels][:, None]))
        for along, labels in zip((inputs[test] @ fit.weights).T, test_labels.T, strict=True)
    ]
    direction, length = _scale_direction(fitted.vectors, fitted.labels[:, 0], fit.weights[:, 0], site)
    accuracy = float(((inputs[test] @ fit.weights[:, 0] > fit.cuts[0]) == truth[test]).double().mean())
    share, kept = float(truth[test].double().mean()), together[test]
    true, false, count = (len(part.unique()) for part in (kept[truth[test]], kept[~truth[test]], kept))
    low, high = auroc_interval(torch.tensor(aurocs[:1], dtype=torch.float64), true, false)
    return Probe(
        site=site,
        positions=positions,
        method=method,
        direction=direction.float(),
        threshold=float(fit.cuts[0]) / length,
        accuracy=Mean(accuracy, Interval(*share_interval(accuracy, count)), count),
        auroc=Mean(aurocs[0], Interval(float(low), float(high)), count),
        base_rate=max(share, 1 - share),
        control=rank_among(aurocs[0], aurocs[1:]),
        trained=len(train),
        tested=len(test),
    )


class _Inputs(NamedTuple):
    """What a probe is fitted to."""

    vectors: Tensor
    """(row, width), float64."""
    labels: Tensor
    """(row, labelling), bool: the true ones, then shuffled ones."""
    groups: tuple[Tensor, ...]
    """The rows of each example, where it has many; else none."""


def _choose_inputs(inputs: Tensor, train: Tensor, labels: Tensor, tokens: Tokens | None) -> _Inputs:
    """The training examples, or all of their tokens with their labels."""
    if tokens is None:
        return _Inputs(inputs[train], labels, ())
    place = torch.full((len(inputs),), -1).index_put((train,), torch.arange(len(train)))[tokens.owners.cpu()]
    rows = (place >= 0).nonzero()[:, 0]
    owners = place[rows]
    groups = tuple((owners == owner).nonzero()[:, 0] for owner in range(len(train)))
    return _Inputs(tokens.vectors[rows].double().cpu(), labels[owners], groups)


def _scale_direction(inputs: Tensor, truth: Tensor, weights: Tensor, site: str) -> tuple[Tensor, float]:
    """The weights at the length that the class means are apart along them, and what turns cuts into its multiples."""
    unit = weights / weights.norm().clamp_min(1e-300)
    gap = float((inputs[truth].mean(0) - inputs[~truth].mean(0)) @ unit)
    if not gap > _NO_GAP * float(inputs.abs().max()):
        raise NeuronautError(f"true and false examples have the same mean at {site}; probe another site or position")
    return unit * gap, gap * float(weights.norm())


def _average_classes(fitted: _Inputs) -> tuple[Tensor, Tensor]:
    """The means of true and of false rows by labelling, each (width, labelling)."""
    true, false = (fitted.vectors.T @ (c / c.sum(0)) for c in (fitted.labels.double(), (~fitted.labels).double()))
    return true, false


def _fit_mean_difference(fitted: _Inputs) -> _Fit:
    true, false = _average_classes(fitted)
    weights = true - false
    return _Fit(weights, ((true + false) / 2 * weights).sum(0))


class _Ridge(NamedTuple):
    """The fit of ridge in the coordinates of the rows' singular vectors, centred."""

    coordinates: Tensor
    """(row, rank)."""
    right: Tensor
    """(rank, width)."""
    middle: Tensor
    """(width,)."""
    solution: Tensor
    """(rank, labelling)."""
    offset: Tensor
    """(labelling,): the fit at the middle."""
    penalty: Tensor
    """(labelling,)."""


def _solve_ridge(fitted: _Inputs) -> _Ridge:
    inputs, targets = fitted.vectors, 2 * fitted.labels.double() - 1
    middle, offset = inputs.mean(0), targets.mean(0)
    left, sizes, right = torch.linalg.svd(inputs - middle, full_matrices=False)
    turned, unit = left.T @ (targets - offset), sizes.square().mean().clamp_min(1e-300)
    best = torch.full_like(offset, torch.inf)
    chosen, solution = torch.zeros_like(offset), torch.zeros_like(turned)
    for penalty in PENALTIES:
        shrunk = sizes.square() + penalty * unit
        shrinkage = sizes.square() / shrunk
        missed = targets - offset - left @ (shrinkage[:, None] * turned)
        press = _leave_out(missed, left, shrinkage, fitted.groups).square().mean(0)
        solution = torch.where(press < best, (sizes / shrunk)[:, None] * turned, solution)
        chosen = torch.where(press < best, penalty * unit, chosen)
        best = torch.minimum(best, press)
    return _Ridge(
        coordinates=left * sizes, right=right, middle=middle, solution=solution, offset=offset, penalty=chosen
    )


def _leave_out(missed: Tensor, left: Tensor, shrinkage: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """The errors (row, labelling) of fits without the row, or without its group: (1 - hat matrix)^-1 of each."""
    if not groups:
        return missed / (1 - left.square() @ shrinkage - 1 / len(left)).clamp_min(1e-12)[:, None]
    errors = torch.empty_like(missed)
    for group in groups:
        hat = (left[group] * shrinkage) @ left[group].T + 1 / len(left)
        eye = torch.eye(len(group), dtype=hat.dtype)
        errors[group] = torch.linalg.lstsq(eye - hat, missed[group]).solution
    return errors


def _fit_ridge(fitted: _Inputs) -> _Fit:
    ridge = _solve_ridge(fitted)
    weights = ridge.right.T @ ridge.solution
    return _Fit(weights, ridge.middle @ weights - ridge.offset)


def _fit_lda(fitted: _Inputs) -> _Fit:
    weights = _fit_ridge(fitted).weights
    true, false = _average_classes(fitted)
    return _Fit(weights, ((true + false) / 2 * weights).sum(0))


def _fit_logistic(fitted: _Inputs) -> _Fit:
    """All labellings at once, from ridge's fit on; scaled so that the loss is about as steep in every coordinate."""
    ridge = _solve_ridge(fitted)
    signs = 2 * fitted.labels.double() - 1
    scale = (ridge.coordinates.square().sum(0)[:, None] + ridge.penalty).sqrt().clamp_min(1e-300) / 2
    with torch.enable_grad():
        scaled = (2 * ridge.solution * scale).requires_grad_()
        constant = (2 * ridge.offset).clone().requires_grad_()
        search = torch.optim.LBFGS([scaled, constant], max_iter=_LOGISTIC_STEPS, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            solution = scaled / scale
            margins = signs * (ridge.coordinates @ solution + constant)
            total = softplus(-margins).sum() + (ridge.penalty / 8 * solution.square()).sum()
            total.backward()
            return total

        search.step(loss)
    weights = ridge.right.T @ (scaled / scale).detach()
    return _Fit(weights, ridge.middle @ weights - constant.detach())


_FITS: Mapping[str, Callable[[_Inputs], _Fit]] = {
    "ridge": _fit_ridge,
    "mean_difference": _fit_mean_difference,
    "lda": _fit_lda,
    "logistic": _fit_logistic,
}


def _split_examples(
    truth: Tensor, count: int, test_share: float, generator: torch.Generator, *, together: Tensor
) -> tuple[Tensor, Tensor]:
    """Indices of the examples to train on, and of those to test on."""
    if len(truth) != count:
        raise NeuronautError(f"there are {count} examples and {len(truth)} labels; wanted one label an example")
    classes = [(truth == value).nonzero()[:, 0] for value in (True, False)]
    order = [int(row) for rows in classes for row in rows[torch.randperm(len(rows), generator=generator)]]
    room = [round(len(rows) * test_share) for rows in classes]
    tested = torch.zeros(count, dtype=torch.bool)
    for cluster in dict.fromkeys(together[order].tolist()):
        members = (together == cluster).nonzero()[:, 0]
        need = [int((truth[members] == value).sum()) for value in (True, False)]
        if all(wanted <= left for wanted, left in zip(need, room, strict=True)):
            room = [left - wanted for wanted, left in zip(need, room, strict=True)]
            tested[members] = True
    for rows, name in zip(classes, ("true", "false"), strict=True):
        held = int(tested[rows].sum())
        if held < 2 or len(rows) - held < 2:
            alike = len(together[rows].unique())
            but = "" if alike == len(rows) else f", {alike} when near-duplicates count once"
            raise NeuronautError(
                f"{len(rows)} examples are {name}{but}, {held} of them to test on; wanted at least 2 to train on and 2 "
                "to test on; give more examples"
            )
    return (~tested).nonzero()[:, 0], tested.nonzero()[:, 0]


def shuffle_labels(labels: Tensor, together: Tensor, shuffles: int, generator: torch.Generator) -> Tensor:
    """The labels themselves, then shuffled: (example, 1 + shuffles).

    Clusters of one label exchange theirs; in a cluster of both labels its examples do.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(together.tolist()))}
    cluster = torch.tensor([numbers[own] for own in together.tolist()])
    share = torch.bincount(cluster, labels.double()) / torch.bincount(cluster)
    single = (share == 0) | (share == 1)
    mixed = [(cluster == number).nonzero()[:, 0] for number in (~single).nonzero()[:, 0].tolist()]
    shuffled = [labels]
    for _ in range(shuffles):
        own = share.clone()
        own[single] = share[single][torch.randperm(int(single.sum()), generator=generator)]
        drawn = own[cluster] == 1
        for rows in mixed:
            drawn[rows] = labels[rows[torch.randperm(len(rows), generator=generator)]]
        shuffled.append(drawn)
    return torch.stack(shuffled, dim=1)


def _check_distinct(batch: Batch, mask: Tensor, *, causal: bool) -> None:
    """Raise NeuronautError for two examples that a model cannot tell apart at the last position probed."""
    first_rows: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    for row, ids in enumerate(batch.ids()):
        places = tuple(mask[row].nonzero()[:, 0].tolist())
        if not places:
            raise NeuronautError(f"the rule means no position of example {row}; name one that every example has")
        first = first_rows.setdefault((tuple(ids[: places[-1] + 1] if causal else ids), places), row)
        if first != row:
            raise NeuronautError(
                f"examples {first} and {row} are the same up to the probed position {places[-1]}, so a test would see "
                "what was trained on; leave one out, or probe a later position"
            )
