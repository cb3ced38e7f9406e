"""A subject with edits, and what these refer to: dictionaries, directions, reference text."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..subject.model import Subject
from ..subject.sources import Source
from .edits import Edit
from .intervene import Materials
from .prompts import Batch
from .runs import gather


@dataclass(frozen=True, slots=True, eq=False)
class CausalSetup:
    """A subject with edits and all that these refer to but a source run."""

    subject: Subject
    edits: tuple[Edit, ...]
    dictionaries: Mapping[str, Source] = field(default_factory=dict)
    """By `SITE@NAME`."""
    directions: Mapping[str, Tensor] = field(default_factory=dict)
    """By name: (width of the site,)."""
    reference: Batch | None = None

    @property
    def materials(self) -> Materials:
        """The dictionaries and directions, as runs take them."""
        return Materials(sources=self.dictionaries, directions=self.directions)

    def gather_materials(self, source_run: Batch | None = None) -> Materials:
        """The materials with the vectors of the reference, and of the source run, that the edits need."""
        return gather(
            self.subject, self.edits, materials=self.materials, reference=self.reference, source_run=source_run
        )
