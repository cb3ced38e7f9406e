"""`neuronaut sources`: lists the sources of the database, and looks at a dictionary's files."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..subject.errors import NeuronautError
from . import display
from .common import Form, Listing, Row, emit, form_options, open_store, result_options, say
from .query import count_columns

if TYPE_CHECKING:
    from ..subject.formats_report import FileReport


@click.group(cls=Listing)
def sources() -> None:
    """List the sources in the database, or look at a dictionary's files.

    A source is a family of features at a site: the neurons, or a dictionary. Without a verb they are listed.

    \b
    Examples:
      neuronaut sources
      neuronaut sources inspect path/to/sae
    """


@sources.command("list")
@result_options
def list_(database: str, form: Form) -> None:
    """List the sources in the database.

    \b
    Examples:
      neuronaut sources list --json | jq '.[].source'
    """
    with open_store(database) as store:
        rows = store.sources()
    transcoders = [display.key("writes")] if any(row["writes"] != row["site"] for row in rows) else []
    columns = [
        display.key("source"),
        *transcoders,
        *count_columns(width="features", alive="alive", explained="explained", weak="weak", tokens="tokens"),
        display.key("corpus"),
    ]
    emit(rows, form, lambda rows: display.table(rows, columns))
    if not rows:
        say("there is none yet; a harvest that was stopped is told of by: neuronaut db status")


@sources.command()
@click.argument("path")
@click.argument("model", required=False)
@click.option("--sae-site", metavar="SITE", help="The site that it reads, where its files do not name it.")
@click.option("--corpus", metavar="NAME", help="Of the gate: as of harvest; stdlib for demo.")
@click.option("--norm-scale", type=float, metavar="X", help="What vectors were multiplied by in its training.")
@click.option("--allow-pickle", is_flag=True, help="Read a pickle.")
@click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps.")
@click.option("--dtype", metavar="T", help="float32 (default), bfloat16 or float16.")
@form_options
def inspect(path: str, model: str | None, sae_site: str | None, corpus: str | None, form: Form, **options: Any) -> None:
    """Tell what lies at PATH: the format, by which tensors it is told, the parts, the sites.

    PATH is a dictionary's file or folder, or OWNER/NAME[/FOLDER] on the hub. With a MODEL it is tried on real vectors
    as harvest does: how much variance it leaves unexplained there and at nearby sites. Of what cannot be read the
    tensors are printed, and the reason.

    \b
    Examples:
      neuronaut sources inspect path/to/sae
      neuronaut sources inspect path/to/sae gpt2 --corpus articles.jsonl
      neuronaut sources inspect ae.pt --allow-pickle --sae-site resid_post.8
    """
    from ..subject.direction_matrix import holds_directions
    from ..subject.formats_report import HOW_TO_ADD, report_on

    if holds_directions(path):
        raise NeuronautError(
            f"{path} holds directions, no dictionary; list them with: neuronaut directions list {path}"
        )
    if model is None and (unused := [name for name in ("device", "dtype") if options[name]] or corpus):
        raise click.UsageError(f"--{unused[0] if isinstance(unused, list) else 'corpus'} is of a MODEL; name one")
    scale = {name: options[name] for name in ("norm_scale", "allow_pickle")}
    report = report_on(path, site=sae_site, **scale)
    sites = {name: ", ".join(getattr(report, name)) or None for name in ("reads", "writes", "layers")}
    row: Row = {
        "path": path,
        **asdict(report),
        **sites,
        "how": HOW_TO_ADD if report.format is None else None,
        "gate": None,
    }
    if model is not None and report.readable:
        row["gate"] = _try_on(model, report, path, corpus, options)
    emit([row], form, lambda _: "\n".join(_format(row)))


def _try_on(model: str, report: "FileReport", path: str, corpus: str | None, options: dict[str, Any]) -> Row:
    """The gate's figures of the dictionary on a model."""
    from ..labelling.opening import LoadOptions, load_corpus, load_subject, open_sources, settle_bos, try_dictionary
    from ..subject.dictionary import Dictionary
    from .harvest_request import WINDOW

    text = load_corpus(model, corpus, tokens=None, text_column="text", encoding="utf-8")
    load_options = LoadOptions(sae=path, **options)
    subject = load_subject(model, load_options)
    (source,) = open_sources(subject, [report.site] if report.site else [], load_options, name="dictionary")
    assert isinstance(source, Dictionary), "--sae opens one"
    subject = settle_bos(subject, [source], asked=load_options.bos)
    room = subject.room
    tried = try_dictionary(subject, source, text, window=min(WINDOW, room), force=True)
    figures = {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in asdict(tried.gate).items()
    }
    return {
        **figures,
        "admitted": tried.gate.admitted,
        "doubts": list(tried.gate.doubts),
        "left_out": tried.left_out,
        "by_site": {site: fit.fvu if math.isfinite(fit.fvu) else None for site, fit in tried.gate.sites.items()},
        "sites": {site: fvu if math.isfinite(fvu) else None for site, fvu in tried.sweep.fvu.items()},
        "warning": tried.sweep.warning,
    }


def _format(row: Row) -> Iterator[str]:
    lines: dict[str, str] = {
        "file": row["file"],
        "configuration": row["configuration"] or "none",
        "format": row["format"] or "not known",
    }
    if row["told_by"]:
        lines["told by"] = row["told_by"]
    lines["tensors"] = ", ".join(
        f"{name} {'x'.join(map(str, shape)) or '()'}" for name, shape in row["tensors"].items()
    )
    reads = row["reads"] or "not named; add --sae-site"
    lines["reads"] = reads + (" before its gain" if row["without_gain"] else "")
    if row["writes"] != row["reads"]:
        lines["writes"] = row["writes"]
    if row["layers"]:
        lines["layers"] = f"a file for each of {row['layers']}; another one with --sae-site"
    if parts := row["parts"]:
        lines |= _format_parts(parts)
    if gate := row["gate"]:
        lines |= _format_gate(gate)
    if row["problem"]:
        lines["not read"] = row["problem"]
    if row["how"]:
        lines["to add it"] = row["how"]
    width = max(map(len, lines))
    yield from (f"{name:<{width}}  {text}" for name, text in lines.items())


def _format_parts(parts: Row) -> dict[str, str]:
    sizes = f"{parts['features']:,} features, {parts['d_in']} to {parts['d_out']} coordinates"
    kind = parts["kind"] + (f", k {parts['k']}" if parts["k"] else "") + (", a skip path" if parts["skip"] else "")
    if parts["steps"]:
        kind += f", at most {parts['steps']:,} steps, until the rest is shorter than {parts['tolerance']:g}"
    if parts["attention_layers"]:
        layers = f"{parts['attention_layers']} attention layer{'s' * (parts['attention_layers'] > 1)}"
        kind += f", of what {layers} over the vectors before a vector do not predict of it"
    several = ", ".join(
        f"{site} {norm:.3g} ({parts['shares'][site]:.0%})" for site, norm in parts["norms_by_site"].items()
    )
    bias = "b_dec is taken off first" if parts["subtracts_b_dec"] else "b_dec is not taken off first"
    return {
        "kind": kind,
        "sizes": sizes,
        "norm": f"{parts['norm']}; {bias}; decoder norm {parts['decoder_norm_median']:.3g} (median)",
        **(
            {"norm by site": f"{several}: the median, and the share of features that write most there"}
            if several
            else {}
        ),
    }


def _format_gate(gate: Row) -> dict[str, str]:
    verdict = "admitted" if gate["admitted"] else "refused by harvest"
    figures = f"FVU {_number(gate['fvu'])}, L0 {gate['l0']:.1f}, dead {gate['dead_share']:.1%}, {gate['tokens']} tokens"
    lines = {"gate": f"{figures}: {verdict}"}
    if gate["by_site"]:
        lines["by site"] = ", ".join(f"{site} FVU {_number(fvu)}" for site, fvu in gate["by_site"].items())
    if gate["doubts"]:
        lines["doubts"] = "; ".join(gate["doubts"])
    lines["nearby"] = ", ".join(f"{site} {_number(fvu)}" for site, fvu in gate["sites"].items())
    if gate["warning"]:
        lines["warning"] = gate["warning"]
    return lines


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"
