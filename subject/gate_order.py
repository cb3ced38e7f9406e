"""Whether a dictionary of several sites has them in the right order: the sweep of the load gate for crosscoders.

Neighbouring sites of the residual stream are much alike, so that a crosscoder whose sites were mixed up may still
rebuild a good part of each. It is therefore tried with two neighbours exchanged, in what it reads, in what it writes
and in both, and with all sites a layer on or back; the vectors as they are declared should fit best.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from .dictionary import Dictionary
from .gate import Sweep, fit, rebuild
from .sources import join_vectors, split_vectors

Sites = tuple[str, ...]


def orders(dictionary: Dictionary) -> dict[str, tuple[Sites, Sites]]:
    """What is tried, by name: the sites in the place of `reads` and of `writes`; first the declared ones."""
    reads, writes = dictionary.reads, dictionary.writes
    tried: dict[str, tuple[Sites, Sites]] = {"the declared order": (reads, writes)}
    for first in range(len(reads) - 1):
        exchanged = f"{reads[first + 1]} for {reads[first]}"
        turned = _turn(reads, first)
        tried[f"{exchanged} in W_enc"] = (turned, writes)
        if reads == writes:
            tried |= {f"{exchanged} in W_dec": (reads, turned), f"{exchanged} in both": (turned, turned)}
    for step, name in ((-1, "all sites a layer before"), (1, "all sites a layer after")):
        tried[name] = (_move(reads, step), _move(writes, step))
    return tried


def sweep_orders(dictionary: Dictionary, vectors: Mapping[str, Tensor]) -> Sweep:
    """The highest FVU of a site, for the declared sites and for each of `orders` whose vectors are there.

    `vectors`: site -> (row, width), of the same tokens at every site, the declared ones among them.
    """
    tried = orders(dictionary)
    fvu = {
        name: max(_unexplained(dictionary, reads, writes, vectors))
        for name, (reads, writes) in tried.items()
        if vectors.keys() >= {*reads, *writes}
    }
    return Sweep(next(iter(tried)), fvu)


def _unexplained(dictionary: Dictionary, reads: Sites, writes: Sites, vectors: Mapping[str, Tensor]) -> Iterator[float]:
    rebuilt = split_vectors(rebuild(dictionary, join_vectors(vectors, reads)), dictionary.writes)
    for site, guess in zip(writes, rebuilt.values(), strict=True):
        yield fit(vectors[site], guess).fvu


def _turn(sites: Sites, first: int) -> Sites:
    return (*sites[:first], sites[first + 1], sites[first], *sites[first + 2 :])


def _move(sites: Sites, step: int) -> Sites:
    split = (site.partition(".") for site in sites)
    return tuple(f"{family}.{int(layer) + step}" if layer else family for family, _, layer in split)
