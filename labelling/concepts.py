"""Finds directions at a site: what tells two sets of texts apart, what varies most, what a token's logit reads.

Each comes as a row of a file of directions (subject/direction_matrix.py), with how it was found beside it. A fitted
direction counts concepts: 0 is its cut between the two sets, and one unit of it is what their means are apart, so that
adding 1 moves a vector from where negative texts are to where positive ones are. Components have unit length and count
from the mean; a token's row counts its logit times the size of the vector.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..causal.probes import Method, Probe, Tokens, fit_probe
from ..data.corpus import Corpus
from ..data.harvest.activations import neurons
from ..data.splits import assign
from ..data.texts import Places, TextRows, check_heard, cut_texts, limit_norms, read_texts
from ..subject.direction_matrix import read_directions, save_directions
from ..subject.directions import unembedding
from ..subject.errors import NeuronautError
from ..subject.model import Subject

Position = Literal["last", "mean", "all"]
METHODS: Mapping[str, Method] = {"diff-means": "mean_difference", "logistic": "logistic", "lda": "lda"}
"""The methods of fits by their names on the command line."""
FEW_DISTINCT = 10
"""With fewer distinct texts in the test little is known of others."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class FoundDirection:
    """A row of a file of directions."""

    name: str
    row: Tensor
    """(width of the site,), float32."""
    offset: float
    """What is added to the projection."""
    provenance: Mapping[str, object]


class Fitted(NamedTuple):
    """A direction that tells two sets of texts apart, and the probe that it comes from."""

    found: FoundDirection
    probe: Probe


def fit_direction(
    subject: Subject,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    site: str,
    name: str,
    method: str = "diff-means",
    position: Position = "mean",
    test_share: float = 0.3,
    shuffles: int = 100,
    seed: int = 0,
) -> Fitted:
    """Fit a direction at `site` on some texts and test it on others (causal/probes.py).

    A text is read at its last token, by the mean of its tokens, or is fitted at all of them and judged by their mean.
    Near-duplicate texts are on one side of the split, and intervals and shuffles count them once; a warning is logged
    where that leaves fewer than FEW_DISTINCT to test on. Raises NeuronautError where a set has too few different texts.

    >>> names, numbers = ([f"{a}.{b} = {c}" for a in "xyz" for b in "pqr"] for c in ("name", "1"))
    >>> fit_direction(subject, names, numbers, site="resid_post.1", name="names").found.name
    'names'
    """
    if method not in METHODS:
        raise NeuronautError(f"there is no method {method!r}; wanted one of {', '.join(METHODS)}")
    texts = [*positive, *negative]
    if twice := next((text for number, text in enumerate(texts) if text in texts[:number]), None):
        raise NeuronautError(f"the text {twice[:60]!r} is given twice, and a test would see it; leave one out")
    rows = cut_texts(subject, texts)
    subject = limit_norms(subject, [site], rows)
    (own,) = neurons(subject, [site])
    read = (part[own.id] for part in read_texts(subject, [own], rows))
    vectors, tokens = _read_examples(subject, site, texts, read, position)
    clusters = assign(Corpus.of("texts", texts), fewest=1).clusters.tolist()
    probe = fit_probe(
        vectors,
        [True] * len(positive) + [False] * len(negative),
        site=site,
        positions=position,
        method=METHODS[method],
        test_share=test_share,
        shuffles=shuffles,
        seed=seed,
        clusters=clusters,
        tokens=tokens,
    )
    distinct = len(set(clusters))
    if distinct < len(texts) and probe.auroc.n < FEW_DISTINCT:
        _log.warning(
            "Warning: of %d texts %d are distinct, near-duplicates counted once, and %d of these are the test, which "
            "the intervals and the shuffles count; give more texts that differ in more than a word",
            *(len(texts), distinct, probe.auroc.n),
        )
    about = _describe_subject(subject) | {
        "method": method,
        "position": position,
        "positive": len(positive),
        "negative": len(negative),
        "trained": probe.trained,
        "tested": probe.tested,
        "distinct": distinct,
        "tested_distinct": probe.auroc.n,
        "auroc": [probe.auroc.value, *(probe.auroc.interval or ())],
        "accuracy": [probe.accuracy.value, *(probe.accuracy.interval or ())],
        "base_rate": probe.base_rate,
        "shuffles": shuffles,
        "shuffled": median(probe.control.controls),
        "p": probe.control.p,
        "seed": seed,
    }
    row = probe.direction / probe.direction.square().sum()
    return Fitted(FoundDirection(name, row, -probe.threshold, about), probe)


def _read_examples(
    subject: Subject, site: str, texts: Sequence[str], parts: Iterable[Places], position: Position
) -> tuple[Tensor, Tokens | None]:
    """A vector for each text, float32 on the CPU, and all tokens where these are wanted."""
    total, count = torch.zeros(len(texts), subject.width(site)), torch.zeros(len(texts), 1)
    last, kept = torch.zeros_like(total), []
    for places in parts:
        vectors, owners = places.vectors.cpu(), places.owners.cpu()
        total.index_add_(0, owners, vectors)
        count.index_add_(0, owners, torch.ones(len(owners), 1))
        for owner in owners.unique().tolist():
            last[owner] = vectors[(owners == owner).nonzero()[-1, 0]]
        if position == "all":
            kept.append((vectors, owners))
    check_heard(count[:, 0].nonzero()[:, 0], texts, site)
    tokens = Tokens(*(torch.cat(parts) for parts in zip(*kept, strict=True))) if kept else None
    return last if position == "last" else total / count, tokens


def principal_components(
    subject: Subject, corpus: Corpus, *, site: str, count: int, tokens: int = 50_000
) -> list[FoundDirection]:
    """The `count` directions along which vectors of the corpus's first `tokens` tokens vary most, largest first.

    Unit vectors; the sign is that in which the largest coordinate is positive. Special tokens and massive positions
    are left out.
    """
    width = subject.width(site)
    if not 0 < count <= width:
        raise NeuronautError(f"{count} components were asked for; {site} has 1 to {width}")
    texts: list[str] = []
    read = 0
    for _, document in corpus:
        texts.append(document.text)
        read += len(subject.encode(document.text))
        if read >= tokens:
            break
    whole = cut_texts(subject, texts)
    wanted = 1 + int((whole.tokens >= 0).sum(1).cumsum().searchsorted(tokens))
    rows = TextRows(*(part[:wanted] for part in whole))
    subject = limit_norms(subject, [site], rows)
    total, products, seen = torch.zeros(width).double(), torch.zeros(width, width).double(), 0
    (own,) = neurons(subject, [site])
    for places in (part[own.id] for part in read_texts(subject, [own], rows)):
        vectors = places.vectors.cpu().double()
        total, products, seen = total + vectors.sum(0), products + vectors.T @ vectors, seen + len(vectors)
    if seen <= count:
        raise NeuronautError(f"the corpus has {seen} tokens that count; wanted more than {count}, a component each")
    mean = total / seen
    variances, components = torch.linalg.eigh(products / seen - mean.outer(mean))
    shares = variances.clamp_min(0).flip(0) / variances.clamp_min(0).sum()
    about = _describe_subject(subject) | {"method": "principal-components", "corpus": corpus.name, "tokens": seen}
    found: list[FoundDirection] = []
    for number, component in enumerate(components.T.flip(0)[:count]):
        row = component * component[component.abs().argmax()].sign()
        own = {**about, "variance": float(shares[number])}
        found.append(FoundDirection(f"component {number}", row.float(), -float(row @ mean), own))
    return found


def token_directions(subject: Subject, tokens: Sequence[str], *, site: str) -> list[FoundDirection]:
    """For each token what the final norm and the unembedding project the residual stream on for its logit.

    Raises NeuronautError for a text that is not one token, and at a site that is not of the residual stream.
    """
    if subject.width(site) != subject.d_model or not site.startswith(("resid", "embed", "attn_out", "mlp_out")):
        raise NeuronautError(f"{site} is not of the residual stream, which logits are read from; wanted resid_post.L")
    ids: list[int] = []
    for token in tokens:
        encoded = subject.encode(token)
        if len(encoded) != 1:
            parts = " ".join(map(repr, subject.decode_tokens(encoded)))
            raise NeuronautError(f"{token!r} is {len(encoded)} tokens ({parts}); wanted one, as with a space before it")
        ids += encoded
    rows = unembedding(subject, ids).cpu()
    about = _describe_subject(subject) | {"method": "unembedding"}
    return [
        FoundDirection(f"token {token}", row, 0.0, {**about, "token": id})
        for token, id, row in zip(tokens, ids, rows, strict=True)
    ]


def add_to_file(path: str | Path, subject: Subject, site: str, found: Sequence[FoundDirection]) -> list[int]:
    """Add directions to a file, or write one, and return their indices; a row of the same name gives way.

    Raises NeuronautError where the file holds directions of another site, or of other weights.
    """
    rows: dict[str, FoundDirection] = {}
    if Path(path).exists():
        held = read_directions(path)
        if held.site not in (None, site):
            raise NeuronautError(f"{path} holds directions of {held.site}, not of {site}; write into another file")
        if (width := held.rows.shape[1]) != subject.width(site):
            raise NeuronautError(
                f"{path} holds directions of {width} coordinates, and {site} of {subject.name} has "
                f"{subject.width(site)}; write into another file"
            )
        listed = list_file(path)
        rows = {row.name: row for row in listed}
        if len(rows) < len(listed):
            raise NeuronautError(f"{path} holds directions of the same name; name them apart, or write another file")
    for row in rows.values():
        if (revision := row.provenance.get("revision", subject.revision)) != subject.revision:
            raise NeuronautError(
                f"{path} holds {row.name!r} of weights {revision}, and {subject.name} has {subject.revision}; write "
                "into another file"
            )
    rows |= {row.name: row for row in found}
    save_directions(
        path,
        torch.stack([row.row for row in rows.values()]),
        site=site,
        offsets=torch.tensor([row.offset for row in rows.values()]),
        names=list(rows),
        provenance=[row.provenance for row in rows.values()],
    )
    return [list(rows).index(row.name) for row in found]


def list_file(path: str | Path) -> list[FoundDirection]:
    """The rows of a file of directions; those without a name are called by their number."""
    held = read_directions(path)
    count = len(held.rows)
    names = held.names or [f"direction {index}" for index in range(count)]
    offsets = [0.0] * count if held.offsets is None else held.offsets.tolist()
    return [*map(FoundDirection, names, held.rows, offsets, held.provenance or [{}] * count)]


def _describe_subject(subject: Subject) -> dict[str, object]:
    return {"model": subject.name, "revision": subject.revision, "convention": str(subject.convention)}
