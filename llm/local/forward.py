"""The forward passes of a local causal model: the next tokens of prompts, and probabilities at places of prompts.

Replies are written in a batch padded on the left, over one cache of keys and values; a row that is done leaves
the batch. Each row draws from its own generator, one number per token, so its company does not change its draws.

Probes share work. The prefix of all rows of a batch is run once, as a single row, and its cache is expanded for the
rest of each row, padded on the right, where causal attention never looks. The single row is kept: a later batch that
begins with it, or with much of it, goes on from there.

Only the positions wanted are unembedded: a hook gathers them right before the head, so that whatever the model's
own code does to logits afterwards (scale, soft cap) is done to these too.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...subject.errors import NeuronautError
from ...subject.hooks import Point, attach
from ..types import Probe

_ROWS = 256
"""Rows of logits that are brought to single precision at once."""


@dataclass(slots=True)
class Writing:
    """A reply as it grows."""

    prompt: Sequence[int]
    limit: int
    """Tokens at most."""
    is_over: Callable[[Sequence[int]], bool]
    """Whether the reply ended with its last token."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    generator: Generator = field(default_factory=Generator)
    alternatives: int = 0
    written: list[int] = field(default_factory=list)
    """The reply's tokens so far, with the one that ended it."""
    top: list[dict[int, float]] = field(default_factory=list)
    """Log-probabilities of the likeliest ids at each token, before any temperature."""
    ended: bool = False
    broken: bool = False
    """Logits came out infinite or NaN."""

    @property
    def active(self) -> bool:
        """Whether the reply wants another token."""
        return not self.ended and not self.broken and len(self.written) < self.limit


class Forward:
    """A model in memory, put into eval mode.

    Attributes: `width` (token ids it knows), `context` (the most positions a row may have, or None).
    """

    def __init__(self, model: PreTrainedModel, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self.width: int = config.vocab_size
        takes = inspect.signature(model.forward).parameters
        head = model.get_output_embeddings()
        plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self._cache().layers)
        if head is None or "past_key_values" not in takes or not plain:
            raise NeuronautError(
                f"{name} is a {type(model).__name__}, whose past is not attention's keys and values alone; "
                "give a plain transformer as hf:, or run this one in a server and give its URL to openai:"
            )
        self._head = Point(head, "input")
        self._takes_positions = "position_ids" in takes
        self._prefix: tuple[int, ...] = ()
        self._prefix_cache = self._cache()

    @torch.inference_mode()
    def write(self, rows: Sequence[Writing]) -> None:
        """Complete the rows."""
        longest = max(len(row.prompt) for row in rows)
        mask = self._tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        ids = self._tensor([[0] * (longest - len(row.prompt)) + list(row.prompt) for row in rows])
        cache, rows = self._cache(), list(rows)
        while True:
            last = torch.arange(len(rows)), torch.full((len(rows),), ids.shape[1] - 1)
            logits = self._logits(ids, mask, cache, last, positions=(mask.cumsum(-1) - 1).clamp_min(0))
            _extend(rows, logits.float())
            active = [index for index, row in enumerate(rows) if row.active]
            if not active:
                return
            if len(active) < len(rows):
                rows, mask = [rows[index] for index in active], mask[active]
                cache.batch_select_indices(self._tensor(active))
            ids = self._tensor([[row.written[-1]] for row in rows])
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)

    def shared_length(self, first: tuple[int, ...], last: tuple[int, ...], *, before: int) -> int:
        """How many tokens a batch of probes would share whose ids, in order, go from `first` to `last`.

        `before` is the first position that is wanted: a position inside the prefix would not be run again.
        """
        return len(self._choose_prefix(_common_prefix(first, last)[:before]))

    @torch.inference_mode()
    def probabilities(self, probes: Sequence[Probe]) -> list[list[list[float]]]:
        """For each probe, (position, choice): the probability, over all tokens, that the choice comes next.

        NaN where the logits are not finite.
        """
        rows = [probe.ids[: max(probe.positions) + 1] for probe in probes]
        first = min(min(probe.positions) for probe in probes)
        prefix = self._run_prefix(_common_prefix(min(rows), max(rows))[:first])
        cache = copy.deepcopy(self._prefix_cache) if prefix else self._cache()
        cache.batch_repeat_interleave(len(rows))
        longest = max(map(len, rows)) - prefix
        rests = [list(row[prefix:]) for row in rows]
        ids = self._tensor([rest + [0] * (longest - len(rest)) for rest in rests])
        mask = self._tensor([[1] * (prefix + len(rest)) + [0] * (longest - len(rest)) for rest in rests])
        places = [(row, at - prefix) for row, probe in enumerate(probes) for at in probe.positions]
        logits = self._logits(ids, mask, cache, tuple(torch.tensor(places).T), positions=self._positions(prefix, ids))
        sums = torch.cat([part.float().logsumexp(-1) for part in logits.split(_ROWS)])
        probabilities, start = list[list[list[float]]](), 0
        for probe in probes:
            span = slice(start, start + len(probe.positions))
            chosen = logits[span][:, list(probe.choices)].float()
            probabilities.append((chosen - sums[span, None]).exp().tolist())
            start = span.stop
        return probabilities

    def _run_prefix(self, longest: tuple[int, ...]) -> int:
        """Fill the cache of a prefix of `longest`, which all rows share; returns the prefix's length."""
        prefix = self._choose_prefix(longest)
        if prefix and prefix != self._prefix:
            cache, ids = self._cache(), self._tensor([prefix])
            place = torch.tensor([0]), torch.tensor([0])
            self._logits(ids, torch.ones_like(ids), cache, place, positions=self._positions(0, ids))
            self._prefix, self._prefix_cache = prefix, cache
        return len(prefix)

    def _choose_prefix(self, longest: tuple[int, ...]) -> tuple[int, ...]:
        """The prefix to share: the part of `longest` that is cached where that is at least half of it, else it all."""
        cached = _common_prefix(self._prefix, longest)
        return cached if 2 * len(cached) >= len(longest) else longest

    def _logits(
        self, ids: Tensor, mask: Tensor, cache: DynamicCache, places: tuple[Tensor, ...], *, positions: Tensor
    ) -> Tensor:
        """(place, token), in the model's dtype; ids: (row, position); places: rows and positions of `ids`."""
        options: dict[str, Any] = {"position_ids": positions[:, -ids.shape[1] :]} if self._takes_positions else {}
        with attach(self._head, lambda hidden: hidden[places][None]):
            output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        return output.logits[0]

    def _positions(self, start: int, ids: Tensor) -> Tensor:
        return torch.arange(start, start + ids.shape[1], device=ids.device).expand(len(ids), -1)

    def _cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def _tensor(self, rows: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, device=self.model.device)


def _extend(rows: Sequence[Writing], logits: Tensor) -> None:
    """Give each row its next token; logits: (row, token)."""
    likeliest = logits.argmax(-1).tolist()
    finite = logits.logsumexp(-1).isfinite().tolist()
    for row, best, is_finite, scores in zip(rows, likeliest, finite, logits, strict=True):
        if not is_finite:
            row.broken = True
            continue
        row.written.append(_draw(scores, row) if row.temperature > 0 else best)
        if row.alternatives:
            values, ids = scores.log_softmax(-1).topk(min(row.alternatives, len(scores)))
            row.top.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        row.ended = row.is_over(row.written)


def _draw(scores: Tensor, row: Writing) -> int:
    """Draw a token at the row's temperature, by one number from its generator."""
    chances = (scores.cpu().double() / row.temperature).softmax(-1).cumsum(-1)
    number = torch.rand(1, generator=row.generator, dtype=torch.float64) * chances[-1]
    return min(int(torch.searchsorted(chances, number, right=True)), len(chances) - 1)


def _common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
    return first[:same]
