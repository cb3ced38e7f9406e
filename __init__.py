"""Neuronaut explains what the units inside a language model respond to and do, and proves it.

The public API; each name is imported when it is first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent.label import Result, label
    from .agent.rescore import score
    from .data.corpus import Corpus, Document
    from .data.harvest import harvest
    from .data.records import Evidence, Example, Explanation, Score
    from .data.store import Store
    from .explainers.contrastive import Contrastive
    from .explainers.highlight import Highlight
    from .explainers.llm.desk import Desk
    from .explainers.llm.opening import open_llm
    from .explainers.llm.prices import Budget, Price
    from .explainers.oneshot import Oneshot
    from .explainers.rule import RuleExplainer
    from .explainers.rules import Rule
    from .scorers.detection import Detection
    from .scorers.embedding import Embedding
    from .scorers.fuzzing import Fuzzing
    from .scorers.intruder import Intruder
    from .scorers.llm_simulation import LLMSimulator
    from .scorers.simulation import RuleSimulator
    from .scorers.simulation_json import JsonBackend
    from .scorers.simulation_probe import ProbeBackend
    from .subject.address import Feature, Selection, SourceId
    from .subject.dictionary import Dictionary
    from .subject.errors import NeuronautError
    from .subject.formats import load_dictionary
    from .subject.model import Subject
    from .subject.opening import open_source

_HOMES = {
    "agent.label": ("Result", "label"),
    "agent.rescore": ("score",),
    "data.corpus": ("Corpus", "Document"),
    "data.harvest": ("harvest",),
    "data.records": ("Evidence", "Example", "Explanation", "Score"),
    "data.store": ("Store",),
    "explainers.contrastive": ("Contrastive",),
    "explainers.highlight": ("Highlight",),
    "explainers.llm.desk": ("Desk",),
    "explainers.llm.opening": ("open_llm",),
    "explainers.llm.prices": ("Budget", "Price"),
    "explainers.oneshot": ("Oneshot",),
    "explainers.rule": ("RuleExplainer",),
    "explainers.rules": ("Rule",),
    "scorers.detection": ("Detection",),
    "scorers.embedding": ("Embedding",),
    "scorers.fuzzing": ("Fuzzing",),
    "scorers.intruder": ("Intruder",),
    "scorers.llm_simulation": ("LLMSimulator",),
    "scorers.simulation": ("RuleSimulator",),
    "scorers.simulation_json": ("JsonBackend",),
    "scorers.simulation_probe": ("ProbeBackend",),
    "subject.address": ("Feature", "Selection", "SourceId"),
    "subject.dictionary": ("Dictionary",),
    "subject.errors": ("NeuronautError",),
    "subject.formats": ("load_dictionary",),
    "subject.model": ("Subject",),
    "subject.opening": ("open_source",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "Contrastive",
    "Corpus",
    "Desk",
    "Detection",
    "Dictionary",
    "Document",
    "Embedding",
    "Evidence",
    "Example",
    "Explanation",
    "Feature",
    "Fuzzing",
    "Highlight",
    "Intruder",
    "JsonBackend",
    "LLMSimulator",
    "NeuronautError",
    "Oneshot",
    "Price",
    "ProbeBackend",
    "Result",
    "Rule",
    "RuleExplainer",
    "RuleSimulator",
    "Score",
    "Selection",
    "SourceId",
    "Store",
    "Subject",
    "harvest",
    "label",
    "load_dictionary",
    "open_llm",
    "open_source",
    "score",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
