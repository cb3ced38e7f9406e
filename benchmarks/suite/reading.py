"""The places of planted parts in a model, and the channels that each condition reads there.

The residual stream is a direct sum of one-hot blocks and flags (see wiring.py); a channel goes by its kind and its
word, place or number. A condition becomes a weighted sum of channels that is positive exactly where it holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .drafts import Draft
from .truth import LONGEST, Cause, Predicate

LAYER = 2
"""The planted neurons are the inputs of `transformer.h[LAYER].mlp.c_proj`: the site `mlp.2`."""
HEADS: Sequence[str] = ("before", "quotes", "near", "once")

Channel = tuple[str, str | int]
Reads = Mapping[Channel, float]
"""Weight by channel."""
ONE, ZERO, BULK = ("one", ""), ("zero", ""), ("bulk", "")
"""Always 1; always 0; read by nothing, for a norm of known size."""
QUOTES, ONCE, ODD, QUOTED, SEEN = (("flag", name) for name in ("quotes", "once", "odd", "quoted", "seen"))


@dataclass(frozen=True, slots=True)
class Plan:
    """The places of all planted parts."""

    words: tuple[str, ...]
    """The vocabulary, by token id."""
    before: tuple[str, ...]
    """Words that are copied to the next position."""
    drafts: tuple[Draft, ...]
    channels: Mapping[Channel, int]
    heads: Mapping[str, int]
    """By name, its number within its layer."""
    indices: tuple[int, ...]
    """The neuron of `mlp.2`, or the feature, of each draft."""
    scales: tuple[float, ...]
    """Activation of each draft's unit where its condition is 1."""
    effects: tuple[Mapping[int, float], ...]
    """Logits by token id that each draft's unit adds at its scale."""


def channels(words: Sequence[str], before: Sequence[str], drafts: Sequence[Draft], *, spare: int) -> dict[Channel, int]:
    """A channel for everything that is read or written, and some to spare."""
    names: list[Channel] = [ONE, ZERO, BULK, QUOTES, ONCE, ODD, QUOTED, SEEN]
    names += [("token", word) for word in words] + [("place", place) for place in range(LONGEST + 1)]
    names += [("before", word) for word in before]
    names += [(kind, word) for word in near_words(drafts) for kind in ("share", "near")]
    names += [("any", number) for number, draft in enumerate(drafts) if is_joined(draft)]
    names += [("effect", number) for number, draft in enumerate(drafts) if not draft.abstain]
    names += [(kind, " ".join(pair)) for pair in bigrams(drafts) for kind in ("bigram", "after")]
    names += [("spare", number) for number in range(spare)]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def conditions(drafts: Iterable[Draft]) -> list[Cause]:
    """All causes and exceptions of the drafts."""
    return [cause for draft in drafts for cause in (*draft.condition.causes, *draft.condition.exceptions)]


def is_joined(draft: Draft) -> bool:
    """Whether a draft has several causes, which the layer before joins."""
    return len(draft.condition.causes) > 1


def near_words(drafts: Iterable[Draft]) -> list[str]:
    """The words that conditions look for among the tokens before."""
    return list(dict.fromkeys(word for cause in conditions(drafts) for word in cause.near))


def bigrams(drafts: Iterable[Draft]) -> list[tuple[str, str]]:
    """The pairs of words that conditions look for directly before the token."""
    return [(first, word) for c in conditions(drafts) for first in c.two_before for word in c.before]


def neurons_needed(drafts: Sequence[Draft]) -> tuple[int, int]:
    """How many neurons of layer 0 and of layer 1 the conditions take."""
    steps = 2 * (LONGEST + 1 + len(near_words(drafts)))
    return steps + len(bigrams(drafts)), 2 * (1 + sum(map(is_joined, drafts)))


def upstream(draft: Draft, heads: Mapping[str, int]) -> tuple[str, ...]:
    """The heads and MLPs that a draft's neuron needs, in forward order."""
    if draft.dense is not None:
        return (f"head.0:{heads['before']}",)
    parts: set[str] = {"mlp_out.1"} if is_joined(draft) else set()
    for cause in conditions([draft]):
        needs = {
            f"head.0:{heads['before']}": cause.before,
            f"head.0:{heads['quotes']}": cause.quoted,
            f"head.0:{heads['near']}": cause.near,
            f"head.0:{heads['once']}": cause.seen,
            "mlp_out.0": cause.quoted or cause.near or cause.seen or cause.two_before,
            f"head.1:{heads['before']}": cause.two_before,
            "mlp_out.1": cause.quoted,
        }
        parts |= {name for name, needed in needs.items() if needed}
    return tuple(sorted(parts, key=lambda name: (name.split(".")[1][0], name)))


# Conditions as sums of channels


class _Form(NamedTuple):
    """A condition as a weighted sum: above `least - 1` where it holds, and at most there where it does not."""

    reads: dict[Channel, float]
    least: int
    """How many parts it has, each of which contributes 1."""


def _form(cause: Cause) -> _Form:
    after = [("after", f"{first} {word}") for first in cause.two_before for word in cause.before]
    parts: list[Sequence[Channel]] = [
        [("token", word) for word in cause.here],
        [] if after else [("before", word) for word in cause.before],
        after,
        [("near", word) for word in cause.near],
        [QUOTED] if cause.quoted else [],
        [SEEN] if cause.seen else [],
        [("place", 1 + place) for place in cause.places],
    ]
    parts = [part for part in parts if part]
    return _Form({channel: 1.0 for part in parts for channel in part}, len(parts))


def any_of(condition: Predicate) -> dict[Channel, float]:
    """Causes of which one is enough, at most one a conjunction: at least 1 where one holds, else at most 1/2."""
    joined: dict[Channel, float] = {}
    for reads, parts in map(_form, condition.causes):
        for channel in reads:
            joined[channel] = max(joined.get(channel, 0.0), 1 / parts)
    return joined


def reads_of(draft: Draft, number: int) -> dict[Channel, float]:
    """The channels that the neuron of a draft reads, by weight: a sum that is positive where its condition holds."""
    condition, dense = draft.condition, draft.dense
    if dense is not None:
        summed: dict[Channel, float] = {("token", word): weight for word, weight in dense.here.items()}
        summed |= {("before", word): weight for word, weight in dense.before.items()}
        return summed | {ONE: -dense.threshold}
    if not condition.causes:
        return {ONE: -1.0}
    form = _Form({("any", number): 1.0}, 1) if is_joined(draft) else _form(condition.causes[0])
    reads = {channel: 2.0 * weight for channel, weight in form.reads.items()} | {ONE: 1.0 - 2 * form.least}
    reads |= {("token", word): 1.0 + grade for word, grade in condition.grades.items()}
    for exception in condition.exceptions:
        for channel in _form(exception).reads:
            reads[channel] = reads.get(channel, 0.0) - 2.0
    return reads
