"""The inputs of the causal verbs: prompts with their answers, and pairs of clean and corrupted ones."""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ...subject.convention import is_chat
from ...subject.errors import NeuronautError
from ..common import Decorator, Progress, all_of, plain, say

if TYPE_CHECKING:
    from ...causal.circuits.tasks import Task
    from ...causal.questions import Questions
    from ...causal.work import Work
    from ...subject.model import Subject

CONTROLS = 20
"""Of each sort."""
PICTURES = (".png", ".svg", ".pdf")


def _check_output(_ctx: click.Context, _parameter: click.Parameter, file: str | None) -> str | None:
    """Refuse a file that cannot be written before the work is done for it."""
    if file is not None and not Path(file).expanduser().absolute().parent.is_dir():
        raise NeuronautError(f"{file} cannot be written, its folder does not exist; make it, or name another file")
    return file


def _check_picture(ctx: click.Context, parameter: click.Parameter, file: str | None) -> str | None:
    if file is not None and Path(file).suffix not in PICTURES:
        raise NeuronautError(f"--picture {file} is of no kind that can be drawn; end it in {', '.join(PICTURES)}")
    return _check_output(ctx, parameter, file)


answer_options = all_of(
    click.option("--answer", metavar="TOKEN", help="The next token that is asked about; the likeliest if not given."),
    click.option("--wrong", metavar="TOKEN", help="The token that it is set against."),
)
prompts_option = click.option(
    "--prompts", "file", metavar="FILE", help="More prompts: JSON lines with prompt and maybe answer and wrong."
)
metric_option = partial(
    click.option,
    "--metric",
    metavar="NAME",
    help="logit_difference, log_probability, probability_difference, kl, rank or loss.",
)
controls_option = click.option(
    "--controls", type=click.IntRange(0), metavar="N", help="Controls of each sort for a single edit.  [default: 20]"
)


@contextmanager
def shown(what: str, work: "Work", *, at_once: bool = False) -> Generator[None]:
    """Within the block, the progress of work is shown; `at_once`: the first line is written without delay."""
    with Progress(what, total=None, unit="tokens") as progress:

        def tell(work: "Work") -> None:
            if done := int(work.done):
                progress.expect(max(done, int(work.expected)) if work.expected else 0)
                progress.reach(done, work.doing, at_once=at_once)

        work.on_progress = tell
        yield


def pair_options(*, rows: int) -> Decorator:
    """The three ways of giving pairs; a generator draws so many if it is not told."""
    return all_of(
        click.option("--task", metavar="NAME", help="Pairs from a generator: induction, brackets, variable or ioi."),
        click.option("--rows", type=click.IntRange(1), default=rows, show_default=True, help="How many it draws."),
        click.option("--pairs", metavar="FILE", help="Pairs from JSON lines with clean, corrupted, answer and wrong."),
        click.option("--clean", metavar="TEXT", help="One pair: the prompt that asks for the answer;"),
        click.option("--corrupted", metavar="TEXT", help="one that asks for another, of as many tokens;"),
        click.option("--answer", metavar="TOKEN", help="what comes after the clean prompt;"),
        click.option("--wrong", metavar="TOKEN", help="what comes after the corrupted one."),
    )


judging_options = all_of(
    click.option(
        "--test-share",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.3,
        show_default=True,
        help="Share of the texts that it is judged on.",
    ),
    click.option(
        "--shuffles",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help="Controls: the same fit, its labels shuffled.",
    ),
)
seed_option = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is random.")
top_option = click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="Rows of the table."
)
positions_option = click.option(
    "--positions", default="last", show_default=True, metavar="RULE", help="last, all, 3-5, -2 or '\" name\"'."
)
picture_option = click.option(
    "--picture", metavar="FILE", callback=_check_picture, help="Draw it, too: a .png, .svg or .pdf."
)


def output_option(name: str, what: str) -> Decorator:
    """A file to be written at the end, which is checked at the beginning."""
    return click.option(name, metavar="FILE", callback=_check_output, help=what)


# Prompts


def read_questions(
    subject: "Subject",
    prompts: Sequence[str],
    file: str | None,
    *,
    answer: str | None = None,
    wrong: str | None = None,
    whole: bool = False,
) -> "Questions":
    """The prompts of the command line and of the file, with their answers.

    An answer is one token, or the first of several where only the `whole` is looked at, in its readings.
    """
    from ...causal.questions import ask

    rows = [*({"prompt": prompt} for prompt in prompts), *_read_prompts(file, chat=subject.convention.chat)]
    rows = [{"answer": answer, "wrong": wrong, **row} for row in rows]
    if not rows:
        raise NeuronautError("no prompt is given; add a text in quotes, or --prompts FILE")
    read_rows = [{name: text if text is None else plain(text) for name, text in row.items()} for row in rows]
    questions = ask(subject, read_rows, whole=whole)
    for line in questions.notes:
        say(line)
    return questions


def say_remarks(subject: "Subject", texts: Sequence[str]) -> None:
    """Say what is easily overlooked in texts: a BOS of their own, special tokens that are read as text."""
    for line in subject.remarks(texts):
        say(line)


def _read_prompts(file: str | None, *, chat: bool) -> list[dict[str, Any]]:
    """The rows of a file of prompts; with `chat` each has the messages of a chat, or a prompt that is a message."""
    if file is None:
        return []
    own = {"prompt": str, "messages": list} if chat else {"prompt": str}
    rows = []
    for number, row in lines(file, {} if chat else own, {**own, "answer": str, "wrong": str}):
        messages = row.pop("messages", None)
        if (messages is None) == ("prompt" not in row) or not (messages is None or is_chat(messages)):
            raise NeuronautError(f"{file}:{number}: wanted a prompt, or messages, a list with role and content each")
        rows.append(row if messages is None else {**row, "prompt": json.dumps(messages)})
    return rows


class Line(NamedTuple):
    """A row of a file of JSON lines."""

    number: int
    row: dict[str, Any]


def lines(file: str, wanted: Mapping[str, type], allowed: Mapping[str, type] = {}) -> Iterator[Line]:
    """The objects of a file of JSON lines (- is stdin), each with the fields `wanted` and maybe those `allowed`."""
    fields = {**wanted, **allowed}
    for number, text in enumerate(read(file).split("\n"), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _line_error(file, number, f"this is no JSON ({error})", fields) from None
        if not isinstance(row, dict):
            raise _line_error(file, number, "this is no object", fields)
        if missing := [name for name in wanted if name not in row]:
            raise _line_error(file, number, f"{', '.join(missing)} is missing", fields)
        if wrong := [name for name, kind in fields.items() if name in row and not isinstance(row[name], kind)]:
            raise _line_error(file, number, f"{wrong[0]} is {json.dumps(row[wrong[0]])[:40]}", fields)
        yield Line(number, {name: row[name] for name in fields if name in row})


def read_texts(file: str) -> list[str]:
    """The texts of a file: `text` of each object of JSON lines, or each line that is not empty."""
    if file.endswith(".jsonl"):
        texts = [row["text"] for _, row in lines(file, {"text": str})]
    else:
        texts = [line.strip() for line in read(file).split("\n") if line.strip()]
    if not texts:
        raise NeuronautError(f"{file} holds no text; wanted one a line")
    return texts


def _line_error(file: str, number: int, what: str, fields: Mapping[str, type]) -> NeuronautError:
    names = {str: "text", bool: "true or false", list: "a list"}
    shape = ", ".join(f'"{name}": {names[kind]}' for name, kind in fields.items())
    return NeuronautError(f"{file}:{number}: {what}; wanted one object a line with {shape}")


# Pairs


def done_task(subject: "Subject", options: Mapping[str, Any], *, seed: int) -> "Task":
    """As `task_of`; refuses a task that the subject does not do, as `circuit` does, and counts pairs it gets wrong."""
    from ...causal.questions import count_wrong

    task = task_of(subject, options, seed=seed)
    if note := count_wrong(subject, task, seed=seed):
        say(note)
    return task


def task_of(subject: "Subject", options: Mapping[str, Any], *, seed: int) -> "Task":
    """The pairs that `pair_options` name, in one of the three ways."""
    from ...causal.circuits import tasks

    single = [options[name] for name in ("clean", "corrupted", "answer", "wrong")]
    ways = [options["task"] is not None, options["pairs"] is not None, any(text is not None for text in single)]
    if sum(ways) != 1 or (ways[2] and None in single):
        raise click.UsageError(
            "wanted pairs in one way: --task NAME, or --pairs FILE, or --clean, --corrupted, --answer and --wrong"
        )
    if options["task"] is not None:
        return tasks.generate(subject, options["task"], rows=options["rows"], seed=seed)
    if options["pairs"] is not None:
        task = tasks.read_task(subject, options["pairs"])
        _say_of_pairs(subject, [row for _, row in lines(options["pairs"], dict.fromkeys(_PAIR, str))])
        return task
    clean, corrupted, answer, wrong = map(plain, single)
    _say_of_pairs(subject, [dict(zip(_PAIR, (clean, corrupted, answer, wrong), strict=True))])
    return tasks.Task.of(subject, "one pair", [tasks.row_of(subject, (clean, corrupted, answer, wrong))])


_PAIR = ("clean", "corrupted", "answer", "wrong")


def _say_of_pairs(subject: "Subject", rows: Sequence[Mapping[str, str]]) -> None:
    from ...causal.questions import pair_remarks

    for line in pair_remarks(subject, rows):
        say(line)


# Edits with controls, and files


def count_controls(controls: int | None, edits: Sequence[str]) -> int:
    """How many controls of each sort: only an edit that is alone has any."""
    if len(edits) == 1:
        return CONTROLS if controls is None else controls
    if controls:
        raise NeuronautError(f"--controls are those of one edit, and {len(edits)} are given; run them one by one")
    return 0


def write(file: str, text: str) -> None:
    """Write a file that the user named."""
    try:
        Path(file).expanduser().write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise NeuronautError(f"{file} cannot be written ({error.strerror}); name a file elsewhere") from error


def read(file: str) -> str:
    """Read a file that the user named; - is stdin."""
    try:
        with click.open_file(str(Path(file).expanduser()), encoding="utf-8") as stream:
            return stream.read()
    except UnicodeDecodeError as error:
        raise NeuronautError(f"{file} is not UTF-8 ({error.reason}); convert it") from None
    except OSError as error:
        raise NeuronautError(f"{file} cannot be read ({error.strerror}); check the path") from None
