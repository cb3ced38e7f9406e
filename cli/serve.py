"""`neuronaut serve`: opens the database in a browser."""

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..subject.errors import NeuronautError
from .common import database_option, debug_option, say
from .llm_options import base_url_option, llm_option, price_option

if TYPE_CHECKING:
    from ..web.settings import LanguageModel

PATIENCE_SECONDS = 10
"""Seconds in which answers that are under way may still end when the server stops."""


@click.command()
@database_option
@click.option("--model", metavar="PATH", help="Where the model lies, if not where it was harvested from.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; others want --token.")
@click.option("--port", type=click.IntRange(1, 65535), default=8420, show_default=True)
@click.option("--allow-compute", is_flag=True, help="Let visitors run the model; with --allow-write, sessions.")
@click.option("--allow-write", is_flag=True, help="Let visitors add and rate explanations.")
@llm_option
@base_url_option
@price_option
@click.option("--budget", metavar="usd=X,tokens=N,calls=N", help="The most that LLM may cost, all sessions together.")
@click.option("--token", envvar="NEURONAUT_TOKEN", metavar="SECRET", help="What visitors must show.")
@debug_option
@click.pass_context
def serve(
    ctx: click.Context,
    database: str,
    model: str | None,
    host: str,
    port: int,
    allow_compute: bool,
    allow_write: bool,
    llm: str | None,
    base_url: str | None,
    price: str | None,
    budget: str | None,
    token: str | None,
) -> None:
    """Open the database in a browser.

    Pages of everything that was found, on this machine alone and read-only unless you say otherwise.
    Every page also answers ?format=json. With -m and --budget visitors may start sessions that ask a language model.

    \b
    Examples:
      neuronaut serve -d demo.db
      neuronaut serve -d demo.db --allow-write
      neuronaut serve -d demo.db --allow-compute --allow-write -m openai:gpt-4o-mini --budget usd=2
      neuronaut serve --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """
    asked = ctx.get_parameter_source("llm") is ParameterSource.COMMANDLINE
    if (asked or budget is not None) and not (allow_compute and allow_write):
        raise click.UsageError("-m is asked by sessions; add --allow-compute and --allow-write, or leave it out")
    if asked != (budget is not None) and not (llm and budget):
        raise click.UsageError("visitors start sessions, so -m needs --budget, and --budget needs -m; give both")
    try:
        import uvicorn

        from ..web.app import create_app
    except ModuleNotFoundError as error:
        raise NeuronautError(
            f"{error.name} is not installed; run: pip install 'neuronaut[web]', then the command again"
        ) from error
    from ..web.settings import Settings

    settings = Settings(
        database,
        model=model,
        allow_compute=allow_compute,
        allow_write=allow_write,
        language=None if llm is None or budget is None else _language_model(llm, base_url, price, budget),
        token=token,
        host=host,
        port=port,
    )
    app = create_app(settings)
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=PATIENCE_SECONDS)
    server = uvicorn.Server(config)
    # Whoever follows a session or waits for the model would keep the server from stopping.
    app.state.stopping = lambda: server.should_exit
    with _listen(host, port) as listening, suppress(KeyboardInterrupt):
        shown_host = f"[{host}]" if ":" in host else host
        say(f"{database} at http://{shown_host}:{port} (Ctrl-C stops)")
        server.run(sockets=[listening])


def _language_model(llm: str, base_url: str | None, price: str | None, budget: str) -> "LanguageModel":
    """What sessions may ask; its options are those of the commands that they are."""
    from ..llm.prices import Budget, Price
    from ..web.settings import LanguageModel
    from ..web.spending import KINDS, limits_of

    limits = limits_of(Budget.parse(budget))
    if not limits:
        raise NeuronautError(f"--budget {budget} limits none of {', '.join(KINDS)}; wanted for example usd=2")
    if price is not None:
        Price.parse(price)
    given = {"-m": llm, "--base-url": base_url, "--price": price}
    return LanguageModel(llm, tuple(part for name, value in given.items() if value for part in (name, value)), limits)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is said; an error where it is another program's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise NeuronautError(
            f"port {port} of {host} cannot be had ({error.strerror}); name another one with --port"
        ) from error
