"""Massive positions: tokens whose vectors are many times as long as others', whatever they say.

A model parks attention on a few tokens, the first of a row above all, and gives them vectors of a hundred times the
usual norm (Sun, Chen, Kolter and Liu 2024, "Massive Activations in Large Language Models"). They carry most of the
variance and say nothing of the text, so gate, statistics and examples leave them out. The limit is taken from a sample
of the whole corpus, so that every shard has the same.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ..padding import cut
from .activations import TILE_ROWS, WINDOWS, norm_site, with_bos, without_bos

MASSIVE = 10.0
"""A position is massive where its vector's norm is above this many times the median one."""
_WINDOWS = TILE_ROWS
"""Windows in the sample, of as many passages: the demo's limits differ from those of four times as many by 0.6%."""


def sample_windows(subject: Subject, texts: Sequence[str], *, window: int) -> NDArray[np.int64]:
    """The first windows of some passages, (row, position): enough to tell which norms are usual."""
    return np.concatenate([cut(ids, window)[:1] for ids in subject.encode_all(texts)])[:_WINDOWS]


def norm_limits(subject: Subject, sites: Iterable[str], tokens: NDArray[np.integer]) -> dict[str, float]:
    """The norm above which a position is massive, for each site that tells it for one of `sites`.

    tokens: (row, position) of a sample of the corpus, without BOS, padding below 0. Raises NeuronautError where these
    are all padding or special tokens.
    """
    if not _is_text(subject, tokens).any():
        raise NeuronautError("the corpus holds no text but special tokens; give another one")
    wanted = list(dict.fromkeys(site for site in (norm_site(subject, site) for site in sites) if site is not None))
    if not wanted:
        return {}

    def read(part: slice) -> dict[str, torch.Tensor]:
        windows = tokens[part]
        counted = torch.from_numpy(_is_text(subject, windows))
        vectors = subject.read(with_bos(subject, windows), wanted)
        return {
            site: without_bos(subject, windows, vectors[site]).float().norm(dim=-1).cpu()[counted] for site in wanted
        }

    parts = [*subject.batching.batches(len(tokens), TILE_ROWS, read, work=WINDOWS)]
    return {site: MASSIVE * float(torch.cat([part[site] for part in parts]).median()) for site in wanted}


def _is_text(subject: Subject, tokens: NDArray[np.integer]) -> NDArray[np.bool_]:
    return (tokens >= 0) & ~np.isin(tokens, list(subject.special_ids))
