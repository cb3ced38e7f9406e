"""Plain English sentences about animals, food, colours, numbers, cities and people, drawn from a seed.

A quarter of the words of every kind, and of the numbers, is kept out of the corpus: only unit tests have them, and who
asks about them. So a list of what stood in the corpus is told from the function.
"""

import random
from collections.abc import Mapping, Sequence


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split())


CAPITALS: Mapping[str, str] = {
    "Paris": "France", "Rome": "Italy", "Madrid": "Spain", "Lima": "Peru", "Cairo": "Egypt", "Oslo": "Norway",
    "Vienna": "Austria", "Athens": "Greece", "Warsaw": "Poland", "Ottawa": "Canada", "Tokyo": "Japan",
    "Havana": "Cuba", "Nairobi": "Kenya", "Hanoi": "Vietnam", "Dublin": "Ireland", "Lisbon": "Portugal",
}  # fmt: skip
LEXICONS: Mapping[str, Sequence[str]] = {
    "animals": _list("fox dog cat horse rabbit beetle otter goose tiger eagle donkey salmon badger camel puppy spider"),
    "foods": _list("bread cheese apple butter coffee carrot honey rice pepper noodle pudding lemon potato soup"),
    "colours": _list("red green blue yellow purple orange brown silver crimson violet"),
    "furniture": _list("table chair mirror lamp shelf mattress pillow cupboard sofa drawer"),
    "capitals": tuple(CAPITALS),
    "countries": tuple(CAPITALS.values()),
}
"""Words by concept."""
NAMES = _list("Anna Ben Clara David Emma Felix Grace Hugo")
_ADJECTIVES = _list("small old cold warm heavy happy quiet narrow sunny clever empty")
_VERBS = _list("saw carried found wanted sold painted passed followed missed called")
_GERUNDS = _list("running sleeping waiting singing cooking swimming walking reading calling looking")
_ADVERBS = _list("slowly quickly never often gladly rarely suddenly usually not")
_PLACES = _list("garden kitchen market village station harbour valley office")
_NUMBERS = sorted(map(str, range(1, 100)), key=lambda number: int(number) * 37 % 100)
"""In an order that has nothing to do with their value."""
_SLOTS: Mapping[str, Sequence[str]] = {
    "animal": LEXICONS["animals"],
    "food": LEXICONS["foods"],
    "colour": LEXICONS["colours"],
    "thing": LEXICONS["furniture"],
    "city": LEXICONS["capitals"],
    "country": LEXICONS["countries"],
    "name": NAMES,
    "adjective": _ADJECTIVES,
    "verb": _VERBS,
    "gerund": _GERUNDS,
    "adverb": _ADVERBS,
    "place": _PLACES,
    "number": _NUMBERS,
}
_TEMPLATES = (
    "the {colour} {animal} {verb} the {adjective} {food}",
    "{name} {adverb} {verb} {number} {animal} and {number} {food} in {city}",
    "in {city}, the capital of {own}, {name} {verb} a {colour} {thing}",
    "a {adjective} {animal} is {gerund} behind the {thing}",
    "there were {number} {thing}, {number} {food} and a {food} in the {place}",
    "{name} from {country} is {adverb} {gerund} to {city}",
    "the {food} and the {colour} {food} are in the {adjective} {place}",
    "{city} is {adverb} as {adjective} as {city}, {name} said",
    "the {animal} and the {thing} in {country} are {colour}",
    "{number} of {number} were {gerund} with {name} near {own} and {city}",
    "{adverb} {city}, {adverb} the {animal}, but the {adjective} {colour} {food}",
)


def sentence(rng: random.Random, *, whole: bool = False) -> str:
    """One sentence with a space before it; of all words if `whole`, else of those of the corpus."""
    words: list[str] = []
    city = _draw("city", rng, whole=whole)
    for word in rng.choice(_TEMPLATES).split(" "):
        slot, _, rest = word.removeprefix("{").partition("}")
        if not word.startswith("{"):
            words.append(word)
        elif slot == "own":
            # Its own country, as often as another one.
            own = rng.random() < 0.6
            words.append((CAPITALS[city] if own else _draw("country", rng, whole=whole)) + rest)
        elif slot == "city" and rng.random() < 0.6:
            words.append(city + rest)
        else:
            words.append(_draw(slot, rng, whole=whole) + rest)
    return f" {' '.join(words)}."


def _draw(slot: str, rng: random.Random, *, whole: bool) -> str:
    words = _SLOTS[slot]
    return rng.choice(words if whole else words[: len(words) * 3 // 4])


def documents(count: int, *, seed: str, whole: bool = False) -> tuple[str, ...]:
    """Documents of about 200 tokens, each of which depends on the seed and its number alone."""
    made = (random.Random(f"{seed}:{number}") for number in range(count))
    return tuple("".join(sentence(rng, whole=whole) for _ in range(18)) for rng in made)
