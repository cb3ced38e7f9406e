"""Ten thousand addresses, edits and budgets of all sorts: each is read, or refused in one line, and nothing else.

A seeded generator takes sound texts apart and puts them together wrongly; hypothesis adds what nobody thought of.
"""

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuronaut.agent.loop.budget import Limits
from neuronaut.causal.edits import Edit
from neuronaut.cli.common import Count, parse_minutes
from neuronaut.data.store.store import Store
from neuronaut.labelling.opening import sites_of
from neuronaut.llm.prices import Budget
from neuronaut.subject.address import Feature, Selection, SourceId
from neuronaut.subject.errors import NeuronautError

from .families import tiny_subject
from .stored import harvest_result

CASES = 10_000
T = TypeVar("T")
NUMBERS = (
    "0",
    "1",
    "4",
    "17",
    "007",
    "-1",
    "1.5",
    "1e3",
    "1e999",
    "1e-999",
    "9" * 30,
    "9" * 5000,
    "٣",
    "²",
    "",
    "nan",
    "inf",
    "0x1",
)
ODD = (
    "\0",
    "\n",
    "\x1b[31m",
    "\u202e",
    "\ud800",
    " ",
    "é",
    "😀",
    "'",
    '"',
    "\\",
    "%",
    "{}",
    "[" * 2000,
    "..",
    "/",
    "~",
)
ADDRESS = (
    "demo",
    "a/b",
    "./x",
    ":",
    "@",
    "-",
    ",",
    "mlp.2",
    "mlp",
    "resid_post.",
    "sae",
    "all",
    "alive",
    "random",
    "0-4",
    "4-0",
    "0-99999999999",
    "1,2,1",
)
EDIT = (
    "mlp.2",
    "head.1",
    "pattern.1",
    "embed",
    ":",
    "@",
    "=",
    "+=",
    "*=",
    "<=",
    ">=",
    "..",
    "q",
    "q99",
    "mean",
    "noise",
    "patch",
    "knockout",
    "uniform",
    "resample",
    "last",
    "every",
    "all",
    ">",
    "#",
    "~",
    "-",
    ",",
    '" a"',
    '"\\n"',
    "[0.5,-1]",
    "[]",
    "name",
    "sae",
    "0-4",
    "0-99999999999",
    '{"site": "mlp.2", "operation": "zero"}',
)
BUDGET = ("usd", "tokens", "calls", "minutes", "fwd", "experiments", "=", ",", "k", "M", "B", "%", "all", "_")
SOUND_ADDRESSES = (
    "demo:mlp.2:3",
    "demo:mlp.2",
    "demo:mlp.2:0-3-",
    "demo:mlp.2:all",
    "demo:mlp.2:random:3",
    "demo:resid_post.2@sae:4",
    "demo:mlp.2:0,2-4",
)
SOUND_EDITS = (
    "mlp.2:17=0",
    "head.1:3=mean@last",
    "resid_post.2@sae:40+=1.5q",
    "pattern.1:3=knockout@last>0",
    'mlp.2=patch@" a"',
    "mlp.2:3=0..2q99",
    "mlp.2:1,3-5*=2@1,4,-2~3",
    "mlp.2=resample#7",
    "resid_post.1:[0.5,-1]+=2",
)
SOUND_BUDGETS = ("usd=5,tokens=2M", "calls=100", "minutes=30", "fwd=50k,experiments=40,minutes=0.5")


def cases(parts: tuple[str, ...], sound: tuple[str, ...]) -> Iterator[str]:
    """CASES texts: half put together from parts, half sound ones with a change or two."""
    draw = random.Random(11)
    pieces = (*parts, *NUMBERS, *ODD, *parts)
    for number in range(CASES):
        if number % 2:
            yield "".join(draw.choices(pieces, k=draw.randint(0, 7)))
            continue
        text = draw.choice(sound)
        for _ in range(draw.randint(0, 2)):
            place = draw.randint(0, len(text))
            text = text[:place] + draw.choice((*pieces, "")) + text[place + draw.randint(0, 3) :]
        yield text


def outcome(read: Callable[[str], T], text: str) -> T | None:
    """What a text is read as; None where it is refused in one line of the right type."""
    try:
        return read(text)
    except (NeuronautError, click.BadParameter) as error:
        message = str(error)
        assert message and "\n" not in message
        assert len(message) < 400 + 12 * len(text)
        return None


def share_read(read: Callable[[str], T], check: Callable[[T], None], texts: Iterator[str]) -> float:
    """Read every text and check what was read; returns the share that was."""
    count = 0
    for text in texts:
        value = outcome(read, text)
        if value is not None:
            check(value)
            count += 1
    return count / CASES


def same(parse: Callable[[str], object]) -> Callable[[Any], None]:
    """A check that what was read reads the same from its own text."""

    def check(value: object) -> None:
        assert parse(str(value)) == value

    return check


def names_something(selection: Selection) -> None:
    assert selection.indices or selection.count or selection.kind in ("all", "alive")


def sets_a_limit(budget: Limits | Budget) -> None:
    limits = [value for value in asdict(budget).values() if value is not None]
    assert limits and all(0 < value < math.inf for value in limits)


@pytest.mark.parametrize(
    ("read", "check"),
    [(SourceId.parse, same(SourceId.parse)), (Feature.parse, same(Feature.parse)), (Selection.parse, names_something)],
)
def test_addresses(read: Callable[[str], object], check: Callable[[Any], None]) -> None:
    assert 0.01 < share_read(read, check, cases(ADDRESS, SOUND_ADDRESSES)) < 0.9


def test_addresses_of_a_database() -> None:
    """A stored address, a folder's or anything else names features that are there, or is refused."""
    with Store(":memory:") as store:
        store.write_harvest(harvest_result())

        def check(features: list[Feature]) -> None:
            assert features and all(str(f.source) == "demo:mlp.2" and f.index < 5 for f in features)

        assert 0.01 < share_read(store.features, check, cases(ADDRESS, SOUND_ADDRESSES)) < 0.9
        for text in cases(ADDRESS, SOUND_ADDRESSES):
            outcome(store.known_source, text)
            outcome(store.feature, text)


def test_edits() -> None:
    assert 0.01 < share_read(Edit.parse, same(Edit.parse), cases(EDIT, SOUND_EDITS)) < 0.9


@pytest.mark.parametrize("read", [Limits.parse, Budget.parse])
def test_budgets(read: Callable[[str], Limits | Budget]) -> None:
    assert 0.01 < share_read(read, sets_a_limit, cases(BUDGET, SOUND_BUDGETS)) < 0.9


def test_minutes_and_counts() -> None:
    def whole(count: int | None) -> None:
        assert count is None or count >= 1

    def positive(minutes: float | None) -> None:
        assert minutes is not None and 0 < minutes < math.inf

    assert (
        share_read(lambda text: Count().convert(text, None, None), whole, cases(BUDGET, ("500k", "2M", "all"))) > 0.01
    )
    assert share_read(parse_minutes, positive, cases(BUDGET, ("minutes=5", "minutes=0.5"))) > 0.01


def test_sites() -> None:
    subject = tiny_subject()
    for text in cases(ADDRESS, ("mlp", "mlp.0-2", "resid_post.1")):
        sites = outcome(lambda text: sites_of(subject, text), text)
        assert sites is None or 0 < len(sites) < 10_000


ANY = st.one_of(st.text(), st.text(alphabet="demlp_.:@-,0123456789=+*<>q#~[]{}\"' all", max_size=30))


@given(ANY)
@settings(max_examples=300, deadline=None)
@example("demo:mlp.2:" + "9" * 5000)
@example("mlp.2:" + "9" * 5000 + "=0")
@example("tokens=1e999999999")
@example("usd=1e-999999999")
@example("tokens=9e999999999999999999")
@example(json.dumps({"site": "mlp.2", "operation": "zero", "units": [10**30]}))
@example('{"site": "mlp.2", "operation": ' + "[" * 100_000)
def test_any_text(text: str) -> None:
    for read in (SourceId.parse, Feature.parse, Selection.parse, Edit.parse, Limits.parse, Budget.parse, parse_minutes):
        outcome(read, text)
    outcome(lambda text: Count().convert(text, None, None), text)
