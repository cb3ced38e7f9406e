"""Scores explanations by simulation without a language model: the rule predicts every token's activation.

Nothing is calibrated on the holdout. Pearson's r (over all tokens at once), explained variance and AUROC (a token
is active above half of the feature's peak) are taken on each holdout set, and on the counterfactual set
also the agreement: balanced accuracy of "above half of the peak", where a prediction is above half of the highest one
that its rule or table makes, at most half of the peak (`Rule.fires_from`). A longer rule that an explanation keeps as
its predictor is scored beside it, under the scorer's name PREDICTOR.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from ..data.records import Explanation, Judgements, Role, Score
from ..llm.prompt import Prompt
from ..rules.evaluate import TokenGrid, predict
from ..rules.language import Rule, parse_rule
from .holdout import Baselines, Holdout, ScoredWindows
from .scorer import PAIRED, Case, measure

PREDICTOR = "predictor"


class RuleSimulator:
    """Scores explanations that have a rule.

    >>> RuleSimulator().settings
    {'by': 'rule'}
    """

    name = "simulation"
    keeps_judgements = False
    compares = True
    prompts: tuple[Prompt, ...] = ()

    def __init__(self, *, name: str = "simulation", pairs: bool = True, seed: int = 0) -> None:
        """Another `name` sets its scores apart from those of a language model that simulates the text.

        Without `pairs` only natural text is scored, and no minimal pair is run on the subject.
        """
        self.name, self._pairs, self._seed = name, pairs, seed

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the case, determines a judgement."""
        return {"by": "rule"}

    def score(self, explanation: Explanation, holdout: Holdout, baselines: Baselines | None) -> list[Score]:
        """Score every metric on every holdout set; null with a reason where it is undefined."""
        if not explanation.rule:
            return [
                Score(
                    self.name,
                    name,
                    "correlation",
                    None,
                    "the explanation has no rule to simulate",
                    coverage=0.0,
                    windows=windows.digests,
                    backend="rule",
                    judge="code",
                )
                for name, windows in holdout.sets.items()
            ]
        return measure(self.judge(Case(explanation, holdout, baselines)), seed=self._seed)

    def judge(self, case: Case) -> list[Judgements]:
        """Judge the rule and the baselines on every set of the holdout; an explanation without rule gets nothing."""
        if not case.explanation.rule:
            return []
        rule = parse_rule(case.explanation.rule)
        sets = {name: case.holdout.sets[name] for name in case.holdout.sets if self._pairs or name not in PAIRED}
        rules = {self.name: rule}
        if case.explanation.predictor is not None:
            rules[PREDICTOR] = parse_rule(case.explanation.predictor)
        return [
            judgements
            for scorer, simulated in rules.items()
            for name, windows in sets.items()
            for judgements in self._judge_set(simulated, case, name, windows, scorer=scorer)
        ]

    def _judge_set(
        self, rule: Rule, case: Case, name: str, windows: ScoredWindows, *, scorer: str
    ) -> Iterator[Judgements]:
        curve = {"curve": _curve(rule, case, windows)} if scorer == self.name and len(rule.any) > 1 else {}
        half = case.holdout.peak / 2
        for role, (values, fires_from) in _predict_roles(rule, case, windows, half).items():
            yield Judgements(
                scorer=scorer,
                examples=name,
                role=role,
                kind="activation",
                true=windows.true,
                predicted=windows.at(values),
                threshold=half,
                fires_from=fires_from,
                windows=windows.digests,
                missing={} if len(windows.ids) else {"no holdout windows": 1},
                provenance={"by": "rule", **(curve if role == "explanation" else {})},
            )


def _curve(rule: Rule, case: Case, windows: ScoredWindows) -> list[dict[str, object]]:
    """The correlation of the rule's first clauses, for 1, 2, 3 ... of them; None where it is undefined."""
    grid, known = TokenGrid(case.holdout.vocabulary, windows.ids), ~np.isnan(windows.true)
    points: list[dict[str, object]] = []
    for count in range(1, len(rule.any) + 1):
        predicted = windows.at(predict(rule.model_copy(update={"any": rule.any[:count]}), grid))[known]
        true = windows.true[known]
        varied = true.size > 1 and np.ptp(true) > 0 and np.ptp(predicted) > 0
        r = round(float(np.corrcoef(true, predicted)[0, 1]), 4) if varied else None
        points.append({"clauses": count, "correlation": r})
    return points


def _predict_roles(
    rule: Rule, case: Case, windows: ScoredWindows, half: float
) -> dict[Role, tuple[NDArray[np.float32], float]]:
    """What each role predicts of every token, and above which prediction it says "fires"."""
    grid, baselines = TokenGrid(case.holdout.vocabulary, windows.ids), case.baselines
    roles: dict[Role, tuple[NDArray[np.float32], float]] = {"explanation": (predict(rule, grid), rule.fires_from(half))}
    if baselines is None:
        return roles
    highest = {"token_rule": baselines.token_rule.max(), "token_table": baselines.token_table.max()}
    for role, values in token_predictions(baselines, windows.ids).items():
        roles[role] = values, min(half, float(highest[role]) / 2)
    if (other := baselines.other_rule) is not None:
        roles["other_rule"] = predict(other, grid), other.fires_from(half)
    return roles


def token_predictions(baselines: Baselines | None, ids: NDArray[np.int64]) -> dict[Role, NDArray[np.float32]]:
    """Predict by the baselines that know single tokens, each in the shape of `ids`; any number on padding."""
    if baselines is None:
        return {}
    return {"token_rule": baselines.token_rule[ids], "token_table": baselines.token_table[ids]}
