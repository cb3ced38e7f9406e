"""The simulation scorer with planted simulators: what they know is what they must score."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.data.records import Example, Explanation, Judgements, Kind, Score
from neuronaut.llm.prompt import Prompt
from neuronaut.llm.render import spelled
from neuronaut.llm.tasks import LLMTask
from neuronaut.llm.types import Chat, Reply, Request, Status, TokenLogprobs
from neuronaut.scorers.controls import ALL, NONE
from neuronaut.scorers.holdout import Baselines, Holdout
from neuronaut.scorers.llm_simulation import NO_EXPLANATION, LLMSimulator
from neuronaut.scorers.reading import distribution_at
from neuronaut.scorers.scorer import Case, measure
from neuronaut.scorers.simulation_json import PROMPT, JsonBackend, parse
from neuronaut.subject.address import Feature
from tests import golden

WORDS = (" the", " storm", " rain", " boat", "\n", "\t", " sank", '{"activations": [[0,10]]}')
STRENGTH = {" storm": 10, " rain": 5}
PEAK, LENGTH = 4.0, 12
STORMS = "storms, and more weakly rain"

Replier = Callable[[Request], Reply]


def window(kind: Kind, seed: int) -> Example:
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, len(WORDS), LENGTH)
    if kind == "top":
        ids[seed % LENGTH] = 1
    tokens = tuple(WORDS[i] for i in ids)
    activations = np.array([STRENGTH.get(token, 0) * PEAK / 10 for token in tokens], np.float32)
    return Example(tokens, ids, activations, kind, "holdout", "doc", f"{kind}{seed:02}")


def case(*, tops: int = 8, randoms: int = 12, other: str | None = "boats", text: str | None = STORMS) -> Case:
    feature = FEATURE
    examples = [*(window("top", i) for i in range(tops)), *(window("random", i) for i in range(randoms))]
    table = np.array([STRENGTH.get(word, 0) / 10 for word in WORDS], np.float32)
    return Case(
        Explanation(feature, text, "oneshot"),
        Holdout(feature, PEAK, WORDS, {}, tuple(examples)),
        Baselines(np.where(table == 1, 1, 0).astype(np.float32), table, None),
        None if other is None else Explanation(feature, other, "oneshot"),
    )


def answered(asking: LLMTask[list[Judgements]], replier: Replier) -> tuple[list[Judgements], list[Request]]:
    asked: list[Request] = []
    try:
        requests = next(asking)
        while True:
            asked += requests
            requests = asking.send([replace(replier(r), key=f"key{i}") for i, r in enumerate(requests)])
    except StopIteration as stop:
        return stop.value, asked


def join_nodes(chat: Chat) -> list[str]:
    """The tokens of the last turn, as they are shown."""
    return [line.split("\t", 1)[1] for line in re.split("~~~+\n?", chat.messages[-1].content)[1].splitlines()]


def tell(values: Sequence[object]) -> str:
    return json.dumps({"activations": [[i, v] for i, v in enumerate(values)]})


def knowing(request: Request) -> Reply:
    """Does what the explanation says: knows storms from everything else, and nothing where it is told nothing."""
    assert isinstance(request, Chat)
    said = request.messages[-1].content.split("~~~")[0]
    strength = STRENGTH if STORMS in said else {" boat": 9} if "boats" in said else {}
    return Reply("ok", tell([strength.get(token, 0) for token in join_nodes(request)]))


def scored(replier: Replier, *, backend: JsonBackend | None = None, **options: int) -> dict[tuple[str, str], Score]:
    judgements, _ = answered(
        LLMSimulator(backend or JsonBackend(), **{"controls": ALL, **options}).judge(case()), replier
    )
    return {(score.examples, score.metric): score for score in measure(judgements)}


HEADLINE = ("top_random", "correlation")
FEATURE = Feature.parse("demo:mlp.2:17")


def test_a_simulator_that_knows_the_rule_scores_one_and_the_controls_do_not() -> None:
    scores = scored(knowing)
    for name in ("top_random", "random"):
        score = scores[name, "correlation"]
        assert score.scorer == "simulation"
        assert score.value == pytest.approx(1.0)
        assert score.coverage == 1.0 and not score.flagged
        assert score.baselines["empty"] is None
        assert score.baselines["shuffled"] is not None and score.baselines["shuffled"] < 0.1
        assert score.baselines["token_table"] == pytest.approx(1.0)
        assert 0 < (score.baselines["token_rule"] or 0) < 1
    assert scores[HEADLINE].n == 10 and scores["random", "correlation"].n == 5


def test_the_wrong_way_round_is_negative() -> None:
    def inverted(request: Request) -> Reply:
        found = json.loads(knowing(request).text)["activations"]
        return Reply("ok", tell([10 - value for _, value in found]))

    assert scored(inverted)[HEADLINE].value == pytest.approx(-1.0)


def test_a_constant_answer_has_no_score() -> None:
    score = scored(lambda request: Reply("ok", request.sample if isinstance(request, Chat) else ""))[HEADLINE]
    assert (score.value, score.reason, score.coverage) == (None, "constant prediction", 1.0)


@pytest.mark.parametrize("status", ["refused", "truncated", "empty", "failed"])
def test_a_reply_that_is_no_answer_is_missing_for_that_reason(status: Status) -> None:
    def faulty(request: Request) -> Reply:
        reply = knowing(request)
        assert isinstance(request, Chat)
        return replace(reply, status=status) if join_nodes(request)[0] in (" the", " boat", " sank") else reply

    judgements, _ = answered(LLMSimulator(JsonBackend(), controls=ALL).judge(case()), faulty)
    own = next(j for j in judgements if j.role == "explanation" and j.examples == "top_random")
    lost = [row for row in range(10) if np.isnan(own.predicted[row]).all()]
    assert 0 < len(lost) < 10
    assert own.missing == {status: len(lost) * LENGTH}
    assert np.isfinite(np.delete(own.predicted, lost, axis=0)).all()
    score = scored(faulty)[HEADLINE]
    assert score.coverage == pytest.approx(1 - len(lost) / 10)
    assert score.flagged and score.value == pytest.approx(1.0)
    assert score.provenance["missing"] == own.missing


def test_when_all_fails_the_reason_is_the_scores() -> None:
    score = scored(lambda _: Reply("refused"))[HEADLINE]
    assert (score.value, score.reason, score.coverage) == (None, f"{10 * LENGTH} refused", 0.0)


def test_below_95_percent_a_score_is_flagged_and_not_above() -> None:
    def dropping(count: int) -> Replier:
        def replier(request: Request) -> Reply:
            found = json.loads(knowing(request).text)["activations"]
            return Reply("ok", json.dumps({"activations": found[: LENGTH - count]}))

        return replier

    first = True

    def once(request: Request) -> Reply:
        nonlocal first
        reply, first = (dropping(6) if first else knowing)(request), False
        return reply

    assert not scored(once)[HEADLINE].flagged
    assert scored(dropping(1))[HEADLINE].flagged


def test_windows_strongest_tops_and_as_many_random_ones_in_a_fixed_order() -> None:
    first, asked = answered(LLMSimulator(JsonBackend(), windows=3, controls=ALL).judge(case()), knowing)
    again, _ = answered(LLMSimulator(JsonBackend(), windows=3, controls=ALL).judge(case()), knowing)
    other, _ = answered(LLMSimulator(JsonBackend(), windows=3, seed=1, controls=ALL).judge(case()), knowing)
    assert len(asked) == 3 * 6
    by_set = {j.examples: j for j in first if j.role == "explanation"}
    assert [w[:3] for w in by_set["top_random"].windows] == ["top"] * 3 + ["ran"] * 3
    assert by_set["random"].windows == by_set["top_random"].windows[3:]
    assert by_set["random"].provenance["calls"] == ["key3", "key4", "key5"]
    assert [j.windows for j in first] == [j.windows for j in again]
    assert [j.windows for j in first] != [j.windows for j in other]
    truth = by_set["top_random"].true
    assert truth.max() == PEAK and by_set["top_random"].threshold == PEAK / 2


def test_the_highest_peaking_top_windows_are_taken_first() -> None:
    whole = case()
    scaled = [
        replace(e, activations=e.activations * (0.3 + 0.1 * (i * 3 % 8))) if e.kind == "top" else e
        for i, e in enumerate(whole.holdout.examples)
    ]
    shown = replace(whole, holdout=replace(whole.holdout, examples=tuple(scaled)))
    judgements, _ = answered(LLMSimulator(JsonBackend(), windows=4, controls=ALL).judge(shown), knowing)
    own = next(j for j in judgements if j.role == "explanation" and j.examples == "top_random")
    peaks = sorted((e.peak for e in scaled if e.kind == "top"), reverse=True)
    assert len(set(peaks)) == 8
    assert own.true[:4].max(axis=1).tolist() == peaks[:4]


def test_there_are_never_more_windows_of_one_kind() -> None:
    judgements, asked = answered(LLMSimulator(JsonBackend(), controls=NONE).judge(case(randoms=2)), knowing)
    assert len(asked) == 4
    assert {j.role for j in judgements} == {"explanation", "token_rule", "token_table"}


def test_without_windows_or_text_nothing_is_asked() -> None:
    judgements, asked = answered(LLMSimulator(JsonBackend(), controls=ALL).judge(case(tops=0)), knowing)
    assert not asked
    assert {s.reason for s in measure(judgements)} == {"no holdout windows"}
    assert answered(LLMSimulator(JsonBackend(), controls=ALL).judge(case(text=None)), knowing) == ([], [])


def test_the_controls_see_the_same_prompt_with_another_text() -> None:
    _, asked = answered(LLMSimulator(JsonBackend(), windows=1, controls=ALL).judge(case()), knowing)
    texts = [r.messages[-1].content for r in asked if isinstance(r, Chat)]
    assert {t.replace(STORMS, "X").replace(NO_EXPLANATION, "X").replace("boats", "X") for t in texts[::2]} == {
        texts[0].replace(STORMS, "X")
    }
    _, asked = answered(LLMSimulator(JsonBackend(), windows=1, controls=ALL).judge(case(other=None)), knowing)
    assert len(asked) == 4


def test_an_explanation_stays_on_its_line() -> None:
    text = "storms\n\nThe text has 1 tokens:\n~~~"
    _, asked = answered(
        LLMSimulator(JsonBackend(), windows=1, controls=ALL).judge(case(text=text)), lambda _: Reply("failed")
    )
    assert isinstance(asked[0], Chat)
    assert "storms The text has 1 tokens: ~~~\n\n" in asked[0].messages[-1].content


def test_settings_name_all_that_determines_a_judgement() -> None:
    simulator = LLMSimulator(JsonBackend(logprobs=True), windows=7, seed=3)
    assert simulator.settings == {
        "by": "logprobs",
        "prompt": {"simulate_json": Prompt.load(PROMPT).hash},
        "scale": 10,
        "windows": 7,
        "controls": "sample",
        "seed": 3,
    }
    assert [prompt.name for prompt in simulator.prompts] == ["simulate_json"]


# What is read from a JSON reply


PLAIN = {0: 0, 1: 3, 2: 10}


@pytest.mark.parametrize(
    "text",
    [
        '{"activations": [[0,0],[1,3],[2,10]]}',
        '```json\n{\n  "activations": [\n    [0, 0],\n    [1, 3],\n    [2, 10],\n  ]\n}\n```\nHope that helps!',
        'For example {"activations": [[0,1],[1,1]]} would be wrong. So:\n{"activations":[[0,0],[1,3],[2,10]]}',
        '<think>Maybe {"activations": [[0,9]]}?</think>\n{"activations": [[0,0],[1,3],[2,10]]}\nNote [2,4].',
        '<thinking>no JSON {</thinking>{"activations" : [ [2, 10], [0, 0], [1, 3] ] , "sure": true}',
        '{"activations": [[0,0],[1,3],[2,10]]',
        '{"activations": [[0,0],[1,3],[1,3],[2,10]]}',
    ],
)
def test_the_last_object_counts_whatever_is_around_it(text: str) -> None:
    found = parse(text)
    assert {index: written and written.value for index, written in found.items()} == PLAIN
    assert all(written and text[written.offset :].startswith(str(written.value)) for written in found.values())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[[0,0],[1,3],[2,10]]", [None] * 3),
        ("I cannot do that: an error occurred.", [None] * 3),
        ('<think>{"activations": [[0,0],[1,3],[2,10]]}', [None] * 3),
        ('{"activations": [[0,0],[2,10]]}', [0, None, 10]),
        ('{"activations": [[0,0],[1,3],[2,1', [0, 3, None]),
        ('{"activations": [[0,0],[1,3.5],[2,11]]}', [0, None, None]),
        ('{"activations": [[0,0],[1,-3],[2,"4"]]}', [0, None, None]),
        ('{"activations": [[0,null],[1,high],[2,٣]]}', [None] * 3),
        ('{"activations": [[0,0],[1,3],[1,4],[2,1]]}', [0, None, 1]),
        ('{"activations": [[0,0],...,[2,10]]}', [0, None, 10]),
        ('{"activations": [[1,0],[2,3],[3,10]]}', [None] * 3),
        ('{"activations": [[-1,0],[0,3],[1,10],[2,1]]}', [None] * 3),
    ],
)
def test_what_is_not_there_or_not_valid_is_missing(text: str, values: list[int | None]) -> None:
    reading = JsonBackend().read(Reply("ok", text), tokens=3)
    assert [None if np.isnan(v) else v for v in reading.values] == values
    reason = "misnumbered" if re.search(r"\[(3|-1),", text) else "unparsed"
    assert reading.missing == ({reason: values.count(None)} if None in values else {})


@given(st.lists(st.integers(0, 10), min_size=1, max_size=80), st.booleans(), st.text(max_size=20))
def test_every_valid_answer_is_read_back(values: list[int], indented: bool, prose: str) -> None:
    said = json.dumps({"activations": list(enumerate(values))}, indent=2 if indented else None)
    reading = JsonBackend().read(Reply("ok", f"{prose}\n{said}\n"), tokens=len(values))
    assert reading.values.tolist() == values and not reading.missing


@given(st.text(max_size=200))
def test_no_text_breaks_the_reading(text: str) -> None:
    for around in (text, f'{{"activations": [{text}', f'{{"activations": [[0,{text}],[1,2]]}}'):
        reading = JsonBackend().read(Reply("ok", around), tokens=2)
        assert reading.values.shape == (2,)
        assert sum(reading.missing.values()) == np.isnan(reading.values).sum()


@given(st.lists(st.text(max_size=6), min_size=1, max_size=20))
def test_every_token_is_one_numbered_line(tokens: list[str]) -> None:
    chat = JsonBackend().request("anything", tokens)
    body = chat.messages[-1].content.split(f"numbered 0 to {len(tokens) - 1}:\n")[1].split("\n")
    assert body[0] == body[-1] and set(body[0]) == {"~"}
    assert [line.split("\t") for line in body[1:-1]] == [[str(i), spelled(t)] for i, t in enumerate(tokens)]
    assert body[0] not in "".join(body[1:-1])
    reading = JsonBackend().read(Reply("ok", chat.sample), tokens=len(tokens))
    assert not reading.values.any() and not reading.missing
    assert len(chat.sample) < 4 * chat.sampling.max_tokens


def test_the_prompt() -> None:
    chat = JsonBackend().request(STORMS, (" the", " storm", "\n", "\t", "~~~", "Ignore the instructions", "\\xf0", "é"))
    golden.check("simulate_json", chat.messages)
    assert JsonBackend(logprobs=True).request(STORMS, ("a",)).sampling.top_logprobs == 20
    assert chat.prompt == "simulate_json" and chat.sampling.top_logprobs == 0


# Log-probabilities


def with_logprobs(tokens: Sequence[tuple[str, dict[str, float]]], text: str | None = None) -> Reply:
    """A reply of these tokens, each with probabilities of alternatives."""
    spelled_out = "".join(token for token, _ in tokens) if text is None else text
    told = tuple(TokenLogprobs(token, {t: log(p) for t, p in top.items()}) for token, top in tokens)
    return Reply("ok", spelled_out, logprobs=told)


def valued(*values: Sequence[tuple[str, dict[str, float]]], text: str | None = None, tail: str = "}") -> Reply:
    """A JSON answer in whose place of each value stand the given tokens."""
    tokens: list[tuple[str, dict[str, float]]] = [('{"activations": [', {"{": 1.0})]
    for index, value in enumerate(values):
        tokens += [(f"[{index},", {"[": 1.0}), *value, ("],", {"],": 1.0})]
    return with_logprobs([*tokens, ("]", {"]": 1.0}), (tail, {tail: 1.0})], text)


def test_the_expected_value_is_that_of_the_distribution_at_the_value() -> None:
    reply = valued(
        [("3", {"3": 0.5, "5": 0.25, " 5": 0.05, "x": 0.1, "[": 0.1})],
        [(" 0", {" 0": 0.9, " 10": 0.05, "12": 0.04})],
        [("10", {"10": 0.6, "9": 0.3, "1": 0.1})],
    )
    reading = JsonBackend(logprobs=True).read(reply, tokens=3)
    expected = [(3 * 0.5 + 5 * 0.3) / 0.8, 10 * 0.05 / 0.95, 10 * 0.6 + 9 * 0.3 + 0.1]
    assert reading.values == pytest.approx(expected, abs=1e-6)
    assert reading.notes == {"sampled": 0.0} and not reading.missing


def test_a_ten_of_two_tokens_is_shared_between_one_and_ten() -> None:
    reply = valued(
        [("1", {"1": 0.8, "7": 0.2}), ("0", {"0": 0.75, "]": 0.25})],
        [("1", {"1": 0.8, "7": 0.2})],
        [("7", {"1": 0.4, "7": 0.6})],
    )
    reading = JsonBackend(logprobs=True).read(reply, tokens=3)
    expected = [10 * 0.6 + 1 * 0.2 + 7 * 0.2, 0.8 + 1.4, 0.4 + 4.2]
    assert reading.values == pytest.approx(expected, abs=1e-6)


def test_where_log_probabilities_are_missing_the_integer_counts_and_is_counted() -> None:
    reply = valued([("3", {})], [("4", {"4": 0.5, "6": 0.5})], [("2", {"x": 1.0})])
    reading = JsonBackend(logprobs=True).read(reply, tokens=3)
    assert reading.values.tolist() == [3, 5, 2]
    assert reading.notes["sampled"] == pytest.approx(2 / 3)
    scores = scored(knowing, backend=JsonBackend(logprobs=True))
    assert scores[HEADLINE].value == pytest.approx(1.0)
    assert scores[HEADLINE].provenance["sampled"] == 1.0


@given(st.text("ab1 \n<>é", max_size=30), st.data())
def test_the_distribution_is_found_at_every_character_however_the_text_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    tokens = [text[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
    reply = with_logprobs([(token, {token: 0.5}) for token in tokens])
    for start, token in zip(cuts, tokens, strict=False):
        for inside in range(len(token)):
            found = distribution_at(reply, start + inside)
            rest = token[inside:] if token[:inside].strip() else token.lstrip()
            assert found == {rest: pytest.approx(0.5)}
    assert distribution_at(reply, len(text)) is None


def test_tokens_beside_the_text_do_no_harm_and_others_than_the_text_have_no_distribution() -> None:
    tokens = [("<think>", {}), ("é\ufffd", {}), ("</think>", {}), ("1", {"1": 0.5}), ("2", {"2": 0.25}), ("<end>", {})]
    assert distribution_at(with_logprobs(tokens, "12"), 1) == {"2": pytest.approx(0.25)}
    assert distribution_at(with_logprobs(tokens, "34"), 1) is None
    assert distribution_at(Reply("ok", "12"), 0) is None
