"""`neuronaut train`: a dictionary of one's own, trained on the vectors of a site."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..subject.errors import NeuronautError
from . import display
from .causal.setup import device_options
from .common import Count, Form, Progress, Row, emit, form_options, interruptible, parse_minutes, say

if TYPE_CHECKING:
    from ..data.training.run import Loss, Trained

TIMES = "x"


class Width(click.ParamType):
    """A number of features, `4096`, or a multiple of the site's width, `8x`."""

    name = "width"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, bool]:
        """Read the number, and whether it is a multiple."""
        text = str(value).lower()
        number = text.removesuffix(TIMES)
        if not number.isascii() or not number.isdecimal() or len(number) > 9 or int(number) < 1:
            self.fail(f"{value!r} is no width; wanted a number of features, or a multiple such as 8x", param, ctx)
        return int(number), text.endswith(TIMES)


@click.command()
@click.argument("model")
@click.argument("sites", nargs=-1, required=True, metavar="SITE...")
@click.option(
    "--kind",
    type=click.Choice(("topk", "batchtopk", "jumprelu", "transcoder", "crosscoder")),
    default="topk",
    show_default=True,
    help="What is kept of the pre-activations; a transcoder is batchtopk from mlp_in.L to mlp_out.L, a crosscoder "
    "batchtopk over several sites.",
)
@click.option(
    "--width", type=Width(), default="8x", show_default=True, help="Features, or a multiple of the site's width."
)
@click.option(
    "-k",
    "--k",
    "k",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Features that are active on a token, in the mean.",
)
@click.option("--writes", metavar="SITE", help="Make it a transcoder, which gives the vectors of this site.")
@click.option("--out", metavar="FOLDER", required=True, help="Where it is written, and what has been done until then.")
@click.option("--corpus", metavar="NAME|FILE|-", help="What it is trained on: a file, a folder, stdlib or a dataset.")
@click.option(
    "--tokens",
    type=Count(),
    default="2M",
    show_default=True,
    metavar="N",
    help="Tokens to train on, repeats of the corpus counted.",
)
@click.option(
    "--window", type=click.IntRange(1), default=64, show_default=True, metavar="N", help="Tokens in a window."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=2e-3,
    show_default=True,
    metavar="X",
    help="Adam's step size.",
)
@click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True, help="Of all that is drawn.")
@click.option(
    "--budget",
    metavar="minutes=N",
    help="Stop training then; the same command goes on. Measuring what is trained to its end comes on top.",
)
@click.option("--text-column", default="text", show_default=True, metavar="C", help="Column or key of the text.")
@click.option("--encoding", default="utf-8", show_default=True, metavar="E", help="Of text files.")
@device_options
@form_options
def train(
    model: str,
    sites: tuple[str, ...],
    kind: Any,
    width: tuple[int, bool],
    k: int,
    writes: str | None,
    out: str,
    corpus: str | None,
    tokens: int | None,
    window: int,
    rate: float,
    seed: int,
    budget: str | None,
    text_column: str,
    encoding: str,
    device: str | None,
    dtype: str | None,
    form: Form,
) -> None:
    """Train a dictionary (SAE, transcoder or crosscoder) on the vectors of SITE.

    MODEL is a Hugging Face id, a folder, or demo; SITE for example resid_post.8, and of a crosscoder two or more, as
    resid_post.4 resid_post.8, or resid_post.4-6. The vectors are those that the model
    computes on the corpus; nothing is stored but the dictionary, in SAELens' layout, with its card.json: unexplained
    variance, L0, dead features and the loss that the model keeps, on documents that it was not trained on. A
    training that was stopped goes on when it is called again. Then `harvest MODEL --sae FOLDER` reads it.

    \b
    Examples:
      neuronaut train demo resid_post.1 --width 512 -k 16 --tokens 500k --out my-sae
      neuronaut train demo mlp_in.1 --kind transcoder --tokens 500k --out my-transcoder
      neuronaut train demo resid_post.1-2 --kind crosscoder --width 1024 --tokens 500k --out my-crosscoder
      neuronaut train ./my-llama resid_post.8 --kind batchtopk --corpus texts.jsonl --tokens 20M --out sae-8
    """
    from ..data.training.run import train as train_dictionary
    from ..data.training.trainer import Recipe
    from ..labelling.opening import LoadOptions, load_corpus, load_subject, sites_of
    from ..subject.address import SourceId

    minutes = parse_minutes(budget)
    if tokens is None:
        raise NeuronautError("--tokens all is no end, since the corpus is gone through again; give a number, as 2M")
    text = load_corpus(model, corpus, tokens=tokens, text_column=text_column, encoding=encoding)
    subject = load_subject(model, LoadOptions(device=device, dtype=dtype))
    ends = _choose_ends([site for text in sites for site in sites_of(subject, text)], kind, writes)
    number, multiple = width
    features = number * (subject.width(ends.site) if multiple else 1)
    kind = "batchtopk" if kind in ("transcoder", "crosscoder") else kind
    recipe = Recipe(kind=kind, width=features, k=k, tokens=tokens, rate=rate, seed=seed)
    folder = Path(out)
    id = SourceId.parse(f"{subject.name}:{ends.site}@{folder.resolve().name}")
    say(f"training {id}{ends.onto}: {kind}, {recipe.width:,} features, k {k}, on {tokens:,} tokens of {text.name}")
    say(subject.convention.sentence)
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with interruptible(lambda: _describe_kept(folder)), Progress("train", total=tokens, unit="tokens") as bar:
        result = train_dictionary(
            subject,
            id,
            text,
            folder,
            recipe,
            target=ends.writes,
            sites=ends.crossed,
            window=window,
            watch=_Shown(bar),
            stop=lambda: end is not None and time.monotonic() > end,
        )
    if result is None:
        say(f"the budget of {minutes:g} minutes is spent; the same command goes on from {folder}")
        click.get_current_context().exit(4)
    row = _make_row(result, folder)
    emit([row], form, lambda rows: "\n".join(map(_format, rows)))
    of = [] if corpus is None else ["--corpus", corpus]
    say(f"read it with: {shlex.join(['neuronaut', 'harvest', model, '--sae', out, *of])}")


def _describe_kept(folder: Path) -> str:
    from ..data.training.run import CHECKPOINT

    if not (folder / CHECKPOINT).exists():
        return "nothing of this training is kept yet"
    return f"what was trained up to the last checkpoint is kept in {folder}"


class _Ends(NamedTuple):
    """What a dictionary reads and writes."""

    site: str
    """The one that it is named by: the last of a crosscoder's."""
    writes: str | None
    """Where that is another one."""
    crossed: list[str]
    """Those of a crosscoder."""

    @property
    def onto(self) -> str:
        """Said behind the dictionary's name."""
        return f" onto {self.writes}" if self.writes else f" over {', '.join(self.crossed)}" if self.crossed else ""


def _choose_ends(sites: list[str], kind: str, writes: str | None) -> _Ends:
    if kind == "crosscoder":
        return _Ends(sites[-1], writes, sites)
    site = _only(sites, kind)
    return _Ends(site, (writes or _opposite(site)) if kind == "transcoder" else writes, [])


def _make_row(result: "Trained", folder: Path) -> Row:
    gate, loss = result.gate, result.loss
    return {
        "source": str(result.dictionary.id),
        "writes": ", ".join(result.dictionary.writes),
        "path": str(folder),
        "features": result.dictionary.width,
        "fvu": gate.fvu,
        **({"fvu_by_site": {site: fit.fvu for site, fit in gate.sites.items()}} if gate.sites else {}),
        "l0": gate.l0,
        "dead_share": gate.dead_share,
        **_loss_of(loss),
        "tokens": gate.tokens,
    }


def _loss_of(loss: "Loss | None") -> Row:
    from ..data.training.run import NO_LOSS

    if loss is None:
        return {**dict.fromkeys(("loss", "loss_rebuilt", "loss_zero", "loss_recovered")), "loss_reason": NO_LOSS}
    return {"loss": loss.clean, "loss_rebuilt": loss.rebuilt, "loss_zero": loss.zero, "loss_recovered": loss.recovered}


def _only(sites: list[str], kind: str) -> str:
    if len(sites) > 1:
        raise NeuronautError(
            f"{len(sites)} sites are named, {', '.join(sites)}, and a {kind} dictionary is of one; wanted one, or "
            "--kind crosscoder"
        )
    return sites[0]


def _opposite(site: str) -> str:
    """The other end of the MLP that a transcoder stands for."""
    family, _, layer = site.partition(".")
    if family != "mlp_in":
        raise NeuronautError(
            f"a transcoder of {site} writes no site of itself; read mlp_in.L, or name one with --writes"
        )
    return f"mlp_out.{layer}"


class _Shown:
    """Shows a run as one bar of tokens."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def reads(self, tokens: int, of: int) -> None:
        """Say that vectors are read."""
        self._bar.doing("reading vectors", tokens, of)

    def trains(self, seen: int, unexplained: float, dead: float) -> None:
        """Move the bar."""
        self._bar.reach(seen, f"FVU {unexplained:.3f}, dead {dead:.1%}")

    def measures(self, tokens: int, of: int) -> None:
        """Say that the dictionary is measured, which of a large vocabulary takes longer than all else."""
        self._bar.doing("measuring the model's loss", tokens, of)


def _format(row: Row) -> str:
    each = ", ".join(f"{site} {fvu:.3f}" for site, fvu in row.get("fvu_by_site", {}).items())
    return (
        f"{row['source']}: FVU {row['fvu']:.3f}{f' at worst ({each})' if each else ''}, L0 {row['l0']:.1f}, "
        f"{row['dead_share']:.1%} of {row['features']:,} features silent on {row['tokens']:,} holdout tokens\n"
        f"{_format_loss(row)}\n"
        f"written to {display.visible(row['path'])}"
    )


def _format_loss(row: Row) -> str:
    if reason := row.get("loss_reason"):
        return f"loss recovered not measured: {reason}"
    return (
        f"loss {row['loss']:.3f} nats a token, {row['loss_rebuilt']:.3f} with {row['writes']} rebuilt, "
        f"{row['loss_zero']:.3f} with zeros there: {row['loss_recovered']:.1%} recovered"
    )
