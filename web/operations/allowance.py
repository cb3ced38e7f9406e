"""What calls may spend on a language model, all of them together."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ...subject.errors import NeuronautError

if TYPE_CHECKING:
    from ...data.store.store import Store
    from ...llm.client import LLMClient
    from ...llm.prices import Budget


class Allowance:
    """Opens the client of a language model for one call after another, each with what is left of a budget."""

    def __init__(
        self, budget: "Budget", open_client: "Callable[[Store, Budget], AbstractContextManager[LLMClient | None]]"
    ) -> None:
        self._budget, self._open = budget, open_client
        self._spent: dict[str, float] = {"usd": 0.0, "tokens": 0, "calls": 0, "minutes": 0.0}

    def left(self) -> "Budget":
        """What is left. Raises NeuronautError where it is nothing."""
        from ...llm.prices import Budget

        limits = {kind: limit for kind, limit in asdict(self._budget).items() if limit is not None}
        left = {kind: limit - self._spent[kind] for kind, limit in limits.items()}
        if spent := [f"{kind}={limits[kind]:g}" for kind, value in left.items() if value <= 0]:
            raise NeuronautError(
                f"the server's budget of {' and '.join(spent)} is spent; whoever runs it may start it with more"
            )
        return Budget(**left)

    @contextmanager
    def client(self, store: "Store") -> "Generator[LLMClient | None]":
        """The client, whose costs are taken off the budget afterwards."""
        with self._open(store, self.left()) as client:
            try:
                yield client
            finally:
                if client is not None:
                    spent = client.spent
                    tokens = spent.input_tokens + spent.output_tokens
                    now = {"usd": spent.usd, "tokens": tokens, "calls": spent.calls, "minutes": spent.minutes}
                    self._spent = {kind: self._spent[kind] + value for kind, value in now.items()}
