"""Rows of `lens` and `heads`: what can be read off a model without changing it."""

import re
from collections.abc import Sequence

from torch import Tensor

from ...subject.attention import patterns
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ..heads import HeadScore
from ..lens import Lens
from ..lens import lens as run_lens
from ..prompts import where
from ..questions import Questions
from .common import Row, ends


def look(subject: Subject, questions: Questions, mask: Tensor, *, sites: Sequence[str] | None, top: int) -> Lens:
    """The logit lens on the questions' prompts, at the positions of a mask (row, position), with their answers."""
    return run_lens(
        subject, questions.batch.tokens, sites=sites, top=top, targets=questions.answers[:, None], mask=mask
    )


def lens_rows(
    subject: Subject, questions: Questions, *, positions: str, sites: Sequence[str] | None = None, top: int = 3
) -> list[Row]:
    """A row for each site at each position that is asked for: KL to what is said at the end, the target's rank."""
    mask = where(subject, questions.batch, positions)
    result = look(subject, questions, mask, sites=sites, top=top)
    return [
        _lens_row(subject, questions, result, at=(site, place), row=row, position=position)
        for place, (row, position) in enumerate(mask.nonzero().tolist())
        for site in range(len(result.sites))
    ]


def _lens_row(
    subject: Subject, questions: Questions, result: Lens, *, at: tuple[int, int], row: int, position: int
) -> Row:
    """What is seen at a site and place, which is a row's position."""
    assert result.ranks is not None and result.target_probabilities is not None, "there is a target"
    ids, probabilities = result.top[at].tolist(), result.probabilities[at].tolist()
    return {
        "prompt": questions.texts[row],
        "position": position,
        "token": questions.tokens(subject, row)[position],
        "site": result.sites[at[0]],
        "kl": float(result.kl[at]),
        "target": subject.vocabulary[int(questions.answers[row])],
        "rank": int(result.ranks[at]),
        "probability": float(result.target_probabilities[at]),
        "top": [{"token": subject.vocabulary[id], "probability": p} for id, p in zip(ids, probabilities, strict=True)],
    }


def score_row(score: HeadScore) -> Row:
    """The row of a head's share of attention."""
    return {
        "kind": score.kind,
        "head": score.unit,
        "score": score.score.value,
        **ends(score.score.interval),
        "n": score.score.n,
    }


def head_pattern(subject: Subject, questions: Questions, head: str) -> Tensor:
    """Where a head, head.L:H, attends on a prompt: (query, key). Raises NeuronautError for no head of the subject."""
    match = re.fullmatch(r"(?:head|pattern)\.(\d+):(\d+)", head)
    if match is None or int(match[2]) >= subject.n_heads:
        raise NeuronautError(f"{head} is no head of {subject.name}; wanted head.L:H, H from 0 to {subject.n_heads - 1}")
    if len(questions.texts) != 1:
        raise NeuronautError(f"a head is shown on one prompt, and there are {len(questions.texts)}; name one")
    layer = int(match[1])
    return patterns(subject, questions.batch.tokens, [layer])[layer][0, int(match[2])].float()


def pattern_rows(subject: Subject, questions: Questions, pattern: Tensor, *, top: int) -> list[Row]:
    """A row for each query: how much it attends to every key up to itself, and the `top` of these."""
    tokens = questions.tokens(subject, 0)
    return [
        {
            "position": query,
            "token": token,
            "attention": pattern[query, : query + 1].tolist(),
            "keys": [
                {"position": key, "token": tokens[key], "weight": float(pattern[query, key])}
                for key in pattern[query, : query + 1].argsort(descending=True, stable=True)[:top].tolist()
            ],
        }
        for query, token in enumerate(tokens)
    ]
