"""What people write: explanations and ratings, through the server, merges, exports and imports."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuronaut.cli.main import main
from neuronaut.data.store.importing import Sources, import_files
from neuronaut.data.store.people import ratings_of, written
from neuronaut.data.store.store import Store
from neuronaut.subject.errors import NeuronautError

from .stored import harvest_result
from .web_world import FEATURE, SOURCE, client, make_database

TEXT = "fires on commas. Mostly inside of calls."


@pytest.fixture
def database(tmp_path: Path) -> Path:
    make_database(tmp_path / "a.db")
    return tmp_path / "a.db"


def write(database: Path, feature: str = FEATURE, **fields: str) -> str:
    """Add an explanation and rate it; returns where the server leads to."""
    with client(database, allow_write=True) as web:
        csrf = {"csrf": web.get("/capabilities").json()["csrf"]}
        form = {"feature": feature, "text": TEXT, "author": "Anna"} | fields | csrf
        added = web.post("/explanations", data=form, follow_redirects=False)
        assert added.status_code == 303
        location = added.headers["location"]
        id = location.partition("explanation=")[2].partition("#")[0]
        for author, value in (("Bo", "2"), ("Cy", "5"), ("Bo", "4")):
            rated = web.post(f"/explanations/{id}/rating", data={"author": author, "rating": value} | csrf)
            assert rated.status_code == 200
    return location


def test_an_explanation_by_a_person_is_a_candidate_like_any_other(database: Path) -> None:
    location = write(database, edits="1")
    with client(database) as web:
        page = web.get(location)
        data = web.get(location.replace("#", "&format=json#")).json()
    assert "fires on commas" in page.text and "Bo 4/5" in page.text
    assert data["shown"]["author"] == "Anna" and data["shown"]["headline"] == "fires on commas"
    assert data["shown"]["ratings"] == {"Bo": 4.0, "Cy": 5.0} and data["shown"]["scores"] == []
    assert [one["explainer"] for one in data["explanations"]] == ["rule", "person"]
    with Store(database) as store:
        stored = store.explanations(store.feature(FEATURE))[1]
        assert stored.explanation.provenance == {"author": "Anna", "edits": 1}
        assert len([score for score in store.scores(stored.id) if score.judge == "Bo"]) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": " "}, "0 characters"),
        ({"text": "x" * 4001}, "4,001 characters"),
        ({"author": ""}, "is no name"),
        ({"author": "a\u202eb"}, "is no name"),
        ({"feature": "demo:mlp.9:0"}, "not in the database"),
    ],
)
def test_what_cannot_be_stored_is_told(database: Path, fields: dict[str, str], words: str) -> None:
    with client(database, allow_write=True) as web:
        csrf = web.get("/capabilities").json()["csrf"]
        form = {"feature": FEATURE, "text": TEXT, "author": "Anna", "csrf": csrf} | fields
        refused = web.post("/explanations?format=json", data=form)
    assert refused.status_code in (400, 404) and words in refused.json()["error"]


@pytest.mark.parametrize("rating", ["0", "6", "2.5", "", "many"])
def test_a_rating_is_from_one_to_five(database: Path, rating: str) -> None:
    with client(database, allow_write=True) as web:
        csrf = web.get("/capabilities").json()["csrf"]
        form = {"rating": rating, "author": "Bo", "csrf": csrf}
        assert web.post("/explanations/1/rating", data=form).status_code == 400
        assert web.post("/explanations/999/rating", data=form | {"rating": "3"}).status_code == 404


def test_merges_carry_what_people_wrote(database: Path, tmp_path: Path) -> None:
    write(database)
    with Store(tmp_path / "b.db") as other:
        other.merge(database)
        stored = next(s for s in other.explanations(other.feature(FEATURE)) if s.explanation.explainer == "person")
        assert stored.explanation.provenance["author"] == "Anna"
        assert ratings_of(other.scores(stored.id)) == {"Bo": 4.0, "Cy": 5.0}
        other.rate(stored.id, 1, author="Bo")
        other.merge(database)
        assert ratings_of(other.scores(stored.id)) == {"Bo": 1.0, "Cy": 5.0}


def test_jsonl_and_import_carry_what_people_wrote(database: Path, tmp_path: Path) -> None:
    feature = f"{SOURCE}:3"
    write(database, feature)
    file = tmp_path / "people.jsonl"
    done = CliRunner().invoke(main, ["export", "--format", "jsonl", "-o", str(file), "-d", str(database)])
    assert done.exit_code == 0, done.output
    rows = {row["feature"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert (rows[feature]["author"], rows[feature]["ratings"]) == ("Anna", {"Bo": 4.0, "Cy": 5.0})
    assert "author" not in rows[FEATURE] and "ratings" not in rows[FEATURE]
    with Store(tmp_path / "c.db") as store:
        store.write_harvest(harvest_result(SOURCE))
        for added in (True, False):
            (report,) = import_files(store, [file], sources=Sources(store), check_rule=str)
            assert bool(report.added) is added
        (stored,) = store.explanations(store.feature(feature))
        assert stored.explanation.explainer == "import:person"
        assert ratings_of(store.scores(stored.id)) == {"Bo": 4.0, "Cy": 5.0}
    with client(tmp_path / "c.db") as web:
        assert web.get(f"/feature/{feature}?format=json").json()["shown"]["author"] == "Anna"


@pytest.mark.parametrize("ratings", [[1], {"Bo": 9}, {"Bo": "x"}, {"": 3}, {"Bo": True}])
def test_an_import_with_ratings_that_are_none_is_refused(tmp_path: Path, ratings: object) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps({"feature": f"{SOURCE}:3", "explanation": "x", "ratings": ratings}) + "\n")
    with Store(tmp_path / "c.db") as store:
        store.write_harvest(harvest_result(SOURCE))
        with pytest.raises(NeuronautError, match="bad.jsonl"):
            import_files(store, [file], sources=Sources(store), check_rule=str)
        assert store.explanations(store.feature(f"{SOURCE}:3")) == []


def test_a_person_writes_text() -> None:
    with Store(":memory:") as store:
        store.write_harvest(harvest_result(SOURCE))
        with pytest.raises(NeuronautError, match="0 characters"):
            written(store.feature(f"{SOURCE}:1"), "", author="Anna")
