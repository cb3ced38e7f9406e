"""The simulation scorer: predict every token's activation from the explanation alone, then compare.

Here the explanation's rule predicts; nothing is calibrated on the holdout. Pearson's r (over all tokens
at once), explained variance and AUROC (a token is active above half of the feature's peak) are taken on
each holdout set, and on the counterfactual set also the agreement: balanced accuracy of "above half of
the peak". Every score carries its bootstrap interval and the same metric for each baseline.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..data.records import Explanation, Score
from ..explainers.evaluate import TokenGrid, predict
from ..explainers.rules import Rule
from .baselines import Baselines
from .holdout import Holdout, ScoredWindows
from .metrics import Measured, agreement, evaluate


class RuleSimulator:
    """Scores explanations that have a rule."""

    name = "simulation"

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def score(self, explanation: Explanation, holdout: Holdout, baselines: Baselines) -> list[Score]:
        """Every metric on every holdout set; null with a reason where it is undefined."""
        rule = Rule.parse(explanation.rule) if explanation.rule else None
        return [
            score
            for name, windows in holdout.sets.items()
            for score in self._score_set(name, windows, rule, holdout, baselines)
        ]

    def _score_set(
        self, name: str, windows: ScoredWindows, rule: Rule | None, holdout: Holdout, baselines: Baselines
    ) -> list[Score]:
        if rule is None:
            return [self._null(name, windows, "the explanation has no rule to simulate")]
        if not len(windows.ids):
            return [self._null(name, windows, "no holdout windows")]
        grid = TokenGrid(holdout.vocabulary, windows.ids)
        measured = self._measure(
            windows, windows.at(predict(rule, grid)), holdout.peak, paired=name == "counterfactual"
        )
        others: dict[str, Mapping[str, Measured]] = {}
        for key, values in _predictions(baselines, windows, grid).items():
            others[key] = self._measure(windows, values, holdout.peak, paired=name == "counterfactual")
        return [
            Score(
                self.name, name, metric, found.value, found.reason, found.ci_low, found.ci_high, found.n,
                baselines={key: by_metric[metric].value for key, by_metric in others.items()}, windows=windows.digests,
                provenance={"formula": f"{metric}/1", "seed": self._seed},
            )
            for metric, found in measured.items()
        ]  # fmt: skip

    def _measure(
        self, windows: ScoredWindows, predicted: NDArray[np.float32], peak: float, *, paired: bool
    ) -> dict[str, Measured]:
        found = evaluate(windows.true, predicted, threshold=peak / 2, seed=self._seed)
        if paired:
            found["agreement"] = agreement(windows.true, predicted, threshold=peak / 2, seed=self._seed)
        return found

    def _null(self, name: str, windows: ScoredWindows, reason: str) -> Score:
        return Score(self.name, name, "correlation", None, reason, coverage=0.0, windows=windows.digests)


def _predictions(baselines: Baselines, windows: ScoredWindows, grid: TokenGrid) -> dict[str, NDArray[np.float32]]:
    found = {
        "token_rule": windows.at(baselines.token_rule[windows.ids]),
        "token_table": windows.at(baselines.token_table[windows.ids]),
    }
    if baselines.other_rule is not None:
        found["other_rule"] = windows.at(predict(baselines.other_rule, grid))
    return found
