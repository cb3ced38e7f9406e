"""`neuronaut probe`: whether a property of prompts can be read off a site, and along which direction."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ...causal.results.common import ends
from .. import display
from ..common import Form, Row, emit, form_options
from ..display import spanned, spanned_column
from .inputs import judging_options, lines, picture_option, positions_option, say_remarks, seed_option
from .setup import open_subject, sites_named, subject_options

if TYPE_CHECKING:
    from ...causal.probes import Method, Probe


@click.command()
@click.argument("model")
@click.option(
    "--prompts", "file", required=True, metavar="FILE", help="JSON lines with prompt and label (true or false)."
)
@click.option(
    "--site",
    "sites",
    multiple=True,
    default=("resid_post",),
    show_default=True,
    metavar="SITE",
    help="resid_post.2, mlp.1, resid_post (all layers) and so on.",
)
@positions_option
@click.option(
    "--method",
    type=click.Choice(["ridge", "mean_difference", "lda", "logistic"]),
    default="ridge",
    show_default=True,
    help="How the direction is found.",
)
@judging_options
@seed_option
@picture_option
@subject_options
@form_options
def probe(
    model: str,
    file: str,
    sites: tuple[str, ...],
    positions: str,
    method: "Method",
    test_share: float,
    shuffles: int,
    seed: int,
    picture: str | None,
    form: Form,
    **options: Any,
) -> None:
    """Ask whether a property can be read off a site.

    Fits a linear probe that tells prompts labelled true from those labelled false, at each site, and judges it on
    prompts that it has not seen: AUROC with its interval, beside what probes of shuffled labels reach. That
    something can be read does not show that MODEL reads it; add the direction to a run, and see.

    \b
    Examples:
      neuronaut probe demo --prompts brackets.jsonl
      neuronaut probe demo --prompts brackets.jsonl --site mlp.1 --site resid_mid --picture probe.png
      neuronaut probe demo --prompts brackets.jsonl --site resid_post.1 --json > round.json
      neuronaut run demo "x = [1, 2" --direction round=round.json --edit resid_post.1:round+=1@last
    """
    from ...causal.probes import probe as fit
    from ...causal.prompts import Batch

    rows = [row for _, row in lines(file, {"prompt": str, "label": bool})]
    subject = open_subject(model, options)
    say_remarks(subject, [row["prompt"] for row in rows])
    batch, labels = Batch.of(subject, [row["prompt"] for row in rows]), [row["label"] for row in rows]
    probes = [
        fit(
            subject,
            batch,
            labels,
            site=site,
            positions=positions,
            method=method,
            test_share=test_share,
            shuffles=shuffles,
            seed=seed,
        )
        for site in sites_named(subject, sites)
    ]
    if picture is not None:
        _draw(probes, picture)
    emit(map(_row, probes), form, lambda table_rows: display.table(table_rows, _COLUMNS))


def _row(result: "Probe") -> Row:
    low, high = result.accuracy.interval or (None, None)
    return {
        "site": result.site,
        "positions": result.positions,
        "method": result.method,
        "auroc": result.auroc.value,
        **ends(result.auroc.interval),
        "accuracy": result.accuracy.value,
        "accuracy_low": low,
        "accuracy_high": high,
        "base_rate": result.base_rate,
        "shuffled": median(result.control.controls),
        "percentile": result.control.percentile,
        "p": result.control.p,
        "trained": result.trained,
        "tested": result.auroc.n,
        "threshold": result.threshold,
        "direction": result.direction.tolist(),
    }


_COLUMNS = [
    display.key("site"),
    spanned_column("auroc", "AUROC"),
    display.Column("shuffled", lambda row: f"{row['shuffled']:.2f}", right=True),
    display.Column("p", lambda row: f"{row['p']:.3f}", right=True),
    display.Column("accuracy", lambda row: spanned(row["accuracy"], row["accuracy_low"], row["accuracy_high"])),
    display.Column("base rate", lambda row: f"{row['base_rate']:.2f}", right=True),
    display.key("trained", right=True),
    display.key("tested", right=True),
]


def _draw(probes: "Sequence[Probe]", picture: str) -> None:
    from ...causal.pictures import points

    controls = [median(result.control.controls) for result in probes]
    points(
        {"probe": [result.auroc.value for result in probes], "labels shuffled": controls},
        labels=[result.site for result in probes],
        intervals={"probe": [result.auroc.interval for result in probes]},
        title=f"Linear probes read at {probes[0].positions}, on {probes[0].auroc.n} unseen prompts",
        path=picture,
        unit="AUROC",
    )
