"""`neuronaut harvest`: collects the text that activates features."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..data.harvest.watch import Watch
from ..subject.address import name_random
from .common import Count, Form, Progress, Row, convention_options, emit, interruptible, open_store, result_options, say

if TYPE_CHECKING:
    from ..data.corpus import Corpus
    from ..data.records import HarvestResult
    from ..data.store.store import Store
    from ..subject.model import Subject
    from ..subject.sources import Source


@click.command()
@click.argument("model", required=False)
@click.argument("sites", metavar="SITE...", nargs=-1)
@click.option(
    "--along", metavar="DIRECTION", help='Heads by what they write along it: a .npy or .safetensors, or token:" Paris".'
)
@click.option(
    "--sae", metavar="PATH", help="A dictionary or directions: folder, file, or OWNER/NAME[/FOLDER] on the hub."
)
@click.option("--name", metavar="N", help="Its name in addresses; that of its folder (directions: file) if not given.")
@click.option(
    "--model-name", metavar="N", help="The model's name in addresses; its folder's name, or id, if not given."
)
@click.option(
    "--function",
    metavar="FILE.py:NAME|URL",
    help="In place of MODEL: a function from text to a number a token, of a Python file or behind an endpoint.",
)
@click.option("--tokenizer", metavar="MODEL", help="The tokenizer of --function.  [default: words of the corpus]")
@click.option(
    "--corpus", metavar="NAME", help="stdlib, a file or folder, - (stdin), or a Hugging Face dataset NAME[:SUBSET]."
)
@click.option(
    "--tokens", type=Count(), default="2M", show_default=True, metavar="N", help="About so many tokens: 500k, 2M, all."
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens in a window.  [default: 64, or what the model holds]",
)
@convention_options
@click.option(
    "--chat", is_flag=True, help="The corpus holds lists of messages: put them into the model's chat template."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the splits and of which text is taken.")
@click.option("--encoding", default="utf-8", show_default=True, help="Of text files.")
@click.option(
    "--text-column",
    help="Field of JSONL, Parquet and datasets that holds the text.  [default: text; messages of --chat]",
)
@click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps.")
@click.option("--dtype", metavar="T", help="float32 (default), bfloat16 or float16.")
@click.option(
    "--norm-scale", type=float, metavar="X", help="What vectors were multiplied by in the dictionary's training."
)
@click.option("--allow-pickle", is_flag=True, help="Read a dictionary that is a pickle.")
@click.option("--force", is_flag=True, help="Harvest a dictionary that does not rebuild the model's vectors.")
@click.option(
    "--randomize",
    type=click.Choice(("weights", "dictionary")),
    help="A control: draw every matrix of the model, or of the dictionary, again; its name gets ~random-SEED.",
)
@click.option("--random-seed", type=click.IntRange(0, 10**9 - 1), default=0, show_default=True, help="Of --randomize.")
@click.option("--close", is_flag=True, help="End the stopped harvest of the same sites and corpus with what it has.")
@result_options
def harvest(
    model: str | None,
    sites: tuple[str, ...],
    name: str | None,
    model_name: str | None,
    function: str | None,
    tokenizer: str | None,
    corpus: str | None,
    tokens: int | None,
    window: int | None,
    seed: int,
    encoding: str,
    text_column: str | None,
    force: bool,
    randomize: str | None,
    random_seed: int,
    close: bool,
    database: str,
    form: Form,
    **load_options: Any,
) -> None:
    """Collect the text that activates features.

    Every feature of one or more SITEs of MODEL, in one pass over a corpus. MODEL is a Hugging Face id, a folder,
    or demo. A SITE is mlp.2 (the neurons of layer 2), mlp.0-3, mlp (all layers), resid_post.2 and so on;
    resid_post.2@sae is the built-in dictionary. A harvest that was stopped goes on when it is called again; with
    fewer --tokens it ends as soon as it has these, with --close at once. demo~random-0 is demo with random matrices,
    and so is any other model named so: `summary` sets its scores beside those of the trained one.

    A function takes the list of a text's token strings and returns one number for each, which may depend on the token
    and on what stands before it. Its feature is NAME:function:0; of FILE.py:NAME,NAME each is one.

    \b
    Examples:
      neuronaut harvest demo mlp.2
      neuronaut harvest demo mlp resid_post.2@sae --tokens 500k
      neuronaut harvest gpt2 mlp.5 --corpus wikitext:wikitext-103-raw-v1
      neuronaut harvest gpt2 resid_pre.8 --sae path/to/sae --name res-jb --corpus articles.jsonl
      neuronaut harvest demo mlp.2 --randomize weights
      neuronaut harvest demo head.3 --along 'token:" self"' --name self
      neuronaut harvest --function rules.py:is_city --corpus articles.jsonl
    """
    from ..data.harvest.windows import check_window
    from ..labelling.opening import LoadOptions, load_corpus, load_subject, open_sources, pass_gate, places, settle_bos

    if random_seed and randomize is None:
        raise click.UsageError("--random-seed is of --randomize; leave it out, or add that")
    options = LoadOptions(**load_options)
    if function is not None:
        _refuse_options(model, name=name, randomize=randomize, force=force or None, **load_options)
        text = load_corpus("demo", corpus, tokens=tokens, text_column=text_column or "text", encoding=encoding)
        limits = {"tokens": tokens, "window": window, "seed": seed, "close": close}
        with open_store(database, create=True, write=True) as store:
            rows = _collect_function(store, function, text, model_name, tokenizer, **limits)
        emit(rows, form, lambda rows: "\n".join(map(_format_row, rows)))
        return
    if model is None or tokenizer is not None:
        fault = "--tokenizer is of --function; leave it out" if model else "no MODEL is named"
        raise click.UsageError(f"{fault}: name a model and its sites, or --function FILE.py:NAME")
    if randomize == "weights":
        model, model_name = name_random(model, random_seed), model_name and name_random(model_name, random_seed)
    column = text_column or ("messages" if options.chat else "text")
    text = load_corpus(model, corpus, tokens=tokens, text_column=column, encoding=encoding, chat=options.chat)
    subject = load_subject(model, options, name=model_name)
    seed_of_dictionary = random_seed if randomize == "dictionary" else None
    sources = open_sources(subject, sites, options, name=name, seed=seed_of_dictionary)
    subject = settle_bos(subject, sources, asked=options.bos)
    text = text.map(subject.render_chat) if options.chat else text
    window = window or _fit_window(subject)
    check_window(subject, window)
    for line in pass_gate(subject, sources, text, window=window, force=force or randomize is not None):
        say(line)
    with open_store(database, create=True, write=True) as store:
        rows = collect(
            subject,
            sources,
            text,
            store,
            tokens=tokens,
            window=window,
            seed=seed,
            paths=places(subject, model, sources, options),
            close=close,
        )
    emit(rows, form, lambda rows: "\n".join(map(_format_row, rows)))


def _refuse_options(model: str | None, **given: object) -> None:
    """Refuse what is of models when a function is harvested."""
    if model is not None:
        raise click.UsageError(f"--function takes the place of MODEL, and {model} is named; name it with --model-name")
    defaults = {"bos": "auto"}
    if wrong := [option for option, value in given.items() if value not in (None, False, defaults.get(option))]:
        raise click.UsageError(f"--{wrong[0].replace('_', '-')} is of models; leave it out with --function")


def _collect_function(
    store: "Store",
    location: str,
    corpus: "Corpus",
    name: str | None,
    tokenizer: str | None,
    *,
    tokens: int | None,
    window: int | None,
    seed: int,
    close: bool,
) -> list[Row]:
    from ..data.harvest.activations import neurons
    from ..labelling.functions import function_paths, new_function

    subject = new_function(store, location, corpus, name=name, tokenizer=tokenizer, on_progress=say)
    return collect(
        subject,
        neurons(subject, subject.sites),
        corpus,
        store,
        tokens=tokens,
        window=window or _fit_window(subject),
        seed=seed,
        paths=function_paths(subject, tokenizer),
        close=close,
    )


WINDOW = 64
"""Tokens in a window, where the model has room for them."""


def _fit_window(subject: "Subject") -> int:
    room = subject.context - len(subject.bos_prefix)
    if room < WINDOW:
        say(f"windows have {room} tokens, not {WINDOW}: {subject.name} has {subject.context} positions")
    return min(WINDOW, room)


def collect(
    subject: "Subject",
    sources: "list[Source]",
    corpus: "Corpus",
    store: "Store",
    *,
    tokens: int | None,
    window: int,
    seed: int,
    paths: dict[str, str],
    close: bool = False,
) -> list[Row]:
    """Harvest into the store, with progress; returns one row per source."""
    from ..data.harvest.harvest import harvest as harvest_sources

    checkpoint = Path(f"{store.path}.harvest")
    names = tuple(str(source.id) for source in sources)
    say(f"reading {corpus.name} for {', '.join(names)}")
    say(subject.convention.sentence)
    started = time.monotonic()
    with interruptible(lambda: _describe_kept(checkpoint, names, corpus.name)), ExitStack() as stack:
        watch = Shown(stack)
        result = harvest_sources(
            subject,
            sources,
            corpus,
            store,
            tokens=tokens,
            window=window,
            seed=seed,
            paths=paths,
            checkpoint=checkpoint,
            close=close,
            watch=watch,
        )
    _say_what_was_read(result)
    return _make_rows(result, time.monotonic() - started, watch.tokens)


class Shown(Watch):
    """Shows on stderr how far a harvest is: a bar of tokens, then one of windows, then that it writes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar = self._begin("harvest", "tokens")
        self._mining: Progress | None = None
        self.tokens = 0
        """Tokens that were read in this call."""
        self._before = 0

    def _begin(self, what: str, unit: str) -> Progress:
        return self._stack.enter_context(Progress(what, total=None, unit=unit))

    def begins(self, done: int, of: int) -> None:
        """Count what was read before as done."""
        self._before = done
        self._bar.expect(of)
        self._bar.reach(done)

    def read(self, tokens: int) -> None:
        """Move the bar."""
        self.tokens = tokens - self._before
        self._bar.reach(tokens)

    def mined(self, windows: int, of: int) -> None:
        """Begin another bar, of windows, and move it."""
        if self._mining is None:
            self._stack.close()
            say(f"the text is read; silent windows and near misses are looked for in {of:,} windows")
            self._mining = self._begin("silent windows", "windows")
            self._mining.expect(of)
        self._mining.reach(windows)

    def writes(self) -> None:
        """Say so: a large harvest takes its time."""
        self._stack.close()
        say("writing to the database")


def _say_what_was_read(result: "HarvestResult") -> None:
    """Say which of the corpus's tokens are in the statistics, and which are not, and why."""
    if isinstance(stopped := result.provenance.get("stopped_at"), dict):
        budget = "all" if stopped["budget"] is None else f"{stopped['budget']:,}"
        say(f"ended with {stopped['tokens']:,} of {budget} tokens: of the corpus's beginning, not of all of it")
    counts, fewest = result.counts, min(source.tokens for source in result.sources)
    left_out = {
        "beyond the budget": counts.beyond_budget,
        "special tokens": counts.special,
        "of massive norm": result.tokens - counts.special - fewest,
    }
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"
    say(f"{fewest:,} of {counts.given:,} tokens that were read are counted; left out: {reasons}")
    if counts.own_bos:
        say(f"documents that bring a BOS themselves: {counts.own_bos:,}; it stands there once")
    if counts.spelled:
        say(f"documents that spell special tokens: {counts.spelled:,}; these are text, with --special-tokens tokens")


def _make_rows(result: "HarvestResult", seconds: float, read: int) -> list[Row]:
    alive = {source.source: int((source.count > 0).sum()) for source in result.sources}
    return [
        {
            "source": source.source,
            "features": source.width,
            "alive": alive[source.source],
            "dead": source.width - alive[source.source],
            "tokens": result.tokens,
            "counted": source.tokens,
            "given": result.counts.given,
            "corpus": result.corpus,
            "window": result.window,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(read / seconds) if read else None,
        }
        for source in result.sources
    ]


def _describe_kept(checkpoint: Path, sources: tuple[str, ...], corpus: str) -> str:
    from ..data.harvest.state import find_stopped

    # Others lie beside the same database.
    checkpoints = [kept for kept in find_stopped(checkpoint) if (kept.sources, kept.corpus) == (sources, corpus)]
    if not checkpoints:
        return "nothing of this harvest is kept yet"
    latest = checkpoints[0]
    age = time.time() - latest.path.stat().st_mtime
    return (
        f"the harvest up to {age:.0f} s ago, {latest.tokens:,} tokens, is kept in {latest.path} (--close ends it there)"
    )


def _format_row(row: Row) -> str:
    rate = "" if row["tokens_per_second"] is None else f", {row['tokens_per_second']:,} tokens/s"
    return (
        f"{row['source']}: {row['features']:,} features, {row['alive']:,} alive, {row['dead']:,} dead, "
        f"{row['tokens']:,} tokens of {row['corpus']}{rate}"
    )
