"""Running a stored investigation's measurements again on the model, and comparing: what a replay cannot judge.

Every experiment is measured as it was designed, in the order of the observations, and the lab is told what was observed
then, so that a tool that builds on earlier measurements has the same. The nulls, the baseline, the holdout's scores and
the negative controls are made again, too. Numbers may differ by TOLERANCE, as they do between devices and batch sizes;
all else must be equal. Nothing is stored, and no policy and no language model is asked.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import isclose
from typing import Any, NamedTuple

from ..causal.circuits.tasks import Task
from ..data.records import Score
from ..data.store.journal_values import Experiment, Observation, as_json
from ..data.store.store import Store
from ..subject.address import Feature, SourceId
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .checks import Transcript
from .loop.behaviour_examiner import BehaviourExaminer
from .loop.behaviour_lab import BehaviourLab
from .loop.conclusion import HOLDOUT
from .loop.experiments import design_from_json
from .loop.target import Examiner, Lab, run_controls
from .session import InvestigationConfig, SourceSessions
from .tools.table import tools_for

TOLERANCE = 1e-3
"""Relative to the number, and absolute where that is small."""


class Rerun(NamedTuple):
    """What running again found."""

    experiments: int
    """Experiments and surveys that were measured again."""
    faults: tuple[str, ...]
    """What came out otherwise, by name, a line each."""
    left_out: tuple[str, ...]
    """What was not run again, with the reason, a line each."""


def rerun(
    store: Store,
    id: str,
    subject: Subject,
    *,
    sources: Mapping[SourceId, Source] | None = None,
    task: Task | None = None,
) -> Rerun:
    """Measures everything in an investigation again; a behaviour needs the task that it was begun with."""
    said = Transcript.read(store.journal, store.journal.full_id(id))
    if (before := said.row["provenance"].get("model", subject.revision)) != subject.revision:
        raise NeuronautError(f"{said.row['id']} was run on weights {before}, these are {subject.revision}; name those")
    lab, examiner = _open(store, said, subject, sources, task)
    differences = list(_measure_again(said, lab))
    differences += _conclude_again(said, lab, examiner)
    if differences and (later := _harvested_since(store, said, subject)):
        differences.append(f"experiments draw from all text of {subject.name}, and more came since: {', '.join(later)}")
    failed = [name for name, observation in said.observations.items() if observation.status == "error"]
    left_out = [f"{', '.join(failed)}: they failed then"] if failed else []
    if _asks(said):
        left_out.append("the holdout's scores: a language model judged them")
    return Rerun(len(said.observations) - len(failed), tuple(differences), tuple(left_out))


def _harvested_since(store: Store, said: Transcript, subject: Subject) -> list[str]:
    """The model's sources that were harvested after the investigation was begun."""
    rows = store.sources()
    return [
        row["source"] for row in rows if row["model"] == subject.name and (row["harvested"] or "") > said.row["created"]
    ]


def _open(
    store: Store, said: Transcript, subject: Subject, sources: Mapping[SourceId, Source] | None, task: Task | None
) -> tuple[Lab, Examiner]:
    target, seed = said.row["target"], said.row["settings"].get("seed", 0)
    if said.row["kind"] == "feature":
        feature, config = Feature.parse(target), InvestigationConfig(seed=seed)
        one = SourceSessions(store, subject, feature.source, config, sources=sources).prepare(feature)
        return one.lab, one.examiner
    if task is None or target != f"{subject.name} {task.name}":
        raise NeuronautError(f"{said.row['id']} is about {target}; give its pairs again, with --task or --pairs")
    lab = BehaviourLab(subject, task, seed=seed)
    return lab, BehaviourExaminer(lab)


def _asks(said: Transcript) -> bool:
    """Whether the holdout's scores are a language model's: words without a rule have no other judge."""
    leader = said.parsed.get((said.last("frozen") or {}).get("hypothesis") or "")
    return said.row["kind"] == "feature" and leader is not None and leader.rule is None


def _measure_again(said: Transcript, lab: Lab) -> Iterator[str]:
    tools, by_name = tools_for(lab.kind), {experiment.name: experiment for experiment in said.experiments}
    for name, observation in said.observations.items():
        experiment = by_name[name]
        if observation.status == "ok":
            yield from _compare_experiment(experiment, observation, tools, lab)
            if not experiment.survey:
                lab.take(design_from_json(experiment.design), observation.result["values"])


def _compare_experiment(
    experiment: Experiment, observation: Observation, tools: Mapping[str, Any], lab: Lab
) -> Iterator[str]:
    if experiment.tool not in tools:
        yield f"{experiment.name}: this Neuronaut has no tool {experiment.tool}"
        return
    try:
        measured = tools[experiment.tool].measure(design_from_json(experiment.design), lab)
    except NeuronautError as error:
        yield f"{experiment.name}: {experiment.tool} measured something then, and fails now: {error}"
        return
    if difference := first_difference(observation.result, asdict(measured)):
        yield f"{experiment.name}: {experiment.tool} {difference}"


def _conclude_again(said: Transcript, lab: Lab, examiner: Examiner) -> Iterator[str]:
    put_up = [hypothesis for name, hypothesis in said.parsed.items() if _origin(said, name) == "code"]
    for then, now in zip(put_up, lab.nulls(), strict=False):
        if difference := first_difference(then.model_dump(mode="json"), now.model_dump(mode="json")):
            yield f"null hypothesis {then.kind}: {difference}"
    if (baseline := said.last("baseline")) is not None:
        yield from _compare("baseline", baseline, examiner.baseline())
    frozen, holdout = said.last("frozen") or {}, said.last(HOLDOUT)
    if holdout is not None and not _asks(said):
        examined = examiner.holdout(frozen["text"], said.parsed[frozen["hypothesis"]])
        yield from _compare(HOLDOUT, holdout, {"scores": [_score(score) for score in examined.scores]})
    if (roles := said.last("roles")) is not None:
        yield from _compare("roles", roles, examiner.roles(said.parsed[frozen["hypothesis"]]) or {})
    if controls := said.of_kind("control"):
        again = run_controls(
            lab,
            examiner,
            hypotheses=said.parsed,
            experiments=said.experiments,
            observations=said.observations,
            leader=frozen["hypothesis"],
        )
        for then, now in zip(controls, again, strict=False):
            yield from _compare(f"control {then['name']}", then, asdict(now))


def _origin(said: Transcript, name: str) -> str:
    return next(row["origin"] for row in said.hypotheses if row["name"] == name)


def _score(score: Score) -> dict[str, Any]:
    return {key: value for key, value in asdict(score).items() if key != "provenance"}


def _compare(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Compares what is made now; an event has more keys, and scores have the versions that they were made with."""
    sides = [{key: side.get(key) for key in now} for side in (then, now)]
    for side in sides:
        if "scores" in side:
            scores: list[dict[str, Any]] = side["scores"] or []
            side["scores"] = [{k: v for k, v in score.items() if k != "provenance"} for score in scores]
    if difference := first_difference(*sides):
        yield f"{name}: {difference}"


def first_difference(then: Any, now: Any) -> str | None:
    """Where two values differ by more than TOLERANCE, as a path with both; None where they do not."""
    path = _path(json.loads(as_json(then)), json.loads(as_json(now)))
    return None if path is None else f"{'.'.join(path[:-2])} is stored as {path[-2]}, run again it is {path[-1]}"


def _path(then: Any, now: Any) -> tuple[str, ...] | None:
    if isinstance(then, dict) and isinstance(now, dict) and then.keys() == now.keys():
        parts = [(key, then[key], now[key]) for key in then]
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        parts = [(str(place), *pair) for place, pair in enumerate(zip(then, now, strict=True))]
    elif isinstance(then, int | float) and isinstance(now, int | float):
        close = isclose(then, now, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return None if close else (f"{then:.6g}", f"{now:.6g}")
    else:
        return None if then == now else (_short(then), _short(now))
    found = ((key, below) for key, first, second in parts if (below := _path(first, second)) is not None)
    return next(((key, *below) for key, below in found), None)


def _short(value: Any) -> str:
    text = as_json(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
