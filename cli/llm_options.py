"""Reads `-m` and the options beside it, and opens the client of the language model that they name."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..subject.errors import NeuronautError
from .common import all_of

if TYPE_CHECKING:
    from ..data.store.store import Store
    from ..llm.client import LLMClient, Mode, Spent
    from ..llm.openai.batch import BatchAPI
    from ..llm.openai.dialect import TokenLimit
    from ..llm.prices import Budget
    from ..scorers.controls import ControlMode

llm_option = click.option(
    "-m",
    "--llm",
    metavar="LLM",
    envvar="NEURONAUT_LLM",
    help="The language model that explains and judges (not the one under study): openai:NAME, or hf:PATH "
    "for one in this process.",
)
base_url_option = click.option(
    "--base-url", metavar="URL", help="Another OpenAI-compatible server, also from OPENAI_BASE_URL."
)
price_option = click.option(
    "--price", metavar="in=X,out=Y", help="Dollars per million tokens, where the model is not known."
)
llm_options = all_of(
    llm_option,
    base_url_option,
    click.option("-w", "--workers", type=click.IntRange(1), metavar="N", help="Requests in flight.  [default: 64]"),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Seconds from a request to the last byte of its reply, after which it is given up and tried again.  "
        "[default: 120]",
    ),
    price_option,
    click.option(
        "--temperature",
        metavar="T",
        default="0",
        show_default=True,
        help="Of explanations; 'none' for models that take no temperature, which is also learned from their refusal.",
    ),
    click.option(
        "--token-limit",
        type=click.Choice(("auto", "max_tokens", "max_completion_tokens", "none")),
        help="What the server calls the limit on a reply's tokens; 'none' sends none, 'auto' learns it from the "
        "server's refusal.  [default: auto]",
    ),
    click.option(
        "--thinking",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Tokens that a model may think before each reply.",
    ),
    click.option(
        "--tokenizer", metavar="PATH", help="Tokenizer of a vLLM server, which then simulates by -s simulation:probe."
    ),
    click.option(
        "--controls",
        type=click.Choice(("all", "sample", "none")),
        help="For which features no explanation and another one's are judged as well; a sample is one in ten, and the "
        "first.  [default: sample]",
    ),
    click.option("--no-controls", is_flag=True, help="The same as --controls none."),
    click.option("--no-calibration", is_flag=True, help="Let also a judge count that fails on built-in units."),
    click.option("--embedder", metavar="PATH", help="Embedding model of -s embedding."),
)


@dataclass(frozen=True, slots=True)
class LLMOptions:
    """The options as they were given."""

    llm: str | None = None
    base_url: str | None = None
    workers: int | None = None
    timeout: float | None = None
    price: str | None = None
    temperature: str = "0"
    token_limit: "TokenLimit | None" = None
    thinking: int = 0
    tokenizer: str | None = None
    controls: "ControlMode | None" = None
    no_controls: bool = False
    no_calibration: bool = False
    embedder: str | None = None

    @property
    def control_mode(self) -> "ControlMode":
        """The features whose controls are judged."""
        if self.no_controls and self.controls not in (None, "none"):
            raise click.UsageError(f"--no-controls is --controls none, and --controls {self.controls} is given as well")
        return "none" if self.no_controls else self.controls or "sample"

    @property
    def temperature_value(self) -> float | None:
        """The temperature; None where the model takes none."""
        if self.temperature == "none":
            return None
        try:
            value = float(self.temperature)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 2:
            raise NeuronautError(
                f"--temperature {self.temperature} is not from 0 to 2; wanted for example 0.7, or none"
            )
        return value


def split_options(options: Mapping[str, Any]) -> tuple[LLMOptions, dict[str, Any]]:
    """Split options into those of the language model and the others."""
    of_llm = {name: value for name, value in options.items() if name in LLMOptions.__slots__}
    return LLMOptions(**of_llm), {name: value for name, value in options.items() if name not in of_llm}


def server_of(language: LLMOptions) -> str | None:
    """The URL of the server that is asked, which another machine's variables may not name; None without a server."""
    from ..llm.openai.wire import find_endpoint

    return find_endpoint(language.base_url) if (language.llm or "").startswith("openai:") else language.base_url


@contextmanager
def open_client(
    language: LLMOptions, store: "Store", *, budget: "str | Budget | None", mode: "Mode" = "live"
) -> "Generator[LLMClient | None]":
    """Open the client, and close it afterwards; None where no language model was named."""
    if language.llm is None:
        yield None
        return
    from ..llm.client import LLMClient
    from ..llm.open import open_llm
    from ..llm.prices import Budget, Price

    llm = open_llm(
        language.llm,
        base_url=language.base_url,
        thinking=language.thinking,
        in_flight=language.workers,
        timeout=language.timeout,
        temperature_fixed=language.temperature_value is None,
        token_limit=language.token_limit,
        tokenizer=language.tokenizer,
        prompt_logprobs=language.tokenizer is not None,
    )
    try:
        price = Price.parse(language.price) if language.price else None
        limit = Budget.parse(budget) if isinstance(budget, str) else budget
        yield LLMClient(llm, store.calls, price=price, budget=limit, mode=mode)
    finally:
        llm.close()


def batch_api(language: LLMOptions) -> "BatchAPI":
    """Open the batch API of the server that was named."""
    from ..llm.openai.batch import BatchAPI

    scheme, _, name = (language.llm or "").partition(":")
    if scheme != "openai":
        raise NeuronautError(f"--batch needs a server with a batch API; wanted -m openai:NAME, not {language.llm}")
    return BatchAPI(
        name,
        base_url=language.base_url,
        thinking=language.thinking,
        temperature_fixed=language.temperature_value is None,
        token_limit=language.token_limit or "auto",
    )


def format_spent(spent: "Spent", *, priced: bool, share: float | None = None) -> str:
    """Write the calls, tokens and cost of a run; with the `share` of its work that is done, also the cost of all."""
    tokens = spent.input_tokens + spent.output_tokens
    cost = f", ${spent.usd:,.4f}" if priced else ""
    cost += f" of about ${spent.usd / share:,.2f}" if cost and share else ""
    cached = f", {spent.cached:,} answered from the log" if spent.cached else ""
    failed = f", {spent.failed:,} failed" if spent.failed else ""
    estimated = f", tokens of {spent.estimated:,} estimated, since the server does not count" if spent.estimated else ""
    own = f", {spent.own_temperature:,} at the model's own temperature" if spent.own_temperature else ""
    return f"{spent.calls:,} calls, {tokens:,} tokens{cost}{cached}{failed}{estimated}{own}"
