"""Policies by name, as they stand after `--policy`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...llm.client import LLMClient
from ...subject.errors import NeuronautError
from ..loop.policy import Policy
from .llm import LLMPolicy
from .random_policy import RandomPolicy
from .replay import ReplayPolicy
from .scripted import ScriptedPolicy
from .scripted_behaviour import ScriptedBehaviourPolicy


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What policies are made from."""

    client: LLMClient | None = None
    """Who answers what the policy `llm` asks."""
    temperature: float | None = 0.0
    """Of the language model; None for models that take none."""
    seed: int = 0
    """Of the policy `random`."""
    decisions: Sequence[Mapping[str, Any]] | None = None
    """Those of an earlier investigation, which the policy `replay` takes again."""


def _scripted(kind: Literal["feature", "behaviour"], _: PolicyOptions) -> Policy:
    return ScriptedPolicy() if kind == "feature" else ScriptedBehaviourPolicy()


def _llm(_: str, options: PolicyOptions) -> Policy:
    if options.client is None:
        raise NeuronautError(
            "the policy llm asks a language model; name one with -m, for example -m openai:gpt-4o-mini"
        )
    return LLMPolicy(options.client, temperature=options.temperature)


def _replay(_: str, options: PolicyOptions) -> Policy:
    if options.decisions is None:
        raise NeuronautError("the policy replay takes the decisions of an investigation; name it with --transcript ID")
    return ReplayPolicy(options.decisions)


POLICIES: Mapping[str, Callable[[Literal["feature", "behaviour"], PolicyOptions], Policy]] = {
    "scripted": _scripted,
    "llm": _llm,
    "random": lambda _, options: RandomPolicy(seed=options.seed),
    "replay": _replay,
}


def make_policy(name: str, kind: Literal["feature", "behaviour"], options: PolicyOptions) -> Policy:
    """Make the policy of a name for targets of a kind; raises NeuronautError where the options lack what it needs."""
    return POLICIES[name](kind, options)
