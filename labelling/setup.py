"""Makes what labelling needs from names: the explainer, the scorers, and the judge of candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..explainers.factory import ExplainerOptions
from ..llm.client import LLMClient
from ..rules.choose import Size
from ..scorers.controls import ControlMode
from ..scorers.factory import ScorerOptions, make_scorer, make_scorers
from ..scorers.scorer import Scorer
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .factory import make_explainer
from .selection import SelectingExplainer


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """How features are explained and explanations judged."""

    scorers: str = "simulation"
    """Names, with commas between."""
    explainer: str | None = None
    """None where explanations are only scored."""
    rule_size: Size = None
    temperature: float | None = 0.0
    """Of explanations; None for a model that takes none."""
    controls: ControlMode = "sample"
    calibrated: bool = True
    """Whether a judge must pass on built-in units."""
    embedder: str | None = None


@dataclass(frozen=True, slots=True)
class LabelSetup:
    """All that explaining and scoring needs."""

    store: Store
    subject: Subject
    sources: Mapping[SourceId, Source]
    features: Sequence[Feature]
    client: LLMClient | None
    scorers: list[Scorer]
    chooser: Scorer
    """Judges candidates on `select`: the scorer that is named first, without controls."""
    explainer: Explainer | SelectingExplainer | None


def set_up(
    store: Store,
    subject: Subject,
    sources: Mapping[SourceId, Source],
    features: Sequence[Feature],
    options: LabelOptions,
    *,
    client: LLMClient | None = None,
) -> LabelSetup:
    """Make what the options name. Raises NeuronautError where an explainer asks a language model and none is there."""
    scorer_options = ScorerOptions(
        client and client.llm,
        subject,
        sources,
        store.chosen_prompts(),
        controls=options.controls,
        first=features[0],
        calibrated=options.calibrated,
        embedder=options.embedder,
    )
    chooser = make_scorer(options.scorers.split(",")[0].strip(), scorer_options.for_choosing())
    explainer = None
    if options.explainer is not None:
        asked = ExplainerOptions(scorer_options.prompts, options.temperature, rule_size=options.rule_size)
        explainer = make_explainer(options.explainer, subject, asked, chooser=chooser)
        if explainer.prompts and client is None:
            raise NeuronautError(
                f"-e {options.explainer} asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
            )
    return LabelSetup(
        store=store,
        subject=subject,
        sources=sources,
        features=features,
        client=client,
        scorers=make_scorers(options.scorers, scorer_options),
        chooser=chooser,
        explainer=explainer,
    )
