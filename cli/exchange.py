"""Verbs that carry explanations from one place to another: export, import."""

import sys
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import TextIOWrapper
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..subject.errors import NeuronautError
from . import display
from .common import (
    Form,
    Row,
    database_option,
    debug_option,
    emit,
    filter_options,
    interruptible,
    open_store,
    result_options,
    say,
    source_option,
)
from .label import subject_options

if TYPE_CHECKING:
    from ..data.store.importing import Imported
    from ..data.store.listing import Conditions
    from ..data.store.store import Store
    from ..subject.address import Feature, SourceId
    from ..subject.model import Subject
    from ..subject.sources import Source

model_id_option = click.option(
    "--model-id", metavar="NAME", help="The model's name at Neuronpedia, as gpt2-small for gpt2."
)


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The options of one export."""

    store: "Store"
    output: str
    source: str | None
    conditions: "Conditions"
    options: Mapping[str, Any]
    """Options that only some formats take."""

    @property
    def sources(self) -> "list[SourceId] | None":
        """The one source to export; None for all."""
        from ..subject.address import SourceId

        return None if self.source is None else [SourceId.parse(str(self.store.known_source(self.source)))]


@click.command()
@click.option(
    "--format",
    "kind",
    type=click.Choice(("jsonl", "csv", "neuronpedia", "neuronpedia-page", "neuronpedia-upload")),
    default="jsonl",
    show_default=True,
)
@click.option(
    "-o",
    "--output",
    "--out",
    "output",
    default="-",
    metavar="FILE",
    help="Stdout if not given; a folder for Neuronpedia's formats.",
)
@source_option
@filter_options
@model_id_option
@click.option("--method", metavar="NAME", help="Name of the kind of explanation, as it is registered at Neuronpedia.")
@subject_options
@database_option
@debug_option
def export(
    kind: str,
    output: str,
    source: str | None,
    min_score: float | None,
    status: str | None,
    beats_baseline: bool,
    database: str,
    **options: Any,
) -> None:
    """Write explanations and scores to a file.

    jsonl and csv have the rows of `list`, with the status weak for what may be worth nothing. neuronpedia is the
    tree that Neuronpedia's own import reads. neuronpedia-page is the page of each feature, explained or not, as its
    API gives it: activating text, histograms, tokens and explanations. neuronpedia-upload are bodies for its public
    API, for features of a source set of your own. For pages and uploads the model is opened.

    \b
    Examples:
      neuronaut export > features.jsonl
      neuronaut export --format csv -o features.csv --source demo:mlp.2
      neuronaut export --format neuronpedia -o tree/ --min-score 0.5 --model-id gpt2-small
      neuronaut export --format neuronpedia-page -o pages/ --source demo:mlp.2 --status explained
      neuronaut export --format neuronpedia-upload -o upload/ --source demo:mlp.2
    """
    writer, takes = _FORMATS[kind]
    for name in options:
        if options[name] and name not in takes:
            others = " and ".join(other for other, (_, names) in _FORMATS.items() if name in names)
            raise click.UsageError(f"--{name.replace('_', '-')} is not for --format {kind}; it goes with {others}")
    if takes and output == "-":
        raise click.UsageError(f"--format {kind} writes several files; name their folder with -o")
    with open_store(database) as store, interruptible(lambda: _describe_stop(output)):
        conditions: Conditions = {"min_score": min_score, "status": status, "beats_baseline": beats_baseline}
        writer(ExportRequest(store, output, source, conditions, options))


def _write_rows(kind: str) -> Callable[[ExportRequest], None]:
    def write(request: ExportRequest) -> None:
        from ..data.store.export import WRITERS

        count = 0

        def rows() -> Iterator[Row]:
            nonlocal count
            read = request.store.rows_with_people if kind == "jsonl" else request.store.iterate_rows
            for row in read(request.source, **request.conditions):
                yield row
                count += 1

        with _open_output(request.output) as stream:
            WRITERS[kind](rows(), stream)
        if request.output != "-":
            say(f"{count:,} features are in {request.output}")

    return write


def _write_tree(request: ExportRequest) -> None:
    from ..data.store.export import write_neuronpedia

    _print_paths(
        write_neuronpedia(
            request.store,
            request.output,
            sources=request.sources,
            model=request.options["model_id"],
            **request.conditions,
        )
    )


def _write_uploads(request: ExportRequest) -> None:
    from ..data.store.export import EFFECTS, TEXT, write_uploads
    from ..subject.directions import promoted

    paths: list[Path] = []
    for subject, source in _open_sources(request):
        uploads = write_uploads(
            request.store,
            request.output,
            source.id,
            promoted=lambda f, s=source, m=subject: promoted(m, s, f, count=EFFECTS),
            model=request.options["model_id"],
            method=request.options["method"],
            **request.conditions,
        )
        paths += uploads.paths
        _say_features(uploads.shortened, f"cut to {TEXT} characters")
        _say_features(uploads.silent, _SILENT)
        _say_features(uploads.weak, "weak, which an upload cannot say; --status explained leaves them out")
    _print_paths(paths)


def _write_pages(request: ExportRequest) -> None:
    from ..data.store.export import EFFECTS
    from ..data.store.pages import BARS, write_pages
    from ..subject.directions import logit_effects

    paths: list[Path] = []
    for subject, source in _open_sources(request):
        pages = write_pages(
            request.store,
            request.output,
            source.id,
            effects=lambda f, s=source, m=subject: logit_effects(m, s, f, count=EFFECTS, bars=BARS),
            model=request.options["model_id"],
            **request.conditions,
        )
        paths += pages.paths
        _say_features(pages.silent, _SILENT)
    _print_paths(paths)


_SILENT = "left out, because no stored text activates them"


def _open_sources(request: ExportRequest) -> "Iterator[tuple[Subject, Source]]":
    """The sources to export, opened, each with its model."""
    from ..data.store.export import places
    from ..labelling.opening import LoadOptions, stored_sources, stored_subject
    from ..subject.address import Feature

    options = LoadOptions(**{name: value for name, value in request.options.items() if name in _OPENING})
    ids = sorted(places(request.store, request.sources, model=request.options["model_id"]), key=str)
    for name, own in groupby(ids, key=lambda id: id.model):
        subject = stored_subject(request.store, name, options)
        for id in own:
            yield subject, stored_sources(request.store, subject, [Feature(id, 0)], options)[id]


_OPENING = frozenset({"model", "sae", "norm_scale", "allow_pickle", "device", "dtype"})
_FORMATS: Mapping[str, tuple[Callable[[ExportRequest], None], frozenset[str]]] = {
    "jsonl": (_write_rows("jsonl"), frozenset()),
    "csv": (_write_rows("csv"), frozenset()),
    "neuronpedia": (_write_tree, frozenset({"model_id"})),
    "neuronpedia-page": (_write_pages, frozenset({"model_id"}) | _OPENING),
    "neuronpedia-upload": (_write_uploads, frozenset({"model_id", "method"}) | _OPENING),
}
"""The writer of each format, and the options that only some formats take; those that take any need a folder."""


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        click.echo(display.visible(str(path)))
    if not paths:
        say("nothing is explained that could be exported")


def _say_features(features: "Sequence[Feature]", what: str) -> None:
    if features:
        names = ", ".join(map(str, features[:5])) + (", …" if len(features) > 5 else "")
        say(f"{len(features):,} {what}: {names}")


def _describe_stop(output: str) -> str:
    return "" if output == "-" else f"nothing half written is left in {output}"


@contextmanager
def _open_output(output: str) -> Generator[TextIO]:
    from ..data.store.files import open_whole

    if output == "-":
        yield sys.stdout
        # A disk that is full says so here, while it can be told.
        sys.stdout.flush()
        return
    with open_whole(output) as file:
        stream = TextIOWrapper(file, encoding="utf-8", newline="")
        yield stream
        stream.detach()


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--source", metavar="SOURCE", help="What the rows are about, by whatever name they call it.")
@model_id_option
@click.option("--evidence", is_flag=True, help="Add features without a model: tokens and activations of FILE.")
@click.option("--tokenizer", metavar="PATH", help="Of --evidence that holds token ids: a model's folder or id.")
@result_options
def import_(
    files: tuple[str, ...],
    source: str | None,
    model_id: str | None,
    evidence: bool,
    tokenizer: str | None,
    database: str,
    form: Form,
) -> None:
    """Add explanations, or evidence, that were made elsewhere.

    FILE is JSON lines or CSV (.jsonl, .csv, also with .gz) with columns feature and explanation, as `export`
    writes them, or with Neuronpedia's modelId, layer, index and description; or a feature's page at Neuronpedia
    (.json); or a folder of such files, as Neuronpedia's v1/MODEL/LAYER. A column rule is checked. The features must
    have been harvested. What is there already is not added again. Scores are not imported.

    With --evidence FILE holds activations: JSON lines of feature, tokens, activations and, if known, document; or
    OpenAI's neuron records, Neuronpedia's activations and pages, SAEDashboard's JSON, or delphi's caches. Their
    features can be labelled by language models, scored, searched and shown without the model.

    \b
    Examples:
      neuronaut import features.jsonl
      neuronaut import v1/gpt2-small/8-res-jb --source gpt2:resid_pre.8@res-jb
      neuronaut import v1/gpt2-small --model-id gpt2-small -d gpt2.db
      neuronaut import --evidence records/ --source 'gpt2-xl:mlp.{layer}' -d openai.db
    """
    from ..data.store.importing import Sources, import_files
    from ..data.store.lines import list_tables
    from ..rules.language import Rule
    from ..subject.address import SourceId

    if tokenizer is not None and not evidence:
        raise click.UsageError("--tokenizer is of --evidence; leave it out, or add that")
    if model_id is not None and evidence:
        raise click.UsageError("--model-id is of explanations; name the source of --evidence with --source")
    if source is not None and model_id is not None:
        raise click.UsageError("--source and --model-id both say what the rows are about; give one of them")
    if evidence:
        _import_evidence(files, source, tokenizer, database, form)
        return
    paths = list(dict.fromkeys(path for file in files for path in list_tables(file)))
    kept = f"what was read is in {database}, and is not added again"
    with open_store(database, write=True) as store, interruptible(lambda: kept):
        only = None if source is None else SourceId.parse(str(store.known_source(source)))
        sources = Sources(store, source=only, model=model_id)
        reports = import_files(store, paths, sources=sources, check_rule=lambda text: Rule.parse(text).to_json())
    emit(map(_report_row, reports), form, lambda rows: display.table(rows, _COLUMNS))
    _say_end(reports, database)


def _import_evidence(
    files: tuple[str, ...], source: str | None, tokenizer: str | None, database: str, form: Form
) -> None:
    from ..data.store.evidence import import_evidence
    from ..data.store.evidence_files import Naming, list_evidence

    def read_tokens() -> Sequence[str]:
        from ..subject.loading import load_tokens

        assert tokenizer is not None
        return load_tokens(tokenizer)

    paths = list(dict.fromkeys(path for file in files for path in list_evidence(file)))
    naming = Naming(source, read_tokens if tokenizer else None)
    with open_store(database, create=True, write=True) as store:
        rows = [report._asdict() for report in import_evidence(store, paths, naming)]
    columns = [display.key(name, right=name != "source") for name in rows[0]]
    emit(rows, form, lambda rows: display.table(rows, columns))


_COLUMNS = [
    display.key("file"),
    *(
        display.key(name, name.replace("_", " "), right=True)
        for name in ("rows", "added", "already_there", "without_text")
    ),
    display.Column("not matched", lambda row: f"{sum(reason['rows'] for reason in row['not_matched']):,}", right=True),
]


def _report_row(report: "Imported") -> Row:
    missing = [
        {"reason": reason, "rows": len(numbers), "lines": ranges(numbers)}
        for reason, numbers in report.not_matched.items()
    ]
    return asdict(report) | {"not_matched": missing}


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers, runs of them as first and last: `1-3, 7`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _say_end(reports: "Sequence[Imported]", database: str) -> None:
    lines: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        for reason, numbers in report.not_matched.items():
            lines[reason].append(f"{report.file}:{ranges(numbers)}")
    for reason, where in lines.items():
        say(f"not imported, {reason}: {display.cut('; '.join(where))}")
    if scored := sum(report.with_scores for report in reports):
        say(f"{scored:,} scores were left behind, they cannot be checked here; make them with: neuronaut score")
    if not any(report.added or report.already_there for report in reports):
        raise NeuronautError(
            f"nothing was imported into {database}: no row explains a feature that is there; harvest it, or say what "
            "the rows are about with --source or --model-id (neuronaut sources lists what is there)"
        )
