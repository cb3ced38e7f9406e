"""Counterfactual pairs (benchmarks/suite/pairs.py) for the neurons of the hand-written model, by the words that each
reads."""

from collections.abc import Mapping, Sequence

from neuronaut.benchmarks.suite.pairs import Pair, Target
from neuronaut.benchmarks.suite.pairs import counterfactuals as pairs_of
from tests.planted import CLASSES, WORDS, PlantedNeuron

_NAMES, _QUOTE = CLASSES["name"], ('"',)
READS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "day": (CLASSES["day"], ()),
    "colour": (CLASSES["colour"], ()),
    "new_haven": (("Haven",), ("New",)),
    "river_not_dry": (("river",), ("dry",)),
    "bell_after_storm": (("bell",), ("storm",)),
    "price": (CLASSES["digit"], CLASSES["currency"]),
    "quoted": ((), _QUOTE),
    "three_causes": (("piano", "7"), ("Mister",)),
    "quoted_city": (CLASSES["city"], _QUOTE),
    "river": (("river",), ("dry",)),
    "name_again": (_NAMES, _NAMES),
}
"""By neuron, the words that its predicate reads at the token and before it. Others read places or repeats."""

VOCABULARY = tuple(f" {word}" for word in WORDS if not word.startswith("<"))


def counterfactuals(
    neuron: PlantedNeuron, windows: Sequence[Sequence[str]], *, each: int = 50, seed: int = 0
) -> list[Pair]:
    """Pairs of every transition of the neuron's truth; a neuron is active above half of its highest truth."""
    half = max(max(neuron.truth(words)) for words in windows) / 2
    here, before = ([f" {word}" for word in words] for words in READS.get(neuron.name, ((), ())))

    def at(tokens: Sequence[str], place: int) -> float:
        return neuron.truth(tokens[: place + 1])[-1]

    target = Target(neuron.name, neuron.truth, at, half, here, before, VOCABULARY)
    return pairs_of(target, windows, each=each, seed=seed)
