"""Neuronaut explains what the units inside a language model respond to and do, and proves it.

The public API; each name is imported when it is first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .agent.loop.budget import Limits
    from .agent.session import InvestigationConfig, Session, investigate, investigate_all
    from .causal.attribution_patching import attribution_patching
    from .causal.circuits.find import CircuitSettings, find_circuit
    from .causal.circuits.tasks import open_task
    from .causal.edits import Edit
    from .causal.generation import generate
    from .causal.grids import Grid
    from .causal.heads import head_scores
    from .causal.intervene import Materials, apply
    from .causal.lens import lens
    from .causal.logit_attribution import logit_attribution
    from .causal.probes import probe
    from .causal.prompts import Batch, Pairs
    from .causal.steering import dose_response
    from .causal.sweeps import sweep
    from .data.corpus import Corpus, Document
    from .data.harvest.harvest import harvest
    from .data.records import Evidence, Example, Explanation, Score
    from .data.store.search import Embedder, semantic_search, similar
    from .data.store.store import Store
    from .data.store.summary import summarise
    from .explainers.contrastive import Contrastive
    from .explainers.factory import ExplainerOptions
    from .explainers.highlight import Highlight
    from .explainers.oneshot import Oneshot
    from .explainers.rule import RuleExplainer
    from .labelling.concepts import fit_direction
    from .labelling.factory import make_explainer
    from .labelling.find import find, find_separating
    from .labelling.inspect import describe
    from .labelling.label import Result, label, score
    from .labelling.try_text import try_text
    from .llm.client import LLMClient
    from .llm.open import open_llm
    from .llm.prices import Budget, Price
    from .rules.evaluate import simulate
    from .rules.language import Rule
    from .scorers.detection import Detection
    from .scorers.embedding import Embedding
    from .scorers.factory import ScorerOptions, make_scorer
    from .scorers.fuzzing import Fuzzing
    from .scorers.intruder import Intruder
    from .scorers.llm_simulation import LLMSimulator
    from .scorers.simulation import RuleSimulator
    from .scorers.simulation_json import JsonBackend
    from .scorers.simulation_probe import ProbeBackend
    from .subject.address import Feature, Selection, SourceId
    from .subject.dictionary import Dictionary
    from .subject.direction_matrix import Directions
    from .subject.errors import NeuronautError
    from .subject.formats import load_dictionary
    from .subject.function_subject import FunctionSubject
    from .subject.functions import PythonFunctions
    from .subject.model import Subject
    from .subject.opening import open_source
    from .subject.words import frequent_words, word_tokenizer

_HOMES = {
    "agent.loop.budget": ("Limits",),
    "agent.session": ("InvestigationConfig", "Session", "investigate", "investigate_all"),
    "causal.attribution_patching": ("attribution_patching",),
    "causal.circuits.find": ("CircuitSettings", "find_circuit"),
    "causal.circuits.tasks": ("open_task",),
    "causal.edits": ("Edit",),
    "causal.generation": ("generate",),
    "causal.grids": ("Grid",),
    "causal.heads": ("head_scores",),
    "causal.intervene": ("Materials", "apply"),
    "causal.lens": ("lens",),
    "causal.logit_attribution": ("logit_attribution",),
    "causal.probes": ("probe",),
    "causal.prompts": ("Batch", "Pairs"),
    "causal.steering": ("dose_response",),
    "causal.sweeps": ("sweep",),
    "data.corpus": ("Corpus", "Document"),
    "data.harvest.harvest": ("harvest",),
    "data.records": ("Evidence", "Example", "Explanation", "Score"),
    "data.store.search": ("Embedder", "semantic_search", "similar"),
    "data.store.store": ("Store",),
    "data.store.summary": ("summarise",),
    "explainers.contrastive": ("Contrastive",),
    "explainers.factory": ("ExplainerOptions",),
    "explainers.highlight": ("Highlight",),
    "explainers.oneshot": ("Oneshot",),
    "explainers.rule": ("RuleExplainer",),
    "labelling.concepts": ("fit_direction",),
    "labelling.factory": ("make_explainer",),
    "labelling.find": ("find", "find_separating"),
    "labelling.inspect": ("describe",),
    "labelling.label": ("Result", "label", "score"),
    "labelling.try_text": ("try_text",),
    "llm.client": ("LLMClient",),
    "llm.open": ("open_llm",),
    "llm.prices": ("Budget", "Price"),
    "rules.evaluate": ("simulate",),
    "rules.language": ("Rule",),
    "scorers.detection": ("Detection",),
    "scorers.embedding": ("Embedding",),
    "scorers.factory": ("ScorerOptions", "make_scorer"),
    "scorers.fuzzing": ("Fuzzing",),
    "scorers.intruder": ("Intruder",),
    "scorers.llm_simulation": ("LLMSimulator",),
    "scorers.simulation": ("RuleSimulator",),
    "scorers.simulation_json": ("JsonBackend",),
    "scorers.simulation_probe": ("ProbeBackend",),
    "subject.address": ("Feature", "Selection", "SourceId"),
    "subject.dictionary": ("Dictionary",),
    "subject.direction_matrix": ("Directions",),
    "subject.errors": ("NeuronautError",),
    "subject.formats": ("load_dictionary",),
    "subject.function_subject": ("FunctionSubject",),
    "subject.functions": ("PythonFunctions",),
    "subject.model": ("Subject",),
    "subject.opening": ("open_source",),
    "subject.words": ("frequent_words", "word_tokenizer"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Batch",
    "Budget",
    "CircuitSettings",
    "Contrastive",
    "Corpus",
    "Detection",
    "Dictionary",
    "Directions",
    "Document",
    "Edit",
    "Embedder",
    "Embedding",
    "Evidence",
    "Example",
    "ExplainerOptions",
    "Explanation",
    "Feature",
    "FunctionSubject",
    "Fuzzing",
    "Grid",
    "Highlight",
    "Intruder",
    "InvestigationConfig",
    "JsonBackend",
    "LLMClient",
    "LLMSimulator",
    "Limits",
    "Materials",
    "NeuronautError",
    "Oneshot",
    "Pairs",
    "Price",
    "ProbeBackend",
    "PythonFunctions",
    "Result",
    "Rule",
    "RuleExplainer",
    "RuleSimulator",
    "Score",
    "ScorerOptions",
    "Selection",
    "Session",
    "SourceId",
    "Store",
    "Subject",
    "apply",
    "attribution_patching",
    "describe",
    "dose_response",
    "find",
    "find_circuit",
    "find_separating",
    "fit_direction",
    "frequent_words",
    "generate",
    "harvest",
    "head_scores",
    "investigate",
    "investigate_all",
    "label",
    "lens",
    "load_dictionary",
    "logit_attribution",
    "make_explainer",
    "make_scorer",
    "open_llm",
    "open_source",
    "open_task",
    "probe",
    "score",
    "semantic_search",
    "similar",
    "simulate",
    "summarise",
    "sweep",
    "try_text",
    "word_tokenizer",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
