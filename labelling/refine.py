"""Refines an explanation: it is tested on sentences that the model makes up, and revised.

Each round (1) asks for texts on which the explanation says that the feature fires, and for near ones on which
it does not; (2) runs them through the subject; (3) shows the real activations and asks for a better
explanation; (4) keeps that one only if it predicts `select` better by more than the paired 95% interval.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.harvest.activations import read_own
from ..data.padding import pad_ids
from ..data.records import Example, Explanation
from ..explainers.answer import read_answer
from ..explainers.examples import active_windows
from ..explainers.explainer import Explainer, TrainBatch, TrainEvidence
from ..llm.prompt import Prompt
from ..llm.render import active, excerpt, fenced, marked, strongest
from ..llm.tasks import LLMTask, run_task
from ..llm.thought import without_thought
from ..llm.types import Chat, Reply, Sampling
from ..scorers.scorer import Scorer
from ..subject.address import Feature
from .inputs import EvidenceLoader
from .selection import BoundExplainer, Chooser, Comparison, SelectingExplainer, bind, compare

SENTENCES = 10
"""Trial sentences in a round."""
SHOWN = 6
"""Corpus examples beside them."""

_LINE = re.compile(r"^\s*([+-])\s+(\S.*?)\s*$", re.MULTILINE)


class Trial(NamedTuple):
    """A made-up text with the feature's activations on it."""

    expected: bool
    """Whether the explanation says that the feature fires."""
    example: Example


class Refine:
    """An explainer whose explanations are tested and revised."""

    def __init__(
        self,
        inner: Explainer | SelectingExplainer,
        scorer: Scorer,
        *,
        rounds: int = 2,
        temperature: float | None = 0.0,
        prompts: tuple[Prompt, Prompt] | None = None,
    ) -> None:
        """`prompts` ask for sentences and for a revision; `scorer` decides on `select` and needs no controls."""
        self._inner, self._scorer, self._rounds, self._temperature = inner, scorer, rounds, temperature
        self._ask, self._revise = prompts or (default_prompt("refine_sentences"), default_prompt("refine"))
        self.name = f"refine:{inner.name}"
        self.prompts = (*inner.prompts, self._ask, self._revise, *scorer.prompts)

    @property
    def settings(self) -> Mapping[str, object]:
        """All that, beside the evidence and the language model, determines an explanation."""
        return {
            "inner": self._inner.settings,
            "rounds": self._rounds,
            "temperature": self._temperature,
            "prompts": [self._ask.hash, self._revise.hash],
            "chosen_by": [self._scorer.name, self._scorer.settings],
        }

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """Bind the explainer to the evidence that it chooses on."""
        return BoundExplainer(self, lambda batch: self._explain(loader, batch))

    def _explain(self, loader: EvidenceLoader, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        explanations = yield from run_task(bind(self._inner, loader).explain(batch))
        current = {e.feature: replace(e, explainer=self.name) for e in explanations}
        chooser = Chooser(self._scorer, loader, batch)
        scores = yield from chooser.judge(current)
        for _ in range(self._rounds):
            revisions = yield from self._revise_all(current, loader, batch)
            new_scores = yield from chooser.judge(revisions)
            for feature, revision in revisions.items():
                comparison = Comparison(None, None, better=False)
                if feature in new_scores:
                    comparison = compare(scores[feature], new_scores[feature])
                if comparison.better:
                    scores[feature] = new_scores[feature]
                current[feature] = _add_round(current[feature], revision, comparison)
        return list(current.values())

    def _revise_all(
        self, current: Mapping[Feature, Explanation], loader: EvidenceLoader, batch: TrainBatch
    ) -> LLMTask[dict[Feature, Explanation]]:
        """Revise every explanation that has a text and could be tested."""
        evidence = {part.feature: part for part in batch.features}
        features = [feature for feature, explanation in current.items() if explanation.text is not None]
        replies = yield [self._ask_sentences(current[feature], evidence[feature]) for feature in features]
        sentences = {f: _read_sentences(reply) for f, reply in zip(features, replies, strict=True)}
        tests = run_trials(sentences, loader)
        features = [feature for feature in features if tests[feature]]
        replies = yield [self._ask_revision(current[f], evidence[f], tests[f]) for f in features]
        return {
            feature: _read_revision(current[feature], tests[feature], reply, evidence[feature])
            for feature, reply in zip(features, replies, strict=True)
        }

    def _ask_sentences(self, explanation: Explanation, evidence: TrainEvidence) -> Chat:
        examples = _format_examples(evidence)
        places = {"explanation": explanation.text or "", "count": str(SENTENCES), "examples": examples}
        sample = "\n".join([*["+ " + "word " * 10] * (SENTENCES // 2), *["- " + "word " * 10] * (SENTENCES // 2)])
        # Texts to test with should differ from round to round, so they are drawn, not the likeliest.
        sampling = Sampling(None if self._temperature is None else 1.0, 600, seed=len(_earlier_rounds(explanation)))
        return Chat(self._ask.render(places), sampling, sample=sample, prompt=self._ask.name)

    def _ask_revision(self, explanation: Explanation, evidence: TrainEvidence, tests: Sequence[Trial]) -> Chat:
        peak = evidence.statistics.peak
        lines = [
            f"expected {'active' if test.expected else 'silent'}, was {'active' if fired(test, peak) else 'silent'}: "
            + marked(part := excerpt(test.example, before=64, after=64), list(active(part.activations, peak)))
            for test in tests
        ]
        places = {"explanation": explanation.text or "", "examples": _format_examples(evidence), "tests": fenced(lines)}
        sample = f"[EXPLANATION]: {explanation.feature} {len(_earlier_rounds(explanation))} " + "word " * 30
        return Chat(
            self._revise.render(places), Sampling(self._temperature, 300), sample=sample, prompt=self._revise.name
        )


def default_prompt(name: str) -> Prompt:
    """Load the package's own prompt of this name."""
    return Prompt.load(Path(__file__).with_name(f"{name}.md"))


def run_trials(
    sentences: Mapping[Feature, Sequence[tuple[bool, str]]], loader: EvidenceLoader
) -> dict[Feature, list[Trial]]:
    """Run texts through the subject, all of them together; returns each feature's activations on its own ones."""
    subject, width = loader.subject, loader.background.ids.shape[1]
    rows = [
        (feature, expected, ids)
        for feature, texts in sentences.items()
        for expected, text in texts
        if (ids := subject.encode(text)[:width])
    ]
    tests: dict[Feature, list[Trial]] = {feature: [] for feature in sentences}
    if not rows:
        return tests
    tokens = pad_ids([np.array(ids) for _, _, ids in rows], width=width)
    activations = read_own(subject, loader.source, tokens, np.array([feature.index for feature, _, _ in rows]))
    for (feature, expected, ids), row in zip(rows, activations, strict=True):
        values = (-1.0 if feature.negative else 1.0) * row[: len(ids)]
        example = Example(
            tokens=subject.decode_tokens(ids),
            ids=np.array(ids),
            activations=values,
            kind="random",
            split="train",
            document="",
            window="",
        )
        tests[feature].append(Trial(expected, example))
    return tests


def fired(test: Trial, peak: float) -> bool:
    """Whether the feature was clearly active at any token."""
    return bool(active(test.example.activations, peak).any())


def _read_sentences(reply: Reply) -> list[tuple[bool, str]]:
    """Read the texts of a reply, with whether the feature should fire on each; `↵` and `⇥` are spelled back."""
    lines = _LINE.findall(without_thought(reply.text)) if reply.status == "ok" else []
    return [(sign == "+", text.replace("↵", "\n").replace("⇥", "\t")) for sign, text in lines]


def _format_examples(evidence: TrainEvidence) -> str:
    peak = evidence.statistics.peak
    excerpts = [excerpt(example, before=24, after=8) for example in _choose_examples(evidence)]
    return fenced(
        [
            f"{marked(window, list(active(window.activations, peak)))}   [{strongest(window, peak, count=3)}]"
            for window in excerpts
        ]
    )


def _choose_examples(evidence: TrainEvidence) -> list[Example]:
    """Choose the training windows that are shown."""
    windows = active_windows(evidence, top=SHOWN // 2, quantile=SHOWN - SHOWN // 2)
    return [example for example in windows if active(example.activations, evidence.statistics.peak).any()]


def _read_revision(old: Explanation, tests: Sequence[Trial], reply: Reply, evidence: TrainEvidence) -> Explanation:
    peak = evidence.statistics.peak
    right = sum(test.expected == fired(test, peak) for test in tests)
    calls = [*_as_list(old.provenance.get("calls")), reply.key]
    provenance = {**old.provenance, "calls": calls, "tests": f"{right} of {len(tests)} as expected"}
    digests = tuple(sorted({*old.seen, *(example.window for example in _choose_examples(evidence))}))
    # Its rule, if any, is that of the words that are revised.
    revision = replace(old, seen=digests, provenance=provenance, rule=None, headline=None)
    if reply.status != "ok":
        return replace(revision, text=None, reason=f"{reply.status}: {reply.reason}", status="failed")
    answer = read_answer(reply.text)
    return replace(revision, text=answer.text, headline=answer.headline, reason=answer.reason, status=answer.status)


def _add_round(old: Explanation, revision: Explanation, comparison: Comparison) -> Explanation:
    """The better of two explanations, with a record of the round in its provenance."""
    record = {
        "text": revision.text,
        "reason": revision.reason,
        "difference": comparison.difference,
        "ci_low": comparison.ci_low,
        "kept": comparison.better,
        "tests": revision.provenance["tests"],
    }
    base = revision if comparison.better else old
    return replace(base, provenance={**base.provenance, "rounds": [*_earlier_rounds(old), record]})


def _earlier_rounds(explanation: Explanation) -> list[object]:
    return _as_list(explanation.provenance.get("rounds"))


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
