"""`neuronaut mcp`: the database and its model as tools for an assistant."""

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..subject.errors import NeuronautError
from .causal.setup import device_options
from .common import database_option, debug_option, open_store
from .llm_options import LLMOptions, base_url_option, llm_option, open_client, price_option

if TYPE_CHECKING:
    from collections.abc import Collection
    from contextlib import AbstractContextManager

    from ..data.store.store import Store
    from ..llm.client import LLMClient
    from ..llm.prices import Budget
    from ..web.operations.context import OpenClient
    from ..web.operations.registry import Need


@click.command()
@click.option("--model", metavar="PATH", help="Where the model lies, if not where it was harvested from.")
@click.option("--allow-compute", is_flag=True, help="Also tools that run the model: try, find, run, steer and others.")
@click.option("--allow-write", is_flag=True, help="Also label and investigate, which write into the database.")
@llm_option
@base_url_option
@price_option
@click.option(
    "--budget", metavar="usd=X,tokens=N,calls=N,minutes=N", help="The most that LLM may cost, all calls together."
)
@device_options
@database_option
@debug_option
@click.pass_context
def mcp(
    ctx: click.Context,
    model: str | None,
    allow_compute: bool,
    allow_write: bool,
    llm: str | None,
    base_url: str | None,
    price: str | None,
    budget: str | None,
    device: str | None,
    dtype: str | None,
    database: str,
) -> None:
    """Serve an assistant.

    The database as tools of the Model Context Protocol, over stdin and stdout: an assistant's program starts this
    command itself. Without options the tools only read. The model is loaded when it is first needed. With -m the
    language model explains in label and decides in investigate.

    \b
    Examples:
      neuronaut mcp -d demo.db
      neuronaut mcp -d gpt2.db --allow-compute
      neuronaut mcp -d gpt2.db --allow-compute --allow-write -m openai:gpt-4o-mini --budget usd=2
    """
    if allow_write and not allow_compute:
        raise click.UsageError("--allow-write stores what the model shows; add --allow-compute")
    asked = ctx.get_parameter_source("llm") is ParameterSource.COMMANDLINE
    if asked and not allow_write:
        raise click.UsageError("-m is asked by label and investigate; add --allow-write, or leave it out")
    if budget is not None and (llm is None or not allow_write):
        raise click.UsageError("--budget limits a language model; add -m and --allow-write, or leave it out")
    try:
        import anyio

        from ..web.mcp import Settings, serve
    except ImportError as error:
        raise NeuronautError(f"{error.name} is not installed; run: pip install 'neuronaut[mcp]'") from error
    from ..labelling.load_options import LoadOptions
    from ..web.operations.context import ModelCache

    with open_store(database, write=allow_write):
        # An assistant's program tells why a server did not start, not why every call of it fails.
        pass
    granted: Collection[Need] = ["store", *(["model"] if allow_compute else []), *(["write"] if allow_write else [])]
    models = ModelCache(LoadOptions(model=model, device=device, dtype=dtype))
    client = _language_model(LLMOptions(llm=llm, base_url=base_url, price=price), budget)
    anyio.run(serve, Settings(database, granted, models, client))


def _language_model(language: LLMOptions, budget: str | None) -> "OpenClient":
    """Opens the language model for a call, with what is left of the budget."""
    from ..llm.prices import Budget
    from ..web.operations.allowance import Allowance

    def open_one(store: "Store", left: "Budget") -> "AbstractContextManager[LLMClient | None]":
        return open_client(language, store, budget=left)

    return Allowance(Budget.parse(budget) if budget else Budget(), open_one).client
