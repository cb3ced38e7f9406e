"""Opens what `label` and `score` need: here, and once more in every worker process."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..subject.errors import NeuronautError
from .common import open_store, say
from .llm_options import open_client, split_options

if TYPE_CHECKING:
    from ..data.store.store import Store
    from ..explainers.explainer import Explainer
    from ..labelling.agenda import Item
    from ..labelling.label import Outcome
    from ..labelling.selection import SelectingExplainer
    from ..labelling.workers import Workers
    from ..llm.client import LLMClient, Mode
    from ..rules.choose import Size
    from ..scorers.scorer import Scorer
    from ..subject.address import Feature, SourceId
    from ..subject.model import Subject
    from ..subject.sources import Source


@dataclass(frozen=True, slots=True)
class LabelSetup:
    """The parts that both verbs open before they begin."""

    store: "Store"
    subject: "Subject"
    sources: "dict[SourceId, Source]"
    features: "list[Feature]"
    client: "LLMClient | None"
    scorers: "list[Scorer]"
    chooser: "Scorer"
    """Judges candidates on `select`: the scorer that is named first, without controls."""
    explainer: "Explainer | SelectingExplainer | None"


@contextmanager
def open_setup(
    features: tuple[str, ...],
    database: str,
    *,
    scorers: str,
    explainer_name: str | None,
    rule_size: "Size" = None,
    limit: str | None = None,
    mode: "Mode" = "live",
    options: dict[str, Any],
    quiet: bool = False,
) -> Generator[LabelSetup]:
    """Open the database, the model under study, and what explains and judges; closes them afterwards."""
    from ..explainers.factory import ExplainerOptions
    from ..labelling.factory import make_explainer
    from ..labelling.opening import LoadOptions, chosen_features, stored_sources, stored_subject
    from ..scorers.factory import ScorerOptions, make_scorer, make_scorers

    language, rest = split_options(options)
    load_options = LoadOptions(**rest)
    with open_store(database, write=True) as store, open_client(language, store, budget=limit, mode=mode) as client:
        chosen = chosen_features(store, features)
        if not quiet:
            say(f"opening {chosen[0].source.model}")
        subject = stored_subject(
            store, chosen[0].source.model, load_options, sources=[feature.source for feature in chosen]
        )
        sources = stored_sources(store, subject, chosen, load_options)
        scorer_options = ScorerOptions(
            client and client.llm,
            subject,
            sources,
            store.chosen_prompts(),
            controls=language.control_mode,
            first=chosen[0],
            calibrated=not language.no_calibration,
            embedder=language.embedder,
        )
        chooser = make_scorer(scorers.split(",")[0].strip(), scorer_options.for_choosing())
        explainer = None
        if explainer_name is not None:
            asked = ExplainerOptions(scorer_options.prompts, language.temperature_value, rule_size=rule_size)
            explainer = make_explainer(explainer_name, subject, asked, chooser=chooser)
            if explainer.prompts and client is None:
                raise NeuronautError(
                    f"-e {explainer_name} asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
                )
        yield LabelSetup(
            store=store,
            subject=subject,
            sources=sources,
            features=chosen,
            client=client,
            scorers=make_scorers(scorers, scorer_options),
            chooser=chooser,
            explainer=explainer,
        )


@contextmanager
def open_workers(
    count: int,
    features: tuple[str, ...],
    database: str,
    *,
    scorers: str,
    explainer_name: str,
    rule_size: "Size",
    redo: bool,
    options: dict[str, Any],
) -> "Generator[Workers[Item, Outcome] | None]":
    """Start worker processes that label; None where this process does the work."""
    if count == 1:
        yield None
        return
    from ..labelling.workers import Workers

    names: dict[str, Any] = {"scorers": scorers, "explainer_name": explainer_name, "rule_size": rule_size}
    open_quietly = partial(open_setup, features, database, **names, options=options, quiet=True)
    with Workers(count, partial(_open_worker, open_quietly, redo=redo)) as workers:
        yield workers


@contextmanager
def _open_worker(
    open_quietly: "Callable[[], AbstractContextManager[LabelSetup]]", *, redo: bool
) -> "Generator[Callable[[Item], Outcome]]":
    from ..labelling.label import LabelJob

    with open_quietly() as setup:
        assert setup.explainer is not None
        parts = setup.store, setup.subject, setup.scorers, None, setup.sources
        yield LabelJob(*parts, explainer=setup.explainer, redo=redo).perform_alone
