"""A journal that holds every kind of event, filled by hand: what reports, pages and exports are tried on."""

from dataclasses import asdict, replace
from typing import Any

from neuronaut.agent.loop.experiments import Control, Design, Item, Measured
from neuronaut.agent.loop.hypotheses import Hypothesis
from neuronaut.agent.loop.judging import rank_rivals
from neuronaut.data.store.journal import Journal, investigation_id
from neuronaut.data.store.journal_values import Charge, Experiment, InvestigationRecord, Observation, Prediction
from neuronaut.rules.language import Rule
from tests import stored

TARGET = "demo:mlp.2:1"
EVIL = "<script>alert('1')</script> and “5 of 7”"
"""Text of a corpus or a model that is out to break a page and a lint."""
BASE = (0.1, 0.5, 0.2, 0.2)
ROUNDS = 4


def rule(*tokens: str, unless: str | None = None) -> Rule:
    """Fires on tokens, but not after one."""
    clause: dict[str, Any] = {"when": [{"token": list(tokens)}], "value": 3.0}
    if unless is not None:
        clause["unless"] = [{"token": unless, "at": -1}]
    return Rule.model_validate({"any": [clause]})


HYPOTHESES = (
    Hypothesis(text="only the current token matters", kind="token_identity", rule=rule(" river")),
    Hypothesis(text="nothing in particular", kind="no_pattern"),
    Hypothesis(
        text=f"fires on ` river` unless after ` dry` {EVIL}",
        rule=rule(" river", unless=" dry"),
        parent="H1",
        promotes=(" bank", " stone"),
        suppresses=(" sand",),
        reads=("head.0:1",),
    ),
)


def fill(journal: Journal, *, seed: int = 0, target: str = TARGET, until: str = "ended") -> str:
    """Write an investigation down, up to an event of this kind, and return its id."""
    settings = {"seed": seed, "rounds": ROUNDS}
    id = investigation_id("feature", target, "scripted", settings)
    provenance = {"packages": {"neuronaut": "1.0"}, "splits": {"train": 12}, "models": {"proposer": EVIL}}
    journal.begin(InvestigationRecord(id, "feature", target, "scripted", settings, provenance))
    for number, (kind, payload) in enumerate(_events(journal, id, target)):
        journal.event(id, kind, payload, key=f"{kind} {number}")
        if kind == until:
            break
    if until == "ended":
        journal.finish(id, "supported", reason="it met every bar")
    return id


def _events(journal: Journal, id: str, target: str) -> Any:
    limits = {"usd": 1.0, "fwd": 50_000, "experiments": 40}
    yield "begun", {"target": target, "policy": "scripted", "settings": {}, "limits": limits}
    yield "phase", {"phase": "baseline"}
    beaten = asdict(stored.score(0.4, windows=("a",)))
    yield "baseline", {"text": "fires on ` river`", "rule": None, "scores": [beaten]}
    journal.decide(id, 1, "proposer", {"action": "propose", "hypotheses": [h.model_dump() for h in HYPOTHESES]})
    names = journal.add_hypotheses(id, 1, [h.model_dump(mode="json") for h in HYPOTHESES], origin="proposer")
    yield "proposed", {"names": names, "origin": "proposer"}
    yield "rejected", {"step": 2, "reason": f"all rivals predict the same {EVIL}"}
    for round in range(1, ROUNDS + 1):
        yield from _round(journal, id, round)
    yield "challenged", {"verdict": "supported"}
    yield (
        "frozen",
        {
            "hypothesis": "H3",
            "verdict": "supported",
            "evidence": "supported",
            "text": HYPOTHESES[2].text,
            "rule": rule(" river", unless=" dry").to_json(),
            "hash": "12" * 32,
        },
    )
    journal.peek(id, "score")
    scores = [
        stored.score(0.93, windows=("w1",)),
        replace(stored.score(0.9, metric="agreement"), examples="context"),
        stored.score(None),
    ]
    yield "holdout", {"scores": [asdict(score) for score in scores], "peeks": 1}
    for name, passed, value in (("permuted", True, None), ("sham", False, 2.0)):
        yield "control", {"name": name, "passed": passed, "value": value, "what": f"values of 3 other units, {name}"}
    journal.charge(id, "asked", "policy", Charge(calls=3, tokens=1234, usd=0.0123, minutes=0.5))
    yield "spent", {**journal.spent(id)._asdict(), "limits": limits}
    yield "ended", {"status": "supported", "reason": "it met every bar", "explanation_id": None}


def _round(journal: Journal, id: str, round: int) -> Any:
    """A survey, a scan, a causal experiment, one that fails; then the rivals are judged."""
    journal.decide(id, 2 * round, "proposer", {"action": "use_tools", "calls": []})
    yield "decided", {"step": 2 * round, "role": "proposer", "action": {"action": "use_tools"}}
    first = 4 * round - 3
    made = [
        survey(f"o{first}", round),
        scan(f"o{first + 1}", round),
        steered(f"o{first + 2}", round),
        failing(f"o{first + 3}", round),
    ]
    journal.preregister(id, [experiment for experiment, _ in made])
    yield "planned", {"round": round, "role": "proposer", "experiments": [experiment.name for experiment, _ in made]}
    for experiment, measured in made:
        cost = Charge(experiments=1, forwards=64, minutes=0.01)
        if isinstance(measured, str):
            observation = Observation("error", {}, measured, {"forwards": 64})
        else:
            observation = Observation("ok", asdict(measured), None, {"forwards": 64})
        journal.observe(id, experiment.name, observation, charge=cost)
        told = {name: observation.result.get(name) for name in ("effect", "low", "high", "units")}
        yield (
            "observed",
            {
                "experiment": experiment.name,
                "tool": experiment.tool,
                "status": observation.status,
                "reason": observation.reason,
                "forwards": 64,
                **told,
            },
        )
    rivals = rank_rivals(_hypotheses(journal, id), journal.experiments(id), journal.observations(id), kind="feature")
    yield (
        "judged",
        {
            "round": round,
            "rivals": [
                {"kind": r.hypothesis.kind, **{key: value for key, value in asdict(r).items() if key != "hypothesis"}}
                for r in rivals
            ],
        },
    )


def _hypotheses(journal: Journal, id: str) -> dict[str, Hypothesis]:
    return {row["name"]: Hypothesis.model_validate(row["body"]) for row in journal.hypotheses(id)}


def survey(name: str, round: int) -> tuple[Experiment, Measured]:
    """A table of tokens and a window with its activations."""
    found = {
        "top": [{"token": " bank", "logit": 0.9}, {"token": EVIL, "logit": 0.4}],
        "texts": [{"tokens": ["the", " dry", " river", EVIL], "values": [0.0, 0.1, 1.0, 0.4]}],
    }
    measured = Measured((), 0.9, None, None, 20, "logits", "nothing", found=found)
    return _experiment(
        name, "promoted_tokens", Design("What does it write?", "effect", ()), round, survey=True
    ), measured


def scan(name: str, round: int) -> tuple[Experiment, Measured]:
    """Six tokens before the pivot, of which one silences the unit."""
    labels = (" the", " dry", " wet", " a", EVIL, " big")
    values = (1.02, 0.0, 0.97, 1.1, 0.95, 1.0)
    items = tuple(Item(label, (round, number, 3), 2) for number, label in enumerate(labels))
    design = Design("Which tokens before the pivot change it?", "response", items, {"offset": -1})
    expected = {"H1": (1.0,) * 6, "H2": (None,) * 6, "H3": (1.0, 0.0, 1.0, 1.0, 1.0, 1.0)}
    measured = Measured(
        values,
        1 / 6,
        0.05,
        0.4,
        6,
        "share of the tokens",
        "median peak: 3",
        Control("same token again", 0.0, -0.01, 0.01),
    )
    return _experiment(name, "scan_vocabulary", design, round, expected=expected), measured


def steered(name: str, round: int) -> tuple[Experiment, Measured]:
    """A dose curve, and what it does to the claimed tokens."""
    items = tuple(Item(token, about={"token": token}) for token in (" bank", " sand", " moon"))
    design = Design("What does raising it do to the next token?", "effect", items)
    curve = [
        {"dose": dose, "mean": 0.4 * dose, "low": 0.4 * dose - 0.1, "high": 0.4 * dose + 0.1} for dose in (-1, 0, 1, 2)
    ]
    expected = {"H1": (None,) * 3, "H2": (None,) * 3, "H3": (1.0, -1.0, 0.0)}
    measured = Measured((0.8, -0.3, 0.02), 0.8, 0.6, 1.0, 24, "nats", "largest: 2.1", found={"curve": curve})
    return _experiment(name, "steer", design, round, expected=expected), measured


def failing(name: str, round: int) -> tuple[Experiment, str]:
    """One that cannot be measured."""
    design = Design("How much context?", "response", (Item("x", (round, 2), 1),))
    expected = {"H1": (1.0,), "H2": (None,), "H3": (0.0,)}
    return _experiment(name, "prune_context", design, round, expected=expected), f"no carrier is active {EVIL}"


def _experiment(
    name: str,
    tool: str,
    design: Design,
    round: int,
    *,
    survey: bool = False,
    expected: dict[str, tuple[float | None, ...]] | None = None,
) -> Experiment:
    predictions = tuple(Prediction(hypothesis, values) for hypothesis, values in (expected or {}).items())
    return Experiment(
        name=name,
        tool=tool,
        args={"offset": -1},
        purpose=f"to see {EVIL}",
        survey=survey,
        role="proposer",
        round=round,
        key=f"{tool}-{round}",
        design=asdict(design),
        base=BASE,
        reference=None if survey else "H1",
        predictions=predictions,
    )
