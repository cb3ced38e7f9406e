"""The columns of the benchmark: investigations of planted units by several policies, and their baselines.

    scripted     an investigation by the scripted policy
    one-shot     the rule explainer as `label` runs it: text, minimal pairs and pruned contexts, once
    text-only    the same without interventions: learned from text alone
    random       an investigation in which chance decides
    swapped      the scripted policy's finding on another unit of the world, brought to this unit's scale
    token-only   the mean activation of every token
    llm          an investigation in which a language model decides

Each is given a world and a store that holds its harvest, and nothing else of it. All of them keep silent where a
feature is dead, too rare or dense, by the same bounds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..agent.loop.feature_lab import FeatureLab
from ..agent.loop.policy import Policy
from ..agent.policies.random_policy import RandomPolicy
from ..agent.policies.scripted import ScriptedPolicy
from ..agent.session import InvestigationConfig, Session, investigate_all
from ..data.store.store import Store
from ..explainers.explainer import AbstentionLimits, abstention
from ..explainers.rule import RuleExplainer
from ..labelling.inputs import EvidenceLoader
from ..labelling.label import label
from ..rules.language import Rule
from .suite import Unit, World


@dataclass(frozen=True, slots=True)
class Finding:
    """An explanation of one unit, with its claims and its cost."""

    status: str
    """How an investigation ended, or an explanation's own status."""
    reason: str | None
    text: str | None
    rule: str | None
    """JSON; None for an abstention."""
    promotes: tuple[str, ...] | None = None
    """Tokens that are claimed to be promoted, with support by experiments; None from columns without such claims."""
    suppresses: tuple[str, ...] | None = None
    reads: tuple[str, ...] | None = None
    brier: float | None = None
    """Brier score of the final leader's predictions: 0 is perfect, 2 is wholly wrong."""
    experiments: int = 0
    tokens: int = 0
    usd: float = 0.0
    investigation: str | None = None


Findings = Iterator[tuple[Unit, Finding]]


class Investigating:
    """A column of investigations."""

    needs: str | None = None

    def __init__(self, policy: Callable[[InvestigationConfig], Policy], *, asks: bool = False) -> None:
        """`asks`: whether the policy asks a language model."""
        self._policy, self._asks = policy, asks

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All settings that determine the findings, beside the world."""
        return {"policy": dict(self._policy(config).settings), "limits": asdict(config.limits), "seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Findings:
        """Investigate the units in one call."""
        by_address = {unit.address: unit for unit in units}
        features = [feature for feature in world.features() if str(feature) in by_address]
        client = config.client if self._asks else None
        sessions = investigate_all(
            features,
            world.subject,
            store,
            replace(config, policy=self._policy(config), client=client),
            sources={world.source.id: world.source},
        )
        for session in sessions:
            yield by_address[session.report.target], read_session(session)


class OneShot:
    """A column of labels by the rule explainer."""

    needs: str | None = None

    def __init__(self, *, interventions: int = 96) -> None:
        self._interventions = interventions

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All settings that determine the findings, beside the world."""
        return {"interventions": self._interventions, "seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Findings:
        """Label the units."""
        by_address = {unit.address: unit for unit in units}
        features = [feature for feature in world.features() if str(feature) in by_address]
        explainer = RuleExplainer(world.subject, interventions=self._interventions, seed=config.seed)
        results = label(
            features,
            store,
            world.subject,
            explainer=explainer,
            scorers=[],
            sources={world.source.id: world.source},
            redo=True,
        )
        for result in results:
            explanation = result.explanation
            finding = Finding(explanation.status, explanation.reason, explanation.text, explanation.rule)
            yield by_address[str(result.feature)], finding


class TokenOnly:
    """A column of tables of the tokens' mean activations."""

    needs: str | None = None

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All settings that determine the findings, beside the world."""
        return {"seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Findings:
        """Put the table as a rule, as investigations do for the rival that any explanation must beat."""
        by_address = {unit.address: unit for unit in units}
        evidence = [store.evidence(feature) for feature in world.features() if str(feature) in by_address]
        batch = EvidenceLoader(store, world.subject, world.source, seed=config.seed).train(evidence)
        for part in batch.features:
            unit = by_address[str(part.feature)]
            refusal = abstention(part, explainer="token-only", limits=AbstentionLimits())
            if refusal is not None:
                yield unit, Finding(refusal.status, refusal.reason, None, None)
                continue
            table, *_ = FeatureLab(store, world.subject, world.source, part, batch, seed=config.seed).nulls()
            yield unit, Finding("explained", None, table.text, None if table.rule is None else table.rule.to_json())


COLUMNS: Mapping[str, Investigating | OneShot | TokenOnly] = {
    "scripted": Investigating(lambda _: ScriptedPolicy()),
    "one-shot": OneShot(),
    "text-only": OneShot(interventions=0),
    "random": Investigating(lambda config: RandomPolicy(seed=config.seed)),
    "token-only": TokenOnly(),
    "llm": Investigating(lambda config: _require_policy(config.policy), asks=True),
}
SWAPPED, SWAPPED_OF = "swapped", "scripted"
"""A column that is made of another one's findings."""


def swap_findings(units: Sequence[Unit], findings: Mapping[str, Finding]) -> Findings:
    """For each unit the finding (by address) on the next one of the world that has a rule."""
    for place, unit in enumerate(units):
        others = [other for other in (*units[place + 1 :], *units[:place]) if findings[other.address].rule is not None]
        if not others:
            yield unit, Finding(SWAPPED, "no other unit of this world has a rule", None, None)
            continue
        other = findings[others[0].address]
        rule = rescale_rule(Rule.parse(other.rule or ""), unit.scale / others[0].scale)
        yield (
            unit,
            replace(
                other,
                status=SWAPPED,
                reason=f"found of {others[0].address}",
                rule=rule.to_json(),
                brier=None,
                experiments=0,
                tokens=0,
                usd=0.0,
                investigation=None,
            ),
        )


def rescale_rule(rule: Rule, factor: float) -> Rule:
    """The rule with all its predictions multiplied."""
    clauses = tuple(
        clause.model_copy(
            update={"value": clause.value * factor, "gains": {t: v * factor for t, v in clause.gains.items()}}
        )
        for clause in rule.any
    )
    return rule.model_copy(update={"any": clauses, "floor": rule.floor * factor})


def read_session(session: Session) -> Finding:
    """The finding of an investigation: the rule that was frozen, and the claims that experiments bore out."""
    report = session.report
    silent = session.status == "no_explanation" or report.rule is None
    claims: dict[str, tuple[str, ...]] = {
        kind: tuple(c["item"] for c in report.claims if c["claim"] == kind and c["verdict"] == "supported")
        for kind in ("promotes", "suppresses", "reads")
    }
    return Finding(
        session.status,
        session.reason,
        report.text,
        None if silent else json.dumps(report.rule),
        **claims,
        brier=None if silent or report.leader is None else report.leader.brier,
        experiments=int(report.spent["experiments"]),
        tokens=int(report.spent["tokens"]),
        usd=float(report.spent["usd"]),
        investigation=session.id,
    )


def _require_policy(policy: Policy | None) -> Policy:
    assert policy is not None, "Plan checks that there is one"
    return policy
