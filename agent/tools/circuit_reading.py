"""Surveys of a behaviour's heads and logits: where heads look, and which components write the answer."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...causal.attention import patterns
from ...causal.heads import head_scores, repeated_tokens
from ...causal.logit_attribution import logit_attribution
from ...subject.errors import NeuronautError
from ..investigation.behaviour import BehaviourLab
from ..investigation.experiments import Design, Measured
from .circuit_common import leader

_SAMPLES, _KEYS = 2, 5


class _Args(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid")


class CountArgs(_Args, frozen=True):
    """How many."""

    count: int = Field(8, ge=1, le=100, description="Entries to show, the largest first.")


class HeadPatterns:
    """Where each head looks on random tokens that are repeated: at the token before (previous), at earlier copies of
    the current token (duplicate), at what followed them (induction), or at the first token. It gives each kind's
    heads with the largest share of attention, 0 to 1; where a head looks is not what it is for."""

    name: ClassVar[str] = "head_patterns"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = True
    args: type[CountArgs] = CountArgs

    def design(self, args: CountArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all heads."""
        return Design(f"Where do the heads of {lab.subject.name} look?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Head scores by kind."""
        batch = repeated_tokens(lab.subject, seed=lab.seed)
        found: dict[str, list[dict[str, Any]]] = {}
        for one in head_scores(lab.subject, batch, seed=lab.seed):
            found.setdefault(one.kind, []).append({"head": one.unit, "share": round(one.score.value, 4)})
        shown = {kind: heads[: design.plan["count"]] for kind, heads in found.items()}
        return _survey(lab, shown, n=len(batch), units="share of attention")


class AttentionArgs(_Args, frozen=True):
    """Which heads."""

    heads: tuple[str, ...] = Field(
        (), description="Heads such as head.1:0; none: those that the leader names, or of the largest attribution."
    )
    count: int = Field(6, ge=1, le=32, description="Heads at most.")


class AttentionTo:
    """Where heads look from the last position of the task's clean prompts: mean share of attention on the first
    token, on the last one itself, on the one before it, and on the tokens that the corruption changes and those right
    after them; and for two prompts the tokens that get most."""

    name: ClassVar[str] = "attention_to"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = True
    args: type[AttentionArgs] = AttentionArgs

    def design(self, args: AttentionArgs, lab: BehaviourLab) -> Design:
        """The heads; refuses nodes that are none."""
        first, texts = leader(lab), args.heads
        if not texts:
            ranked = sorted(lab.nodes, key=lambda node: -abs(lab.worth[node])) if first is None else lab.circuit(first)
            texts = tuple(str(node) for node in ranked if node.kind == "head")[: args.count]
        heads = [node for node in lab.named(texts) if node.kind == "head"]
        if not heads or len(heads) < len(texts):
            raise NeuronautError(f"{', '.join(texts) or 'nothing'} is no list of heads; name some, such as head.1:0")
        return Design("Where do these heads look?", "effect", (), {"heads": [str(head) for head in heads]})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """Attention from the last position, on `explore`."""
        heads, clean = lab.named(design.plan["heads"]), lab.task.pairs.clean
        seen = patterns(lab.subject, clean.tokens, {int(head.site.partition(".")[2]) for head in heads})
        rows = torch.arange(len(clean))
        found: dict[str, Any] = {}
        for head in heads:
            pattern = seen[int(head.site.partition(".")[2])][:, head.unit or 0].float().cpu()
            found[str(head)] = _looks(lab, pattern[rows, clean.last])
        return _survey(lab, found, n=len(clean), units="share of attention")


def _looks(lab: BehaviourLab, weights: Tensor) -> dict[str, Any]:
    """From (row, key) weights of the last position's query."""
    clean, corrupted = lab.task.pairs.clean, lab.task.pairs.corrupted
    changed = (clean.tokens != corrupted.tokens) & clean.real
    after = changed.roll(1, dims=1) & clean.real & ~changed
    rows = torch.arange(len(clean))
    samples = []
    for row in range(min(_SAMPLES, len(clean))):
        top = weights[row].topk(min(_KEYS, int(clean.lengths[row])))
        tokens = lab.subject.decode_tokens(clean.tokens[row, top.indices].tolist())
        places = zip(top.indices.tolist(), tokens, top.values.tolist(), strict=True)
        samples.append([[place, token, round(weight, 3)] for place, token, weight in places])
    shares = {
        "first": weights[:, 0],
        "itself": weights[rows, clean.last],
        "before": weights[rows, (clean.last - 1).clamp_min(0)],
        "changed": (weights * changed).sum(1),
        "after changed": (weights * after).sum(1),
    }
    return {**{name: round(float(share.mean()), 4) for name, share in shares.items()}, "prompts": samples}


class DirectLogits:
    """Which components write the answer: the metric's logit difference on the clean prompts taken apart into what
    each head and MLP adds to it directly, as a share of the whole. A component that works through others does not
    show."""

    name: ClassVar[str] = "direct_logits"
    version: ClassVar[int] = 1
    target: ClassVar[Literal["feature", "behaviour"]] = "behaviour"
    survey: ClassVar[bool] = True
    args: type[CountArgs] = CountArgs

    def design(self, args: CountArgs, lab: BehaviourLab) -> Design:
        """Nothing is chosen: all components."""
        return Design(f"What writes the answers of {lab.task.name}?", "effect", (), {"count": args.count})

    def measure(self, design: Design, lab: BehaviourLab) -> Measured:
        """The components with the largest shares, on `explore`."""
        pairs, split = lab.task.pairs, [f"head.{layer}" for layer in range(lab.subject.n_layers)]
        parts = logit_attribution(lab.subject, pairs.clean, token=pairs.answers, against=pairs.wrong, split=split)
        whole = float(parts.total.mean())
        ranked = parts.ranked()[: design.plan["count"]]
        found = [{"component": name, "share": round(value / whole, 4)} for name, value in ranked]
        return _survey(lab, {"components": found, "logit_difference": whole}, n=len(pairs), units="share of the logits")


def _survey(lab: BehaviourLab, found: dict[str, Any], *, n: int, units: str) -> Measured:
    return Measured(
        values=(), effect=None, low=None, high=None, n=n, units=units, normalised_by=lab.normalised_by, found=found
    )
