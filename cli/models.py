"""`neuronaut models`: the models in the database, the families that are known, and the proof of one model's sites."""

import math
import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from . import display
from .causal.setup import device_options
from .common import Form, Listing, Row, emit, form_options, open_store, result_options, say
from .query import count_columns, say_if_empty

if TYPE_CHECKING:
    from ..subject.claims import Check


@click.group(cls=Listing)
def models() -> None:
    """Look at models.

    Without a verb those in the database are listed.

    \b
    Examples:
      neuronaut models
      neuronaut models families
      neuronaut models check ./my-llama
    """


@models.command("list")
@result_options
def list_(database: str, form: Form) -> None:
    """List the models in the database.

    \b
    Examples:
      neuronaut models list --json -d gpt2.db
    """
    with open_store(database) as store:
        stored = store.sources()
    counted = ("width", "alive", "explained", "weak")
    rows = [
        {"model": name, "sources": len(own), **{key: sum(row[key] for row in own) for key in counted}}
        for name in dict.fromkeys(row["model"] for row in stored)
        for own in [[row for row in stored if row["model"] == name]]
    ]
    columns = [
        display.key("model"),
        *count_columns(sources="sources", width="features", alive="alive", explained="explained", weak="weak"),
    ]
    emit(rows, form, lambda rows: display.table(rows, columns))
    say_if_empty(rows)


@models.command()
@form_options
def families(form: Form) -> None:
    """List the families whose sites are known.

    A family is a model_type of transformers' configurations. Others are looked at when they are loaded, and proven in
    the same way. In an encoder a token reads both sides, and there are no next-token logits. Every family has embed,
    resid_pre.L, head.L, attn_out.L, mlp_in.L, mlp_out.L and resid_post.L, and query.L, key.L and value.L where heads
    have them; the table says what there is beside these.

    \b
    Examples:
      neuronaut models families --json
    """
    from ..subject.architecture import ARCHITECTURES

    rows = [
        {
            "family": family,
            "reads": f"both sides with {row.bidirectional}"
            if isinstance(row.bidirectional, str)
            else "both sides"
            if row.bidirectional
            else "before",
            "neurons": "none in layers of experts" if row.experts else "mlp.L",
            "between": "none"
            if row.parallel is True
            else f"not with {row.parallel}"
            if row.parallel
            else "resid_mid.L",
            "head_path": f"{row.layers}.L.{row.attention}",
            "mlp_path": f"{row.layers}.L.{row.mlp or row.experts}",
        }
        for family, row in sorted(ARCHITECTURES.items())
    ]
    columns = [
        display.key("family"),
        display.key("reads", "a token reads"),
        display.key("neurons"),
        display.key("between", "between attention and MLP"),
        display.key("head_path", "head.L is the input of"),
        display.key("mlp_path", "mlp.L is the input of"),
    ]
    emit(rows, form, lambda rows: display.table(rows, columns))


@models.command()
@click.argument("model")
@device_options
@form_options
def check(model: str, form: Form, device: str | None, dtype: str | None) -> None:
    """Prove the sites of MODEL, a folder, a Hugging Face id, or demo.

    A forward pass over a few random tokens records every site, another one gives attention what was recorded with heads
    turned; then the identities are measured that hold where the sites are what they are called. Ends with 1 where a
    site is refused.

    \b
    Examples:
      neuronaut models check demo
      neuronaut models check ./my-llama --dtype bfloat16
    """
    from ..labelling.opening import LoadOptions, load_subject
    from ..subject.architecture import ARCHITECTURES
    from ..subject.model import join_sites

    began = time.monotonic()
    subject = load_subject(model, LoadOptions(device=device, dtype=dtype))
    family = subject.model.config.model_type
    known = "of the table" if family in ARCHITECTURES else "not of the table: its row was found by looking at the model"
    say(
        f"{subject.name}: {family}, {known}; {subject.n_layers} layers, {subject.n_heads} heads, width "
        f"{subject.d_model}, {subject.dtype} on {subject.device}; loaded and proven in {time.monotonic() - began:.1f} s"
    )
    columns = [
        display.key("claim"),
        display.Column("held", lambda row: f"{row['held']} of {row['checked']}", right=True),
        display.Column(
            "largest error", lambda row: "not measured" if row["error"] is None else f"{row['error']:.1e}", right=True
        ),
        display.Column("allowed", lambda row: f"{row['allowed']:.1e}", right=True),
    ]
    emit(_rows_of(subject.checks), form, lambda rows: display.table(rows, columns))
    say(f"sites: {join_sites(subject.sites)}")
    for why in dict.fromkeys(subject.refused.values()):
        say(f"refused: {join_sites(site for site, reason in subject.refused.items() if reason == why)}: {why}")
    if subject.refused:
        click.get_current_context().exit(1)


def _rows_of(checks: Iterable["Check"]) -> list[Row]:
    """One row for each identity, over all layers."""
    groups: dict[str, list[Check]] = {}
    for measured in checks:
        groups.setdefault(_name_layers(measured.claim), []).append(measured)
    return [
        {
            "claim": claim,
            "checked": len(group),
            "held": sum(one.failure is None for one in group),
            "error": max((e for one in group if (e := one.error) is not None and math.isfinite(e)), default=None),
            "allowed": group[0].allowed,
            "failures": [one.failure for one in group if one.failure],
        }
        for claim, group in groups.items()
    ]


def _name_layers(claim: str) -> str:
    """The claim for any layer: the lowest layer that it names is L, the next L+1."""
    numbers = sorted({int(number) for number in re.findall(r"\.(\d+)\b", claim)})
    for offset, number in enumerate(numbers):
        claim = re.sub(rf"\.{number}\b", ".(L+1)" if offset else ".L", claim)
    return claim
