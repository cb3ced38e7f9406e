"""A small database for the tests of the explorer, with hostile text in its vocabulary, and clients of its server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from neuronaut.data.store.maps import Map
from neuronaut.data.store.store import Store
from neuronaut.rules.language import Clause, Rule, Token
from neuronaut.subject.address import SourceId
from neuronaut.web.app import create_app
from neuronaut.web.settings import Settings

from .stored import POSITIONS, WINDOWS, explanation, harvest_result, score

SOURCE, OTHER = "demo:mlp.2", "demo:resid_post.2@sparse"
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202egnp.exe",
    "\x1b[31mred\x1b[0m",
    "\u2066\u0000\u2069",
    "{{ 7 * 7 }}",
    "\n" + " " * 12,
    "x" * 1_000_000,
)
"""Tokens that would command a browser, a terminal or the eye."""
FEATURE = f"{SOURCE}:1"
HEADLINE = "fires on <marquee>bold</marquee> `<script>alert(2)</script>`"
WIDTH = 5
LOCAL = "http://127.0.0.1:8420"


def make_database(path: Path) -> None:
    """Two sources of five features; feature 1 of the first is explained with a rule, and hostile in every text."""
    ids = (np.arange(WINDOWS * POSITIONS).reshape(WINDOWS, POSITIONS) % 100).astype(np.int32)
    result = harvest_result(SOURCE, OTHER, ids=ids, dead=(4,))
    vocabulary = (*HOSTILE, *result.vocabulary[len(HOSTILE) :])
    rule = Rule(any=(Clause(when=(Token(any=(HOSTILE[0],)),), value=2.0),))
    with Store(path) as store:
        store.write_harvest(replace(result, vocabulary=vocabulary))
        hostile = replace(explanation(1, f"{HEADLINE}. And on \u202emore.", source=SOURCE), rule=rule.to_json())
        store.add_result(replace(hostile, headline=HEADLINE), [score(0.5)])
        for index, value in ((0, 0.9), (2, 0.1)):
            store.add_result(explanation(index, f"fires on number `{index}`", source=SOURCE), [score(value)])


def drawn_map(**changes: Any) -> Map:
    """Five features at the corners and in the middle."""
    places = np.array([[0, 0], [10, 0], [0, 5], [10, 5], [5, 2.5]], np.float32)
    own = {
        "source": SourceId.parse(SOURCE),
        "kind": "decoder",
        "method": "pca",
        "members": np.arange(5, dtype=np.int32),
        "places": places,
        "provenance": {"variance": [0.5, 0.25], "site": "mlp.2", "versions": {"numpy": "1"}},
    }
    return Map(**{**own, **changes})


@contextmanager
def client(database: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of a server on a database, as a browser on this machine would call it."""
    with TestClient(create_app(Settings(str(database), **settings)), base_url=LOCAL) as made:
        yield made
