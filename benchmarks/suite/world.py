"""A world: a subject with planted units, the text that its units fire on, and the truth about each.

Everything is drawn from the level and the seed: the words, which of them belong to which unit, how often they meet,
the neurons' places among random dense ones, their scales, and what they promote. A number is a public seed, for
development; any other string is as good a seed, and one that nobody has seen is for claims.

LayerNorm is made harmless by its epsilon: sqrt(variance + 1e8) is 1e4 to the last bit of a float32 for any vector
written here, and a gain of 1e4 undoes it. So a neuron equals its predicate up to rounding, within 1e-6 of its scale.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GPT2Config, GPT2LMHeadModel

from ...data.corpus import Corpus
from ...data.harvest import HarvestResult, harvest
from ...data.store import Store
from ...subject.address import Feature, SourceId
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from . import kinds, wiring
from .grammar import Grammar
from .kinds import Draft, Supply
from .truth import LONGEST, Predicate, Sum, Unit
from .words import BOS, QUOTE, UNKNOWN, nonsense, word_tokenizer

VOCABULARY, FILLERS, COPIED = 160, 36, 60
"""Words of a world, those of them that no unit owns, and those that are copied to the next position, at least."""
DISTRACTORS = 60
"""Random neurons beside the units, active on 1 to 5% of the tokens."""
FILLER = {4: 0.7}
"""By level, the share of the text's items that belong to no unit, 0.45 where none is given."""
EPSILON, GAIN = 1e8, 1e4
PROMOTED, SUPPRESSED = 4.0, -3.0
"""Logits at a unit's scale."""


@dataclass(frozen=True, slots=True)
class World:
    """A subject of which the units are known."""

    level: int
    subject: Subject
    source: Source
    """What the units belong to: the neurons `mlp.2`, or a dictionary."""
    texts: tuple[str, ...]
    """One string a document."""
    units: tuple[Unit, ...]

    @classmethod
    def build(cls, level: int, seed: int | str = 0, *, units: int = 18, documents: int = 120) -> "World":
        """A world of one level, an eighth of whose units deserve no explanation."""
        key = hashlib.sha256(f"planted suite {level} {seed} {units}".encode()).hexdigest()
        rng = random.Random(key)
        words = nonsense(VOCABULARY - 3, rng)
        supply = Supply(words[FILLERS:], rng)
        drafts = kinds.build(level, supply, units=units)
        phrases = [phrase for draft in drafts for phrase in draft.phrases]
        texts = Grammar([*words[:FILLERS], *supply.left], phrases, rng, filler=FILLER.get(level, 0.45)).documents(
            documents, seed=key
        )
        vocabulary = (BOS, UNKNOWN, QUOTE, *words)
        scene = _Scene(key, vocabulary, texts, rng)
        return _planted(cls, level, scene, drafts)

    def harvest(self, store: Store) -> HarvestResult:
        """Collect the evidence for every feature of the units' source."""
        neurons = isinstance(self.source, Neurons)
        sites = [self.source.id.site] if neurons else [self.source]
        return harvest(self.subject, sites, Corpus.of(self.subject.name, self.texts), store)

    def features(self) -> list[Feature]:
        """The units' addresses, in their order."""
        return [Feature.parse(unit.address) for unit in self.units]

    def windows(self, *, length: int = LONGEST) -> list[tuple[str, ...]]:
        """The corpus cut into windows of tokens; what is left at a document's end is dropped."""
        documents = [self.subject.decode_tokens(self.subject.encode(text)) for text in self.texts]
        return [tokens[at : at + length] for tokens in documents for at in range(0, len(tokens) - length + 1, length)]


def worlds(level: int, seed: int | str = 0, *, units: int, size: int = 18, documents: int = 120) -> Iterator[World]:
    """So many units of a level, in worlds of at most `size`."""
    for number, start in enumerate(range(0, units, size)):
        yield World.build(
            level, f"{seed}/{number}" if number else seed, units=min(size, units - start), documents=documents
        )


@dataclass(frozen=True, slots=True)
class _Scene:
    """What a world's model is built for."""

    key: str
    words: tuple[str, ...]
    texts: tuple[str, ...]
    rng: random.Random


def _planted(cls: type[World], level: int, scene: _Scene, drafts: Sequence[Draft]) -> World:
    plan, scales, effects = _plan(scene, drafts, first_channel=0)
    model = _blank(plan, neurons=max(wiring.neurons_needed(plan.drafts), 1 + max(plan.indices)))
    wiring.Writer(model, plan).write(scales, effects)
    subject = Subject(model, word_tokenizer(scene.words), name=f"world{level}-{scene.key[:8]}")
    source = SourceId(subject.name, f"mlp.{wiring.LAYER}")
    units = [_unit(level, number, plan, scales[number], effects[number], str(source)) for number in range(len(drafts))]
    return cls(level, subject, Neurons(source, subject.width(source.site)), scene.texts, tuple(units))


def _plan(
    scene: _Scene, drafts: Sequence[Draft], *, first_channel: int
) -> tuple[wiring.Plan, list[float], list[Mapping[int, float]]]:
    """Places for the drafts and for distractors behind them, with their scales and effects."""
    rng = scene.rng
    read = dict.fromkeys(word for cause in wiring.conditions(drafts) for word in cause.before)
    others = [word for word in scene.words[3:] if word not in read]
    before = (*read, *rng.sample(others, max(0, COPIED - len(read))))
    made = [
        replace(draft, dense=_sum(scene, before, rng.uniform(0.25, 0.4))) if draft.kind == kinds.NOISE else draft
        for draft in drafts
    ]
    made += [
        Draft("distractor", "", Predicate(), abstain=True, dense=_sum(scene, before, rng.uniform(0.01, 0.05)))
        for _ in range(DISTRACTORS)
    ]
    heads = dict(zip(wiring.HEADS, rng.sample(range(len(wiring.HEADS)), len(wiring.HEADS)), strict=True))
    neurons = max(wiring.neurons_needed(made), len(made))
    plan = wiring.Plan(
        scene.words, before, tuple(made), wiring.channels(scene.words, before, made, first=first_channel), heads,
        tuple(rng.sample(range(neurons), len(made))),
    )  # fmt: skip
    scales = [round(2 ** rng.uniform(-1, 3), 3) for _ in made]
    return plan, scales, [_effect(draft, len(scene.words), rng) for draft in made]


def _effect(draft: Draft, tokens: int, rng: random.Random) -> dict[int, float]:
    """Logits by token id; one unit in six, and whatever deserves no explanation, writes nothing."""
    if draft.abstain or rng.random() < 1 / 6:
        return {}
    chosen = rng.sample(range(3, tokens), rng.randint(1, 3) + rng.randint(0, 2))
    ups = max(1, len(chosen) - rng.randint(0, 2))
    return {token: PROMOTED if place < ups else SUPPRESSED for place, token in enumerate(chosen)}


def _sum(scene: _Scene, before: Sequence[str], density: float) -> Sum:
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


def _ids(scene: _Scene) -> NDArray[np.int64]:
    table = {word: number for number, word in enumerate(scene.words)}
    return np.array([table[word] for text in scene.texts[:40] for word in text.split()])


def _blank(plan: wiring.Plan, *, neurons: int) -> GPT2LMHeadModel:
    """All weights zero, but for norms that undo their epsilon."""
    heads = len(wiring.HEADS)
    config = GPT2Config(
        vocab_size=len(plan.words), n_positions=LONGEST + 1, n_embd=-(-len(plan.channels) // heads) * heads,
        n_layer=wiring.LAYER + 1, n_head=heads, n_inner=neurons, activation_function="relu",
        layer_norm_epsilon=EPSILON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(GAIN if ".ln_" in name and name.endswith("weight") else 0.0)
    return model.eval()


def _unit(level: int, number: int, plan: wiring.Plan, scale: float, effect: Mapping[int, float], source: str) -> Unit:
    draft, index = plan.drafts[number], plan.indices[number]
    return Unit(
        f"{draft.kind}-{number}", draft.kind, level, f"{source}:{index}", index, draft.description,
        draft.dense or draft.condition, scale, draft.condition.causes, draft.condition.exceptions, draft.second,
        tuple(f" {plan.words[token]}" for token, logit in effect.items() if logit > 0),
        tuple(f" {plan.words[token]}" for token, logit in effect.items() if logit < 0),
        wiring.upstream(draft, plan.heads), draft.abstain,
    )  # fmt: skip
