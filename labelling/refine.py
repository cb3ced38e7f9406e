"""Refine: an explanation is tested on sentences that the model makes up, and revised where they speak against it.

Each round (1) asks for texts on which the explanation says that the feature fires, and for near ones on which
it does not; (2) runs them through the subject; (3) shows what really happened and asks for a better
explanation; (4) keeps that one only if it predicts `select` better by more than the paired 95% interval.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..data.harvest.activations import read_own
from ..data.records import Example, Explanation
from ..explainers.answer import read_answer
from ..explainers.examples import active_windows
from ..explainers.explainer import Explainer, TrainBatch, TrainEvidence
from ..llm.prompt import Prompt
from ..llm.render import active, excerpt, fenced, marked, strongest
from ..llm.tasks import LLMTask, run_task
from ..llm.types import Chat, Reply, Sampling
from ..scorers.scorer import Scorer
from ..subject.address import Feature
from .inputs import EvidenceLoader
from .selection import BoundExplainer, Chooser, SelectingExplainer, better

SENTENCES = 10
"""Trial sentences in a round."""
SHOWN = 6
"""Corpus examples beside them."""

_LINE = re.compile(r"^\s*([+-])\s+(\S.*?)\s*$", re.MULTILINE)


class Trial(NamedTuple):
    """A made-up text and what the feature did on it."""

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
        """What, beside the evidence and the language model, determines an explanation."""
        return {
            "inner": self._inner.settings,
            "rounds": self._rounds,
            "temperature": self._temperature,
            "prompts": [self._ask.hash, self._revise.hash],
            "chosen_by": [self._scorer.name, self._scorer.settings],
        }

    def bind(self, loader: EvidenceLoader) -> Explainer:
        """The explainer, bound to the evidence it chooses on."""
        return BoundExplainer(self, lambda batch: self._explain(loader, batch))

    def _explain(self, loader: EvidenceLoader, batch: TrainBatch) -> LLMTask[list[Explanation]]:
        inner = self._inner.bind(loader) if isinstance(self._inner, SelectingExplainer) else self._inner
        made = yield from run_task(inner.explain(batch))
        current = {e.feature: replace(e, explainer=self.name) for e in made}
        chooser = Chooser(self._scorer, loader, batch)
        judged = yield from chooser.judge(current)
        for _ in range(self._rounds):
            revised = yield from self._round(current, loader, batch)
            again = yield from chooser.judge(revised)
            for feature, revision in revised.items():
                difference, low, keep = (
                    better(judged[feature], again[feature]) if feature in again else (None, None, False)
                )
                told = {
                    "text": revision.text,
                    "reason": revision.reason,
                    "difference": difference,
                    "ci_low": low,
                    "kept": keep,
                    "tests": revision.provenance["tests"],
                }
                base = revision if keep else current[feature]
                rounds = [*_rounds(current[feature]), told]
                current[feature] = replace(base, provenance={**base.provenance, "rounds": rounds})
                judged[feature] = again[feature] if keep else judged[feature]
        return list(current.values())

    def _round(
        self, current: Mapping[Feature, Explanation], loader: EvidenceLoader, batch: TrainBatch
    ) -> LLMTask[dict[Feature, Explanation]]:
        """A revision of every explanation that has a text and could be tested."""
        parts = {part.feature: part for part in batch.features}
        texts = [feature for feature, explanation in current.items() if explanation.text is not None]
        asked = yield [self._sentences(current[feature], parts[feature]) for feature in texts]
        tests = tested({f: _sentences(reply) for f, reply in zip(texts, asked, strict=True)}, loader)
        texts = [feature for feature in texts if tests[feature]]
        replies = yield [self._revision(current[feature], parts[feature], tests[feature]) for feature in texts]
        return {
            feature: _revised(current[feature], tests[feature], reply, parts[feature])
            for feature, reply in zip(texts, replies, strict=True)
        }

    def _sentences(self, explanation: Explanation, evidence: TrainEvidence) -> Chat:
        places = {"explanation": explanation.text or "", "count": str(SENTENCES), "examples": _shown(evidence)}
        half = "\n".join([*["+ " + "word " * 10] * (SENTENCES // 2), *["- " + "word " * 10] * (SENTENCES // 2)])
        # Texts to test with should differ from round to round, so they are drawn, not the likeliest.
        sampling = Sampling(None if self._temperature is None else 1.0, 600, seed=len(_rounds(explanation)))
        return Chat(self._ask.render(places), sampling, sample=half, prompt=self._ask.name)

    def _revision(self, explanation: Explanation, evidence: TrainEvidence, tests: Sequence[Trial]) -> Chat:
        peak = evidence.statistics.peak
        lines = [
            f"expected {'active' if test.expected else 'silent'}, was {'active' if fired(test, peak) else 'silent'}: "
            + marked(part := excerpt(test.example, before=64, after=64), list(active(part.activations, peak)))
            for test in tests
        ]
        places = {"explanation": explanation.text or "", "examples": _shown(evidence), "tests": fenced(lines)}
        sample = f"[EXPLANATION]: {explanation.feature} {len(_rounds(explanation))} " + "word " * 30
        return Chat(
            self._revise.render(places), Sampling(self._temperature, 300), sample=sample, prompt=self._revise.name
        )


def default_prompt(name: str) -> Prompt:
    """The package's own prompt of this name."""
    return Prompt.load(Path(__file__).with_name(f"{name}.md"))


def tested(
    sentences: Mapping[Feature, Sequence[tuple[bool, str]]], loader: EvidenceLoader
) -> dict[Feature, list[Trial]]:
    """Run texts through the subject, all of them together: what each feature did on its own ones."""
    subject, width = loader.subject, loader.background.ids.shape[1]
    rows = [
        (feature, expected, ids)
        for feature, found in sentences.items()
        for expected, text in found
        if (ids := subject.encode(text)[:width])
    ]
    tests: dict[Feature, list[Trial]] = {feature: [] for feature in sentences}
    if not rows:
        return tests
    # Padding stands after the text, where a causal model cannot see it from within.
    tokens = np.array([ids + [ids[0]] * (width - len(ids)) for _, _, ids in rows], np.int64)
    found = read_own(subject, loader.source, tokens, np.array([feature.index for feature, _, _ in rows]))
    for (feature, expected, ids), row in zip(rows, found, strict=True):
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
    """Whether the feature was clearly active somewhere."""
    return bool(active(test.example.activations, peak).any())


def _sentences(reply: Reply) -> list[tuple[bool, str]]:
    """The texts of a reply, and whether the feature should fire on each; line breaks and tabs as they were shown."""
    lines = _LINE.findall(reply.text) if reply.status == "ok" else []
    return [(sign == "+", text.replace("↵", "\n").replace("⇥", "\t")) for sign, text in lines]


def _shown(evidence: TrainEvidence) -> str:
    peak = evidence.statistics.peak
    parts = [excerpt(example, before=24, after=8) for example in _examples(evidence)]
    return fenced(
        [f"{marked(part, list(active(part.activations, peak)))}   [{strongest(part, peak, count=3)}]" for part in parts]
    )


def _examples(evidence: TrainEvidence) -> list[Example]:
    """The training windows that are shown."""
    shown = active_windows(evidence, top=SHOWN // 2, quantile=SHOWN - SHOWN // 2)
    return [example for example in shown if active(example.activations, evidence.statistics.peak).any()]


def _revised(old: Explanation, tests: Sequence[Trial], reply: Reply, evidence: TrainEvidence) -> Explanation:
    peak = evidence.statistics.peak
    right = sum(test.expected == fired(test, peak) for test in tests)
    calls = [*_list(old.provenance.get("calls")), reply.key]
    provenance = {**old.provenance, "calls": calls, "tests": f"{right} of {len(tests)} as expected"}
    seen = tuple(sorted({*old.seen, *(example.window for example in _examples(evidence))}))
    # Its rule, if any, is that of the words that are revised.
    made = replace(old, seen=seen, provenance=provenance, rule=None)
    if reply.status != "ok":
        return replace(made, text=None, reason=f"{reply.status}: {reply.reason}", status="failed")
    answer = read_answer(reply.text)
    return replace(made, text=answer.text, reason=answer.reason, status=answer.status)


def _rounds(explanation: Explanation) -> list[object]:
    return _list(explanation.provenance.get("rounds"))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []
