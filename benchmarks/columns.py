"""Who explains planted units, side by side: investigations by several policies, and what they have to beat.

    scripted     an investigation by the scripted policy
    one-shot     the rule explainer as `label` runs it: text, minimal pairs and pruned contexts, once
    text-only    the same without interventions: what is learned from text alone
    random       an investigation in which chance decides
    swapped      what the scripted policy found of another unit of the world, brought to this unit's scale
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
from ..explainers.explainer import Limits as Bounds
from ..explainers.explainer import abstention
from ..explainers.rule import RuleExplainer
from ..labelling.inputs import EvidenceLoader
from ..labelling.label import label
from ..rules.language import Rule
from .suite import Unit, World


@dataclass(frozen=True, slots=True)
class Found:
    """What was made of one unit."""

    status: str
    """Of an investigation how it ended, of an explanation its own."""
    reason: str | None
    text: str | None
    rule: str | None
    """JSON; None for an abstention."""
    promotes: tuple[str, ...] | None = None
    """Tokens that are claimed and were found to be promoted; None of who makes no such claims."""
    suppresses: tuple[str, ...] | None = None
    reads: tuple[str, ...] | None = None
    brier: float | None = None
    """Of all that the final leader predicted beforehand: 0 is perfect, 2 is wholly wrong."""
    experiments: int = 0
    tokens: int = 0
    usd: float = 0.0
    investigation: str | None = None


Explaining = Iterator[tuple[Unit, Found]]


class Investigating:
    """A column of investigations."""

    needs: str | None = None

    def __init__(self, policy: Callable[[InvestigationConfig], Policy], *, asks: bool = False) -> None:
        """`asks`: whether the policy asks a language model."""
        self._policy, self._asks = policy, asks

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All that determines what is found, beside the world."""
        return {"policy": dict(self._policy(config).settings), "limits": asdict(config.limits), "seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Explaining:
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
            yield by_address[session.report.target], of_session(session)


class OneShot:
    """A column of labels by the rule explainer."""

    needs: str | None = None

    def __init__(self, *, interventions: int = 96) -> None:
        self._interventions = interventions

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All that determines what is found, beside the world."""
        return {"interventions": self._interventions, "seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Explaining:
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
            made = result.explanation
            yield by_address[str(result.feature)], Found(made.status, made.reason, made.text, made.rule)


class TokenOnly:
    """What a table of the tokens' mean activations says."""

    needs: str | None = None

    def settings(self, config: InvestigationConfig) -> Mapping[str, Any]:
        """All that determines what is found, beside the world."""
        return {"seed": config.seed}

    def explain(self, units: Sequence[Unit], world: World, store: Store, config: InvestigationConfig) -> Explaining:
        """Put the table as a rule, as investigations do for the rival that any explanation must beat."""
        by_address = {unit.address: unit for unit in units}
        evidence = [store.evidence(feature) for feature in world.features() if str(feature) in by_address]
        batch = EvidenceLoader(store, world.subject, world.source, seed=config.seed).train(evidence)
        for part in batch.features:
            unit = by_address[str(part.feature)]
            refusal = abstention(part, explainer="token-only", limits=Bounds())
            if refusal is not None:
                yield unit, Found(refusal.status, refusal.reason, None, None)
                continue
            table, *_ = FeatureLab(store, world.subject, world.source, part, batch, seed=config.seed).nulls()
            yield unit, Found("explained", None, table.text, None if table.rule is None else table.rule.to_json())


COLUMNS: Mapping[str, Investigating | OneShot | TokenOnly] = {
    "scripted": Investigating(lambda _: ScriptedPolicy()),
    "one-shot": OneShot(),
    "text-only": OneShot(interventions=0),
    "random": Investigating(lambda config: RandomPolicy(seed=config.seed)),
    "token-only": TokenOnly(),
    "llm": Investigating(lambda config: _given(config.policy), asks=True),
}
SWAPPED, SWAPPED_OF = "swapped", "scripted"
"""A column that is made of another one's findings."""


def swapped(units: Sequence[Unit], found: Mapping[str, Found]) -> Explaining:
    """For each unit what was found, by address, of the next one of the world that has a rule."""
    for place, unit in enumerate(units):
        others = [other for other in (*units[place + 1 :], *units[:place]) if found[other.address].rule is not None]
        if not others:
            yield unit, Found(SWAPPED, "no other unit of this world has a rule", None, None)
            continue
        other = found[others[0].address]
        rule = rescaled(Rule.parse(other.rule or ""), unit.scale / others[0].scale)
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


def rescaled(rule: Rule, factor: float) -> Rule:
    """The rule with all that it predicts multiplied."""
    clauses = tuple(
        clause.model_copy(
            update={"value": clause.value * factor, "gains": {t: v * factor for t, v in clause.gains.items()}}
        )
        for clause in rule.any
    )
    return rule.model_copy(update={"any": clauses, "floor": rule.floor * factor})


def of_session(session: Session) -> Found:
    """What an investigation says in the end: the rule that was frozen, and the claims that experiments bore out."""
    report = session.report
    silent = session.status == "no_explanation" or report.rule is None
    held: dict[str, tuple[str, ...]] = {
        kind: tuple(c["item"] for c in report.claims if c["claim"] == kind and c["verdict"] == "supported")
        for kind in ("promotes", "suppresses", "reads")
    }
    return Found(
        session.status,
        session.reason,
        report.text,
        None if silent else json.dumps(report.rule),
        **held,
        brier=None if silent or report.leader is None else report.leader.brier,
        experiments=int(report.spent["experiments"]),
        tokens=int(report.spent["tokens"]),
        usd=float(report.spent["usd"]),
        investigation=session.id,
    )


def _given(policy: Policy | None) -> Policy:
    assert policy is not None, "Plan checks that there is one"
    return policy
