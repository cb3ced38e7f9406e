"""The load gate: it checks whether a dictionary fits the vectors that the subject really has at its sites.

A wrong transpose, a missing scale or a wrong site does not raise anything; it only makes every
number after it worthless. So a dictionary is asked to rebuild some thousands of real vectors first.
Nearby sites can be rebuilt nearly as well as the right one, hence the sweep over neighbours. A transcoder is given
the vectors of the site that it reads and is held to those of the site that it writes, token by token. Where several
sites are written, each is judged by itself, and the worst decides; one layer of a cross-layer transcoder is judged
together with the others, which rebuild a site only as a sum.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .dictionary import Dictionary
from .errors import NeuronautError
from .sources import join_vectors, require_one_site, split_vectors

LIMIT = 0.8
"""Highest share of unexplained variance at which a dictionary is still let in."""
MARGIN = 0.01
"""By how much less FVU another site than the declared one is worth a word."""
_ROWS = 256


class Fit(NamedTuple):
    """How well the vectors of one site are rebuilt."""

    fvu: float
    """Fraction of variance unexplained, sum |x - x'|^2 / sum |x - mean|^2: 0 is perfect, 1 as good as the mean."""
    gain: float
    """The factor on the centred reconstruction that would fit best; 1 where the scale is right."""
    offset: float
    """|mean (x - x')|^2 as a share of the mean |x - x'|^2; near 0 where the biases are right."""

    def doubts(self, site: str) -> dict[str, bool]:
        """What may look wrong, in words with the site's name, and whether it does."""
        return {
            f"only {1 - self.fvu:.0%} of the variance{site} is rebuilt": not self.fvu <= 0.5,
            f"scale: the reconstruction{site} wants a factor {self.gain:.2f}": not 0.8 <= self.gain <= 1.25,
            f"biases: {self.offset:.0%} of the error{site} is constant": not self.offset <= 0.25,
        }


@dataclass(frozen=True, slots=True)
class Gate:
    """How well a dictionary rebuilds vectors of its site (a transcoder, of the site that it writes)."""

    source: str
    tokens: int
    """Vectors that it was tried on."""
    fvu: float
    """As of `Fit`, like `gain` and `offset`; of several sites those of the site that is rebuilt worst."""
    l0: float
    """Mean number of active features per vector."""
    dead_share: float
    """Share of features that were active on none of the vectors."""
    decoder_norm_median: float
    """In the site's units."""
    gain: float
    offset: float
    sites: Mapping[str, Fit] = field(default_factory=dict)
    """By site that is written, where these are several; else empty."""

    @property
    def admitted(self) -> bool:
        """Whether the dictionary is let in."""
        return self.fvu <= LIMIT

    @property
    def worst(self) -> str | None:
        """The site that is rebuilt worst, where several are written."""
        return max(self.sites, key=lambda site: _or_infinite(self.sites[site].fvu), default=None)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What looks wrong but need not be, in words; empty where nothing does."""
        named = {f" of {site}": fit for site, fit in self.sites.items()}
        fits = named or {"": Fit(self.fvu, self.gain, self.offset)}
        checks = {doubt: holds for site, fit in fits.items() for doubt, holds in fit.doubts(site).items()}
        checks[f"{self.dead_share:.0%} of the features never fired"] = self.dead_share > 0.9
        return tuple(doubt for doubt, holds in checks.items() if holds)

    def __str__(self) -> str:
        each = ", ".join(f"{site} {fit.fvu:.3f}" for site, fit in self.sites.items())
        line = (
            f"{self.source}: FVU {self.fvu:.3f}{f' at worst ({each})' if each else ''}, L0 {self.l0:.1f}, "
            f"dead {self.dead_share:.1%}, decoder norm {self.decoder_norm_median:.3g}, {self.tokens} tokens"
        )
        return line + (f" (doubtful: {'; '.join(self.doubts)})" if self.doubts else "")


@dataclass(frozen=True, slots=True)
class Sweep:
    """How well a dictionary rebuilds the vectors of its own site and of neighbouring ones.

    A site stands for itself; two of a transcoder for what it reads and writes, as `mlp_in.2 > mlp_out.2`.
    """

    declared: str
    fvu: Mapping[str, float]
    """By site, the declared one included; NaN where the vectors cannot be rebuilt at all."""

    @property
    def best(self) -> str:
        """The site with the lowest FVU; the declared one where it is as good as any."""
        return min(self.fvu, key=lambda site: (_or_infinite(self.fvu[site]), site != self.declared))

    @property
    def warning(self) -> str | None:
        """One line where another site than the declared one is rebuilt better by more than MARGIN, or none is."""
        best, declared = (_or_infinite(self.fvu[site]) for site in (self.best, self.declared))
        if best > 1:
            sites = ", ".join(f"{site} {fvu:.3f}" for site, fvu in self.fvu.items())
            return f"no site nearby is rebuilt better than by its mean (FVU {sites}); the dictionary fits none of them"
        if declared - best <= MARGIN:
            return None
        return (
            f"{self.best} is rebuilt better (FVU {self.fvu[self.best]:.3f}) than {self.declared} "
            f"(FVU {self.fvu[self.declared]:.3f}); the dictionary may belong there"
        )


def check(
    dictionary: Dictionary,
    vectors: Tensor,
    *,
    targets: Tensor | None = None,
    others: Tensor | None = None,
    force: bool = False,
    suspect: Callable[[], str | None] = lambda: None,
) -> Gate:
    """Try a dictionary on real vectors (row, d_site), some thousands, BOS left out.

    `targets` (row, d_out) are the vectors that a transcoder should give of them, and a temporal dictionary, which
    encodes more than these, `others` (row, d_out) what the other
    layers of a cross-layer transcoder add. Raises NeuronautError where the FVU of a site is above LIMIT or not a
    number, unless `force`; `suspect` then names a likely cause, if there is one.
    """
    gate = _measure(dictionary, vectors, targets, others)
    if not gate.admitted and not force:
        cause = suspect()
        site = gate.worst or dictionary.writes[0]
        raise NeuronautError(
            f"{dictionary.id} does not rebuild the vectors of {site}: FVU {gate.fvu:.3f} on {gate.tokens} tokens, "
            f" wanted at most {LIMIT}; {f'{cause}; ' if cause else ''}"
            "check model, site, norm scale and the corpus's language, or pass --force"
        )
    return gate


def sweep(
    dictionary: Dictionary, vectors: Mapping[str, Tensor], *, inputs: Mapping[str, Tensor] | None = None
) -> Sweep:
    """Compare the declared sites (that of the dictionary's id, and the one that it writes) with their neighbours.

    `vectors`: site -> (row, width), the declared sites among them; sites of another width are left out. Of a
    transcoder the rows are of the same tokens at every site, and one end is moved, or both by the same layers.
    `inputs`: by site what is encoded of the same tokens there, where that is more than the vectors.
    """
    own, writes = dictionary.id.site, require_one_site(dictionary, "this sweep")
    reads = {site: rows for site, rows in vectors.items() if rows.shape[-1] == dictionary.d_site}
    written = {site: rows for site, rows in vectors.items() if rows.shape[-1] == dictionary.d_out}
    for site, there in ((own, reads), (writes, written)):
        if site not in there:
            raise NeuronautError(f"no vectors of {site}, a site of {dictionary.id}, to compare others with")
    ends = [
        (site, other)
        for site in reads
        for other in written
        if _is_near((own, writes), (site, other), transcodes=bool(dictionary.targets))
    ]
    fvu: dict[str, float] = {}
    for site in dict.fromkeys(site for site, _ in ends):
        rebuilt = rebuild(dictionary, reads[site] if inputs is None else inputs[site])
        for other in (other for near, other in ends if near == site):
            fvu[_name_ends(site, other)] = fit(written[other], rebuilt).fvu
    return Sweep(_name_ends(own, writes), fvu)


def _is_near(declared: tuple[str, str], ends: tuple[str, str], *, transcodes: bool) -> bool:
    """Whether two ends are worth a try: one site, or a transcoder's with one end moved, or both by as many layers."""
    (own, writes), (site, other) = declared, ends
    if not transcodes:
        return site == other
    (family, layer), (other_family, other_layer) = _split(site), _split(other)
    (own_family, own_layer), (written_family, written_layer) = _split(own), _split(writes)
    if other_family == own_family or family == written_family:
        return False
    both = (family, other_family) == (own_family, written_family) and layer - own_layer == other_layer - written_layer
    return both or site == own or other == writes


def _split(site: str) -> tuple[str, int]:
    family, _, layer = site.partition(".")
    return family, int(layer or 0)


def _name_ends(site: str, other: str) -> str:
    return site if site == other else f"{site} > {other}"


@torch.no_grad()
def rebuild(dictionary: Dictionary, vectors: Tensor) -> Tensor:
    """What a dictionary makes of vectors, some at a time. (row, d_site) -> (row, d_out)."""
    return torch.cat([dictionary.reconstruct(rows) for rows in vectors.split(_ROWS)])


def rebuild_by_others(dictionary: Dictionary, read: Callable[[str], Tensor]) -> Tensor | None:
    """What the other layers of a cross-layer transcoder add to the sites that this one writes, (row, d_out).

    None where there are no others. `read` gives the vectors (row, width) of a site, always of the same tokens.
    """
    if dictionary.companions is None:
        return None
    total: dict[str, Tensor] = {}
    for other in dictionary.companions():
        parts = split_vectors(rebuild(other, read(other.id.site)), other.writes)
        for site in parts.keys() & set(dictionary.writes):
            total[site] = total[site] + parts[site] if site in total else parts[site]
    if not total:
        return None
    nothing = torch.zeros_like(next(iter(total.values())))
    return join_vectors({site: total.get(site, nothing) for site in dictionary.writes}, dictionary.writes)


def fit(true: Tensor, rebuilt: Tensor) -> Fit:
    """How well vectors of a site are rebuilt. (row, width) each."""
    true, guess = true.double(), rebuilt.double()
    error = true - guess
    true, guess = true - true.mean(dim=0), guess - guess.mean(dim=0)
    squares = float(error.square().sum())
    return Fit(
        fvu=_ratio(squares, float(true.square().sum())),
        gain=_ratio(float((true * guess).sum()), float(guess.square().sum())),
        offset=_ratio(float(error.mean(dim=0).square().sum()) * len(error), squares) if squares else 0.0,
    )


def main_script(texts: Iterable[str]) -> str | None:
    """The script of most letters, such as Latin, Cyrillic or CJK; None where no script has most, or there are none."""
    letters = Counter(letter for text in texts for letter in text if letter.isalpha())
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        # A letter's name in Unicode begins with its script.
        scripts[unicodedata.name(letter, "UNNAMED").partition(" ")[0]] += count
    ((script, count),) = scripts.most_common(1) or [("", 0)]
    return (script if script == "CJK" else script.capitalize()) if 2 * count > letters.total() else None


def foreign_script(corpus: Iterable[str], vocabulary: Iterable[str]) -> str | None:
    """Say so where most letters of a corpus are of another script than most of the model's vocabulary."""
    own, native = main_script(corpus), main_script(vocabulary)
    if own is None or own == native:
        return None
    return (
        f"the corpus is mostly {own} and the model's vocabulary {native or 'of several scripts'}, so a likely cause is "
        "that the dictionary was trained on another language: harvest text like that of its training"
    )


def estimate_norm_scale(vectors: Tensor) -> float:
    """The factor that gives vectors (row, d_site) a mean norm of sqrt(d_site), as SAELens estimates it in training."""
    return math.sqrt(vectors.shape[-1]) / float(vectors.float().norm(dim=-1).mean())


@torch.no_grad()
def _measure(dictionary: Dictionary, vectors: Tensor, targets: Tensor | None, others: Tensor | None) -> Gate:
    if len(vectors) < 2:
        raise NeuronautError(f"{len(vectors)} vectors to try {dictionary.id} on; wanted at least 2, better 4096")
    alive = torch.zeros(dictionary.width, dtype=torch.bool, device=vectors.device)
    active, rebuilt = 0, []
    for rows in vectors.split(_ROWS):
        activations = dictionary.encode(rows)
        active += int((activations != 0).sum())
        alive |= (activations != 0).any(dim=0)
        rebuilt.append(dictionary.decode(activations, vectors=rows))
    whole = torch.cat(rebuilt) if others is None else torch.cat(rebuilt) + others
    true = split_vectors(vectors if targets is None else targets, dictionary.writes)
    fits = {site: fit(true[site], guess) for site, guess in split_vectors(whole, dictionary.writes).items()}
    worst = max(fits.values(), key=lambda one: _or_infinite(one.fvu))
    return Gate(
        source=str(dictionary.id),
        tokens=len(vectors),
        fvu=worst.fvu,
        l0=active / len(vectors),
        dead_share=1 - float(alive.double().mean()),
        decoder_norm_median=float(dictionary.W_dec.norm(dim=-1).median()),
        gain=worst.gain,
        offset=worst.offset,
        sites=fits if len(fits) > 1 else {},
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _or_infinite(value: float) -> float:
    return math.inf if math.isnan(value) else value
