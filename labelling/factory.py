"""Makes explainers by name, those that are made of others included: `best-of-5:highlight`, `refine:contrastive`.

An explainer made of others chooses between explanations on `select`, by a scorer. Every explanation is stored with its
explainer's settings; `remake_explainer` reads them and makes the same explainer again.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..data.records import Explanation
from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..explainers.factory import AS_SHIPPED, EXPLAINERS, ExplainerOptions, make_base_explainer
from ..explainers.guided import Guided, Preparation
from ..llm.prompt import Prompt
from ..scorers.factory import ScorerOptions, make_scorer
from ..scorers.scorer import Scorer
from ..subject.address import SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .guided import ChosenGuided
from .refine import Refine
from .reproduce import AbsentLLM
from .selection import BestOf, SelectingExplainer

DEFAULT_INNER = "highlight"
"""The explainer inside best-of-N and refine where none is named."""
_BEST_OF = re.compile(r"best-of-(\d+)(?::(.+))?")
_REFINE = re.compile(r"refine(?::(.+))?")
_PROMPT_FOLDERS = ("explainers", "scorers", "labelling")


def make_explainer(
    name: str, subject: Subject, options: ExplainerOptions = AS_SHIPPED, *, chooser: Scorer | None = None
) -> Explainer | SelectingExplainer:
    """Make the explainer of a name: one of `EXPLAINERS`, guided, best-of-N:NAME or refine:NAME.

    `chooser` judges the candidates of best-of-N and refine on `select`; by default the rules that they carry are
    simulated. Raises UnknownNameError for any other name, NeuronautError for a best-of-N that cannot be.

    >>> make_explainer("refine:contrastive", subject).name
    'refine:contrastive'
    """
    chooser = chooser or make_scorer("simulation:rule")
    if best := _BEST_OF.fullmatch(name):
        return _make_best_of(int(best[1]), best[2] or DEFAULT_INNER, subject, options, chooser)
    if refined := _REFINE.fullmatch(name):
        inner = make_explainer(refined[1] or DEFAULT_INNER, subject, options, chooser=chooser)
        shipped = shipped_prompts()
        sentences, revision = (options.prompt(part) or shipped[part] for part in ("refine_sentences", "refine"))
        return Refine(inner, chooser, temperature=options.temperature, prompts=(sentences, revision))
    return _make_one(name, subject, options, Preparation(subject))


def _make_one(
    name: str, subject: Subject, options: ExplainerOptions, preparation: Preparation
) -> Explainer | SelectingExplainer:
    """Make an explainer that is not made of named others; guided ones share what is prepared for a batch."""
    if name != "guided":
        return make_base_explainer(name, subject, options)
    subject.require_causal("the experiments of the guided explainer cut text behind a token")
    prompt, check, language = (options.prompt(part) for part in ("guided", "guided_check", "rule_language"))
    return ChosenGuided(
        Guided(
            subject,
            prompt=prompt,
            check=check,
            temperature=options.temperature,
            draw=options.draw,
            language=language,
            preparation=preparation,
        )
    )


def _make_best_of(count: int, inner: str, subject: Subject, options: ExplainerOptions, chooser: Scorer) -> BestOf:
    asking = [*(name for name in EXPLAINERS if name != "rule"), "guided"]
    if not 2 <= count <= 100 or inner not in asking:
        raise NeuronautError(
            f"-e best-of-{count}:{inner} is not known; wanted 2 to 100 samples of one of "
            f"{', '.join(asking)}, for example best-of-5:{DEFAULT_INNER}"
        )
    # Samples of one prompt at temperature 0 would all be one.
    warm = replace(options, temperature=1.0) if options.temperature == 0 else options
    preparation = Preparation(subject)
    draws = [_make_one(inner, subject, replace(warm, draw=draw), preparation) for draw in range(1, count + 1)]
    return BestOf(draws, chooser)


def shipped_prompts() -> dict[str, Prompt]:
    """Every prompt of explainers and scorers that the package ships, by name."""
    root = Path(__file__).parents[1]
    files = [file for folder in _PROMPT_FOLDERS for file in sorted((root / folder).glob("*.md"))]
    return {file.stem: Prompt.load(file) for file in files}


class _StoredSettings(NamedTuple):
    """The settings of an explainer, read back."""

    hashes: frozenset[str]
    """The hashes of all prompts."""
    temperature: float | None
    chooser: str
    """Name of the scorer that chose."""


def _read_settings(settings: Mapping[str, Any]) -> _StoredSettings:
    """Read the settings that a base explainer, `BestOf` or `Refine` wrote."""
    match settings:
        case {"draws": [first, *_], "chosen_by": [scorer, by]}:
            inner = _read_settings(first)
            return _StoredSettings(inner.hashes | _hashes(by), inner.temperature, _scorer_name(scorer, by))
        case {"inner": inner_settings, "temperature": temperature, "prompts": prompts, "chosen_by": [scorer, by]}:
            inner = _read_settings(inner_settings)
            hashes = inner.hashes | _hashes(by) | frozenset(prompts)
            return _StoredSettings(hashes, temperature, _scorer_name(scorer, by))
        case _:
            return _StoredSettings(_hashes(settings), settings.get("temperature", 0.0), "simulation")


def _hashes(settings: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(settings.get("prompt", {}).values())


def _scorer_name(scorer: str, settings: Mapping[str, Any]) -> str:
    variant = settings.get("by") if scorer == "simulation" else "logprobs" if settings.get("logprobs") else None
    return f"{scorer}:{variant}" if variant else scorer


def remake_explainer(
    explanation: Explanation, store: Store, subject: Subject, sources: Mapping[SourceId, Source]
) -> Explainer | SelectingExplainer:
    """Make the explainer of a stored explanation again, with the prompts and settings of then."""
    settings = explanation.provenance.get("settings")
    if not isinstance(settings, dict):
        raise NeuronautError(
            f"the explanation of {explanation.feature} has no settings in its provenance; label it again"
        )
    stored = _read_settings(settings)
    prompts = dict(prompt for hash in stored.hashes if (prompt := store.kept_prompt(hash)) is not None)
    llm = AbsentLLM(str(explanation.provenance["llm"]), str(explanation.provenance["endpoint"]))
    chooser = make_scorer(stored.chooser, ScorerOptions(llm, subject, sources, prompts).for_choosing())
    options = ExplainerOptions(prompts, stored.temperature, rule_size=settings.get("rule_size"))
    return make_explainer(explanation.explainer, subject, options, chooser=chooser)
