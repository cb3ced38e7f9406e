"""From drafts to a subject: places, scales and effects drawn, weights written, and the truth about every unit.

LayerNorm is made harmless by its epsilon: sqrt(variance + 1e8) is 1e4 to the last bit of a float32 for any vector
written here, and a gain of 1e4 undoes it. So a neuron equals its predicate up to rounding, within 2e-6 of its scale.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

from ...subject.address import SourceId
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from . import kinds, reading
from .drafts import Draft
from .truth import LONGEST, Predicate, Sum, Unit
from .wiring import Writer
from .words import word_tokenizer

COPIED = 60
"""Words that are copied to the next position, at least."""
DISTRACTORS = 60
"""Random neurons beside the units, active on 1 to 5% of the tokens."""
HEAD = 66
"""Least size of a head: one dimension a position or a copied word."""
EPSILON, GAIN = 1e8, 1e4
PROMOTED, SUPPRESSED = 4.0, -3.0
"""Logits at a unit's scale."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The world that a model is built for."""

    name: str
    level: int
    words: tuple[str, ...]
    """The vocabulary, by token id; the first three are signs."""
    texts: tuple[str, ...]
    rng: random.Random


class Planted(NamedTuple):
    """A subject, the source that its units belong to, and the units."""

    subject: Subject
    source: Source
    units: tuple[Unit, ...]


def neurons(scene: Scene, drafts: Sequence[Draft]) -> Planted:
    """Units that are neurons of `mlp.2`, among random ones, in a model that has nothing else."""
    size = max(*reading.neurons_needed(drafts), len(drafts) + DISTRACTORS)
    plan = plan_of(scene, drafts, places=size, distractors=DISTRACTORS)
    model = blank(plan, neurons=size)
    writer = Writer(model, plan)
    writer.conditions()
    for number, index in enumerate(plan.indices):
        effect = plan.effects[number]
        writer.unit(reading.LAYER, index, number, {("effect", number): 1.0} if effect else {})
        writer.logits(("effect", number), effect)
    subject = Subject(model, word_tokenizer(scene.words), name=scene.name)
    source = SourceId(subject.name, f"mlp.{reading.LAYER}")
    return Planted(subject, Neurons(source, subject.width(source.site)), units_of(scene, plan, source, len(drafts)))


def plan_of(scene: Scene, drafts: Sequence[Draft], *, places: int, distractors: int, spare: int = 0) -> reading.Plan:
    """Draw the drafts' places among so many, their scales and effects; distractors stand behind them."""
    rng = scene.rng
    read = dict.fromkeys(word for cause in reading.conditions(drafts) for word in (*cause.before, *cause.two_before))
    others = [word for word in scene.words[3:] if word not in read]
    before = (*read, *rng.sample(others, max(0, COPIED - len(read))))
    planted = [
        replace(draft, dense=_draw_sum(scene, before, rng.uniform(0.25, 0.4))) if draft.kind == kinds.NOISE else draft
        for draft in drafts
    ]
    planted += [
        Draft("distractor", "", Predicate(), abstain=True, dense=_draw_sum(scene, before, rng.uniform(0.01, 0.05)))
        for _ in range(distractors)
    ]
    heads = dict(zip(reading.HEADS, rng.sample(range(len(reading.HEADS)), len(reading.HEADS)), strict=True))
    return reading.Plan(
        words=scene.words,
        before=before,
        drafts=tuple(planted),
        channels=reading.channels(scene.words, before, planted, spare=spare),
        heads=heads,
        indices=tuple(rng.sample(range(places), len(planted))),
        scales=tuple(round(2 ** rng.uniform(-1, 3), 3) for _ in planted),
        effects=tuple(_draw_effect(draft, len(scene.words), rng) for draft in planted),
    )


def _draw_effect(draft: Draft, tokens: int, rng: random.Random) -> dict[int, float]:
    """Logits by token id; one unit in six, and every unit without an answer, writes nothing."""
    if draft.abstain or rng.random() < 1 / 6:
        return {}
    chosen = rng.sample(range(3, tokens), rng.randint(1, 3) + rng.randint(0, 2))
    ups = max(1, len(chosen) - rng.randint(0, 2))
    return {token: PROMOTED if place < ups else SUPPRESSED for place, token in enumerate(chosen)}


def _draw_sum(scene: Scene, before: Sequence[str], density: float) -> Sum:
    """A random sum that is positive on such a fraction of the corpus."""
    rng = scene.rng
    here = {word: rng.gauss(0, 0.6) for word in scene.words}
    ahead = {word: rng.gauss(0, 0.6) for word in before}
    ids = _ids(scene)
    values = np.array([here[word] for word in scene.words])[ids]
    values[1:] += np.array([ahead.get(word, 0.0) for word in scene.words])[ids[:-1]]
    levels = np.unique(values)  # the threshold stands between two of them, so that rounding decides nothing
    above = int(np.searchsorted(levels, np.quantile(values, 1 - density))) + 1
    return Sum(here, ahead, float(levels[above - 1 : above + 1].mean()))


def _ids(scene: Scene) -> NDArray[np.int64]:
    table = {word: number for number, word in enumerate(scene.words)}
    return np.array([table[word] for text in scene.texts[:40] for word in text.split()])


def gpt2_config(
    *,
    words: int,
    positions: int,
    width: int,
    layers: int,
    heads: int,
    neurons: int,
    epsilon: float,
    activation: str = "relu",
) -> GPT2Config:
    """The configuration of a GPT-2 with untied embeddings and no dropout."""
    return GPT2Config(
        vocab_size=words,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_inner=neurons,
        activation_function=activation,
        layer_norm_epsilon=epsilon,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )


def blank(plan: reading.Plan, *, neurons: int, own_heads: int = 0, bulk: float = 0.0) -> GPT2LMHeadModel:
    """All weights zero but for norms; with room for heads that are not planted, and for their channels.

    Norms undo their epsilon, or, where `bulk` is given, the variance that this constant on the channel BULK makes.
    """
    heads = len(reading.HEADS) + own_heads
    size = max(HEAD, -(-len(plan.channels) // heads))
    config = gpt2_config(
        words=len(plan.words),
        positions=LONGEST + 1,
        width=heads * size,
        layers=reading.LAYER + 1,
        heads=heads,
        neurons=neurons,
        epsilon=1e-5 if bulk else EPSILON,
    )
    model: Any = GPT2LMHeadModel(config)
    gain = bulk / (heads * size) ** 0.5 if bulk else GAIN
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(gain if ".ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight[:, plan.channels[reading.BULK]] = bulk
    return model.eval()


def units_of(scene: Scene, plan: reading.Plan, source: SourceId, count: int) -> tuple[Unit, ...]:
    """The truth about the first drafts of a plan."""
    return tuple(_unit(scene, plan, source, number) for number in range(count))


def _unit(scene: Scene, plan: reading.Plan, source: SourceId, number: int) -> Unit:
    draft, index, effect = plan.drafts[number], plan.indices[number], plan.effects[number]
    return Unit(
        name=f"{draft.kind}-{number}",
        kind=draft.kind,
        level=scene.level,
        address=f"{source}:{index}",
        index=index,
        description=draft.description,
        condition=draft.dense or draft.condition,
        scale=plan.scales[number],
        causes=draft.condition.causes,
        exceptions=draft.condition.exceptions,
        second=draft.second,
        promotes=tuple(f" {plan.words[token]}" for token, logit in effect.items() if logit > 0),
        suppresses=tuple(f" {plan.words[token]}" for token, logit in effect.items() if logit < 0),
        upstream=reading.upstream(draft, plan.heads),
        abstain=draft.abstain,
    )
