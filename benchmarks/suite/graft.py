"""Levels 5 and 6: planted units as features of a dictionary, and grafted into a trained transformer.

Level 6 (`build_grafted`): the transformer was really trained on the world's text. It has channels, heads and MLP
neurons of its own beside the planted ones, and only these are trained (about a minute on two cores); so the neighbours
of a unit in `mlp.2` are natural, polysemantic neurons. Neither part reads the other's channels, but both write logits,
and they share LayerNorm. A large constant (BULK) keeps its scale within a few per cent, all that planted weights read
sums to 0, and their thresholds stand on a channel and not in a bias. What is exact is therefore the sign: a unit is
active where its predicate is, and silent (0) where it is not; its size is the predicate's within a tenth. A dense sum
(noise), which has no gap about its threshold, is true in size only.

Level 5 (`build_superposed`): the features are in superposition. A neuron of layer 1 computes each unit and adds its
activation along a random unit vector. All these vectors, and the decoders of many random and dead features, lie in far
fewer dimensions than there are features, so no channel belongs to one of them; a feature that acts on logits has a part
of its vector on a channel that the unembedding reads. The dictionary at `resid_post.1` has more features than the site
has dimensions. Its encoder reads the channels that the unit is made of, each decoder row is the vector that the model
really adds, so that setting a feature takes its effect away.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.model import Subject
from ...subject.sources import Neurons
from . import reading
from .drafts import Draft
from .planting import DISTRACTORS, Planted, Scene, blank, plan_of, units_of
from .truth import LONGEST
from .wiring import Writer
from .words import word_tokenizer

BULK = 60.0
OWN_HEADS, OWN_NEURONS = 2, 64
"""Heads and neurons of a layer that are trained."""
STEPS, ROWS, RATE = 400, 8, 4e-3
"""Of the training: batches, windows in each, and the highest learning rate."""


def build_grafted(scene: Scene, drafts: Sequence[Draft]) -> Planted:
    """Plant the drafts as neurons of `mlp.2`, and train everything that is not planted."""
    needed = max(*reading.neurons_needed(drafts), len(drafts))
    plan = plan_of(scene, drafts, places=needed + OWN_NEURONS, distractors=0)
    model = blank(plan, neurons=needed + OWN_NEURONS, own_heads=OWN_HEADS, bulk=BULK)
    writer = Writer(model, plan)
    writer.conditions()
    for number, index in enumerate(plan.indices):
        writer.unit(reading.LAYER, index, number, {("effect", number): 1.0} if plan.effects[number] else {})
        writer.logits(("effect", number), plan.effects[number])
    tokenizer = word_tokenizer(scene.words)
    rows = [ids for text in scene.texts for ids in _cut_rows(tokenizer.encode(text, add_special_tokens=False))]
    seed = scene.rng.randrange(2**31)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _train(model, _own_masks(model, plan, needed), torch.tensor(rows))
    writer.calibrate(_scale_at_bos(model, plan))
    subject = Subject(model, tokenizer, name=scene.name)
    source = SourceId(subject.name, f"mlp.{reading.LAYER}")
    return Planted(subject, Neurons(source, subject.width(source.site)), units_of(scene, plan, source, len(drafts)))


def _cut_rows(ids: Sequence[int]) -> Iterator[list[int]]:
    """The ids of a document as rows of BOS and LONGEST tokens."""
    for start in range(0, len(ids) - LONGEST + 1, LONGEST):
        yield [0, *ids[start : start + LONGEST]]


def _own_masks(model: GPT2LMHeadModel, plan: reading.Plan, planted: int) -> dict[str, Tensor]:
    """By parameter, 1 where it is the model's own and 0 where it is planted."""
    config: Any = model.config
    width, neurons = config.n_embd, config.n_inner
    size = width // config.n_head
    channel = (torch.arange(width) >= len(plan.channels)).float()
    head = (torch.arange(width) >= len(reading.HEADS) * size).float()
    first = (torch.arange(neurons) >= planted).float()
    last = torch.ones(neurons)
    last[list(plan.indices)] = 0
    masks: dict[str, Tensor] = {}
    for name, weights in model.named_parameters():
        neuron = last if f".h.{reading.LAYER}." in name else first
        sides = {
            "attn.c_attn": (channel, head.repeat(3)),
            "attn.c_proj": (head, channel),
            "mlp.c_fc": (channel, neuron),
            "mlp.c_proj": (neuron, channel),
        }
        reads, writes = next(
            (pair for part, pair in sides.items() if part in name), (torch.ones(len(weights)), channel)
        )
        masks[name] = torch.outer(reads, writes) if weights.ndim == 2 else writes
    return masks


def _train(model: GPT2LMHeadModel, masks: dict[str, Tensor], rows: Tensor) -> None:
    """Train on next-token prediction; planted weights have no gradient."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weights in parameters.items():
            if weights.ndim == 2:
                weights += masks[name] * torch.randn_like(weights) * (0.3 if "wte" in name or "wpe" in name else 0.05)
    hooks = [weights.register_hook(lambda grad, mask=masks[name]: grad * mask) for name, weights in parameters.items()]
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (ROWS,))]
        logits = model(batch).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for hook in hooks:
        hook.remove()


def _scale_at_bos(model: GPT2LMHeadModel, plan: reading.Plan) -> float:
    """The size after the first norm of a difference of 1 at BOS."""
    transformer: Any = model.transformer
    with torch.no_grad():
        normed = transformer.h[0].ln_1(transformer.wte.weight[0] + transformer.wpe.weight[0])
    return float(normed[plan.channels[reading.ONE]] - normed[plan.channels[reading.ZERO]])


SPARE = 24
"""Dimensions that all features share."""
MORE = 40
"""Features beyond the site's dimensions."""
ACTING = 0.6
"""A unit vector's part on its own effect's channel."""
LAYER = 1


def build_superposed(scene: Scene, drafts: Sequence[Draft]) -> Planted:
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
    dictionary = _dictionary(source, plan=plan, writer=writer, directions=directions, width=width, rng=scene.rng)
    return Planted(subject, dictionary, units_of(scene, plan, source, len(drafts)))


def _dictionary(
    source: SourceId,
    plan: reading.Plan,
    writer: Writer,
    directions: Sequence[reading.Reads],
    width: int,
    rng: random.Random,
) -> Dictionary:
    """Encoders that read the units' channels from the residual stream itself; features without a draft never fire."""
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
        id=source,
        kind="standard",
        W_enc=encoder.T,
        W_dec=decoder,
        b_enc=torch.zeros(features),
        b_dec=torch.zeros(width),
    )


def _direction(rng: random.Random, effect: reading.Channel | None) -> dict[reading.Channel, float]:
    """A random unit vector by channel."""
    drawn = [rng.gauss(0, 1) for _ in range(SPARE)]
    length = sum(value * value for value in drawn) ** 0.5 / (1 - ACTING**2 if effect else 1.0) ** 0.5
    parts: dict[reading.Channel, float] = {("spare", number): value / length for number, value in enumerate(drawn)}
    return parts | ({effect: ACTING} if effect else {})
