"""Functions of text as subjects: harvested, labelled, scored and investigated like neurons, and refused where unfit."""

import json
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from neuronaut import RuleExplainer, RuleSimulator, Store, harvest, investigate, label, try_text
from neuronaut.agent.loop.budget import Limits
from neuronaut.agent.session import InvestigationConfig
from neuronaut.agent.tools.table import tools_for
from neuronaut.cli.main import main
from neuronaut.data.corpus import Corpus
from neuronaut.subject import functions
from neuronaut.subject.errors import NeuronautError
from neuronaut.subject.function_subject import FunctionSubject
from neuronaut.subject.functions import EndpointFunction, FileFunctions, PythonFunctions, open_functions
from neuronaut.subject.words import frequent_words, word_tokenizer, words_of
from tests.planted import corpus

TEXTS = ["the cat sat on the mat, and the old dog ran 12 miles\n", "the cat and the dog: 12 cats"]


def after_dry(tokens: Sequence[str]) -> list[float]:
    """2 on ` river` directly after ` dry`."""
    return [2.0 * (here == " river" and before == " dry") for before, here in zip(["", *tokens], tokens, strict=False)]


def subject_of(function: Callable[[list[str]], Any], texts: Sequence[str] = TEXTS) -> FunctionSubject:
    tokenizer = word_tokenizer(frequent_words(texts))
    return FunctionSubject(PythonFunctions({"planted": function}, digest="1"), tokenizer, name="planted")


# The tokenizer


@pytest.mark.parametrize(
    "text", [TEXTS[0], "  snake_case(Größe)\t\r\n\n   = 12345;", "x" * 200, " " * 90 + "a", "日本語 – «no»"]
)
def test_tokens_of_any_text_join_to_the_text(text: str) -> None:
    subject = subject_of(after_dry)
    ids = subject.encode(text)
    assert subject.tokenizer.decode(ids) == text
    if text.isascii():
        assert "".join(subject.decode_tokens(ids)) == text


def test_frequent_words_are_one_token_and_the_vocabulary_makes_the_tokenizer_again() -> None:
    subject = subject_of(after_dry)
    assert subject.decode_tokens(subject.encode("the cat, ok")) == ("the", " cat", ",", " ", "o", "k")
    again = word_tokenizer(words_of(subject.vocabulary))
    assert again.get_vocab() == subject.tokenizer.get_vocab()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(NeuronautError, match="no vocabulary of words"):
        words_of(("a", "b"))


# The subject


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FunctionSubject, Store]]:
    texts = corpus(documents=80, seed=1)
    subject = subject_of(after_dry, texts)
    with Store(tmp_path_factory.mktemp("functions") / "functions.db") as store:
        harvest(subject, ["function"], Corpus.of("planted", texts), store, window=32)
        yield subject, store


def test_a_function_is_harvested_labelled_scored_and_tried(world: tuple[FunctionSubject, Store]) -> None:
    subject, store = world
    features = store.features("planted:function")
    assert [row["kind"] for row in store.sources()] == ["function"]
    (result,) = label(features, store, subject, explainer=RuleExplainer(subject), scorers=[RuleSimulator()])
    assert result.explanation.text == "fires on ` river` directly after ` dry`"
    scores = {(score.examples, score.metric): score.value for score in result.scores}
    assert scores["counterfactual", "agreement"] == 1.0
    row = try_text("the dry river", features[0], store, subject)
    assert row["actual"] == after_dry(row["tokens"]) and max(row["actual"]) == 2.0


def test_a_session_has_the_tools_that_read_activations_and_no_others(world: tuple[FunctionSubject, Store]) -> None:
    subject, store = world
    config = InvestigationConfig(limits=Limits(experiments=40))
    session = investigate("planted:function:0", subject, store, config)
    assert session.status == "supported"
    (row,) = store.journal.rows()
    used = {experiment.tool for experiment in store.journal.experiments(row["id"])}
    offered = tools_for("feature", inside=False)
    assert used <= offered.keys() and "scan_vocabulary" in used
    assert tools_for("feature").keys() - offered.keys() >= {"ablate", "steer", "promoted_tokens", "upstream"}


def test_what_looks_into_a_model_is_refused_in_one_line() -> None:
    subject = subject_of(after_dry)
    ids = torch.tensor([subject.encode("the cat")])
    for attempt in (lambda: subject.model, lambda: subject.logits(ids), lambda: subject.n_layers):
        with pytest.raises(NeuronautError, match="planted is a function of text, and this looks into a model"):
            attempt()
    with pytest.raises(NeuronautError, match="function of text"), subject.editing({}):
        pass
    with pytest.raises(NeuronautError, match="has no site 'mlp.0'; it has function"):
        subject.read(ids, ["mlp.0"])


def test_watchers_are_told_every_row_also_of_a_copy() -> None:
    subject, seen = subject_of(after_dry), []
    ids = torch.tensor([subject.encode("the cat sat")] * 3)
    with subject.watching(lambda tokens: seen.append(tuple(tokens.shape))):
        subject.with_convention(subject.convention).read(ids, ["function"])
        subject.read_endings(ids[:1, :2], ids[:, 2:], ["function"], of=torch.zeros(3, dtype=torch.long))
    subject.read(ids, ["function"])
    assert seen == [tuple(ids.shape)] * 2


def test_several_functions_are_several_features_and_endings_are_read_as_wholes() -> None:
    lengths = PythonFunctions({"place": lambda t: list(range(len(t))), "size": lambda t: map_size(t)}, digest="1")
    subject = FunctionSubject(lengths, word_tokenizer([" cat"]), name="two")
    ids = torch.tensor([subject.encode("a cat b"), subject.encode("a cat c")])
    whole = subject.read(ids, ["function"])["function"]
    assert whole[0].tolist() == [[0, 1], [1, 4], [2, 1], [3, 1]]
    ends = subject.read_endings(ids[:1, :2], ids[:, 2:], ["function"], of=torch.tensor([0, 0]))["function"]
    assert torch.equal(ends, whole[:, 2:])


def map_size(tokens: list[str]) -> list[int]:
    return [len(token) for token in tokens]


def test_a_function_that_sees_what_comes_or_that_rolls_dice_is_refused() -> None:
    rolled = iter(range(10**6))
    for function in (lambda t: [float(len(t))] * len(t), lambda t: [float(next(rolled)) for _ in t]):
        subject = subject_of(function)
        with pytest.raises(NeuronautError, match="the function planted gives .* and on nothing else, such as chance"):
            subject.read(torch.tensor([subject.encode(text)[:8] for text in TEXTS]), ["function"])


FAULTS: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "short": (lambda _: [1.0], "gave 1 numbers for"),
    "nan": (lambda t: [float("nan")] * len(t), "gave nan at the token 'the' of 'the cat'"),
    "large": (lambda t: [1e9] * len(t), "of at most 65504"),
    "text": (lambda _: "no", "gave 'no' on 'the cat'"),
    "strings": (lambda t: ["1.0"] * len(t), "wanted one finite number a token"),
    "ragged": (lambda _: [[1.0], [1.0, 2.0]], "gave no list of numbers"),
    "none": (lambda _: None, "gave 'None'"),
    "error": (lambda _: [1 / 0], "raised ZeroDivisionError: division by zero on 'the cat'"),
    "exit": (lambda _: exit(3), "raised SystemExit: 3"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_number_a_token_is_one_line_that_names_the_function(fault: str) -> None:
    function, told = FAULTS[fault]
    with pytest.raises(NeuronautError, match="the function planted ") as raised:
        PythonFunctions({"planted": function}, digest="1").call([["the", " cat"]])
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_a_function_that_does_not_return_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from threading import Event

    monkeypatch.setattr(functions, "SECONDS", 0.05)
    with pytest.raises(NeuronautError, match="the function planted took more than 0.05 s"):
        PythonFunctions({"planted": lambda _: Event().wait(5)}, digest="1").call([["the"]])


# Files


def test_a_file_is_known_by_its_text_and_run_when_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    ran = f"with open({str(tmp_path / 'ran')!r}, 'a') as file: file.write('x')\n"
    file.write_text(f"{ran}def size(tokens): return [len(t) for t in tokens]\n")
    one = FunctionSubject.open(f"{file}:size")
    assert (one.name, (tmp_path / "ran").exists()) == ("size", False)
    ids = torch.tensor([one.encode("a b")])
    assert one.read(ids, ["function"])["function"][0, :, 0].tolist() == [1, 1, 1]
    one.read(ids, ["function"])
    assert (tmp_path / "ran").read_text() == "x"
    file.write_text(file.read_text() + "# changed\n")
    assert FunctionSubject.open(f"{file}:size").revision != one.revision
    assert FunctionSubject.open(f"{file}:size,size").name == "size"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def f(:", "cannot be run (SyntaxError"),
        ("1 / 0", "cannot be run (ZeroDivisionError"),
        ("g = len", "has no function f; it has g"),
    ],
)
def test_a_file_that_is_no_good_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(NeuronautError, match="own.py") as raised:
        FileFunctions(tmp_path / "own.py", ("f",)).call([["a"]])
    assert told in str(raised.value)


@pytest.mark.parametrize("location", ["f.py", "f.txt:g", "f.py:g h", "f.py:", "ftp://x/y", "https://"])
def test_a_location_that_is_none_says_what_was_wanted(location: str) -> None:
    with pytest.raises(NeuronautError, match="wanted"):
        open_functions(location)


# Endpoints


class Endpoint(ThreadingHTTPServer):
    """Answers one request after the other from a list, the last one again and again."""

    def __init__(self, answers: Sequence[Callable[[Any], tuple[int, dict[str, str], bytes]]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.asked = list(answers), list[Any]()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/length"
        Thread(target=self.serve_forever, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answers = self.server.answers
        status, headers, content = (answers.pop(0) if len(answers) > 1 else answers[0])(body)
        self.server.asked.append(body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


def good(body: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, json.dumps({"activations": [[len(t) for t in tokens] for tokens in body["tokens"]]}).encode()


def reply(status: int, content: object = "", **headers: str) -> Callable[[Any], tuple[int, dict[str, str], bytes]]:
    return lambda _: (status, headers, json.dumps(content).encode())


def test_an_endpoint_is_asked_in_batches_and_again_after_what_passes() -> None:
    with Endpoint([reply(503), good]) as server:
        function = EndpointFunction(server.url)
        numbers = function.call([["the", " cat"]] * 65)
        assert [n[:, 0].tolist() for n in numbers] == [[3, 4]] * 65
        assert function.names == ("length",)
        assert [len(body["tokens"]) for body in server.asked] == [64, 64, 1]
        assert server.asked[0]["texts"][0] == "the cat"
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "told", "times"),
    [
        (reply(404), "answers with status 404", 1),
        (reply(302, Location="http://127.0.0.1:9/x"), "a redirect, which is not followed", 1),
        (reply(200, {"numbers": []}), "answers something else than", 1),
        (reply(200, {"activations": [[1.0]]}), "gave 1 numbers for 2 tokens", 1),
        (reply(200, {"activations": []}), "gave 0 lists for 1 texts", 1),
        (reply(200, {"activations": [[1.0, None]]}), "wanted one finite number a token", 1),
        (reply(500), "answers with status 500", 4),
    ],
)
def test_an_endpoint_that_answers_wrongly_is_one_line(
    answer: Any, told: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "_LONGEST_WAIT", 0.01)
    with Endpoint([answer]) as server:
        with pytest.raises(NeuronautError, match=f"the endpoint {server.url}") as raised:
            EndpointFunction(server.url).call([["the", " cat"]])
        server.shutdown()
    assert told in str(raised.value) and len(server.asked) == times


def test_an_endpoint_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_LONGEST_WAIT", 0.01)
    with Endpoint([good]) as server:
        server.shutdown()
    with pytest.raises(NeuronautError, match="no answer of the endpoint .* is it running"):
        EndpointFunction(server.url).call([["the"]])


# The command line


def test_the_command_line_goes_from_a_file_to_its_label_and_refuses_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURONAUT_DB", "own.db")
    Path("own.py").write_text("def dry(tokens):\n    return [float(a == ' dry') for a in ['', *tokens][:-1]]\n")
    Path("texts.txt").write_text("\n\n".join(corpus(documents=60, seed=1)))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, list(arguments))

    harvested = run("harvest", "--function", "own.py:dry", "--corpus", "texts.txt", "--tokens", "all", "--window", "32")
    assert harvested.exit_code == 0, harvested.output
    again = run("harvest", "--function", "own.py:dry", "--corpus", "texts.txt", "--tokens", "2k", "--window", "32")
    assert again.exit_code == 0, again.output
    assert run("label", "dry:function").exit_code == 0
    (row,) = json.loads(run("list", "--json").stdout)
    assert row["status"] == "explained" and "dry" in row["explanation"] and row["score"] > 0.99
    (tried,) = json.loads(run("try", "dry:function:0", "the dry river", "--json").stdout)
    assert tried["actual"][-1] == 1.0 and max(tried["actual"][:-1]) == 0
    session = run("investigate", "dry:function:0", "--budget", "experiments=4")
    assert "are not offered" in session.stderr
    Path("own.py").write_text("def dry(tokens): return [0.0] * len(tokens)\n")
    refused = run("try", "dry:function:0", "the dry river")
    assert refused.exit_code == 1 and "was harvested with another text of" in refused.stderr
    Path("own.py").unlink()
    assert "cannot read" in run("try", "dry:function:0", "x").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "--function", "f.py:g"], "takes the place of MODEL"),
        (["--function", "f.py:g", "--dtype", "float16"], "--dtype is of models"),
        (["--function", "f.py:g", "--chat"], "--chat is of models"),
        (["demo", "mlp.1", "--tokenizer", "gpt2"], "--tokenizer is of --function"),
        ([], "no MODEL is named"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["harvest", *arguments])
    assert result.exit_code == 2 and told in result.stderr
