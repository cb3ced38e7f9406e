"""The logit lens: what the subject would say if each point of its residual stream were the last one.

Every vector of a `resid_*` site goes through the subject's own final norm, unembedding and soft-cap (nostalgebraist,
"interpreting GPT: the logit lens", 2020). The vectors are read by the subject's own hooks, never from Hugging Face's
`hidden_states`, whose last entry has been through the final norm already. At the last layer the lens must give the
subject's real logits, or nothing is returned.

    kl = sum over tokens of p (log p - log q)    p: the subject's own next-token distribution, q: the lens's
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..subject.claims import ROUNDING
from ..subject.conformance import unembed
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from .measures import divergence
from .runs import logits_of

LOGITS = 2**24
"""Logits of one site that are in memory at a time, at most, or those of one place."""


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """What the lens shows at every site, row and position. Tensors are on the CPU.

    Where only some positions were asked for, one dimension of places stands for row and position.
    """

    sites: tuple[str, ...]
    """In forward order."""
    top: Tensor
    """(site, row, position, top) token ids, the most probable first."""
    probabilities: Tensor
    """(site, row, position, top): theirs, 0 to 1."""
    kl: Tensor
    """(site, row, position): nats from the lens's distribution to the subject's own; at least 0 but for rounding."""
    ranks: Tensor | None
    """(site, row, position): how many tokens are more probable than the target; None without targets."""
    target_probabilities: Tensor | None
    """(site, row, position): the target's, 0 to 1; None without targets."""


@torch.inference_mode()
def lens(
    subject: Subject,
    tokens: Tensor,
    *,
    sites: Sequence[str] | None = None,
    top: int = 5,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
) -> Lens:
    """Read the residual stream of `tokens` (row, position) as if it were the last layer's.

    `sites` are of kind `resid_pre`, `resid_mid` or `resid_post`, or `embed`; by default every one that differs from
    its neighbours, since `resid_pre.L` is `resid_post` of the layer before. `targets` are token ids that fit
    (row, position): one to follow everywhere, or one a position. With `mask`, (row, position) of bool, only its places
    are looked at, in the order of `mask.nonzero()`. Takes two forwards, or one more for each part of so many places as
    have LOGITS logits: no more are in memory at a time, but for a few copies.
    Raises NeuronautError where the lens at the last layer is not the subject's logits within rounding.

    >>> batch = Batch.of(subject, ["def __init__(self, name): self.name ="])
    >>> lens(subject, batch.tokens, sites=["resid_post.2", "resid_post.3"], top=3).sites
    ('resid_post.2', 'resid_post.3')
    """
    chosen = _choose_sites(subject, sites, top)
    last = f"resid_post.{subject.n_layers - 1}"
    vectors = subject.read(tokens, [*dict.fromkeys((*chosen, last))])
    places = torch.ones_like(tokens, dtype=torch.bool).nonzero() if mask is None else mask.cpu().nonzero()
    if not len(places):
        raise NeuronautError("no position is asked for; mark at least one")
    parts: list[tuple[Tensor, ...]] = []
    for part in places.cpu().split(max(1, LOGITS // len(subject.vocabulary))):
        at = tuple(part.to(subject.device).T)
        ids = None if targets is None else targets.to(subject.device).expand(tokens.shape)[at][:, None]
        real = logits_of(subject, tokens, part)
        _check_last(subject, _unembed(subject, vectors[last][at]), real)
        own = real.float().log_softmax(-1)
        columns = [_look(_unembed(subject, vectors[site][at]), own, ids, top) for site in chosen]
        parts.append(tuple(torch.stack(column).cpu() for column in zip(*columns, strict=True)))
    joined = [torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)]
    if mask is None:
        joined = [column.unflatten(1, tokens.shape) for column in joined]
    top_ids, probabilities, kl, *target = joined
    ranks, target_probabilities = target or (None, None)
    return Lens(
        sites=tuple(chosen),
        top=top_ids,
        probabilities=probabilities,
        kl=kl,
        ranks=ranks,
        target_probabilities=target_probabilities,
    )


def _look(logits: Tensor, own: Tensor, ids: Tensor | None, top: int) -> tuple[Tensor, ...]:
    """The top tokens with their probabilities, KL, and the target's rank and probability, of logits (place, token)."""
    logprobs = logits.float().log_softmax(-1)
    likeliest = logprobs.topk(top, dim=-1)
    kl = divergence(own, logprobs)
    return likeliest.indices, likeliest.values.exp(), kl, *(() if ids is None else _rank_target(logprobs, ids))


def _rank_target(logprobs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rank and probability of the ids (place, 1) in log-probabilities (place, token)."""
    target_logprobs = logprobs.gather(-1, ids)
    return (logprobs > target_logprobs).sum(-1), target_logprobs[..., 0].exp()


def _unembed(subject: Subject, residual: Tensor) -> Tensor:
    return unembed(subject.model, subject.architecture, residual)


def _check_last(subject: Subject, lens_logits: Tensor, real: Tensor) -> None:
    error = float((lens_logits.float() - real.float()).abs().max() / real.float().abs().max().clamp_min(1e-30))
    allowed = ROUNDING * torch.finfo(real.dtype).eps
    if not error <= allowed:
        raise NeuronautError(
            f"the lens at the last layer of {subject.name} is off its logits by {error:.2g} (allowed {allowed:.2g}); "
            "something after the last layer is edited: take that away, and look again"
        )


def _choose_sites(subject: Subject, sites: Sequence[str] | None, top: int) -> list[str]:
    if sites is None:
        sites = [
            site for site in subject.sites if site == "resid_pre.0" or site.startswith(("resid_mid", "resid_post"))
        ]
    wrong = [site for site in sites if site.partition(".")[0] not in ("embed", "resid_pre", "resid_mid", "resid_post")]
    if wrong or not sites:
        raise NeuronautError(
            f"the lens reads the residual stream, and {', '.join(wrong) or 'no site'} is none of its sites; "
            "name resid_pre.L, resid_mid.L or resid_post.L"
        )
    if not 0 < top <= len(subject.vocabulary):
        raise NeuronautError(f"cannot show the top {top} tokens; wanted 1 to {len(subject.vocabulary)}")
    return sorted(sites, key=lambda site: subject.sites.index(site) if site in subject.sites else -1)
