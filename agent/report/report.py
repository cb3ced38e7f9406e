"""A report of an investigation: its values, which know nothing of the journal they came from, and its text.

The text has at most about 60 lines, in which every number and every quote names its source. What is cut is counted.
Text of models and of the corpus is quoted, with what does not print spelled out, so that it can neither pass for the
report's own words nor steer a terminal.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...data.store.journal_values import Json
from .citations import Cited, cite, cite_name, line, quote, visible

_CONTENDERS, _TRIALS, _SURVEYS, _CLAIMS, _SCORES, _ROLES = 5, 12, 4, 5, 6, 16
"""Rows that are shown of each."""
_WORDS = 160
"""Characters that are shown of a quote in a row."""
HEADLINES = (
    ("top_random", "correlation"),
    ("counterfactual", "agreement"),
    ("context", "agreement"),
    ("quantile", "correlation"),
    ("natural", "faithfulness"),
    ("counterfactual", "faithfulness"),
)
"""Scores of the holdout that are shown first, by set of examples and metric."""


def text_of(report: "Report") -> str:
    """Writes the whole report as text."""
    sections = (
        ("", _answer(report)),
        ("Holdout", _holdout(report)),
        ("Roles", _roles(report)),
        ("Rivals", _rivals(report)),
        ("Predicted against seen", _trial_lines(report.experiments, _TRIALS, report, "experiments")),
        ("Surveys", _trial_lines(report.surveys, _SURVEYS, report, "surveys")),
        ("Causal claims", _claims(report)),
        ("Negative controls", _controls(report)),
        ("Open", [_open(*row) for row in report.open]),
        ("Spent", _spent(report)),
        ("Provenance", _provenance(report)),
    )
    blocks = [[head, *(f"  {row}" for row in rows)] if head else list(rows) for head, rows in sections if rows]
    return "\n".join(row for block in blocks for row in block)


def _answer(report: "Report") -> list[str]:
    rows = [line(cite_name(report.target), ": ", report.status.replace("_", " ")), line(cite_name(report.question))]
    if report.text is not None:
        rows.append(line(_quote(report.text, _source(report), whole=True)))
    if report.rule is not None:
        rows.append(line("rule ", _quote(json.dumps(report.rule, ensure_ascii=False), _source(report))))
    if report.reason:
        rows.append(line("because ", _quote(report.reason, ["journal"])))
    if report.grading and report.status == "supported":
        rows.append(line("how strongly is open: ", _quote(report.grading, ["journal"])))
    if report.baseline is not None and report.baseline.get("text"):
        rows.append(line("the label to beat: ", _quote(report.baseline["text"], ["baseline"])))
    return rows


def _source(report: "Report") -> list[str]:
    return [report.hypothesis or "journal"]


def _holdout(report: "Report") -> list[str]:
    scores = sorted(report.scores, key=_rank)
    rows = [_score(score) for score in scores[:_SCORES]]
    headlines = [score for score in scores if (score["examples"], score["metric"]) in HEADLINES]
    rows += [_added(part) for score in headlines if (part := report.added_to(score)) is not None]
    read = cite(f"{len(report.peeks)}", ["holdout"])
    if report.peeks:
        rows.append(
            line(
                "read ",
                read,
                " time: " if len(report.peeks) == 1 else " times: ",
                _quote(", ".join(report.peeks), ["holdout"]),
            )
        )
    return rows


def _added(part: Mapping[str, Any]) -> str:
    what = f"over the label, {part['examples'].replace('_', ' ')} {part['metric']}: "
    if part["value"] is None:
        return line(cite_name(what), "no difference: ", _quote(part["reason"] or "no reason", ["holdout"]))
    low, high = part["ci_low"], part["ci_high"]
    interval = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    return line(cite_name(what), cite(f"{part['value']:+.2f}{interval}", ["holdout"]))


def _roles(report: "Report") -> list[str]:
    """The algorithm, then the nodes' proven roles and the halves of those that have none."""
    roles = report.roles
    if roles is None:
        return []
    if "reason" in roles:
        return [line("none: ", _quote(roles["reason"], ["roles"]))]
    claims = shown_claims(roles)
    rows = [line(cite_name(sentence)) for sentence in roles["algorithm"]]
    for claim in claims[:_ROLES]:
        rows.append(line(claim["node"], " ", claim["role"], ": ", claim["status"], *_proofs(claim)))
    return rows + _more(len(claims) - _ROLES, "roles more", ["roles"])


def shown_claims(roles: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The proven claims, and of nodes without one the half-proven."""
    proven = {claim["node"] for claim in roles["claims"] if claim["status"] == "proven"}
    return [claim for claim in roles["claims"] if claim["status"] == "proven" or claim["node"] not in proven]


def proofs_of(claim: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The measures of a claim's pattern, and of its effect where it has one."""
    return [*claim["pattern"], *([claim["effect"]] if claim["effect"] else [])]


def _proofs(claim: Mapping[str, Any]) -> list[str | Cited]:
    parts: list[str | Cited] = []
    for proof in proofs_of(claim):
        low, high = proof["interval"] or (None, None)
        parts += [f"; {proof['what']} ", _number(proof["value"], ["roles"], low, high)]
    return [*parts, "; n ", cite(str(claim["pattern"][0]["n"]), ["roles"])]


def _rank(score: Mapping[str, Any]) -> int:
    key = (score["examples"], score["metric"])
    return HEADLINES.index(key) if key in HEADLINES else len(HEADLINES)


def _score(score: Mapping[str, Any]) -> str:
    half = "counterfactual" if score["examples"] in COUNTERFACTUAL else "natural"
    which = "" if score["examples"] == half else f" ({score['examples'].replace('_', ' ')})"
    what = f"{half}{which} {score['metric'].replace('_', ' ')} "
    if score["value"] is None:
        return line(what, "none: ", _quote(score["reason"] or "no reason", ["holdout"]))
    best = max((value for value in score["baselines"].values() if value is not None), default=None)
    parts: list[str | Cited] = [
        cite_name(what),
        _number(score["value"], ["holdout"], score["ci_low"], score["ci_high"]),
    ]
    if best is not None:
        parts += ["; best baseline ", _number(best, ["holdout"])]
    return line(*parts, "; n ", cite(f"{score['n']:,}", ["holdout"]))


COUNTERFACTUAL = ("counterfactual", "context")
"""Sets of examples that were made by editing text; all others are text as it was found."""


def _rivals(report: "Report") -> list[str]:
    every = [trial.name for trial in report.experiments if trial.status == "ok"]
    rows = [_rival(contender, every, report.standing(contender)) for contender in report.contenders[:_CONTENDERS]]
    return rows + _more(len(report.contenders) - len(rows), "hypotheses more", ["journal"])


def _rival(contender: "Contender", every: Sequence[str], standing: str) -> str:
    # The odds of one without opinions move by what the others foretold.
    sources = [forecast.experiment for forecast in contender.forecasts if forecast.for_odds] or every
    parts: list[str | Cited] = [contender.name, " ", standing]
    if sources:
        numbers = f"share {contender.share:.2f}, resolved {contender.resolved} ({contender.silences} on silence)"
        if contender.hits is not None and contender.brier is not None:
            numbers += f", hits {contender.hits:.2f}, Brier {contender.brier:.2f}"
        if contender.cause is not None:
            numbers += f", cause {contender.cause:.2f}"
        parts += [", ", cite(f"{numbers}, {contender.odds}", sources)]
    return line(*parts, ": ", _quote(contender.body["text"], [contender.name]))


def _trial_lines(trials: Sequence["Trial"], most: int, report: "Report", what: str) -> list[str]:
    """The trials, where there are too many the last of them: what was asked when most was known."""
    shown = trials[-most:]
    leader = report.leader
    forecasts = {forecast.experiment: forecast for forecast in leader.forecasts} if leader else {}
    rows = _more(len(trials) - len(shown), f"earlier {what}", [trial.name for trial in trials[: len(trials) - most]])
    for trial in shown:
        parts: list[str | Cited] = [trial.name, " ", cite_name(trial.tool)]
        if trial.status != "ok":
            why = _quote(trial.reason, [trial.name]) if trial.reason else "not yet"
            rows.append(line(*parts, ": no result: ", why))
            continue
        result = trial.result
        if result["effect"] is not None:
            units = " ".join(result["units"].split())
            parts += [": ", _number(result["effect"], [trial.name], result["low"], result["high"], units=units)]
        if (control := result["control"]) is not None and control["value"] is not None:
            parts += ["; control ", _number(control["value"], [trial.name], control["low"], control["high"])]
        if (forecast := forecasts.get(trial.name)) is not None and leader is not None:
            hits = f"hits {forecast.hits * forecast.n:.0f} of {forecast.n}"
            means = f"{short(forecast.expected)} expected, {short(forecast.seen)} seen, {hits}"
            parts += [f"; {leader.name} ", cite(means, [trial.name])]
        rows.append(line(*parts))
    return rows


def _claims(report: "Report") -> list[str]:
    rows: list[str] = []
    for claim in report.claims[:_CLAIMS]:
        parts: list[str | Cited] = [
            claim["claim"],
            " ",
            _quote(claim["item"], [claim["hypothesis"]]),
            ": ",
            claim["verdict"],
        ]
        for name, value in claim["values"].items():
            parts += [", ", _number(value, [name])]
        rows.append(line(*parts))
    return rows + _more(len(report.claims) - len(rows), "claims more", ["journal"])


def _controls(report: "Report") -> list[str]:
    rows: list[str] = []
    for control in report.controls:
        outcome = "passed" if control["passed"] else "not measured" if control["passed"] is None else "NOT passed"
        value = control.get("value")
        parts: list[str | Cited] = [cite_name(str(control["name"])), f": {outcome}"]
        if value is not None:
            parts += [", ", _number(value, ["controls"], control.get("low"), control.get("high"))]
        rows.append(line(*parts, ": ", _quote(control["what"], ["controls"])))
    return rows


def _open(words: str, names: Sequence[str]) -> str:
    if not names:
        return line(words)
    return line(words, ": ", cite_name(", ".join(map(visible, names))))


def _spent(report: "Report") -> list[str]:
    parts: list[str | Cited] = []
    for kind, limit in KINDS.items():
        used, most = report.spent[kind], report.limits.get(limit)
        if used or most:
            of = "" if most is None else f" of {amount(kind, most)}"
            parts += ["; " if parts else "", f"{kind} ", cite(f"{amount(kind, used)}{of}", ["ledger"])]
    return [line(*parts)] if parts else []


KINDS = {
    "experiments": "experiments",
    "forwards": "fwd",
    "calls": "calls",
    "tokens": "tokens",
    "usd": "usd",
    "minutes": "minutes",
}
"""What is spent, and the name of its limit."""


def amount(kind: str, value: float) -> str:
    """What was spent of a kind, in its units."""
    return f"${value:,.4f}" if kind == "usd" else f"{value:,.1f}" if kind == "minutes" else f"{value:,.0f}"


def _provenance(report: "Report") -> list[str]:
    rows = [
        line(
            "id ",
            cite(report.id, ["chain"]),
            "; policy ",
            cite_name(report.policy),
            "; predictions ",
            cite(f"{report.predictions:,}", ["chain"]),
            ", made before they were tested; the chain ",
            "holds" if report.broken is None else "is BROKEN at " + report.broken,
        )
    ]
    for name, values in (("settings", report.settings), ("made with", report.provenance)):
        if values:
            rows.append(line(name, " ", _quote(json.dumps(values, ensure_ascii=False, sort_keys=True), ["journal"])))
    if report.hash is not None:
        rows.append(line("frozen as ", cite(report.hash, ["chain"]), " before the holdout was read"))
    return rows


def _more(count: int, what: str, sources: Iterable[str]) -> list[str]:
    return [line(cite(f"{count:,}", sources), f" {what}")] if count > 0 else []


def _number(
    value: float, sources: Iterable[str], low: float | None = None, high: float | None = None, *, units: str = ""
) -> Cited:
    interval = "" if low is None or high is None else f" ({short(low)} to {short(high)})"
    return cite(f"{short(value)}{interval}{f' {units}' if units else ''}", sources)


TINY = 0.0005
"""Values so near to zero are told as zero: they are measured in single precision, in units of order one."""


def short(value: float) -> str:
    """A number with two digits or so."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < TINY:
        return "0.00"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _quote(text: str, sources: Iterable[str], *, whole: bool = False) -> Cited:
    spelled = visible(text)
    cut = spelled if whole or len(spelled) <= _WORDS else f"{spelled[:_WORDS]}…"
    return quote(cut, sources)


@dataclass(frozen=True, slots=True)
class OddsAtRound:
    """A hypothesis's odds after a round."""

    round: int
    log_odds: float
    """In nats, up to a constant that is common to the rivals."""
    share: float
    """Posterior share among the live rivals."""


@dataclass(frozen=True, slots=True)
class Forecasted:
    """A hypothesis's expectation of an experiment against what was seen."""

    experiment: str
    n: int
    """Items that it had an opinion on."""
    expected: float
    """Mean over these, in units of the scale."""
    seen: float
    """Mean over the same items."""
    hits: float
    """Share of them on which the level it thought likeliest was seen."""
    brier: float
    for_odds: bool
    """Whether the experiment bears on the odds of rivals; effects of features bear on single claims."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A hypothesis with its record."""

    name: str
    origin: str
    body: Json
    """What was put up: text, kind, rule, nodes, promotes, suppresses, reads, parent."""
    status: str
    log_odds: float
    share: float
    resolved: int
    silences: int
    hits: float | None
    cause: float | None
    brier: float | None
    odds: str
    """Its log odds as the sum of what each experiment added."""
    history: tuple[OddsAtRound, ...]
    forecasts: tuple[Forecasted, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """An experiment or survey: what was asked, and what came of it."""

    name: str
    tool: str
    purpose: str
    question: str
    survey: bool
    role: str
    round: int
    readout: str
    args: Json
    status: str
    """ok, error, or planned where nothing was observed yet."""
    reason: str | None
    result: Json
    """What the tool measured (experiments.Measured); empty where it failed."""
    items: tuple[Json, ...]
    """Label, value and its level, and by hypothesis what was expected; of experiments that went well."""
    forwards: int


@dataclass(frozen=True, slots=True)
class Report:
    """One investigation."""

    id: str
    kind: str
    target: str
    policy: str
    status: str
    """running, interrupted, supported, open, no_explanation, budget or error."""
    reason: str | None
    verdict: str | None
    """What the evidence said when the explanation was frozen."""
    hypothesis: str | None
    """Name of the one that was frozen."""
    grading: str | None
    """Of a supported cause, why it is open how strongly it fires; None where it is not."""
    text: str | None
    rule: Json | None
    hash: str | None
    """Of text and rule when they were frozen, before the holdout was read."""
    explanation: int | None
    """Its id in the store."""
    baseline: Json | None
    """text, rule and scores of the label to beat."""
    scores: tuple[Json, ...]
    """On the holdout, as `records.Score` has them, without the windows' digests."""
    label_scores: tuple[Json, ...]
    """Of the label that there was before, on the same windows of the holdout."""
    added: tuple[Json, ...]
    """What the explanation is ahead of that label: examples, metric, value, ci_low, ci_high, n, reason."""
    finalists: tuple[Json, ...]
    """Rules that were too likely to be left aside, on `select`: name, value, error, length."""
    roles: Json | None
    """What each node of a circuit does (`Roles.to_json` of causal.circuits), or the reason why that was not found."""
    peeks: tuple[str, ...]
    """What the holdout was read for."""
    contenders: tuple[Contender, ...]
    """Every hypothesis, the leader first."""
    trials: tuple[Trial, ...]
    claims: tuple[Json, ...]
    """What it is said to write and read, by the leader, or by anyone if it was tested: hypothesis, claim, item,
    expected, values by experiment, verdict."""
    controls: tuple[Json, ...]
    """Negative ones: name, passed, value, low, high, what."""
    open: tuple[tuple[str, tuple[str, ...]], ...]
    """What is not settled, in plain words, each with the names that it is about."""
    rejected: tuple[str, ...]
    """Why decisions were not accepted."""
    spent: Json
    limits: Json
    settings: Json
    provenance: Json
    parent: str | None
    created: str
    ended: str | None
    predictions: int
    """Links of the chain of predictions."""
    broken: str | None
    """Where the chain does not hold; None where it holds."""

    @property
    def question(self) -> str:
        """What is asked of the target."""
        if self.kind == "feature":
            return f"What does {self.target} respond to, and what does it do?"
        return f"What brings {self.target} about?"

    def added_to(self, score: Mapping[str, Any]) -> Json | None:
        """The row of `added` for a score; None where there is no label to compare with."""
        name = score["examples"], score["metric"]
        return next((part for part in self.added if (part["examples"], part["metric"]) == name), None)

    @property
    def leader(self) -> Contender | None:
        """The hypothesis that was frozen, or the one ahead."""
        frozen = next((c for c in self.contenders if c.name == self.hypothesis), None)
        return frozen or next((c for c in self.contenders if c.status == "live"), None)

    def standing(self, contender: Contender) -> str:
        """How a rival stands; the answer may be one whose levels put it out, since the verdict is on its cause."""
        if contender.name == self.hypothesis and contender.status == "refuted":
            return "answer, refuted by its levels alone"
        return contender.status

    @property
    def experiments(self) -> tuple[Trial, ...]:
        """Trials whose outcome was predicted."""
        return tuple(trial for trial in self.trials if not trial.survey)

    @property
    def surveys(self) -> tuple[Trial, ...]:
        """Trials that were looked up or measured without predictions."""
        return tuple(trial for trial in self.trials if trial.survey)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return {**asdict(self), "question": self.question}

    def __str__(self) -> str:

        return text_of(self)
