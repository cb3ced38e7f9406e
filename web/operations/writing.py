"""Operations that write into the database: label, investigate. Both go on where a call that was stopped left off."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ...subject.errors import NeuronautError
from .arguments import Arguments, FeatureAddress
from .context import Context
from .prompts import Seed
from .results import Result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ...labelling.setup import LabelSetup
    from ...llm.client import LLMClient
    from ...subject.address import Feature

MINUTES = 30
"""Most minutes of an investigation."""


class LabelArguments(Arguments):
    """Explain one feature, score the explanation on text that the explainer did not see, and store both.

    Learns a rule from the texts that activate the feature; where the server has a language model, that one explains. A
    feature that was labelled before is not labelled again unless redo is true, which adds a further explanation.
    """

    feature: FeatureAddress
    redo: Annotated[bool, Field(description="Explain also what was explained before; the best one is shown.")] = False


class InvestigateArguments(Arguments):
    """Investigate one feature: rival hypotheses foretell experiments, code judges, and the one that stands is scored.

    Takes minutes. The same call again goes on where the last one stopped, or gives the finished report; another seed
    investigates anew.
    """

    feature: FeatureAddress
    experiments: Annotated[int, Field(ge=1, le=60, description="Most experiments.")] = 20
    minutes: Annotated[float, Field(gt=0, le=MINUTES, description="Most minutes.")] = 10.0
    hide_names: Annotated[bool, Field(description="Do not tell who decides what the feature is called.")] = False
    seed: Seed = 0


def label(context: Context, arguments: LabelArguments) -> Result:
    """Label one feature."""
    from ...labelling.label import label as label_features

    feature = context.store.feature(arguments.feature)
    with context.open_client(context.store) as client:
        setup = _set_up(context, feature, client, explainer="rule" if client is None else "guided")
        if setup.explainer is None:
            raise NeuronautError("there is no explainer")
        with context.watch.over(setup.subject):
            results = label_features(
                [feature],
                context.store,
                setup.subject,
                explainer=setup.explainer,
                scorers=setup.scorers,
                client=client,
                chooser=setup.chooser,
                sources=setup.sources,
                redo=arguments.redo,
                on_progress=context.watch.doing,
            )
            rows = [result.to_row() | {"reason": result.explanation.reason} for result in results]
        if not rows and client is not None and client.stopped:
            raise NeuronautError(f"{feature} was not labelled: {client.stopped}")
    if rows:
        return Result(rows)
    known = context.store.row(feature)
    note = "it was labelled before, and is shown as it is; redo=true explains it anew"
    return Result([known] if known else [], (note,))


def investigate(context: Context, arguments: InvestigateArguments) -> Result:
    """Investigate one feature, within bounds."""
    from ...agent.loop.budget import Limits
    from ...agent.loop.run import Settings
    from ...agent.policies.factory import PolicyOptions, make_policy
    from ...agent.session import InvestigationConfig, investigate_all

    feature = context.store.feature(arguments.feature)
    with context.open_client(context.store) as client:
        setup = _set_up(context, feature, client)
        policy = "scripted" if client is None else "llm"
        config = InvestigationConfig(
            policy=make_policy(policy, "feature", PolicyOptions(client, 0.0, arguments.seed, None)),
            limits=Limits(experiments=arguments.experiments, minutes=arguments.minutes),
            seed=arguments.seed,
            client=client,
            scorers=setup.scorers,
            settings=Settings(hide_names=arguments.hide_names),
            on_event=lambda event: _tell(context, event),
            on_progress=context.watch.doing,
        )
        with context.watch.over(setup.subject):
            (session,) = investigate_all([feature], setup.subject, context.store, config, sources=setup.sources)
    row = {
        "investigation": session.id,
        "feature": str(feature),
        "status": session.status,
        "reason": session.reason,
        "explanation": session.report.text,
        "rule": session.report.rule,
        "report": str(session.report).splitlines(),
    }
    return Result([row], (f"all of it is stored: neuronaut sessions show {session.id}",))


def _set_up(
    context: Context, feature: "Feature", client: "LLMClient | None", explainer: str | None = None
) -> "LabelSetup":
    from ...labelling.setup import LabelOptions, set_up

    subject = context.subject(feature.source.model, [feature.source])
    sources = {feature.source: context.source(subject, feature.source)}
    return set_up(context.store, subject, sources, [feature], LabelOptions(explainer=explainer), client=client)


def _tell(context: Context, event: "Mapping[str, Any]") -> None:
    context.watch.doing(f"investigating: {event['kind']}")
