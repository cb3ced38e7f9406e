"""The tools there are, by name: what a policy may call."""

from collections.abc import Mapping
from typing import Any, Literal

from ..investigation.experiments import Tool
from .causal_ablate import Ablate, PatchActivation
from .causal_attention import Attention
from .causal_cut import CutUpstream
from .causal_downstream import Downstream
from .causal_probe import ProbeProperty
from .causal_steer import Steer
from .causal_tokens import PromotedTokens
from .causal_upstream import Upstream
from .circuit_nodes import CutNodes, RestoreNodes
from .circuit_reading import AttentionTo, DirectLogits, HeadPatterns
from .circuit_sets import CutTogether, KeepOnly, SwapPrompts
from .circuit_surveys import AttributeNodes, FindCircuit
from .near_misses import MineNearMisses
from .probe_state import ProbeState
from .prune_context import PruneContext
from .random_edits import EditAtRandom
from .run_texts import RunTexts
from .scan_vocabulary import ScanVocabulary
from .surveys import KnownExplanations, LearnRule
from .swap_pairs import SwapPairs
from .sweep_positions import SweepPositions

_ALL: tuple[Tool[Any], ...] = (
    RunTexts(),
    ScanVocabulary(),
    SwapPairs(),
    PruneContext(),
    SweepPositions(),
    MineNearMisses(),
    EditAtRandom(),
    ProbeState(),
    LearnRule(),
    KnownExplanations(),
    PromotedTokens(),
    Ablate(),
    PatchActivation(),
    Steer(),
    Upstream(),
    Downstream(),
    Attention(),
    ProbeProperty(),
    CutUpstream(),
    CutNodes(),
    RestoreNodes(),
    KeepOnly(),
    CutTogether(),
    SwapPrompts(),
    AttributeNodes(),
    FindCircuit(),
    HeadPatterns(),
    AttentionTo(),
    DirectLogits(),
)

TOOLS: Mapping[str, Tool[Any]] = {tool.name: tool for tool in _ALL}


def tools_for(kind: Literal["feature", "behaviour"]) -> dict[str, Tool[Any]]:
    """The tools for features, or those for behaviours."""
    return {name: tool for name, tool in TOOLS.items() if tool.target == kind}
