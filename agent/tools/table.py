"""The table of all tools by name, which a policy may call."""

from collections.abc import Mapping
from typing import Literal

from ..loop.experiments import AnyTool
from .circuits.cuts import CutNodes, CutTogether, KeepOnly, RestoreNodes, SwapPrompts
from .circuits.surveys import AttentionTo, AttributeNodes, DirectLogits, FindCircuit, HeadPatterns
from .effects.ablate import Ablate, PatchActivation
from .effects.attention import Attention
from .effects.downstream import Downstream
from .effects.linear_probe import ProbeProperty
from .effects.steer import PromotedTokens, Steer
from .effects.upstream import CutUpstream, Upstream
from .near_misses import MineNearMisses
from .positions_and_pairs import SwapPairs, SweepPositions
from .probe_state import ProbeState
from .prune_context import PruneContext
from .random_edits import EditAtRandom
from .scan_vocabulary import ScanVocabulary
from .surveys import KnownExplanations, LearnRule
from .window_edits import RunTexts

_ALL: tuple[AnyTool, ...] = (
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

TOOLS: Mapping[str, AnyTool] = {tool.name: tool for tool in _ALL}


def tools_for(kind: Literal["feature", "behaviour"], *, inside: bool = True) -> dict[str, AnyTool]:
    """The tools for features, or those for behaviours; those that look into the model only where there is one."""
    return {name: tool for name, tool in TOOLS.items() if tool.target == kind and (inside or not tool.inside)}
