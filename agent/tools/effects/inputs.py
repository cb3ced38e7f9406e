"""Inputs of causal tools, chosen before anything is measured: silent places, edits of the feature, tokens, components.

Tools run a place's window up to the place, because what stands after a causal model's position cannot matter to it.
Chosen tokens and components are those that rivals claim something of, and as many that nobody does: tokens of like
frequency, components of the same kind. Among these every claim can fail.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ....causal.circuits.nodes import Node, nodes_of, parse_nodes
from ....causal.edits import Edit
from ....causal.intervene import Materials
from ....causal.prompts import Batch
from ....explainers.battery.places import ACTIVE, SILENT, Place, common_tokens, count_tokens, generator, special_tokens
from ....subject.directions import promoted
from ....subject.errors import NeuronautError
from ....subject.model import Subject
from ...loop.experiments import Item
from ...loop.feature_lab import FeatureLab

MOST = 24
"""Claimed tokens or components of one experiment."""
NEAREST = 12
"""Tokens of like frequency among which a control is drawn."""


def to_json(places: Iterable[Place]) -> list[dict[str, Any]]:
    """Places as a design's plan holds them."""
    return [{"ids": list(place.ids), "pivot": place.pivot, "value": place.value} for place in places]


def from_json(plan: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Places from a design's plan."""
    return [Place(tuple(row["ids"]), row["pivot"], row["value"]) for row in plan]


def silent_places(
    lab: FeatureLab, count: int, *, seed: int, at: int | None = None, tokens: Collection[int] | None = None
) -> list[Place]:
    """Random positions of different windows at which it is silent; fewer where there are no more.

    `at` asks for one position, `tokens` for these tokens.
    """
    ids, values = lab.windows
    quiet = values < SILENT
    if at is not None:
        quiet[:, np.arange(quiet.shape[1]) != at] = False
    if tokens is not None:
        quiet &= np.isin(ids, list(tokens))
    return _draw_places(lab, quiet, count, generator(lab, seed, f"silent {at}"))


def active_places(lab: FeatureLab, count: int, *, seed: int) -> list[Place]:
    """As `silent_places`, positions at which it is active, however strong its window is."""
    return _draw_places(lab, lab.windows.values >= ACTIVE, count, generator(lab, seed, "active"))


def _draw_places(lab: FeatureLab, mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> list[Place]:
    """One random position of each of `count` random windows that have one."""
    ids, values = lab.windows
    rows = rng.permutation(np.flatnonzero(mask.any(axis=1)))[:count].tolist()
    pivots = [int(rng.choice(np.flatnonzero(mask[row]))) for row in rows]
    return [
        Place(tuple(ids[row].tolist()), pivot, float(values[row, pivot]))
        for row, pivot in zip(rows, pivots, strict=True)
    ]


def reference_rows(lab: FeatureLab, count: int, *, seed: int) -> list[list[int]]:
    """Random windows of the background, which means and draws are of."""
    rows = generator(lab, seed, "reference").permutation(len(lab.batch.background.ids))[:count]
    return [row[row >= 0].tolist() for row in lab.batch.background.ids[rows]]


def batch_of(lab: FeatureLab, places: Iterable[Place], *, whole: bool = False) -> Batch:
    """The places' windows, each up to its place, or `whole`."""
    return windows(lab, [place.ids if whole else place.ids[: place.pivot + 1] for place in places])


def windows(lab: FeatureLab, rows: Sequence[Sequence[int]]) -> Batch:
    """Token ids as rows with their BOS."""
    return Batch.of(lab.subject, [[*lab.subject.bos_prefix, *row] for row in rows])


def materials(lab: FeatureLab) -> Materials:
    """What edits of the feature refer to. Under a name a source of any sort is edited by its own edit."""
    return Materials(sources={f"{lab.source.id.site}@{_name(lab)}": lab.source})


def edit_of(
    lab: FeatureLab, operation: str, *, value: float | None = None, positions: str = "last", seed: int = 0
) -> Edit:
    """An edit of the feature; values are activations with its tail turned upwards."""
    return Edit.load(
        {
            "site": lab.source.id.site,
            "dictionary": _name(lab),
            "units": (lab.feature.index,),
            "negative": lab.feature.negative,
            "operation": operation,
            "value": value,
            "positions": positions,
            "seed": seed,
        }
    )


def _name(lab: FeatureLab) -> str:
    return lab.source.id.dictionary or "neurons"


class Chosen(NamedTuple):
    """The items of an experiment about claims."""

    items: tuple[Item, ...]
    asked: dict[str, float]
    """By token or component: +1 where it is said to be raised (or read), -1 where it is said to be lowered."""
    left_out: tuple[str, ...]
    """What was claimed and is not among the items: no token or no component before the feature, or one too many."""


def choose_tokens(lab: FeatureLab, tokens: Sequence[str], *, seed: int) -> Chosen:
    """The claimed tokens and as many others of like frequency.

    Where neither `tokens` nor any rival names one, the tokens that its direct path raises and lowers the most, and
    where it writes nothing, the most frequent ones.
    """
    ids = _by_string(lab)
    if wrong := [token for token in tokens if token not in ids]:
        raise NeuronautError(f"{wrong[0]!r} is no token of {lab.subject.name}; write tokens as the examples show them")
    claimed = dict.fromkeys(tokens, 1.0)
    for rival in lab.rivals.values():
        for token, sign in [*((t, 1.0) for t in rival.promotes), *((t, -1.0) for t in rival.suppresses)]:
            claimed.setdefault(token, sign)
    usable = [token for token in claimed if token in ids][:MOST]
    left_out = tuple(token for token in claimed if token not in usable)
    weights = {token: claimed[token] for token in usable} or _own_tokens(lab)
    others = _tokens_alike(lab, ids, weights, seed=seed)
    items = tuple(Item(repr(token), about={"token": token, "id": ids[token]}) for token in [*weights, *others])
    return Chosen(items, weights, left_out)


def _by_string(lab: FeatureLab) -> dict[str, int]:
    """The first id of every token's string."""
    ids: dict[str, int] = {}
    for id, token in enumerate(lab.vocabulary):
        ids.setdefault(token, id)
    return ids


def _own_tokens(lab: FeatureLab) -> dict[str, float]:
    own = promoted(lab.subject, lab.source, lab.feature, count=3)
    if own.top:
        return {entry.token: 1.0 for entry in own.top} | {entry.token: -1.0 for entry in own.bottom}
    return dict.fromkeys((lab.vocabulary[id] for id in common_tokens(lab)[:4]), 1.0)


def _tokens_alike(lab: FeatureLab, ids: Mapping[str, int], tokens: Mapping[str, float], *, seed: int) -> list[str]:
    """For each asked token another one that is about as frequent."""
    counts, rng = count_tokens(lab), generator(lab, seed, "tokens")
    free = [token for token, id in ids.items() if token not in tokens and id not in special_tokens(lab)]
    sizes = np.log1p([counts[ids[token]] for token in free])
    others: list[str] = []
    for token in tokens:
        order = np.argsort(np.abs(sizes - np.log1p(counts[ids[token]])), kind="stable")
        nearest = [free[i] for i in order[: NEAREST + len(others)].tolist() if free[i] not in others]
        others += [nearest[int(rng.integers(len(nearest)))]] if nearest else []
    return others


def upstream_nodes(subject: Subject, site: str) -> tuple[Node, ...]:
    """Heads and MLPs that are computed before a site."""
    before = set(subject.sites[: subject.sites.index(site)])
    nodes = tuple(node for node in nodes_of(subject, ("head", "mlp")) if node.site in before)
    if not nodes:
        raise NeuronautError(f"no head or MLP of {subject.name} comes before {site}; look at a later site")
    return nodes


def choose_nodes(lab: FeatureLab, texts: Sequence[str], *, seed: int) -> Chosen:
    """The claimed components and as many others of the same kinds; where none is claimed, those closest before it."""
    nodes = {str(node): node for node in upstream_nodes(lab.subject, lab.source.id.site)}
    for text in texts:
        parse_nodes(text)  # What is no component at all is an error that shows some.
    if wrong := [text for text in texts if text not in nodes]:
        raise NeuronautError(
            f"{wrong[0]} is not computed before {lab.source.id.site}; before it are {', '.join(nodes)}"
        )
    claimed = dict.fromkeys([*texts, *(text for rival in lab.rivals.values() for text in rival.reads)])
    usable = [text for text in claimed if text in nodes][:MOST] or [*nodes][-MOST:]
    rng = generator(lab, seed, "components")
    free = [text for text in nodes if text not in usable]
    others: list[str] = []
    for text in usable:
        left = [other for other in free if other not in others]
        same = [other for other in left if nodes[other].kind == nodes[text].kind] or left
        others += [same[int(rng.integers(len(same)))]] if same else []
    items = tuple(Item(text, about={"node": text}) for text in [*usable, *others])
    return Chosen(items, dict.fromkeys(usable, 1.0), tuple(text for text in claimed if text not in usable))
