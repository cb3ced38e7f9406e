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
    from .explainers.rule import RuleExplainer
    from .explainers.rules import Rule
    from .scorers.simulation import RuleSimulator
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
    "explainers.rule": ("RuleExplainer",),
    "explainers.rules": ("Rule",),
    "scorers.simulation": ("RuleSimulator",),
    "subject.address": ("Feature", "Selection", "SourceId"),
    "subject.dictionary": ("Dictionary",),
    "subject.errors": ("NeuronautError",),
    "subject.formats": ("load_dictionary",),
    "subject.model": ("Subject",),
    "subject.opening": ("open_source",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Corpus",
    "Dictionary",
    "Document",
    "Evidence",
    "Example",
    "Explanation",
    "Feature",
    "NeuronautError",
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
    "open_source",
    "score",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
