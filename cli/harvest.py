"""`neuronaut harvest`: collects the text that activates features."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .common import (
    Count,
    Form,
    Progress,
    Row,
    convention_options,
    emit,
    interruptible,
    on_option,
    open_store,
    result_options,
    say,
    say_later,
)
from .harvest_apart import Apart, collect_by_hand, collect_by_workers, format_part, split_devices
from .harvest_view import Shown, format_estimate, format_row, make_estimate_row, make_rows, say_what_was_read

if TYPE_CHECKING:
    from ..data.corpus import Corpus
    from ..data.store.store import Store
    from ..subject.model import Subject
    from ..subject.sources import Source
    from .harvest_request import OpenHarvest


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
@click.option("-j", "--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Worker processes.")
@click.option("--devices", metavar="D,D", help="A worker on each of these devices, such as cuda:0,cuda:1.")
@on_option
@click.option("--shard", metavar="I/N", help="Harvest only part I of N of the corpus, into the file of -o.")
@click.option("-o", "--output", metavar="FILE.npz", help="Where a --shard goes; `db absorb` merges all of them.")
@click.option("--close", is_flag=True, help="End the stopped harvest of the same sites and corpus with what it has.")
@click.option("--dry-run", is_flag=True, help="Say how much memory, disk and time it will need; write nothing.")
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
    jobs: int,
    devices: str | None,
    on: str | None,
    shard: str | None,
    output: str | None,
    close: bool,
    dry_run: bool,
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
      neuronaut harvest gpt2 mlp --corpus articles.jsonl --devices cuda:0,cuda:1
      neuronaut harvest gpt2 mlp --corpus articles.jsonl --shard 3/16 -o part3.npz
      neuronaut harvest gpt2 mlp --corpus articles.jsonl --dry-run
      neuronaut harvest --function rules.py:is_city --corpus articles.jsonl
    """
    if random_seed and randomize is None:
        raise click.UsageError("--random-seed is of --randomize; leave it out, or add that")
    apart = Apart(jobs, split_devices(devices), on, shard, output)
    apart.check(corpus, close=close, function=function is not None, dry_run=dry_run)
    if model is not None:
        say_later(f"opening {model}")
    from ..labelling.opening import LoadOptions, load_corpus
    from .harvest_request import HarvestRequest

    if function is not None:
        _refuse_options(model, name=name, randomize=randomize, force=force or None, **load_options)
        text = load_corpus("demo", corpus, tokens=tokens, text_column=text_column or "text", encoding=encoding)
        limits = {"tokens": tokens, "window": window, "seed": seed, "close": close}
        emit(_collect_function(database, function, text, model_name, tokenizer, **limits), form, _format_rows)
        return
    if model is None or tokenizer is not None:
        fault = "--tokenizer is of --function; leave it out" if model else "no MODEL is named"
        raise click.UsageError(f"{fault}: name a model and its sites, or --function FILE.py:NAME")
    request = HarvestRequest(
        model=model,
        sites=sites,
        load_options=LoadOptions(**load_options),
        corpus=corpus,
        tokens=tokens,
        window=window,
        seed=seed,
        name=name,
        model_name=model_name,
        text_column=text_column,
        encoding=encoding,
        force=force,
        randomize=randomize,
        random_seed=random_seed,
    )
    if shard is not None:
        emit([collect_by_hand(request, apart)], form, lambda rows: "\n".join(map(format_part, rows)))
        return
    opened = request.open()
    request.pass_gate(opened)
    if dry_run:
        emit([_estimate(opened, tokens=tokens, seed=seed)], form, lambda rows: "\n".join(map(format_estimate, rows)))
        return
    with open_store(database, create=True, write=True) as store:
        if apart.workers > 1 or on is not None:
            rows = collect_by_workers(request, opened, store, apart)
        else:
            own = {"tokens": tokens, "window": opened.window, "seed": seed, "paths": opened.paths, "close": close}
            rows = collect(opened.subject, opened.sources, opened.corpus, store, **own)
    emit(rows, form, _format_rows)


def _format_rows(rows: list[Row]) -> str:
    return "\n".join(map(format_row, rows))


def _estimate(opened: "OpenHarvest", *, tokens: int | None, seed: int) -> Row:
    from ..data.harvest.estimate import estimate

    say(f"running the first windows of {opened.corpus.name} to see what a harvest will need")
    limits = {"window": opened.window, "tokens": tokens, "seed": seed}
    with Progress("dry run", total=None, unit="tokens") as progress:
        found = estimate(opened.subject, opened.sources, opened.corpus, **limits, progress=progress.doing)
    return make_estimate_row(found)


def _refuse_options(model: str | None, **given: object) -> None:
    """Refuse what is of models when a function is harvested."""
    if model is not None:
        raise click.UsageError(f"--function takes the place of MODEL, and {model} is named; name it with --model-name")
    defaults = {"bos": "auto"}
    if wrong := [option for option, value in given.items() if value not in (None, False, defaults.get(option))]:
        raise click.UsageError(f"--{wrong[0].replace('_', '-')} is of models; leave it out with --function")


def _collect_function(
    database: str,
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
    from .harvest_request import fit_window

    with open_store(database, create=True, write=True) as store:
        subject = new_function(store, location, corpus, name=name, tokenizer=tokenizer, on_progress=say)
        return collect(
            subject,
            neurons(subject, subject.sites),
            corpus,
            store,
            tokens=tokens,
            window=window or fit_window(subject),
            seed=seed,
            paths=function_paths(subject, tokenizer),
            close=close,
        )


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
    say_what_was_read(result)
    return make_rows(result, time.monotonic() - started, watch.tokens)


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
