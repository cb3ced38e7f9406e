"""Features whose activations were recorded elsewhere, in place of a model and a source that are not here.

`RecordedSource` answers from what was recorded; what nobody recorded counts as zero. `RecordedSubject` knows the
tokens and nothing else: whatever needs the model itself ends in one NeuronautError that says so. So explainers and
scorers that only read text and activations work on both alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..subject.address import SourceId
from ..subject.convention import Convention
from ..subject.errors import NeuronautError
from ..subject.model import ModellessSubject
from ..subject.sources import Features, Vectorwise
from .codec import window_digest

CONVENTION = Convention(None, "it was recorded elsewhere")
"""How recorded text was read: as it stands in the windows."""
Windows = Mapping[str, NDArray[np.float32]]
"""A feature's recorded activations, (position,) by digest of the window."""


def _refuse(name: str) -> NoReturn:
    raise NeuronautError(
        f"{name} is evidence from elsewhere, without its model, and this needs the model; harvest it with its model, "
        "or label with -e highlight, oneshot or contrastive and score with -s detection, fuzzing or simulation"
    )


class RecordedSubject(ModellessSubject):
    """The tokens of a model that is not here."""

    def __init__(self, name: str, vocabulary: tuple[str, ...], revision: str) -> None:
        super().__init__(name, vocabulary, revision=revision, convention=CONVENTION)

    def refuse(self) -> NoReturn:
        """Say what is not here."""
        _refuse(self.name)


@dataclass(frozen=True, slots=True)
class RecordedSource(Vectorwise):
    """Features with recorded activations."""

    id: SourceId
    width: int
    read: Callable[[int], Windows]
    """The recorded windows of a feature."""
    signed: bool = True
    separable: bool = True
    rescales: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The site that it is recorded under."""
        return (self.id.site,)

    @property
    def writes(self) -> tuple[str, ...]:
        """The same."""
        return (self.id.site,)

    @property
    def revision(self) -> str:
        """Empty: what was recorded is known by the revision of its subject."""
        return ""

    def columns(self, tokens: NDArray[np.integer], features: Sequence[int]) -> NDArray[np.float32]:
        """Recorded activations of features on windows, 0 where none is. (row, position) -> (row, position, feature)."""
        rows = [row[row >= 0] for row in tokens]
        digests = list(map(window_digest, rows))
        activations = np.zeros((*tokens.shape, len(features)), np.float32)
        for column, feature in enumerate(features):
            windows = self.read(feature)
            for place, digest in enumerate(digests):
                if digest in windows:
                    activations[place, : len(rows[place]), column] = windows[digest]
        return activations

    def encode(self, vectors: Tensor, features: Features | None = None, *, out: Tensor | None = None) -> Tensor:
        """Refused: it needs the model."""
        del vectors, features, out
        _refuse(str(self.id))

    def edit(
        self,
        vectors: Tensor,
        features: Tensor,
        values: Tensor,
        *,
        inputs: Tensor | None = None,
        site: str | None = None,
    ) -> Tensor:
        """Refused: it needs the model."""
        del vectors, features, values, inputs, site
        _refuse(str(self.id))

    def directions(self, features: Tensor) -> Tensor:
        """Refused: it needs the model."""
        del features
        _refuse(str(self.id))


def remember(read: Callable[[int], Windows]) -> Callable[[int], Windows]:
    """The same reader, which keeps the features that it read last."""
    return lru_cache(maxsize=256)(read)
