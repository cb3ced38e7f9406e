"""Why a decision is not carried out: a sentence for people and language models, a code for policies that are programs.

No policy reads the sentence. What one may react to is in the code and the details, which the journal keeps with it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from ...subject.errors import NeuronautError

RejectionCode = Literal[
    "unspecified",
    "no_action",
    "not_open",
    "bad_hypothesis",
    "bad_call",
    "no_place",
    "inseparable",
    "uninformative",
    "repeated",
    "silence_quota",
]
"""unspecified: as all that was written before there were codes; no_action: the policy gave none; not_open: the action
is not open now; bad_hypothesis: one that cannot be put up; bad_call: no such tool, wrong arguments, or nothing to do
with them; no_place: no training window has a place of the kind `where`; inseparable: no edit tells the two `rivals`
apart; uninformative: no outcome could tell any rivals apart; repeated: measured before; silence_quota: the leader would
predict silence for too few of all experiments."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one decision is not carried out."""

    reason: str
    """In one line, what is wrong and what would do."""
    code: RejectionCode = "unspecified"
    tool: str | None = None
    """The tool whose call is at fault; None where it is the decision as a whole."""
    where: str | None = None
    """Of no_place: the kind of place that there is none of."""
    rivals: tuple[str, ...] = ()
    """Of inseparable: the two."""

    def to_json(self) -> dict[str, Any]:
        """As the journal keeps it, without what it does not say."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Self:
        """From the journal's event; those that were written before there were codes have a reason only."""
        return cls(
            event["reason"],
            event.get("code", "unspecified"),
            tool=event.get("tool"),
            where=event.get("where"),
            rivals=tuple(event.get("rivals", ())),
        )


class RejectedError(NeuronautError):
    """A plan, or one of its calls, that is not run; says why and what would do, in one line."""

    def __init__(
        self,
        code: RejectionCode,
        message: str,
        *,
        tool: str | None = None,
        where: str | None = None,
        rivals: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.rejection = Rejection(message, code, tool=tool, where=where, rivals=rivals)

    def of_call(self, tool: str) -> "RejectedError":
        """The same of a call, said with the tool's name."""
        why = self.rejection
        return RejectedError(why.code, f"{tool}: {self}", tool=tool, where=why.where, rivals=why.rivals)
