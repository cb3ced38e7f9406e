"""From a name on the command line to a language model: `openai:gpt-4o-mini`, `hf:PATH`.

The part before the first colon is the scheme. Each takes its own options; one that it does not take is an error.
Nothing is imported, loaded or connected to before it is needed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..subject.errors import NeuronautError
from .types import LLM


def _open_openai(model: str, **options: Any) -> LLM:
    from .openai.chat import OpenAIChat

    return OpenAIChat(model, **options)


def _open_local(path: str, **options: Any) -> LLM:
    from .local.local import LocalLLM

    return LocalLLM(path, **options)


@dataclass(frozen=True, slots=True)
class _Scheme:
    """A constructor and the options that it takes."""

    make: Callable[..., LLM]
    options: frozenset[str]


SCHEMES: Mapping[str, _Scheme] = {
    "openai": _Scheme(
        _open_openai,
        frozenset(
            {
                "base_url",
                "thinking",
                "in_flight",
                "timeout",
                "temperature_fixed",
                "token_limit",
                "tokenizer",
                "prompt_logprobs",
            }
        ),
    ),
    "hf": _Scheme(_open_local, frozenset({"device", "dtype", "batch_tokens"})),
}


def open_llm(
    text: str,
    *,
    base_url: str | None = None,
    thinking: int = 0,
    in_flight: int | None = None,
    timeout: float | None = None,
    temperature_fixed: bool = False,
    token_limit: str | None = None,
    tokenizer: str | None = None,
    prompt_logprobs: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    batch_tokens: int | None = None,
) -> LLM:
    """Open the language model that `text` names.

    For openai: any server that speaks OpenAI's protocol, at `base_url`; `thinking` tokens on top of a reply's limit;
    `in_flight` requests at once, each for `timeout` seconds at most; `temperature_fixed` where the model takes no
    temperature; `token_limit` what the server calls the limit on tokens, or none (see TokenLimit); `prompt_logprobs`
    where the server gives them, with its `tokenizer`. For hf: a folder or Hugging Face id on `device` in `dtype`, in
    batches of `batch_tokens`. Raises NeuronautError for any other name or a misplaced option.

    >>> open_llm("openai:gpt-4o-mini", base_url="http://localhost:8000/v1").model
    'gpt-4o-mini'
    """
    scheme, _, name = text.partition(":")
    if scheme not in SCHEMES or not name.strip():
        raise NeuronautError(
            f"model {text!r} does not say where it runs; wanted openai:NAME, as in openai:gpt-4o-mini "
            "(any OpenAI-compatible server), or hf:PATH (a local Hugging Face model)"
        )
    every: dict[str, object] = {
        "base_url": base_url,
        "thinking": thinking,
        "in_flight": in_flight,
        "timeout": timeout,
        "temperature_fixed": temperature_fixed,
        "token_limit": token_limit,
        "tokenizer": tokenizer,
        "prompt_logprobs": prompt_logprobs,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
    }
    options = {option: value for option, value in every.items() if value}
    for option in options.keys() - SCHEMES[scheme].options:
        home = next(other for other, row in SCHEMES.items() if option in row.options)
        raise NeuronautError(f"{option} is for {home}: models, and {text} is none; leave it out")
    return SCHEMES[scheme].make(name, **options)
