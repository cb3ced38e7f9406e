"""Assembles the report of an investigation, all that its journal holds, as one value, whether it has ended or not.

Nothing is taken from memory and nothing is judged here: how the rivals stand is what `judging` makes of the
predictions and observations that are written down, what each forecast against what was seen comes from the same
rows, and the rest are the journal's own words. The text (`report`) and the page (`page`) show a report and nothing
else, so a report that was made again from the journal of a finished investigation is the same.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.store.journal import Journal
from ...data.store.journal_values import Experiment, Json, Observation
from ...rules.language import Rule
from ...subject.errors import NeuronautError
from ..loop.controls import claims
from ..loop.hypotheses import Hypothesis
from ..loop.judging import counts_for_odds, forecasts, rank_rivals
from ..loop.levels import LEVELS, brier, levels_of
from ..loop.odds import odds_as_sum
from ..loop.view import Rival
from .report import Contender, Forecasted, OddsAtRound, Report, Trial


def assemble(journal: Journal, id: str) -> Report:
    """Assembles the report of an investigation from its journal alone; `id` may be the beginning of one.

    Raises NeuronautError where rows hold what no investigation writes.
    """
    try:
        return _assemble(journal, id)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        id = journal.full_id(id)
        raise NeuronautError(
            f"the rows of {id} make no report ({type(error).__name__}), so they were edited or damaged; see what: "
            f"neuronaut sessions replay {id}"
        ) from error


def _assemble(journal: Journal, id: str) -> Report:
    row = journal.row(id)
    id, events = row["id"], journal.events(row["id"])
    last = {event["kind"]: event for event in events}
    hypotheses, experiments, observed = journal.hypotheses(id), journal.experiments(id), journal.observations(id)
    parsed = {h["name"]: Hypothesis.model_validate(h["body"]) for h in hypotheses}
    rivals = rank_rivals(parsed, experiments, observed, kind=row["kind"])
    frozen, ended = last.get("frozen", {}), last.get("ended", {})
    origins = {h["name"]: h["origin"] for h in hypotheses}
    rivals = sorted(rivals, key=lambda rival: rival.name != frozen.get("hypothesis"))
    contenders = tuple(_contender(r, origins[r.name], events, experiments, observed, kind=row["kind"]) for r in rivals)
    leading = frozen.get("hypothesis") or next((r.name for r in rivals if r.status == "live"), None)
    ordered = {leading: parsed[leading], **parsed} if leading else parsed
    claim_rows = [c for c in claims(ordered, experiments, observed) if c["values"] or c["hypothesis"] == leading]
    trials = tuple(_trial(experiment, observed.get(experiment.name)) for experiment in experiments)
    controls = tuple({e["name"]: _payload(e) for e in events if e["kind"] == "control"}.values())
    scores = tuple(map(_without_windows, last.get("holdout", {}).get("scores", ())))
    return Report(
        id=id,
        kind=row["kind"],
        target=row["target"],
        policy=row["policy"],
        status=row["status"],
        reason=row["reason"] or ended.get("reason"),
        verdict=frozen.get("verdict"),
        hypothesis=frozen.get("hypothesis"),
        grading=frozen.get("grading"),
        text=frozen.get("text"),
        rule=_rule(frozen.get("rule")),
        hash=frozen.get("hash"),
        explanation=row["explanation_id"] or ended.get("explanation_id"),
        baseline=_baseline(last["baseline"]) if "baseline" in last else None,
        scores=scores,
        label_scores=tuple(map(_without_windows, last.get("holdout", {}).get("label", ()))),
        added=tuple(last.get("holdout", {}).get("added", ())),
        finalists=tuple(last.get("finalists", {}).get("rows", ())),
        roles=_payload(last["roles"]) if "roles" in last else None,
        peeks=tuple(journal.peeks(id)),
        contenders=contenders,
        trials=trials,
        claims=tuple(claim_rows),
        controls=controls,
        open=tuple(
            _open(contenders, leading=leading, trials=trials, claims=claim_rows, controls=controls, scores=scores)
        ),
        rejected=tuple(str(e["reason"]) for e in events if e["kind"] == "rejected"),
        spent=journal.spent(id)._asdict(),
        limits=_limits(last),
        settings=row["settings"],
        provenance=row["provenance"],
        parent=row["parent"],
        created=row["created"],
        ended=row["ended"],
        predictions=sum(len(experiment.predictions) for experiment in experiments),
        broken=journal.broken_link(id),
    )


TERMS = 8
"""Experiments whose share of a rival's odds is told one by one."""


def _contender(
    rival: Rival,
    origin: str,
    events: Iterable[Mapping[str, Any]],
    experiments: Sequence[Experiment],
    observed: Mapping[str, Observation],
    *,
    kind: str,
) -> Contender:
    rounds: dict[int, OddsAtRound] = {}
    for event in events:
        if event["kind"] == "judged":
            for row in event["rivals"]:
                if row["name"] == rival.name:
                    rounds[event["round"]] = OddsAtRound(event["round"], row["log_odds"], row["share"])
    forecasts = [_forecasted(experiment, observed.get(experiment.name), rival.name, kind) for experiment in experiments]
    return Contender(
        name=rival.name,
        origin=origin,
        body=rival.hypothesis.model_dump(mode="json"),
        status=rival.status,
        log_odds=rival.log_odds,
        share=rival.share,
        resolved=rival.resolved,
        silences=rival.silences,
        hits=rival.hits,
        cause=rival.cause,
        brier=rival.brier,
        odds=odds_as_sum(rival, terms=TERMS),
        history=tuple(rounds.values()),
        forecasts=tuple(forecast for forecast in forecasts if forecast is not None),
    )


def _forecasted(experiment: Experiment, observation: Observation | None, name: str, kind: str) -> Forecasted | None:
    predicted = next((p.expected for p in experiment.predictions if p.hypothesis == name), ())
    places = [place for place, value in enumerate(predicted) if value is not None]
    forecast = forecasts(experiment, name)
    if forecast is None or not places or observation is None or observation.status != "ok":
        return None
    values = np.array(observation.result["values"], np.float64)[places]
    expected = np.array([predicted[place] for place in places], np.float64)
    observed, forecast = levels_of(values.tolist(), experiment.design["readout"]), forecast[places]
    return Forecasted(
        experiment=experiment.name,
        n=len(places),
        expected=float(expected.mean()),
        seen=float(values.mean()),
        hits=float((forecast.argmax(axis=1) == observed).mean()),
        brier=brier(forecast, observed),
        for_odds=counts_for_odds(experiment, kind),
    )


def _trial(experiment: Experiment, observation: Observation | None) -> Trial:
    design, result = experiment.design, observation.result if observation else {}
    values = [] if experiment.survey else result.get("values", [])
    items = tuple(
        {
            "label": item["label"],
            "value": value,
            "level": LEVELS[int(levels_of([value], design["readout"])[0])],
            "expected": {p.hypothesis: p.expected[place] for p in experiment.predictions},
        }
        for place, (item, value) in enumerate(zip(design["items"], values, strict=bool(values)))
    )
    return Trial(
        name=experiment.name,
        tool=experiment.tool,
        purpose=experiment.purpose,
        question=design["question"],
        survey=experiment.survey,
        role=experiment.role,
        round=experiment.round,
        readout=design["readout"],
        args=experiment.args,
        status=observation.status if observation else "planned",
        reason=observation.reason if observation else None,
        result=result,
        items=items,
        forwards=int(observation.cost.get("forwards", 0)) if observation else 0,
    )


def _open(
    contenders: Sequence[Contender],
    leading: str | None,
    trials: Sequence[Trial],
    claims: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    scores: Sequence[Mapping[str, Any]],
) -> Iterable[tuple[str, tuple[str, ...]]]:
    """What is not settled: rivals that still stand, measurements and controls that failed, claims without a test."""
    if alive := tuple(c.name for c in contenders if c.status == "live" and c.name != leading and c.share > CLOSE):
        yield "rivals that the evidence has not put aside", alive
    late = (c for c in contenders if c.status == "live" and not c.resolved and c.body["kind"] != "no_pattern")
    if untested := tuple(c.name for c in late):
        yield "hypotheses that were put up too late to be tested", untested
    if failed := tuple(trial.name for trial in trials if trial.status != "ok"):
        yield "experiments without a result", failed
    for verdict, words in (("untested", "claims that nothing tested"), ("mixed", "claims with mixed evidence")):
        if names := tuple(f"{claim['claim']} {claim['item']!r}" for claim in claims if claim["verdict"] == verdict):
            yield words, names
    if failing := tuple(str(control["name"]) for control in controls if control["passed"] is False):
        yield "negative controls that did not pass", failing
    if missing := tuple(f"{s['examples']} {s['metric']}" for s in scores if s["value"] is None):
        yield "scores without a value", missing
    if not scores:
        yield "the holdout was not read", ()


CLOSE = 0.02
"""Posterior share above which a rival is told as not put aside."""


def _baseline(event: Mapping[str, Any]) -> Json:
    """The label to beat, its rule as JSON, its scores without windows."""
    payload = _payload(event)
    scores = [_without_windows(score) for score in payload.get("scores") or ()]
    return {**payload, "rule": _rule(payload.get("rule")), "scores": scores}


def _rule(rule: str | Json | None) -> Json | None:
    """A rule as its shortest JSON, however it was written."""
    if rule is None:
        return None
    return json.loads(Rule.model_validate(json.loads(rule) if isinstance(rule, str) else rule).to_json())


def _without_windows(score: Json) -> Json:
    return {key: value for key, value in score.items() if key != "windows"}


def _limits(last: Mapping[str, Mapping[str, Any]]) -> Json:
    return last.get("spent", {}).get("limits") or last.get("begun", {}).get("limits") or {}


def _payload(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("seq", "time", "kind")}
