"""Shared by all verbs: options, kinds of argument, the printing of rows, and the progress of long work.

Results go to stdout, everything else to stderr. This module is imported for `neuronaut --help`, so it
imports nothing heavy.
"""

import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import click

from ..subject.errors import NeuronautError
from ..subject.pace import Pace, duration
from . import display

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..data.store.store import Store
    from ..subject.address import Feature

DEBUG = "neuronaut.debug"
"""Key of `Context.meta`: whether tracebacks are wanted."""
ARGUMENTS = "neuronaut.arguments"
"""Key of `Context.meta`: the command line after `neuronaut`."""

Form = Literal["table", "json", "nl"]
Row = dict[str, Any]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

SILENT_SECONDS = 10.0
"""Seconds between lines of progress where stderr is not a terminal."""


class Stopped(Exception):
    """A command was stopped; the message says what of its work is kept."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


class Listing(click.Group):
    """A group that lists where no verb is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `list` before options that are not the group's own."""
        wants_help = set(args) & set(self.get_help_option_names(ctx))
        if not wants_help and (not args or args[0].startswith("-")):
            args = ["list", *args]
        return super().parse_args(ctx, args)


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[DEBUG] = True


debug_option = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug, help="Show an error's traceback."
)
database_option = click.option(
    "-d",
    "--database",
    envvar="NEURONAUT_DB",
    default="neuronaut.db",
    show_default=True,
    metavar="FILE",
    help="The database, also from NEURONAUT_DB.",
)
source_option = click.option("--source", metavar="SOURCE", help="Only this source, for example demo:mlp.2.")
min_score_option = click.option("--min-score", type=float, metavar="X", help="Only scores of at least X.")
STATUSES = ("explained", "weak", "dead", "too_rare", "dense", "no_pattern", "failed", "unlabelled")
status_option = click.option(
    "--status", type=click.Choice(STATUSES), help="Only features of this status; weak: the explanation proves nothing."
)
beats_baseline_option = click.option(
    "--beats-baseline", is_flag=True, help="Only explanations whose score is above every baseline."
)
limit_option = partial(click.option, "--limit", type=click.IntRange(1, 2**31), metavar="N", show_default=True)


def all_of(*options: Decorator) -> Decorator:
    """Combine several options into one decorator; the help lists them in this order."""
    return lambda function: reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


form_options = all_of(
    click.option("--json", "form", flag_value="json", default="table", help="Print one JSON array."),
    click.option("--nl", "form", flag_value="nl", default="table", help="Print one JSON object a line."),
    debug_option,
)
result_options = all_of(database_option, form_options)
filter_options = all_of(min_score_option, status_option, beats_baseline_option)


on_option = click.option(
    "--on", metavar="ray[:ADDRESS]", help="Where -j workers run: on a Ray cluster, a local one where none is named."
)
convention_options = all_of(
    click.option(
        "--bos",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Whether BOS stands before each text; auto: as the dictionary was trained, else as the tokenizer does.",
    ),
    click.option(
        "--special-tokens", is_flag=True, help="Read special tokens that a text spells as tokens, not as text."
    ),
)


class Count(click.ParamType):
    """A number of tokens: `2000000`, `2M`, `500k`, `1.5B`, or `all`, which is None."""

    name = "count"
    _FACTORS: Mapping[str, int] = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Read the number; 'all' stands for no bound."""
        text = str(value).replace("_", "").replace(",", "").lower()
        if text == "all":
            return None
        match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)([kmb]?)", text)
        if match is None or (number := int(float(match[1]) * self._FACTORS[match[2]])) < 1:
            self.fail(f"{value!r} is not a number of tokens; wanted for example 500k, 2M or all", param, ctx)
        return number


def parse_minutes(text: str | None) -> float | None:
    """Read the minutes of `minutes=5`, the only budget where no language model is asked; None where there is none."""
    if text is None:
        return None
    key, _, value = text.partition("=")
    if key in ("usd", "tokens", "calls"):
        raise NeuronautError(f"--budget {text} limits a language model, and none is named; add -m, or use minutes=5")
    if key != "minutes":
        raise NeuronautError(f"--budget {text} is not known; wanted for example minutes=5")
    try:
        minutes = float(value)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise NeuronautError(f"--budget {text} is no time; wanted more than zero, for example minutes=5")
    return minutes


@contextmanager
def open_store(database: str, *, create: bool = False, write: bool = False) -> "Generator[Store]":
    """Open the database, and close it afterwards; an error that says how to make one where there is none.

    `write` refuses one that can only be read, before any work is done for it.
    """
    from ..data.store.store import Store

    file = Path(database)
    if write and file.exists() and not (os.access(file, os.W_OK) and os.access(file.absolute().parent, os.W_OK)):
        raise NeuronautError(f"{database} can only be read; change its permissions, or name another file with -d")
    with Store(database, create=create) as store:
        yield store


def emit(rows: Iterable[Row], form: Form, table: Callable[[list[Row]], str]) -> None:
    """Print rows as one JSON array, as one object a line as they come, or as a table."""
    drop_later()
    if form == "nl":
        for row in rows:
            click.echo(as_json(row))
    elif form == "json":
        click.echo(_escape(json.dumps(list(rows), ensure_ascii=False, indent=1, allow_nan=False)))
    elif text := table(list(rows)):
        click.echo(display.harmless(text))


def as_json(row: Row) -> str:
    """Write one row as JSON on one line."""
    return _escape(json.dumps(row, ensure_ascii=False, allow_nan=False))


_COMMANDS = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON leaves as it is and a terminal obeys: further controls, and turns of the writing direction."""


def _escape(text: str) -> str:
    """The same JSON, in which nothing commands a terminal."""
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: str) -> None:
    """Print a message to the user, on stderr, since it is no result."""
    drop_later()
    click.echo(display.harmless(text), err=True)


_later: threading.Timer | None = None
LATER_SECONDS = 3.0


def say_later(text: str) -> None:
    """Say it where nothing else was said or printed for LATER_SECONDS, and libraries have still to be imported."""
    global _later
    drop_later()
    if "torch" in sys.modules:
        return
    _later = threading.Timer(LATER_SECONDS, click.echo, [display.harmless(text)], {"err": True})
    _later.daemon = True
    _later.start()


def drop_later() -> None:
    """Say no more what waits to be said."""
    if _later is not None:
        _later.cancel()


@contextmanager
def interruptible(describe_kept: Callable[[], str]) -> Generator[None]:
    """Turn an interrupt, or SIGTERM, into `Stopped` with what `describe_kept` says at that moment."""
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Stopped(describe_kept()) from stop
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def chosen_features(store: "Store", texts: Sequence[str]) -> "list[Feature]":
    """Look up the features that were named, each once, all of one model; an error where there are none."""
    features = list(dict.fromkeys(feature for text in texts for feature in store.features(text)))
    if not features:
        raise NeuronautError(
            f"{' '.join(texts)} names no feature that was ever active; harvest more text, or name others"
        )
    if len(models := sorted({feature.source.model for feature in features})) > 1:
        raise NeuronautError(f"features of {' and '.join(models)} were named; wanted one model at a time")
    return features


class Progress:
    """Shows the progress of long work on stderr: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, *, total: int | None, unit: str, resumes: bool = False, workers: int = 0) -> None:
        """`resumes`: the first number that is reached was done before, and rate and time left are of what follows.

        The same holds of the first that each of `workers` does, which brings the worker's start with it.
        """
        self._what, self._total, self._unit = what, total, unit
        self._bar: tqdm[Any] | None = None
        self._done, self._note, self._doing = 0, "", ""
        self._resumes, self._before, self._starting = resumes, 0, workers
        self._started = self._last_event = self._last_line = time.monotonic()
        self._silent = True
        self._block: int | None = None
        self._passes, self._shared_seconds = 0, 0.0
        self._pace = Pace()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total, desc=self._what, unit=f" {self._unit}", unit_scale=True, leave=False, file=sys.stderr
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def expect(self, total: int, *, block: int | None = None) -> None:
        """Set how much there is to do, once that is known; each `block` of it begins with work that it shares."""
        self._block = block
        if self._bar is not None and total != self._total:
            self._bar.total = total
            self._bar.refresh()
        self._total = total

    def restart(self) -> None:
        """Forget the time so far, which was not of this work."""
        self._started = self._last_event = time.monotonic()
        self._passes, self._shared_seconds = 0, 0.0

    def skip(self, count: int) -> None:
        """Note that so much more was done before; rate and time left are of what follows."""
        begins = self._done == self._before
        if begins:
            self.restart()
        self._before += count
        self._done += count
        if (bar := self._bar) is not None:
            bar.initial, bar.n, bar.last_print_n = self._before, bar.n + count, bar.last_print_n + count
            if begins:
                bar.unpause()
            bar.refresh()

    def share(self, done: int) -> float | None:
        """Of how much so much is done; None where that is not known."""
        return done / self._total if self._total else None

    def reach(self, done: int, note: str = "", *, at_once: bool = False) -> None:
        """Set how much is done; `note` is shown beside it. `at_once`: the first line is written without delay."""
        if self._resumes:
            self._resumes = False
            self.skip(done)
        elif self._starting:
            self._starting = max(0, self._starting - (done - self._done))
            self.skip(done - self._done)
        advance, self._done, self._note, self._doing = done - self._done, done, note, ""
        if self._bar is not None:
            self._bar.update(advance)
        self._show(at_once=at_once and self._silent)

    def doing(self, what: str, done: int, total: int) -> None:
        """Say what is being done, at once the first time, and where `total` is above 0, how much of it.

        The time of what is told with a total does not count for the rate: a block shares it.
        """
        self._doing = self._pace.format(what, done, total)
        if self._pace.left is not None and self._total is not None and self._done < self._total:
            self._doing += f", then {self._total - self._done:,} {self._unit}"
        if total:
            self._passes += done == 0
            self._shared_seconds += (spent := time.monotonic() - self._last_event)
            self._started += spent
        self._show(at_once=self._silent)

    def _show(self, *, at_once: bool = False) -> None:
        self._last_event = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(filter(None, (self._note, self._doing))))
        elif at_once or self._last_event - self._last_line > SILENT_SECONDS:
            self._last_line, self._silent = self._last_event, False
            say(self._format_line())

    def echo(self, text: str) -> None:
        """Print a result without disturbing the bar."""
        if self._bar is None:
            click.echo(text)
            return
        self._bar.clear()
        click.echo(text)
        self._bar.refresh()

    def _format_line(self) -> str:
        if not self._done and not self._total:
            return f"{self._what}: " + ", ".join(filter(None, (self._note, self._doing)))
        line = f"{self._what}: {self._done:,}"
        if self._total:
            line += f" of {self._total:,}"
        line += f" {self._unit}"
        if self._done > self._before:
            seconds = (time.monotonic() - self._started) / (self._done - self._before)
            line += f", {1 / seconds:,.1f}/s" if seconds <= 1 else f", {seconds:,.1f} s each"
            if self._total:
                left = max(0.0, self._total - self._done) * seconds + self._shared_left(self._total)
                line += f", {duration(left)} left"
        return ", ".join(filter(None, (line, self._note, self._doing)))

    def _shared_left(self, total: int) -> float:
        """Seconds of the shared work of the blocks to come."""
        if self._block is None or not self._passes:
            return 0.0
        return max(0, -(-total // self._block) - self._passes) * self._shared_seconds / self._passes


def plain(text: str) -> str:
    """Return the text, or raise NeuronautError where the terminal passed on bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NeuronautError(
            f"the text {text!a} is not UTF-8; set the terminal to UTF-8, or convert the text"
        ) from error
    return text
