"""Level 5: units that are features of a dictionary, in superposition.

A neuron of layer 1 computes each unit and adds its activation along a random unit vector. All these vectors, and the
decoders of many random and dead features, lie in far fewer dimensions than there are features, so no channel
belongs to one of them; a feature that acts on logits has a part of its vector on a channel that the unembedding reads.
The dictionary at `resid_post.1` has more features than the site has dimensions. Its encoder reads what the unit is
made of, each decoder row is the vector that the model really adds, so that setting a feature takes its effect away.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.model import Subject
from . import reading
from .drafts import Draft
from .planting import DISTRACTORS, Planted, Scene, blank, plan_of, units_of
from .wiring import Writer
from .words import word_tokenizer

SPARE = 24
"""Dimensions that all features share."""
MORE = 40
"""Features beyond the site's dimensions."""
ACTING = 0.6
"""What a unit vector has on its own effect's channel."""
LAYER = 1


def build(scene: Scene, drafts: Sequence[Draft]) -> Planted:
    """Plant the drafts as features of `resid_post.1@planted`, among random ones and dead ones."""
    plan = plan_of(scene, drafts, places=len(drafts) + DISTRACTORS, distractors=DISTRACTORS, spare=SPARE)
    first, used = reading.neurons_needed(drafts)
    model = blank(plan, neurons=max(first, used + len(plan.drafts)))
    width: int = model.config.n_embd
    plan = replace(plan, indices=tuple(scene.rng.sample(range(width + MORE), len(plan.drafts))))
    directions = [_direction(scene.rng, ("effect", n) if plan.effects[n] else None) for n in range(len(plan.drafts))]
    writer = Writer(model, plan)
    writer.conditions()
    for number, (scale, effect) in enumerate(zip(plan.scales, plan.effects, strict=True)):
        added = {channel: scale * part for channel, part in directions[number].items()}
        writer.unit(LAYER, used + number, number, added)
        writer.logits(("effect", number), {token: logit / scale / ACTING for token, logit in effect.items()})
    subject = Subject(model, word_tokenizer(scene.words), name=scene.name)
    source = SourceId(subject.name, f"resid_post.{LAYER}", "planted")
    dictionary = _dictionary(source, plan, writer, directions, width, scene.rng)
    return Planted(subject, dictionary, units_of(scene, plan, source, len(drafts)))


def _dictionary(
    source: SourceId,
    plan: reading.Plan,
    writer: Writer,
    directions: Sequence[reading.Reads],
    width: int,
    rng: random.Random,
) -> Dictionary:
    """Encoders that read what units read from the residual stream itself; features without a draft never fire."""
    features = width + MORE
    encoder, decoder = torch.zeros(features, width), torch.zeros(features, width)
    by_index = dict(zip(plan.indices, range(len(plan.indices)), strict=True))
    for feature in range(features):
        number = by_index.get(feature)
        direction = _direction(rng, None) if number is None else directions[number]
        for channel, part in direction.items():
            decoder[feature, plan.channels[channel]] = part
        if number is not None:
            reads = reading.reads_of(plan.drafts[number], number)
            writer.column(encoder[feature], {channel: plan.scales[number] * w for channel, w in reads.items()})
    return Dictionary(
        id=source, kind="standard", W_enc=encoder.T, W_dec=decoder, b_enc=torch.zeros(features),
        b_dec=torch.zeros(width),
    )  # fmt: skip


def _direction(rng: random.Random, effect: reading.Channel | None) -> dict[reading.Channel, float]:
    """A random unit vector by channel."""
    drawn = [rng.gauss(0, 1) for _ in range(SPARE)]
    length = sum(value * value for value in drawn) ** 0.5 / (1 - ACTING**2 if effect else 1.0) ** 0.5
    found: dict[reading.Channel, float] = {("spare", number): value / length for number, value in enumerate(drawn)}
    return found | ({effect: ACTING} if effect else {})
