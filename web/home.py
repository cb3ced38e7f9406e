"""The first page: what the database holds, how well it is explained, and at what cost."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from ..data.store.overview import SAMPLE, Overview, SampledScores, read_overview
from ..data.store.store import Store
from .pages import Pages, pages, stores
from .stores import Stores

router = APIRouter()
POINTS = 1500
"""Features that are drawn as points."""
_SOURCE_KEYS = ("source", "model", "kind", "width", "alive", "corpus", "tokens", "harvested", "statuses")


@router.get("/", summary="What the database holds")
def home(
    request: Request, pages: Annotated[Pages, Depends(pages)], stores: Annotated[Stores, Depends(stores)]
) -> Response:
    """Show sources with counts by status, and the distributions of scores, baselines, densities and lengths."""
    return pages.answer(request, "home.html", read_home(stores))


def read_home(stores: Stores) -> dict[str, Any]:
    """The page's data, remembered; of a million features in a file that no cache holds it takes seconds."""
    return stores.remember("home", lambda store: overview_data(store) | {"maps": store.maps()})


def overview_data(store: Store, source: str | None = None) -> dict[str, Any]:
    """What `read_overview` says, as plain values."""
    overview = read_overview(store, source)
    return {
        "sources": [{key: row[key] for key in _SOURCE_KEYS} for row in overview.sources],
        "features": sum(row["width"] for row in overview.sources),
        "explained": overview.explained,
        "weak": sum(row["statuses"].get("weak", 0) for row in overview.sources),
        "sampled": len(overview.sample),
        "sample_bound": SAMPLE,
        "scores": [_scores(scores) for scores in overview.scores],
        "words": overview.words and overview.words._asdict(),
        "lengths": [one.words for one in overview.sample],
        "points": _points(overview),
        "best": _best(overview),
        "cost": overview.cost._asdict(),
    }


def _scores(scores: SampledScores) -> dict[str, Any]:
    medians = {role: median._asdict() for role, median in scores.baseline_medians.items()}
    return scores._asdict() | {"median": scores.median._asdict(), "baseline_medians": medians}


def _points(overview: Overview) -> list[dict[str, Any]]:
    step = -(-len(overview.sample) // POINTS) or 1
    return [{"feature": one.feature, "density": one.density, "score": one.score} for one in overview.sample[::step]]


def _best(overview: Overview) -> list[dict[str, Any]]:
    """The best explained features of the sample, to begin with."""
    proven = (one for one in overview.sample if one.status == "explained" and one.score is not None)
    scored = sorted(proven, key=lambda one: -(one.score or 0.0))
    names = ("feature", "score", "baseline", "headline")
    return [{name: getattr(one, name) for name in names} for one in scored[:6]]
