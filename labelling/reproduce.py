"""Makes an explanation again from the store alone, and shows the requests that led to it, byte for byte.

The explainer runs as it did, but every reply comes from the log. A request is found there only by the hash of its whole
content, so a request that is found is the one that was sent.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..data.store.rows import StoredExplanation
from ..data.store.store import Store
from ..explainers.explainer import Explainer
from ..llm.client import LLMClient
from ..llm.tasks import LLMTask, run_task
from ..llm.types import Chat, Message, Reply, Request
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source
from .inputs import EvidenceLoader
from .selection import SelectingExplainer, bind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class AbsentLLM:
    """A language model of which only the name is known: a request that is not in the log is an error."""

    model: str
    endpoint: str
    in_flight: int = 1
    can_probe: bool = False

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """An error: there is no model to have one."""
        raise NeuronautError(f"{self.model} is only known by name here, and has no tokenizer")

    def submit(self, request: Request) -> Future[Reply]:
        """Raise NeuronautError, since nobody is asked."""
        raise NeuronautError(
            f"a request of the prompt {request.prompt} is not in the log of this database; the evidence, a prompt or "
            "the code has changed since"
        )

    def count(self, request: Request) -> int:
        """Count nothing, since nothing is sent."""
        del request
        return 0

    def close(self) -> None:
        """Do nothing, since nothing is open."""


class SentRequest(NamedTuple):
    """A request that led to an explanation, and its reply."""

    key: str
    prompt: str
    messages: tuple[Message, ...]
    reply: str


class Reproduced(NamedTuple):
    """An explanation made again."""

    requests: list[SentRequest]
    text: str | None
    same: bool
    """Whether the text is the stored one."""


def reproduce(
    store: Store, subject: Subject, source: Source, stored: StoredExplanation, explainer: Explainer | SelectingExplainer
) -> Reproduced:
    """Make a stored explanation again; raises NeuronautError where a request would not be the one that was sent."""
    provenance = stored.explanation.provenance
    client = LLMClient(AbsentLLM(str(provenance["llm"]), str(provenance["endpoint"])), store.calls)
    loader = EvidenceLoader(store, subject, source)
    batch = loader.train([store.evidence(stored.explanation.feature)])
    requests: list[Request] = []
    explanations = client.ask(_record_requests(run_task(bind(explainer, loader).explain(batch)), requests))
    if explanations is None:
        raise NeuronautError("the explanation could not be made again")
    replies = client.logged_replies(requests)
    chats = [(client.key(request), request) for request in requests if isinstance(request, Chat)]
    sent = [SentRequest(key, chat.prompt, chat.messages, replies[key].text) for key, chat in chats if key in replies]
    calls = provenance.get("calls")
    missing = set(calls) - {request.key for request in sent} if isinstance(calls, list) else set()
    if missing:
        raise NeuronautError(
            f"{len(missing)} of the requests that led to explanation {stored.id} are not made again; the evidence, a "
            "prompt or the code has changed since"
        )
    return Reproduced(sent, explanations[0].text, explanations[0].text == stored.explanation.text)


def _record_requests(task: LLMTask[list], recorded: list[Request]) -> LLMTask[list]:
    """Run the task, and add every request to `recorded`."""
    replies: Sequence[Reply] | None = None
    while True:
        try:
            requests = next(task) if replies is None else task.send(replies)
        except StopIteration as stop:
            return stop.value
        recorded += requests
        replies = yield requests
