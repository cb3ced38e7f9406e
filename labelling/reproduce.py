"""Reproduce: make an explanation again from what the store keeps, and show what was asked, byte for byte.

The explainer runs as it did, but every reply comes from the log. A request is found there only by the hash of all that
it says, so a request that is found is the one that was sent.
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
from .selection import SelectingExplainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Absent:
    """A language model that is only known by name: whatever is not in the log stays unanswered."""

    model: str
    endpoint: str
    in_flight: int = 1
    can_probe: bool = False

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """An error: there is no model to have one."""
        raise NeuronautError(f"{self.model} is only known by name here, and has no tokenizer")

    def submit(self, request: Request) -> Future[Reply]:
        """An error: nobody is asked."""
        raise NeuronautError(
            f"a request of the prompt {request.prompt} is not in the log of this database; the evidence, a prompt or "
            "the code has changed since"
        )

    def count(self, request: Request) -> int:
        """Nothing is counted, since nothing is sent."""
        del request
        return 0

    def close(self) -> None:
        """There is nothing to close."""


class Asked(NamedTuple):
    """A request that led to an explanation, and its reply."""

    key: str
    prompt: str
    messages: tuple[Message, ...]
    reply: str


class Reproduced(NamedTuple):
    """An explanation made again."""

    asked: list[Asked]
    text: str | None
    same: bool
    """Whether the text is the stored one."""


def reproduce(
    store: Store, subject: Subject, source: Source, stored: StoredExplanation, explainer: Explainer | SelectingExplainer
) -> Reproduced:
    """Make a stored explanation again. Raises NeuronautError where a request would not be the one that was sent."""
    provenance = stored.explanation.provenance
    client = LLMClient(Absent(str(provenance["llm"]), str(provenance["endpoint"])), store.calls)
    loader = EvidenceLoader(store, subject, source)
    batch = loader.train([store.evidence(stored.explanation.feature)])
    asked: list[Request] = []
    seated = explainer.bind(loader) if isinstance(explainer, SelectingExplainer) else explainer
    made = client.ask(_listened(run_task(seated.explain(batch)), asked))
    if made is None:
        raise NeuronautError("the explanation could not be made again")
    replies = client.logged_replies(asked)
    chats = [(client.key(request), request) for request in asked if isinstance(request, Chat)]
    told = [Asked(key, chat.prompt, chat.messages, replies[key].text) for key, chat in chats if key in replies]
    own = provenance.get("calls")
    missing = set(own) - {one.key for one in told} if isinstance(own, list) else set()
    if missing:
        raise NeuronautError(
            f"{len(missing)} of the requests that led to explanation {stored.id} are not made again; the evidence, a "
            "prompt or the code has changed since"
        )
    return Reproduced(told, made[0].text, made[0].text == stored.explanation.text)


def _listened(task: LLMTask[list], heard: list[Request]) -> LLMTask[list]:
    """The task, with every request written down."""
    replies: Sequence[Reply] | None = None
    while True:
        try:
            requests = next(task) if replies is None else task.send(replies)
        except StopIteration as stop:
            return stop.value
        heard += requests
        replies = yield requests
