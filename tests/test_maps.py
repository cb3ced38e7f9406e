"""Maps of features and of tokens: the arithmetic against numpy, planted clusters, what is stored, and the page."""

import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.data.harvest.harvest import harvest
from neuronaut.data.projection import project
from neuronaut.data.store.maps import TOKEN_KINDS, TokenPoint
from neuronaut.data.store.search import Embedder, refresh
from neuronaut.data.store.store import Store
from neuronaut.labelling.maps import classify_token, map_activations, map_decoders, map_explanations
from neuronaut.subject.address import Feature, SourceId
from neuronaut.subject.directions import direction
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.model import Subject
from neuronaut.subject.sources import Neurons

from .families import tiny_subject
from .stored import explanation, harvest_result, score
from .web_world import FEATURE, HEADLINE, HOSTILE, SOURCE, client, drawn_map, make_database

METHODS = ("pca", *(("umap",) if find_spec("umap") else ()))


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 40), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_principal_components_are_those_of_numpy(count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((count, width)) * rng.gamma(1, 2, width)).astype(np.float32)
    found = project(vectors, "pca")
    left, sizes, _ = np.linalg.svd(vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64), full_matrices=False)
    wanted = left[:, :2] * sizes[:2]
    wanted *= np.sign((wanted * found.places).sum(0))
    assert found.about["variance"] == pytest.approx((sizes[:2] ** 2 / (sizes**2).sum()).tolist(), rel=1e-4)
    if min(sizes[0] - sizes[1], sizes[1] - (sizes[2] if len(sizes) > 2 else 0)) > 0.02 * sizes[0]:
        assert np.allclose(found.places, wanted, atol=1e-3 * sizes[0])
    assert (found.places[np.abs(found.places).argmax(0), [0, 1]] > 0).all()


def planted_pair() -> NDArray[np.float32]:
    """Two clusters of forty, far apart in twenty dimensions."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2, 20)) * 4
    return (np.repeat(centres, 40, axis=0) + rng.standard_normal((80, 20))).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_pair_of_clusters_is_seen_apart_and_again_at_the_same_places(method: str) -> None:
    vectors = planted_pair()
    found = project(vectors, method, seed=3)
    first, second = found.places[:40], found.places[40:]
    within = max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (first, second))
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > 2 * within
    again = project(vectors, method, seed=3)
    assert (found.places == again.places).all() and found.about == again.about
    assert found.about["versions"]["numpy"] == np.__version__


def test_what_cannot_be_drawn_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(NeuronautError, match=r"umap is not installed; run: pip install 'neuronaut\[maps\]'"):
        project(planted_pair(), "umap")
    vectors = planted_pair()[:4].copy()
    for wrong, why in (
        (vectors[:3], "there are 3 points to map; wanted 4"),
        (np.ones_like(vectors), "all vectors are equal"),
        (np.full_like(vectors, np.nan), "not finite"),
    ):
        with pytest.raises(NeuronautError, match=why):
            project(wrong, "pca")


@pytest.mark.parametrize(
    ("before", "token", "kind"),
    [
        ("", "def", "starts a word"),
        ("def", " run", "starts a word"),
        ("x = ", "_name", "starts a word"),
        ("self.", "width", "starts a word"),
        ("get", "Item", "inside a word"),
        ("get_", "item", "inside a word"),
        ("x1", "2", "number"),
        ("x", " 12", "number"),
        ("x", "²", "number"),
        ("f", "(", "punctuation"),
        ("x", " ==", "punctuation"),
        ("x", "\ufffd", "punctuation"),
        ("x", "\n    ", "white space"),
        ("x", "", "white space"),
    ],
)
def test_each_token_has_a_class(before: str, token: str, kind: str) -> None:
    assert classify_token(token, before) == kind and kind in TOKEN_KINDS


def test_decoders_are_mapped_by_the_directions_that_features_write() -> None:
    subject = tiny_subject("gemma2")
    source = Neurons(SourceId(subject.name, "mlp.1"), subject.width("mlp.1"))
    vectors = torch.stack([direction(subject, source, Feature(source.id, i)).vector for i in range(source.width)])
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).numpy()
    drawn = map_decoders(subject, source)
    assert np.allclose(drawn.places, project(unit, "pca").places, atol=1e-4)
    few = map_decoders(subject, source, points=9, seed=1)
    assert len(set(few.members.tolist())) == 9 and few.provenance["features"] == source.width
    inside = Neurons(SourceId(subject.name, "mlp_in.1"), subject.width("mlp_in.1"))
    with pytest.raises(NeuronautError, match=r"gemma2:mlp_in\.1 writes nothing .* --of explanations"):
        map_decoders(subject, inside)


class _Planted(Embedder):
    """Texts about birds lie opposite those about stones."""

    def __init__(self) -> None:
        super().__init__("planted")

    def embed(self, texts):  # noqa: ANN001, ANN201
        rng = np.random.default_rng(len(texts))
        rows = np.array([[1 if "bird" in text else -1, *rng.normal(0, 0.1, 4)] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_explanations_are_mapped_by_their_stored_vectors() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result("demo:mlp.2", width=12))
        with pytest.raises(NeuronautError, match="has a vector of"):
            refresh(store, _Planted())
            map_explanations(store, SourceId.parse("demo:mlp.2"), embedder=None)
        for index in range(10):
            store.add_result(explanation(index, f"fires on {'birds' if index % 2 else 'stones'} {index}"), [score(0.5)])
        refresh(store, _Planted())
        drawn = map_explanations(store, SourceId.parse("demo:mlp.2"))
        assert drawn.members.tolist() == [*range(10)] and drawn.provenance["embedder"] == "planted"
        side = drawn.places[:, 0] > 0
        assert (side == side[0]).tolist() == [index % 2 == 0 for index in range(10)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "demo.db"
    with Store(path) as store:
        harvest(Subject.load("demo"), ["mlp.2", "mlp_in.2"], Corpus.load("stdlib"), store, tokens=20_000)
    return path


def test_activations_are_mapped_by_the_vectors_at_the_site(demo: Path) -> None:
    with Store(demo) as store:
        subject, id = Subject.load("demo"), SourceId.parse("demo:mlp.2")
        drawn = map_activations(subject, Neurons(id, subject.width("mlp.2")), store, points=300, seed=2)
        assert len(drawn.members) == 300 == len({*drawn.members.tolist()})
        again = map_activations(subject, Neurons(id, subject.width("mlp.2")), store, points=300, seed=2)
        assert (again.places == drawn.places).all() and again.tokens == drawn.tokens
    tokens = [drawn.tokens[number] for number in drawn.members]
    assert {own.kind for own in tokens} == set(TOKEN_KINDS)
    # What stands on the same text before is the same vector, so the same point.
    spaces = np.array([own.kind == "white space" for own in tokens])
    apart = np.linalg.norm(drawn.places[spaces].mean(0) - drawn.places[~spaces].mean(0))
    assert apart > drawn.places.std(0).max() / 2


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_the_command_draws_keeps_and_says_where(demo: Path) -> None:
    told = run("map", "demo:mlp.2", "-d", demo)
    assert re.search(r"^demo:mlp\.2  decoder by PCA, 512 points; the axes have \d+\.\d% and \d+\.\d%", told)
    (row,) = json.loads(run("map", "demo:mlp.2", "--of", "activations", "--points", 50, "-d", demo, "--json"))
    assert (row["of"], row["n"], row["site"], len(row["variance"])) == ("activations", 50, "mlp.2", 2)
    with Store(demo) as store:
        assert [(one["kind"], one["n"]) for one in store.maps()] == [("decoder", 512), ("activations", 50)]
    assert "writes nothing" in run("map", "demo:mlp_in.2", "-d", demo, code=1)
    assert "--embedder is of --of explanations" in run("map", "demo:mlp.2", "--embedder", "x", "-d", demo, code=2)
    assert "demo:mlp.9" in run("map", "demo:mlp.9", "-d", demo, code=1)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = tmp_path_factory.mktemp("maps") / "web.db"
    make_database(path)
    points = [TokenPoint(TOKEN_KINDS[number % 5], token[:50], HOSTILE[0]) for number, token in enumerate(HOSTILE)]
    with Store(path) as store:
        store.keep_map(drawn_map(places=np.ones((5, 2), np.float32)))
        store.keep_map(drawn_map())
        store.keep_map(
            drawn_map(
                kind="activations",
                members=np.arange(len(points), dtype=np.int32),
                places=np.random.default_rng(0).normal(size=(len(points), 2)).astype(np.float32),
                tokens=points,
                provenance={"seed": 3, "site": "mlp.2", "versions": {"umap-learn": "0.5"}},
                method="umap",
            )
        )
    with client(path) as made:
        yield made


def test_the_page_tells_the_points_that_are_stored_with_what_is_known_of_each(web: TestClient) -> None:
    page = web.get(f"/map?source={SOURCE}&of=decoder&feature={FEATURE}&format=json").json()
    points = page["map"]["points"]
    assert points["index"] == [0, 1, 2, 3, 4]
    assert list(zip(points["x"], points["y"], strict=True)) == [(0, 0), (10, 0), (0, 5), (10, 5), (5, 2.5)]
    assert points["status"] == ["explained", "explained", "weak", "unlabelled", "dead"]
    assert points["score"] == [0.9, 0.5, 0.1, None, None] and points["headline"][1] == HEADLINE
    assert page["map"]["marked"] == 1 and page["map"]["provenance"]["variance"] == [0.5, 0.25]
    assert {own["name"]: own["points"] for own in page["map"]["colours"]} == {
        "unlabelled": [3],
        "dead": [4],
        "explained": [0, 1],
        "weak": [2],
    }


def test_the_picture_has_each_point_once_in_its_colour_and_its_place(web: TestClient) -> None:
    html = web.get(f"/map?source={SOURCE}&of=decoder&feature={FEATURE}").text
    view = web.get(f"/map?source={SOURCE}&of=decoder&format=json").json()["map"]["view"]
    paths = dict(re.findall(r'<path d="([^"]+)" class="([^"]+)"', html))
    assert sorted(len(re.findall("M[^M]+h0", d)) for d in paths) == [1, 1, 1, 2]
    x, y = view["left"] + view["scale"] * 10, view["top"] - view["scale"] * 5
    assert f"M{x:.1f} {y:.1f}h0" in html and 0 <= x <= view["width"] and 0 <= y <= view["height"]
    assert f"<title>{FEATURE}</title>" in html and "50.0% of the variance" in html


def test_points_are_left_by_status_and_coloured_by_score(web: TestClient) -> None:
    asked = f"/map?source={SOURCE}&of=decoder&format=json"
    some = web.get(f"{asked}&status=explained&feature={SOURCE}:3").json()["map"]
    assert some["points"]["index"] == [0, 1] and some["marked"] is None and some["total"] == 5
    assert some["view"] == web.get(asked).json()["map"]["view"], "a filter moves no point"
    scored = web.get(f"{asked}&colour=score").json()["map"]["colours"]
    assert {own["name"]: own["points"] for own in scored} == {
        "no score": [3, 4],
        "below 0.2": [2],
        "0.4 to 0.6": [1],
        "0.8 and above": [0],
    }
    assert "No point has this status" in web.get(f"/map?source={SOURCE}&of=decoder&status=failed").text


def test_hostile_tokens_are_data_and_a_map_that_is_not_drawn_is_a_command(web: TestClient) -> None:
    data = web.get(f"/map?source={SOURCE}&of=activations&format=json").json()["map"]
    assert data["points"]["token"][0] == HOSTILE[0] and "index" not in data["points"]
    html = web.get(f"/map?source={SOURCE}&of=activations").text
    assert "<script>alert" not in html and "Seed 3, umap-learn 0.5" in html
    for asked in ("/map?of=explanations", f"/map?source={SOURCE}&of=explanations&method=umap"):
        page = web.get(asked)
        assert page.status_code == 200 and f"neuronaut map {SOURCE} --of explanations --method" in page.text
        assert web.get(f"{asked}&format=json").json()["map"] is None
    assert web.get("/map?source=demo:mlp.9").status_code == 404
    for wrong in ("of=nothing", "method=tsne", "colour=red", "status=good"):
        assert web.get(f"/map?source={SOURCE}&{wrong}").status_code == 422


def test_home_and_the_feature_lead_to_the_map(web: TestClient) -> None:
    assert f'href="/map?source={SOURCE.replace(":", "%3A")}&amp;of=decoder&amp;method=pca"' in web.get("/").text
    own = web.get(f"/feature/{FEATURE}")
    assert "of=decoder&amp;method=pca&amp;feature=demo%3Amlp.2%3A1" in own.text and "of=activations" not in own.text
    assert web.get(f"/feature/{FEATURE}?format=json").json()["maps"] == [{"kind": "decoder", "method": "pca"}]
