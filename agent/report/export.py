"""An investigation as a file for other programs: everything as JSON lines, or as a log of Inspect AI.

JSON lines: the first one says which version of the format this is and what the investigation was; then, each with its
`record`, come the events in order, the hypotheses, the experiments with what was predicted (before they were run),
the observations and the decisions. Inspect's log (JSON, version 2) holds one sample: the question, the answer, the
scores on the holdout, every experiment as a call of a tool and every other event as information; `inspect view`
opens it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ...data.store.journal import Journal
from .assemble import assemble
from .report import Report, Trial

FORMAT, VERSION = "neuronaut-investigation", 1
INSPECT_VERSION = 2
"""Of Inspect AI's eval log."""
_STATUS = {"running": "started", "error": "error"}
"""Of Inspect's log; everything else is a success, whatever was found."""
_VERDICT = {"supported": "C", "open": "P", "budget": "P", "no_explanation": "N", "error": "I", "running": "I"}
"""As Inspect's viewer colours values: correct, partial, no answer, incorrect."""

_SPEC = ("id", "kind", "target", "policy", "parent", "status", "reason", "created", "ended")

Row = dict[str, Any]


def to_lines(journal: Journal, id: str, *, splits: Mapping[str, int] | None = None) -> Iterator[Row]:
    """An investigation as rows of JSON lines. `splits` counts the target's windows by split."""
    row = journal.row(id)
    id, settings, provenance = row["id"], row["settings"], row["provenance"]
    yield {
        "record": "investigation",
        "format": FORMAT,
        "version": VERSION,
        **{name: row[name] for name in _SPEC},
        "spec": settings,
        "seed": settings.get("seed"),
        "splits": None if splits is None else dict(splits),
        "packages": provenance.get("libraries"),
        "git": provenance.get("git"),
        "models": _models(provenance),
        "provenance": provenance,
        "chain": journal.broken_link(id) or "holds",
    }
    yield from ({"record": "event", **event} for event in journal.events(id))
    yield from ({"record": "hypothesis", **hypothesis} for hypothesis in journal.hypotheses(id))
    for experiment in journal.experiments(id):
        predictions = {name: list(expected) for name, expected in experiment.predictions}
        yield {"record": "experiment", **asdict(experiment), "predictions": predictions}
    for name, observation in journal.observations(id).items():
        yield {"record": "observation", "experiment": name, **asdict(observation)}
    yield from ({"record": "decision", **decision} for decision in journal.decisions(id))


def _models(provenance: Mapping[str, Any]) -> Row:
    """Who was asked, by role."""
    return {"subject": provenance.get("model"), "policy": provenance.get("llm"), "challenger": provenance.get("llm")}


def to_inspect(journal: Journal, id: str) -> Row:
    """An investigation as a log of Inspect AI, as plain JSON."""
    report = assemble(journal, id)
    events = journal.events(report.id)
    ended = report.ended or (events[-1]["time"] if events else report.created)
    began, done = _time(report.created), _time(ended)
    model, used = _model_name(report), _usage(report)
    return {
        "version": INSPECT_VERSION,
        "status": _STATUS.get(report.status, "success"),
        "eval": _eval(report, model, began),
        "plan": {"name": "plan", "steps": [{"solver": report.policy, "params": {}}], "config": {}},
        "results": {"total_samples": 1, "completed_samples": int(report.ended is not None), "scores": _results(report)},
        "stats": {"started_at": began, "completed_at": done, "model_usage": used},
        **({"error": _error(report)} if report.status == "error" else {}),
        "samples": [_sample(report, events, model, began, done)],
    }


def _eval(report: Report, model: str, began: str) -> Row:
    git = report.provenance.get("git")
    revision = git and {"type": "git", "origin": "", "commit": git["commit"], "dirty": git["dirty"]}
    return {
        "eval_id": report.id,
        "run_id": report.id,
        "created": began,
        "task": "neuronaut/investigate",
        "task_id": report.id,
        "task_version": VERSION,
        "task_args": {"target": report.target},
        "solver": report.policy,
        "dataset": {"name": report.target, "samples": 1, "sample_ids": [report.id], "shuffled": False},
        "model": model,
        "config": {},
        "packages": dict(report.provenance.get("libraries") or {}),
        "metadata": {"settings": report.settings, "provenance": report.provenance, "parent": report.parent},
        **({"revision": revision} if revision else {}),
    }


def _model_name(report: Report) -> str:
    llm = report.provenance.get("llm")
    return f"openai-api/{llm['model']}" if isinstance(llm, Mapping) else "none/none"


def _usage(report: Report) -> Row:
    if not report.spent["calls"]:
        return {}
    total = report.spent["tokens"]
    # The ledger has one count for both directions.
    return {
        _model_name(report): {
            "input_tokens": total,
            "output_tokens": 0,
            "total_tokens": total,
            "total_cost": report.spent["usd"] or None,
        }
    }


def _sample(report: Report, events: list[Row], model: str, began: str, done: str) -> Row:
    answer = report.text if report.text is not None else report.reason or "no answer yet"
    message = {"id": "answer", "role": "assistant", "content": answer, "source": "generate", "model": model}
    return {
        "id": report.id,
        "epoch": 1,
        "input": report.question,
        "target": "",
        "messages": [{"id": "question", "role": "user", "content": report.question, "source": "input"}, message],
        "output": {"model": model, "choices": [{"message": message, "stop_reason": "stop"}], "completion": answer},
        "scores": _scores(report),
        "metadata": {"report": str(report), "claims": list(report.claims)},
        "store": {},
        "events": list(_events(report, events)),
        "model_usage": _usage(report),
        "started_at": began,
        "completed_at": done,
        "total_time": _seconds(began, done),
        "uuid": report.id,
        "attachments": {},
        **({"error": _error(report)} if report.status == "error" else {}),
    }


def _scores(report: Report) -> Row:
    verdict = {"value": _VERDICT[report.status], "answer": report.text, "explanation": report.reason, "metadata": {}}
    scores = {
        _name(score): {"value": score["value"], "explanation": json.dumps(score, ensure_ascii=False)}
        for score in report.scores
        if score["value"] is not None
    }
    return {"verdict": verdict, **scores}


def _results(report: Report) -> list[Row]:
    return [
        {
            "name": _name(score),
            "scorer": score["scorer"],
            "scored_samples": 1,
            "unscored_samples": 0,
            "params": {},
            "metrics": {"value": {"name": "value", "value": score["value"], "params": {}}},
        }
        for score in report.scores
        if score["value"] is not None
    ]


def _name(score: Mapping[str, Any]) -> str:
    return f"{score['scorer']}_{score['examples']}_{score['metric']}"


def _error(report: Report) -> Row:
    return {"message": report.reason or "error", "traceback": "", "traceback_ansi": ""}


def _events(report: Report, events: list[Row]) -> Iterator[Row]:
    """Each event under the clock of the investigation, experiments as calls of tools."""
    trials = {trial.name: trial for trial in report.trials}
    for event in events:
        at = _time(event["time"])
        base = {
            "uuid": f"{report.id}-{event['seq']}",
            "timestamp": at,
            "working_start": _seconds(_time(report.created), at),
        }
        payload = {key: value for key, value in event.items() if key not in ("seq", "time", "kind")}
        if event["kind"] == "observed" and event["experiment"] in trials:
            yield {**base, **_call(trials[event["experiment"]], at)}
        else:
            yield {**base, "event": "info", "source": f"neuronaut/{event['kind']}", "data": payload}


def _call(trial: Trial, at: str) -> Row:
    failed = trial.status != "ok"
    error = {"error": {"type": "unknown", "message": trial.reason or ""}, "failed": True} if failed else {}
    result = "" if failed else json.dumps({**trial.result, "items": trial.items}, ensure_ascii=False)
    arguments = {**trial.args, "purpose": trial.purpose, "question": trial.question}
    return {
        "event": "tool",
        "type": "function",
        "id": trial.name,
        "function": trial.tool,
        "arguments": arguments,
        "result": result,
        "events": [],
        "completed": at,
        **error,
    }


def _time(text: str) -> str:
    """A time as the log wants it: ISO, with an offset."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.astimezone()).isoformat()


def _seconds(first: str, last: str) -> float:
    return max(0.0, (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds())
