"""Chooses between the drafts of the guided explainer (explainers/guided.py) on `select`.

Of the two answers of the language model the one whose rule predicts `select` better is kept, the later one where
neither can be told to be better. The learned rule's own explanation replaces it only where it predicts better by more
than the paired interval: on ties a text that a reader wrote says the cause better than one put together by code.
Rules are simulated by code, whatever scores the result, so that choosing asks nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..data.records import Explanation
from ..explainers.explainer import Explainer, TrainBatch
from ..explainers.guided import Drafts, Guided
from ..llm.prompt import Prompt
from ..llm.tasks import LLMTask, gather
from ..scorers.simulation import RuleSimulator
from .inputs import EvidenceLoader
from .selection import BoundExplainer, Chooser, SelectScore, compare

UNJUDGED = SelectScore(None, None, "")


class ChosenGuided:
    """The best draft of the guided explainer."""

    def __init__(self, guided: Guided) -> None:
        self._guided, self._scorer = guided, RuleSimulator()
        self.name = guided.name
        self.prompts: tuple[Prompt, ...] = guided.prompts

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the evidence and the language model, determines an explanation."""
        return {**self._guided.settings, "chosen_by": [self._scorer.name, self._scorer.settings]}

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """Bind the explainer to the evidence that it chooses on."""
        return BoundExplainer(self, lambda batch: self._explain(loader, batch))

    def _explain(self, loader: EvidenceLoader, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        drafts = yield from self._guided.drafts(batch)
        chooser = Chooser(self._scorer, loader, batch)
        columns = [{e.feature: e for e in column if e is not None} for column in zip(*drafts, strict=True)]
        scores = yield from gather([chooser.judge(column) for column in columns])
        return [
            choose(draft, [part.get(draft.first.feature, UNJUDGED) for part in scores], name=self.name)
            for draft in drafts
        ]


def choose(drafts: Drafts, scores: Sequence[SelectScore], *, name: str) -> Explanation:
    """The draft to keep, with a record of all three; `scores` are theirs on `select`, in order.

    Where the first answer failed there is no explanation: a failed call is to be seen, and asked again.
    """
    given = {i: draft for i, draft in enumerate(drafts) if draft is not None}
    written = [i for i in (1, 2) if i in given and given[i].text is not None]
    if drafts.first.status not in ("explained", "no_pattern"):
        return drafts.first
    if not written:
        chosen = 0 if drafts.first.status == "no_pattern" and drafts.learned.text is not None else 1
    else:
        values = [score.value for score in scores]
        chosen = max(written, key=lambda i: (given[i].rule is not None, values[i] is not None, values[i] or 0.0, i))
        if compare(scores[chosen], scores[0]).better:
            chosen = 0
    rows = [
        {"by": by, "text": given[i].text, "reason": given[i].reason, "select": scores[i].value}
        for i, by in enumerate(("rule", "first answer", "second answer"))
        if i in given
    ]
    last = given[max(given)]
    provenance = {**given[chosen].provenance, "calls": last.provenance.get("calls", [])}
    return replace(
        given[chosen],
        explainer=name,
        seen=tuple(sorted({window for draft in given.values() for window in draft.seen})),
        predictor=drafts.learned.predictor,
        provenance={**provenance, "drafts": rows, "chosen": chosen},
    )
