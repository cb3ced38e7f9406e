"""Requests to a language model, its replies, and the protocol of a model; nothing here knows who answers.

A request is everything that determines its answer, so its key is the hash of its content. It is either a
chat, answered with text, or a probe, answered with probabilities of given tokens at given positions of a
prompt. Sampling parameters belong to one request and are shared by none.

A chat may offer tools. Then the reply may hold calls of them, whose arguments are the string that came: whether they
fit the tool is for the caller to check. A chat without tools has no field for them, so its key is the same as before
there were tools.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Role = Literal["system", "user", "assistant", "tool"]
ToolChoice = Literal["auto", "required"]
"""auto: a text or calls, as the model likes. required: at least one call."""
Status = Literal["ok", "refused", "truncated", "empty", "failed"]
"""ok: an answer. refused: the model or a filter declined. truncated: cut at the token limit. empty: no text or call.
failed: no reply after all retries, or an error of the request's own. Only "ok" is ever used as an answer."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that a model may call, as it is described to the model."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object."""

    def function(self) -> dict[str, object]:
        """The tool as OpenAI's protocol and chat templates take it."""
        return {"type": "function", "function": asdict(self)}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's call of a tool."""

    name: str
    arguments: str
    """As it came, which should be a JSON object and need not be."""
    id: str = ""
    """The answer to this call names it by this id."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str
    calls: tuple[ToolCall, ...] = ()
    """Calls that an assistant's turn made."""
    answers: str = ""
    """Id of the call that a tool's turn answers."""

    def as_dict(self) -> dict[str, object]:
        """The role, the content, and the other fields that are not empty."""
        return {name: value for name, value in asdict(self).items() if value or name in ("role", "content")}

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> Self:
        """Read what `as_dict` returned, also after JSON."""
        calls = tuple(ToolCall(**call) for call in fields.get("calls", ()))
        return cls(fields["role"], fields["content"], calls, fields.get("answers", ""))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one chat is sampled."""

    temperature: float | None = 0.0
    """None leaves it to the server, as some models demand."""
    max_tokens: int = 300
    """Tokens of the reply at most; those of thinking beforehand come on top (see openai/wire.py)."""
    top_logprobs: int = 0
    """How many alternatives are wanted at each token of the reply; 0 for none."""
    seed: int | None = None
    """Distinguishes samples of one prompt, and is passed on to servers that take a seed."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that the model is to continue."""

    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    sample: str = ""
    """A reply of the usual form and length, from which a dry run estimates; not part of the key. Where a call is
    usual, it is one in the form for models without calls of their own (see tool_calls.py)."""
    prompt: str = ""
    """Name of the prompt file it was rendered from, for the log; not part of the key."""
    tools: tuple[ToolSpec, ...] = ()
    """The tools that the model may call."""
    tool_choice: ToolChoice = "auto"
    """Only with tools."""

    def as_dict(self) -> dict[str, object]:
        """All fields that determine the answer."""
        fields: dict[str, object] = {
            "messages": [message.as_dict() for message in self.messages],
            "sampling": asdict(self.sampling),
        }
        if self.tools:
            fields |= {"tools": [asdict(tool) for tool in self.tools], "tool_choice": self.tool_choice}
        return fields

    @classmethod
    def parse(cls, fields: Mapping[str, Any], *, prompt: str) -> Self:
        """Read what `as_dict` returned, also after JSON."""
        return cls(
            tuple(map(Message.parse, fields["messages"])),
            Sampling(**fields["sampling"]),
            prompt=prompt,
            tools=tuple(ToolSpec(**tool) for tool in fields.get("tools", ())),
            tool_choice=fields.get("tool_choice", "auto"),
        )


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt in token ids, whose next-token probabilities are read at some positions, without sampling."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Where the next token is predicted: the probability is that of the token after this position."""
    choices: tuple[int, ...]
    """Token ids whose probabilities are wanted."""
    prompt: str = ""

    def as_dict(self) -> dict[str, object]:
        """All fields that determine the answer."""
        return {"ids": self.ids, "positions": self.positions, "choices": self.choices}


Request = Chat | Probe


def request_key(request: Request, *, model: str, endpoint: str) -> str:
    """The key of a request and its answer: hash of model, endpoint and all that determines the answer."""
    content = {"model": model, "endpoint": endpoint, **request.as_dict()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token of a reply with its most likely alternatives."""

    token: str
    top: Mapping[str, float]
    """Log-probability by token string; the token itself may be among them."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to a request."""

    status: Status
    text: str = ""
    """The reply as it came, also where it was cut or refused."""
    reason: str | None = None
    """Why there is no answer; None where the status is "ok"."""
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the reply's tokens, where asked for and given."""
    probabilities: tuple[tuple[float | None, ...], ...] = ()
    """Of a probe, (position, choice); None where the server did not give it."""
    calls: tuple[ToolCall, ...] = ()
    """The calls that the model made in the server's own form; tool_calls.py also finds one that is in the text."""
    key: str = ""
    """Key of the request in the log; set by the client."""
    raw: Mapping[str, object] = field(default_factory=dict)
    """Further fields of the server's reply that are worth keeping, for example its name of the model."""


class LLM(Protocol):
    """A language model that answers requests side by side."""

    @property
    def model(self) -> str:
        """The model's name as a user gives it, without the scheme: gpt-4o-mini."""
        ...

    @property
    def endpoint(self) -> str:
        """Where it runs: a server's URL, or "local"."""
        ...

    @property
    def in_flight(self) -> int:
        """How many requests it wants to be given at once, at present."""
        ...

    @property
    def can_probe(self) -> bool:
        """Whether it answers probes."""
        ...

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer, with which probes are assembled; only of one that answers probes."""
        ...

    def submit(self, request: Request) -> Future[Reply]:
        """Begin to answer.

        The future holds a Reply, "failed" after all retries; it raises a NeuronautError only for an error that every
        call would meet alike (a wrong key, an unknown model).
        """
        ...

    def count(self, request: Request) -> int:
        """Tokens of the request's prompt; an estimate where the tokenizer is not at hand."""
        ...

    def close(self) -> None:
        """Let go of connections and threads; requests not begun are dropped."""
        ...
