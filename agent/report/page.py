"""A report as one HTML file that shows everything by itself: no script, no other file, light and dark.

It is for showing to others, so it begins with the answer and how well it held on text that nobody had seen, then
how it came about: rivals and their odds, what each forecast against what was seen, and every experiment with its
numbers, as a line that opens into its items and results. Numbers link to what they come from. Text of corpora and
models is escaped by `markup`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ...data.records import Example
from ..loop.hypotheses import NULLS
from ..loop.levels import LEVELS, forecast
from . import drawing, page_plots
from .citations import visible
from .markup import PLOTS_CSS, Html, Part, cites, described, el, folded, join, section, table, window
from .page_results import draw_results
from .report import COUNTERFACTUAL, KINDS, Contender, Report, Trial, amount, proofs_of, short, shown_claims

_EXAMPLES = 8
_PANELS = 3
"""Rivals whose forecasts are drawn."""


STYLE = PLOTS_CSS.with_name("page.css")
"""Styles of what `body` makes, under the class report, beside those of PLOTS_CSS."""
_AROUND = """\
* { box-sizing: border-box; }
body { margin: 0; }
body > .report { background: var(--paper); padding: 2.5rem max(1.25rem, calc(50vw - 30rem)) 5rem; min-height: 100vh; }
"""


def page(report: Report, *, examples: Sequence[Example] = ()) -> str:
    """The page of a report; `examples` are training examples of the feature, shown with its activations."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{report.target}: {_words(report.status)}"),
        el("style", Html(_AROUND + "".join(path.read_text(encoding="utf-8") for path in (PLOTS_CSS, STYLE)))),
    )
    main = el("main", body(report, examples=examples), class_="report")
    return "<!doctype html>\n" + el("html", head, el("body", main), lang="en")


def body(report: Report, *, examples: Sequence[Example] = ()) -> Html:
    """All parts of the page, for a page of one's own that has `STYLE`; no part has a style or a script in it."""
    parts = (
        _header(report),
        _holdout(report),
        _roles(report),
        _rivals(report),
        _forecasts(report),
        _claims(report),
        _examples(examples),
        _trials(report),
        _controls(report),
        _open(report),
        _spent(report),
        _provenance(report),
    )
    return join(parts)


def _header(report: Report) -> Html:
    status = el("span", _words(report.status), class_=f"badge {report.status}")
    source = [report.hypothesis or "journal"]
    answer: Part = el("p", "No explanation has been frozen.", class_="note")
    if report.text is not None:
        answer = el("blockquote", described(report.text), cites(source))
    rule = folded("The rule that code runs", report.rule) if report.rule else None
    facts: list[Part] = [
        _fact("experiments", _count_seen(report.experiments), "ledger"),
        _fact("predictions made before", f"{report.predictions:,}", "chain"),
        _fact("surveys", f"{len(report.surveys):,}", "ledger"),
        _fact("policy", report.policy, None),
        _fact("begun", report.created[:16].replace("T", " "), "journal"),
    ]
    return el(
        "header",
        el("p", "Neuronaut investigation", class_="kicker"),
        el("h1", report.target),
        el("p", status, " ", report.question),
        answer,
        _why(report),
        rule,
        el("div", *facts, class_="facts"),
    )


def _why(report: Report) -> Html | None:
    if not report.reason:
        return None
    open_too = report.grading if report.status == "supported" else None
    grading = f" How strongly is open: {visible(open_too)}." if open_too else ""
    return el("p", "Why: ", visible(report.reason), f".{grading}" if grading else "", cites(["journal"]), class_="note")


def _fact(name: str, value: str, source: str | None) -> Html:
    return el("span", f"{name} ", el("b", value), cites([source]) if source else None)


def _holdout(report: Report) -> Html | None:
    if not report.scores:
        return None
    rows = [[*_score(score), _over_label(report, score)] for score in report.scores]
    read = f"Read {'once' if len(report.peeks) == 1 else f'{len(report.peeks):,} times'}"
    note = (
        f"{read}, after the explanation was frozen. Natural text is as it was found; counterfactual text was edited by "
        "a generator that knows neither the explanation nor the experiments. Orange ticks are baselines."
    )
    header = ("text", "metric", "", "value", "n", "baselines", "over the label")
    return section("holdout", "On text that was never shown", table(header, rows), _to_beat(report), note=note)


def _count_seen(trials: Sequence[Trial]) -> str:
    """How many were seen, and of how many where some failed or were not run."""
    seen = sum(trial.status == "ok" for trial in trials)
    return f"{seen:,}" if seen == len(trials) else f"{seen:,} of {len(trials):,}"


def _to_beat(report: Report) -> Html | None:
    text = report.baseline["text"] if report.baseline else None
    if text is None:
        return None
    return el("p", "The label to beat: “", described(text), "”", cites(["baseline"]), class_="note")


def _over_label(report: Report, score: Mapping[str, Any]) -> Part:
    part = report.added_to(score)
    if part is None or part["value"] is None:
        return ""
    low, high = part["ci_low"], part["ci_high"]
    interval = "" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})"
    return join([el("span", f"{part['value']:+.2f}{interval}", class_="note"), cites(["holdout"])])


def _score(score: Mapping[str, Any]) -> list[Part]:
    half = "counterfactual" if score["examples"] in COUNTERFACTUAL else "natural"
    which = "" if score["examples"] == half else f" {score['examples'].replace('_', ' ')}"
    cells: list[Part] = [join([el("b", half), which]), _words(score["metric"])]
    if score["value"] is None:
        return [*cells, "", join([el("span", f"none: {score['reason']}", class_="note")]), score["n"], ""]
    others = {name: value for name, value in score["baselines"].items() if value is not None}
    low, high = score["ci_low"], score["ci_high"]
    ends = [score["value"], *others.values(), *(v for v in (low, high) if v is not None)]
    axis = (min(0.0, *ends), max(1.0, *ends))
    text = short(score["value"]) + ("" if low is None or high is None else f" ({short(low)} to {short(high)})")
    baselines = ", ".join(f"{_words(name)} {short(value)}" for name, value in others.items())
    plot = drawing.interval(score["value"], low, high, axis=axis, marks=others)
    return [
        *cells,
        plot,
        join([el("b", text), cites(["holdout"])]),
        f"{score['n']:,}",
        el("span", baselines, class_="note"),
    ]


def _roles(report: Report) -> Html | None:
    roles = report.roles
    if not roles or "reason" in roles:
        return None
    note = (
        f"A role is proven by what a node attends to or writes, and by an intervention with the effect that the role "
        f"foretells, each against a bar that other nodes set; on {roles['pairs']} pairs that no survey saw, such as "
        f"{roles['places']}."
    )
    rows = [_role(claim) for claim in shown_claims(roles)]
    algorithm = el("ol", *(el("li", sentence) for sentence in roles["algorithm"]))
    return section("roles", "Roles", algorithm, table(("node", "role", "", "proofs"), rows), note=note)


def _role(claim: Mapping[str, Any]) -> list[Part]:
    proofs = [
        el("div", f"{proof['what']} {_span(proof)}, bar {short(proof['bar'])}", class_="note")
        for proof in proofs_of(claim)
    ]
    return [el("code", claim["node"]), claim["role"], claim["status"], join(proofs)]


def _span(proof: Mapping[str, Any]) -> str:
    interval = "" if proof["interval"] is None else " ({} to {})".format(*map(short, proof["interval"]))
    return f"{short(proof['value'])}{interval}"


def _rivals(report: Report) -> Html | None:
    if not report.contenders:
        return None
    rows = [_rival(contender, number, report.standing(contender)) for number, contender in enumerate(report.contenders)]
    plot = page_plots.odds(report)
    header = ("", "claim", "stands", "share", "resolved", "on silence", "cause hit", "levels hit", "Brier")
    note = (
        "Every rival said what it expected before an experiment was run; its odds move by what was then seen, by "
        "arithmetic alone. Below: each rival's odds against the best of the others."
    )
    return section("rivals", "Rivals", plot and el("div", plot, class_="card"), table(header, rows), note=note)


def _rival(contender: Contender, number: int, standing: str) -> list[Part]:
    colour = f"name s{min(number, page_plots.COLOURS - 1)}"
    mark = el("svg", drawing.text(0, 12, contender.name, class_=colour), width=30, height=16)
    badge = "refuted" if standing == "refuted" else "quiet"
    # A null is never put aside, however little speaks for it.
    stands = "null" if contender.body["kind"] in NULLS else standing
    tests = [forecast.experiment for forecast in contender.forecasts if forecast.for_odds]
    return [
        el("span", mark, id=contender.name),
        _claimed(contender),
        el("span", stands, class_=f"badge {badge}"),
        join([f"{contender.share:.2f}", cites(tests) if contender.resolved else None]),
        contender.resolved,
        contender.silences,
        *("–" if value is None else f"{value:.2f}" for value in (contender.cause, contender.hits, contender.brier)),
    ]


def _claimed(contender: Contender) -> Html:
    """What a hypothesis says, in words, and folded what code makes of it."""
    body = contender.body
    origin = f"{_words(body['kind'])}, from {contender.origin}"
    origin += f", revises {body['parent']}" if body["parent"] else ""
    twin = {key: body[key] for key in ("rule", "nodes", "promotes", "suppresses", "reads") if body[key]}
    details = folded(", ".join(twin), twin) if twin else None
    odds = folded("odds", {"sum": contender.odds}) if contender.resolved else None
    return join([described(body["text"]), el("div", origin, class_="note"), details, odds])


def _forecasts(report: Report) -> Html | None:
    figures = [page_plots.agreement(report, c.name, colour=number) for number, c in enumerate(report.contenders)]
    shown = [figure for figure in figures if figure is not None][:_PANELS]
    if not shown:
        return None
    note = (
        "One dot for every item of every experiment, in units of the target's own strength: 0 is silent, 1 as strong "
        "as its strongest examples. A dot in a shaded square is a level that was foretold."
    )
    return section("forecasts", "Forecast against seen", el("div", *shown, class_="pair"), note=note)


def _claims(report: Report) -> Html | None:
    if not report.claims:
        return None
    rows = [_claim(claim) for claim in report.claims]
    return section("claims", "What it writes and reads", table(("claim", "of", "verdict", "measured"), rows))


def _claim(claim: Mapping[str, Any]) -> list[Part]:
    badge = el("span", claim["verdict"], class_=f"badge {claim['verdict']}")
    values = [join([short(value), cites([name]), " "]) for name, value in claim["values"].items()]
    return [claim["claim"], el("code", visible(claim["item"])), badge, join(values or ["–"])]


def _examples(examples: Sequence[Example]) -> Html | None:
    if not examples:
        return None
    peak = max(example.peak for example in examples)
    shown = [window(e.tokens, e.activations.tolist(), peak=peak) for e in examples[:_EXAMPLES]]
    return section("examples", "Where it is strongest", *shown, note="Training text; the background is the activation.")


def _trials(report: Report) -> Html | None:
    if not report.trials:
        return None
    leader = report.leader
    rows = [trial_row(trial, leader, [c.name for c in report.contenders]) for trial in report.trials]
    return section("experiments", "Experiments and surveys", *rows, note="In the order in which they were planned.")


def _controls(report: Report) -> Html | None:
    if not report.controls:
        return None
    note = "The same judgement on observations that ought to support nothing."
    header = ("control", "outcome", "value", "what was judged")
    return section("controls", "Negative controls", table(header, map(_control, report.controls)), note=note)


def _control(control: Mapping[str, Any]) -> list[Part]:
    outcome = "passed" if control["passed"] else "not measured" if control["passed"] is None else "failed"
    value = control.get("value")
    text: Part = "–" if value is None else join([short(value), cites(["controls"])])
    badge = el("span", outcome, class_=f"badge {outcome}")
    return [_words(control["name"]), badge, text, visible(control["what"])]


def _open(report: Report) -> Html | None:
    if not report.open:
        return None
    rows = [el("li", words, ": " if names else None, visible(", ".join(names))) for words, names in report.open]
    return section("open", "What is open", el("ul", *rows))


def _spent(report: Report) -> Html:
    rows: list[Sequence[Part]] = []
    for kind, limit in KINDS.items():
        used, most = report.spent[kind], report.limits.get(limit)
        if used or most:
            bar = el("progress", value=min(used, most), max=most, aria_label=f"{kind} used") if most else ""
            rows.append(
                [kind, join([amount(kind, used), cites(["ledger"])]), amount(kind, most) if most else "no limit", bar]
            )
    return section("ledger", "Spent", table(("", "used", "limit", ""), rows))


def _provenance(report: Report) -> Html:
    holds = report.broken is None
    chain = el("span", "holds" if holds else "broken", class_=f"badge {'holds' if holds else 'broken'}")
    about = {"settings": report.settings, "made with": report.provenance, "limits": report.limits}
    return section(
        "chain",
        "Provenance",
        el(
            "p",
            "Every prediction is hashed onto the one before it, before its experiment is run. The chain ",
            chain,
            None if holds else f" at {report.broken}",
        ),
        el("dl", el("dt", "investigation"), el("dd", el("code", report.id)), *_frozen(report)),
        el("div", folded("Settings, versions, splits", about), id="journal"),
        el("span", id="baseline"),
    )


def _frozen(report: Report) -> list[Html]:
    return [el("dt", "frozen as"), el("dd", el("code", report.hash))] if report.hash else []


def _words(name: str) -> str:
    return name.replace("_", " ")


_ITEMS = 40
"""Items that are shown; where there are more, those that surprised the leader come first."""


def trial_row(trial: Trial, leader: Contender | None, order: Sequence[str]) -> Html:
    """A trial that opens; `order` is that of the hypotheses' columns."""
    summary = el(
        "summary",
        el(
            "span",
            el("b", trial.name),
            el("span", trial.tool.replace("_", " ")),
            el("span", visible(trial.purpose), class_="purpose"),
            _figure(trial),
            class_="trial",
        ),
    )
    parts: list[Part] = [el("p", el("b", visible(trial.question))), _about(trial)]
    if trial.reason:
        parts.append(el("p", "No result: ", visible(trial.reason), class_="miss"))
    if trial.items:
        parts.append(_items(trial, leader, order))
    if beside := trial.result.get("found"):
        parts += [el("h3", "Found beside"), draw_results(beside)]
    return el("details", summary, el("div", *parts), id=trial.name)


def _figure(trial: Trial) -> Html:
    if trial.status != "ok":
        return el("span", trial.status if trial.status == "planned" else "no result", class_="figure miss")
    result = trial.result
    if result["effect"] is None:
        return el("span", el("small", "survey"), class_="figure")
    spread = "" if result["low"] is None else f" ({short(result['low'])} to {short(result['high'])})"
    return el("span", el("b", short(result["effect"])), spread, " ", el("small", result["units"]), class_="figure")


def _about(trial: Trial) -> Html:
    terms: list[tuple[str, Part]] = [("asked by", f"{trial.role}, round {trial.round}")]
    if trial.status == "ok":
        result = trial.result
        terms += [("n", f"{result['n']:,}"), ("1 is", visible(result["normalised_by"]))]
        if control := result["control"]:
            terms.append(
                ("control", join([visible(control["what"]), ": ", _control_range(control), cites([trial.name])]))
            )
    if trial.forwards:
        terms.append(("forward passes", f"{trial.forwards:,}"))
    if trial.args:
        terms.append(
            ("arguments", el("code", visible(", ".join(f"{key}={value}" for key, value in trial.args.items()))))
        )
    return el("dl", *(join([el("dt", name), el("dd", value)]) for name, value in terms))


def _control_range(control: Mapping[str, Any]) -> str:
    if control["value"] is None:
        return "no value"
    ends = control["low"], control["high"]
    return short(control["value"]) + ("" if None in ends else f" ({short(ends[0])} to {short(ends[1])})")


def _items(trial: Trial, leader: Contender | None, order: Sequence[str]) -> Html:
    names = [name for name in order if any(item["expected"].get(name) is not None for item in trial.items)]
    surprise = _surprise(trial, leader.name if leader else "")
    ranked = sorted(range(len(trial.items)), key=lambda index: -surprise[index])
    shown = ranked[:_ITEMS] if len(ranked) > _ITEMS else range(len(trial.items))
    rows = []
    for index in shown:
        item = trial.items[index]
        cells = [_expected(item["expected"].get(name), item["level"]) for name in names]
        rows.append([el("code", visible(item["label"])), el("b", short(item["value"])), item["level"], *cells])
    more = len(trial.items) - len(rows)
    cut = el("p", f"{more:,} more, on which the leader was surprised less", class_="note") if more else None
    return join([table(("item", "seen", "level", *names), rows), cut])


def _expected(value: float | None, level: str) -> Part:
    """What was expected, green where the likeliest level was seen."""
    if value is None:
        return "–"
    return el("span", short(value), class_="hit" if _likeliest(value) == level else "miss")


def _likeliest(value: float) -> str:
    return LEVELS[int(forecast([value], ())[0].argmax())]


def _surprise(trial: Trial, leader: str) -> list[float]:
    """By item, how far the leader was off; 0 where it expected nothing."""
    expected = [item["expected"].get(leader) for item in trial.items]
    return [0.0 if e is None else abs(item["value"] - e) for item, e in zip(trial.items, expected, strict=True)]
