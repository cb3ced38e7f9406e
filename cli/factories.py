"""From names after -e and -s to explainers and scorers.

An explainer may be made of another: `best-of-5:highlight`, `refine:contrastive`. A scorer may say how it asks:
`simulation:json`. Everything here is made anew for each command.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import click

from .. import agent, explainers, scorers
from ..data.records import Explanation
from ..data.store.search import Embedder
from ..data.store.store import Store
from ..explainers.combined import Combined
from ..explainers.contrastive import Contrastive
from ..explainers.explainer import Explainer
from ..explainers.highlight import Highlight
from ..explainers.oneshot import Oneshot
from ..explainers.output import Output
from ..explainers.rule import RuleExplainer
from ..labelling.refine import Refine
from ..labelling.reproduce import Absent
from ..labelling.selection import BestOf, SelectingExplainer
from ..llm.prompt import Prompt
from ..llm.types import LLM
from ..scorers.detection import Detection
from ..scorers.embedding import Embedding
from ..scorers.fuzzing import Fuzzing
from ..scorers.intruder import Intruder
from ..scorers.llm_simulation import LLMSimulator
from ..scorers.output import OutputScorer
from ..scorers.scorer import Scorer
from ..scorers.simulation import RuleSimulator
from ..scorers.simulation_json import JsonBackend
from ..scorers.simulation_probe import ProbeBackend
from ..subject.address import SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What explainers and scorers are made from."""

    subject: Subject
    sources: Mapping[SourceId, Source]
    llm: LLM | None = None
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Text of the user's own prompts, by name."""
    temperature: float | None = 0.0
    controls: bool = True
    embedder: str | None = None
    draw: int = 0
    pairs: int = 10
    """Of active and silent excerpts that detection and fuzzing judge."""

    def prompt(self, name: str) -> Prompt:
        """The user's own prompt of this name, or the package's."""
        return Prompt(name, self.chosen[name]) if name in self.chosen else shipped_prompts()[name]

    def asking(self, name: str) -> Any:
        """Keyword arguments of an explainer that fills one prompt."""
        return {"prompt": self.prompt(name), "temperature": self.temperature, "draw": self.draw}

    def choosing(self) -> Self:
        """For a scorer that chooses between explanations: no controls, and excerpts enough to tell two apart."""
        return replace(self, controls=False, pairs=20)

    def inviting(self, name: str) -> Any:
        """Those of one that invites a rule, too."""
        return {**self.asking(name), "language": self.prompt("rule_language")}


EXPLAINERS: Mapping[str, Callable[[Ingredients], Explainer]] = {
    "rule": lambda i: RuleExplainer(i.subject),
    "oneshot": lambda i: Oneshot(**i.inviting("oneshot")),
    "highlight": lambda i: Highlight(**i.inviting("highlight")),
    "contrastive": lambda i: Contrastive(**i.inviting("contrastive")),
    "output": lambda i: Output(i.subject, **i.asking("output")),
    "combined": lambda i: Combined(i.subject, **i.inviting("combined")),
}
DEFAULT_INNER = "highlight"
"""What best-of-N and refine are made of where nothing is said."""
_BEST_OF = re.compile(r"best-of-(\d+)(?::(.+))?")
_REFINE = re.compile(r"refine(?::(.+))?")


def explainer(name: str, made_from: Ingredients, *, chooser: str) -> Explainer | SelectingExplainer:
    """The explainer of a name; `chooser` names the scorer by which it chooses on `select`, if it does."""
    if best := _BEST_OF.fullmatch(name):
        return _best_of(int(best[1]), best[2] or DEFAULT_INNER, made_from, chooser)
    if refined := _REFINE.fullmatch(name):
        inner = explainer(refined[1] or DEFAULT_INNER, made_from, chooser=chooser)
        prompts = made_from.prompt("refine_sentences"), made_from.prompt("refine")
        judge = scorer(chooser, made_from.choosing())
        return Refine(inner, judge, temperature=made_from.temperature, prompts=prompts)
    if name not in EXPLAINERS:
        raise click.UsageError(
            f"-e {name}: there is none of this name; there are {', '.join(EXPLAINERS)}, best-of-N:NAME and refine:NAME"
        )
    made = EXPLAINERS[name](made_from)
    if made.prompts and made_from.llm is None:
        raise NeuronautError(f"-e {name} asks a language model; name one with -m, for example -m openai:gpt-4o-mini")
    return made


def _best_of(count: int, inner: str, made_from: Ingredients, chooser: str) -> BestOf:
    if not 2 <= count <= 100 or inner not in EXPLAINERS or inner == "rule":
        raise NeuronautError(
            f"-e best-of-{count}:{inner} is not known; wanted 2 to 100 samples of one of "
            f"{', '.join(name for name in EXPLAINERS if name != 'rule')}, for example best-of-5:{DEFAULT_INNER}"
        )
    # Samples of one prompt at temperature 0 would all be one.
    warm = replace(made_from, temperature=1.0) if made_from.temperature == 0 else made_from
    draws = [explainer(inner, replace(warm, draw=draw), chooser=chooser) for draw in range(1, count + 1)]
    judge = scorer(chooser, made_from.choosing())
    return BestOf([draw for draw in draws if not isinstance(draw, SelectingExplainer)], judge)


def _simulation(how: str | None, i: Ingredients) -> Scorer:
    if how == "rule" or i.llm is None and how is None:
        return RuleSimulator()
    llm = _needed(i, "simulation")
    if how == "probe" or how is None and llm.can_probe:
        if not llm.can_probe:
            raise NeuronautError(
                "-s simulation:probe reads probabilities of the prompt, which this model does not give; "
                "use -m hf:PATH, a vLLM server with --tokenizer, or -s simulation:json"
            )
        return LLMSimulator(ProbeBackend(llm.tokenizer, i.prompt("simulate_all")), controls=i.controls)
    return LLMSimulator(JsonBackend(i.prompt("simulate_json"), logprobs=how == "logprobs"), controls=i.controls)


def _detection(how: str | None, i: Ingredients) -> Scorer:
    _needed(i, "detection")
    return Detection(prompt=i.prompt("detection"), count=i.pairs, logprobs=how == "logprobs", controls=i.controls)


def _fuzzing(how: str | None, i: Ingredients) -> Scorer:
    _needed(i, "fuzzing")
    return Fuzzing(prompt=i.prompt("fuzzing"), count=i.pairs, logprobs=how == "logprobs", controls=i.controls)


def _intruder(how: str | None, i: Ingredients) -> Scorer:
    del how
    _needed(i, "intruder")
    return Intruder(prompt=i.prompt("intruder"), controls=i.controls)


def _embedding(how: str | None, i: Ingredients) -> Scorer:
    del how
    return Embedding(Embedder(i.embedder) if i.embedder else Embedder(), controls=i.controls)


def _output(how: str | None, i: Ingredients) -> Scorer:
    del how
    _needed(i, "output")
    tokens, continuations = i.prompt("output_tokens"), i.prompt("output_text")
    return OutputScorer(i.subject, i.sources, tokens=tokens, continuations=continuations, controls=i.controls)


class Way(NamedTuple):
    """How a scorer is made, and what may stand after its name."""

    make: Callable[[str | None, Ingredients], Scorer]
    ways: tuple[str, ...] = ()


SCORERS: Mapping[str, Way] = {
    "simulation": Way(_simulation, ("rule", "json", "logprobs", "probe")),
    "detection": Way(_detection, ("logprobs",)),
    "fuzzing": Way(_fuzzing, ("logprobs",)),
    "intruder": Way(_intruder),
    "embedding": Way(_embedding),
    "output": Way(_output),
}


def scorer(text: str, made_from: Ingredients) -> Scorer:
    """The scorer of a name, for example `detection` or `simulation:json`."""
    name, _, how = text.partition(":")
    if name not in SCORERS or how and how not in SCORERS[name].ways:
        known = [f"{n}[:{'|'.join(way.ways)}]" if way.ways else n for n, way in SCORERS.items()]
        raise click.UsageError(f"-s {text}: there is none of this name; there are {', '.join(known)}")
    return SCORERS[name].make(how or None, made_from)


def scorers_named(text: str, made_from: Ingredients) -> list[Scorer]:
    """The scorers named with commas between. Rules that a language model wrote beside its text are scored, too."""
    found = [scorer(name.strip(), made_from) for name in dict.fromkeys(text.split(","))]
    ruled = any(isinstance(judge, RuleSimulator) for judge in found)
    return found if made_from.llm is None or ruled else [*found, RuleSimulator(name="rule")]


def shipped_prompts() -> dict[str, Prompt]:
    """Every prompt of the package, by name."""
    folders = [Path(next(iter(package.__path__))) for package in (explainers, scorers, agent)]
    files = [file for folder in folders for file in sorted(folder.glob("*.md"))]
    return {file.stem: Prompt.load(file) for file in files}


def _needed(made_from: Ingredients, name: str) -> LLM:
    if made_from.llm is None:
        raise NeuronautError(f"-s {name} asks a language model; name one with -m, for example -m openai:gpt-4o-mini")
    return made_from.llm


def remade(
    made: Explanation, store: Store, subject: Subject, sources: Mapping[SourceId, Source]
) -> Explainer | SelectingExplainer:
    """The explainer that made an explanation, with the prompts and settings of then."""
    settings = made.provenance.get("settings")
    if not isinstance(settings, dict):
        raise NeuronautError(f"the explanation of {made.feature} has no settings in its provenance; label it again")
    told = json.dumps(settings)
    kept = [kept for hash in re.findall(r'"([0-9a-f]{16})"', told) if (kept := store.kept_prompt(hash)) is not None]
    temperature = next(_values(settings, "temperature"), 0.0)
    by = settings.get("chosen_by") or ["simulation", {}]
    how = by[1].get("by") if by[0] == "simulation" else "logprobs" if by[1].get("logprobs") else None
    llm = Absent(str(made.provenance["llm"]), str(made.provenance["endpoint"]))
    made_from = Ingredients(subject, sources, llm, dict(kept), temperature)
    return explainer(made.explainer, made_from, chooser=f"{by[0]}:{how}" if how else by[0])


def _values(settings: object, name: str) -> Iterator[Any]:
    """The values of a name anywhere in settings, the outermost first."""
    if isinstance(settings, dict):
        if name in settings:
            yield settings[name]
        for value in settings.values():
            yield from _values(value, name)
    elif isinstance(settings, list):
        for value in settings:
            yield from _values(value, name)
