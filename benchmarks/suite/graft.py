"""Level 6: planted units grafted into a transformer that was really trained on the world's text.

The model has channels, heads and MLP neurons of its own beside the planted ones, and only these are trained (about a
minute on two cores); so the neighbours of a unit in `mlp.2` are natural, polysemantic neurons. Neither part reads the
other's channels, but both write logits, and they share LayerNorm. A large constant (BULK) keeps its scale within a few
per cent, all that planted weights read sums to 0, and their thresholds stand on a channel and not in a bias. What is
exact is therefore the sign: a unit is active where its predicate is, and silent (0) where it is not; its size is the
predicate's within a tenth. A dense sum (noise), which has no gap about its threshold, is true in size only.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from ...subject.address import SourceId
from ...subject.model import Subject
from ...subject.sources import Neurons
from . import reading
from .drafts import Draft
from .planting import Planted, Scene, blank, plan_of, units_of
from .truth import LONGEST
from .wiring import Writer
from .words import word_tokenizer

BULK = 60.0
OWN_HEADS, OWN_NEURONS = 2, 64
"""Heads and neurons of a layer that are trained."""
STEPS, ROWS, RATE = 400, 8, 4e-3
"""Of the training: batches, windows in each, and the highest learning rate."""


def build(scene: Scene, drafts: Sequence[Draft]) -> Planted:
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
    rows = [ids for text in scene.texts for ids in _cut(tokenizer.encode(text, add_special_tokens=False))]
    seed = scene.rng.randrange(2**31)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _train(model, _own(model, plan, needed), torch.tensor(rows))
    writer.calibrate(_scale_at_bos(model, plan))
    subject = Subject(model, tokenizer, name=scene.name)
    source = SourceId(subject.name, f"mlp.{reading.LAYER}")
    return Planted(subject, Neurons(source, subject.width(source.site)), units_of(scene, plan, source, len(drafts)))


def _cut(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids) - LONGEST + 1, LONGEST):
        yield [0, *ids[start : start + LONGEST]]


def _own(model: GPT2LMHeadModel, plan: reading.Plan, planted: int) -> dict[str, Tensor]:
    """By parameter, 1 where it is the model's own and 0 where it is planted."""
    config: Any = model.config
    width, neurons = config.n_embd, config.n_inner
    size = width // config.n_head
    channel = (torch.arange(width) >= len(plan.channels)).float()
    head = (torch.arange(width) >= len(reading.HEADS) * size).float()
    first = (torch.arange(neurons) >= planted).float()
    last = torch.ones(neurons)
    last[list(plan.indices)] = 0
    own: dict[str, Tensor] = {}
    for name, weights in model.named_parameters():
        neuron = last if f".h.{reading.LAYER}." in name else first
        sides = {
            "attn.c_attn": (channel, head.repeat(3)), "attn.c_proj": (head, channel), "mlp.c_fc": (channel, neuron),
            "mlp.c_proj": (neuron, channel),
        }  # fmt: skip
        reads, writes = next(
            (pair for part, pair in sides.items() if part in name), (torch.ones(len(weights)), channel)
        )
        own[name] = torch.outer(reads, writes) if weights.ndim == 2 else writes
    return own


def _train(model: GPT2LMHeadModel, own: dict[str, Tensor], rows: Tensor) -> None:
    """Next-token prediction; what is planted has no gradient."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    with torch.no_grad():
        for name, weights in parameters.items():
            if weights.ndim == 2:
                weights += own[name] * torch.randn_like(weights) * (0.3 if "wte" in name or "wpe" in name else 0.05)
    hooks = [weights.register_hook(lambda grad, mask=own[name]: grad * mask) for name, weights in parameters.items()]
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
    """What the first norm makes of a difference of 1 at BOS."""
    transformer: Any = model.transformer
    with torch.no_grad():
        normed = transformer.h[0].ln_1(transformer.wte.weight[0] + transformer.wpe.weight[0])
    return float(normed[plan.channels[reading.ONE]] - normed[plan.channels[reading.ZERO]])
