"""A world: a subject with planted units, the text that its units fire on, and the truth about each.

Everything is drawn from the level and the seed: the words, which of them belong to which unit, how often they meet,
the neurons' places among random dense ones, their scales, and what they promote. A number is a public seed, for
development; any other string is as good a seed, and one that nobody has seen is for claims.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...data.corpus import Corpus
from ...data.harvest.harvest import HarvestResult, harvest
from ...data.store.store import Store
from ...subject.address import Feature
from ...subject.model import Subject
from ...subject.sources import Neurons, Source
from . import graft, kinds, planting
from .drafts import Draft, Supply
from .grammar import Grammar
from .planting import Planted, Scene
from .truth import LONGEST, Unit
from .words import BOS, QUOTE, UNKNOWN, nonsense

VOCABULARY, FILLERS = 160, 36
"""Words of a world, and those of them that no unit owns."""
FILLER: Mapping[int, float] = {4: 0.7}
"""By level, the share of the text's items that belong to no unit; 0.45 where none is given."""
MODELS: Mapping[int, Callable[[Scene, Sequence[Draft]], Planted]] = {5: graft.build_superposed, 6: graft.build_grafted}
"""By level, the function that builds its subject; neurons planted alone where none is given."""


@dataclass(frozen=True, slots=True)
class World:
    """A subject of which the units are known."""

    level: int
    subject: Subject
    source: Source
    """The source of the units: the neurons `mlp.2`, or a dictionary (level 5)."""
    texts: tuple[str, ...]
    """One string a document."""
    units: tuple[Unit, ...]

    @classmethod
    def build(cls, level: int, seed: int | str = 0, *, units: int = 18, documents: int = 120) -> "World":
        """A world of one level, an eighth of whose units deserve no explanation.

        The worlds that were built last are kept in memory, since one of level 6 is trained.
        """
        return _build(level, str(seed), units, documents)

    def harvest(self, store: Store) -> HarvestResult:
        """Collect the evidence for every feature of the units' source."""
        neurons = isinstance(self.source, Neurons)
        sites = [self.source.id.site] if neurons else [self.source]
        return harvest(self.subject, sites, Corpus.of(self.subject.name, self.texts), store)

    def features(self) -> list[Feature]:
        """The units' addresses, in their order."""
        return [Feature.parse(unit.address) for unit in self.units]

    def windows(self, *, length: int = LONGEST) -> list[tuple[str, ...]]:
        """The corpus cut into windows of tokens; the rest at a document's end is dropped."""
        documents = [self.subject.decode_tokens(self.subject.encode(text)) for text in self.texts]
        return [tokens[at : at + length] for tokens in documents for at in range(0, len(tokens) - length + 1, length)]


@lru_cache(maxsize=4)
def _build(level: int, seed: str, units: int, documents: int) -> World:
    key = hashlib.sha256(f"planted suite {level} {seed} {units}".encode()).hexdigest()
    rng = random.Random(key)
    words = nonsense(VOCABULARY - 3, rng)
    supply = Supply(words[FILLERS:], rng)
    drafts = kinds.build(level, supply, units=units)
    phrases = [phrase for draft in drafts for phrase in draft.phrases]
    grammar = Grammar([*words[:FILLERS], *supply.left], phrases, rng, filler=FILLER.get(level, 0.45))
    texts = grammar.documents(documents, seed=key)
    scene = Scene(f"world{level}-{key[:8]}", level, (BOS, UNKNOWN, QUOTE, *words), texts, rng)
    planted = MODELS.get(level, planting.neurons)(scene, drafts)
    return World(level, planted.subject, planted.source, texts, planted.units)


def worlds(level: int, seed: int | str = 0, *, units: int, size: int = 18, documents: int = 120) -> Iterator[World]:
    """So many units of a level, in worlds of at most `size`."""
    for number, start in enumerate(range(0, units, size)):
        yield World.build(
            level, f"{seed}/{number}" if number else seed, units=min(size, units - start), documents=documents
        )
