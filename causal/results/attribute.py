"""Rows of `attribute`: what writes a logit, and which tokens of a prompt a logit or an activation rests on."""

from collections.abc import Sequence

from ...subject.address import Feature
from ...subject.errors import NeuronautError
from ...subject.model import Subject
from ...subject.quoting import quoted
from ...subject.sources import Source
from .. import saliency
from ..logit_attribution import LogitAttribution
from ..measures import mean
from ..prompts import single_token
from ..questions import Questions
from ..saliency import Activation, Logit, Saliency, Target
from .common import Row, ends


def component_rows(attribution: LogitAttribution) -> list[Row]:
    """A row for each part that writes, the largest first: its mean over the prompts, in logits, and interval."""
    spans = {name: mean(attribution.values[:, index]) for index, name in enumerate(attribution.components)}
    return [
        {"component": name, "value": value, **ends(spans[name].interval), "n": spans[name].n}
        for name, value in attribution.ranked()
    ]


def describe_logit(subject: Subject, questions: Questions, attribution: LogitAttribution) -> str:
    """Say what the parts add up to."""
    kind = "logit" if questions.wrong is None else "logit difference"
    total, logit = float(attribution.total.mean()), float(attribution.logit.mean())
    capped = "" if abs(total - logit) < 1e-3 * max(1.0, abs(logit)) else f" before the soft-cap, {logit:.3g} after it"
    return f"the parts add up to the {kind} of {describe_answers(subject, questions)}: {total:.3g}{capped}"


def describe_answers(subject: Subject, questions: Questions) -> str:
    """The answers that are asked about, in words."""
    different = set(_answer_texts(subject, questions))
    return different.pop() if len(different) == 1 else f"{len(different)} answers, on average"


def _answer_texts(subject: Subject, questions: Questions) -> list[str]:
    answers = [quoted(subject.vocabulary[id]) for id in questions.answers.tolist()]
    if questions.wrong is None:
        return answers
    wrong = [quoted(subject.vocabulary[id]) for id in questions.wrong.tolist()]
    return [f"{answer} over {other}" for answer, other in zip(answers, wrong, strict=True)]


def input_rows(
    subject: Subject,
    questions: Questions,
    method: str,
    *,
    feature: Feature | None = None,
    source: Source | None = None,
    baseline: str | None = None,
    steps: int | None = None,
) -> list[Row]:
    """A row for each prompt: how a logit, or the activation of a feature of `source`, is shared among its tokens.

    `method` is gradient, integrated or occlusion; `baseline` the token that stands for nothing, the mean of all if
    None; `steps` those of integrated, as many as add up if None.
    """
    targets = _make_targets(questions, feature, source)
    results = [
        _measure(subject, ids, target, method, baseline=baseline, steps=steps)
        for ids, target in zip(questions.batch.ids(), targets, strict=True)
    ]
    unit = "logits" if feature is None else "activation"
    answers = _answer_texts(subject, questions)
    names = [f"activation of {feature}" if feature else f"logit of {answer}" for answer in answers]
    return [
        {
            "prompt": questions.texts[number],
            "target": names[number],
            "method": result.method,
            "tokens": questions.tokens(subject, number),
            "values": list(result.values),
            "metric": result.metric,
            "unit": unit,
            "at_baseline": result.at_baseline,
            "completeness_error": result.completeness_error,
            **(
                {}
                if result.complete is None
                else {"missed": result.missed, "complete": result.complete, "steps": result.steps}
            ),
        }
        for number, result in enumerate(results)
    ]


def doubts(rows: Sequence[Row], feature: object = None) -> list[str]:
    """Say of the rows of `input_rows` which do not add up, and where the feature is silent."""
    lines = [
        f"Warning: the values of {quoted(row['prompt'])} miss {row['missed']:.0%} of what the {row['target']} "
        f"differs by from the baseline, allowed {saliency.COMPLETE:.0%}; take more --steps than {row['steps']:,}, "
        "or occlusion"
        for row in rows
        if not row.get("complete", True)
    ]
    if silent := [row["prompt"] for row in rows if feature is not None and row["metric"] == 0]:
        lines.append(
            f"{feature} is silent at the end of {', '.join(map(quoted, silent))}; end the prompt where it fires"
        )
    return lines


def _make_targets(questions: Questions, feature: Feature | None, source: Source | None) -> list[Target]:
    if feature is not None and source is not None:
        return [Activation(source, feature)] * len(questions.texts)
    wrong = [None] * len(questions.texts) if questions.wrong is None else questions.wrong.tolist()
    return [Logit(answer, other) for answer, other in zip(questions.answers.tolist(), wrong, strict=True)]


def _measure(
    subject: Subject, ids: list[int], target: Target, method: str, *, baseline: str | None, steps: int | None
) -> Saliency:
    if method == "gradient":
        if baseline is not None:
            raise NeuronautError("gradient x input has no baseline; leave --baseline out, or take --inputs integrated")
        return saliency.gradient_x_input(subject, ids, target)
    start = "mean" if baseline is None else single_token(subject, baseline)
    if method == "integrated":
        return saliency.integrated_gradients(subject, ids, target, baseline=start, steps=steps)
    return saliency.occlusion(subject, ids, target, baseline=start)
