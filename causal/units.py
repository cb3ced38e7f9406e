"""Units of a site as numbers that can be read and written, and what each operation makes of those numbers.

Whatever a unit is (a neuron, a head, a feature, a direction, the whole vector), it is `get`, which reads its values
off a site's vectors, and `put`, which gives vectors in which they are others and nothing else is. Putting back what
was got leaves every bit as it was. An operation maps values to values and knows nothing of what they belong to.

A transcoder's features are read at the edit's site and written at another, or at several; a crosscoder's are read at
several, whose vectors then stand side by side. A temporal dictionary's are read from each vector beside what those
before it predict. For everything else both are one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.sources import Source, join_vectors, require_one_site, require_vectorwise
from .edits import Edit

Operation = Callable[[Tensor], Tensor]
"""From values (touched, value) to those that take their place."""


class Change(Protocol):
    """What becomes of vectors."""

    def __call__(self, vectors: Tensor, inputs: Tensor | None = None) -> Tensor:
        """(touched, width) -> the same; `inputs` are the vectors that units are read from, where these are others."""
        ...


class Units(Protocol):
    """Some units of a site."""

    def get(self, vectors: Tensor) -> Tensor:
        """(touched, width) -> (touched, value)."""
        ...

    def put(self, vectors: Tensor, values: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The vectors with these units at `values` (touched, value), nothing else changed; `inputs` as of `Change`."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Columns:
    """Coordinates of the vectors: neurons, a head's own, or all."""

    columns: Tensor
    sign: float = 1.0

    def get(self, vectors: Tensor) -> Tensor:
        """The coordinates at these columns, times the sign. (touched, width) -> (touched, value)."""
        return self.sign * vectors[:, self.columns]

    def put(self, vectors: Tensor, values: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The vectors with these columns at `values` (touched, value), nothing else changed."""
        del inputs
        edited = vectors.clone()
        edited[:, self.columns] = self.sign * values.to(edited.dtype)
        return edited


@dataclass(frozen=True, eq=False, slots=True)
class Coded:
    """Features of a dictionary, edited so that its error and all other features stay: `x + dec(z') - dec(z)`."""

    source: Source
    features: Tensor
    sign: float = 1.0
    site: str | None = None
    """The one of the sites that are written whose vectors are changed, where there are several."""

    def get(self, vectors: Tensor) -> Tensor:
        """The features' activations, times the sign. (touched, width) -> (touched, value)."""
        return self.sign * self.source.encode(vectors, self.features)

    def put(self, vectors: Tensor, values: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The vectors with these features at `values` (touched, value), by the source's own edit."""
        return self.source.edit(vectors, self.features, self.sign * values, inputs=inputs, site=self.site)


@dataclass(frozen=True, eq=False, slots=True)
class Along:
    """How many times a direction is contained in a vector: its projection, in units of the direction's length."""

    direction: Tensor
    """(width,), float32."""

    def get(self, vectors: Tensor) -> Tensor:
        """How often the direction is in each vector. (touched, width) -> (touched, 1)."""
        return (vectors.float() @ self.direction / self.direction.square().sum())[:, None]

    def put(self, vectors: Tensor, values: Tensor, inputs: Tensor | None = None) -> Tensor:
        """The vectors moved along the direction until it is in them `values` (touched, 1) times."""
        del inputs
        return vectors + ((values - self.get(vectors)) * self.direction).to(vectors.dtype)


@dataclass(frozen=True, eq=False, slots=True)
class Supply:
    """What an operation takes its numbers from, for one edit: both in the units' values, None where not needed."""

    reference: Tensor | None
    """(reference vector, value)."""
    source_run: Tensor | None
    """(touched, value)."""


def units_of(subject: Subject, edit: Edit, *, sources: Mapping[str, Source], directions: Mapping[str, Tensor]) -> Units:
    """The units that an edit is about. Sources go by their `SITE@NAME`, directions by their names."""
    width, device = subject.width(edit.site), subject.device
    sign = -1.0 if edit.negative else 1.0
    if edit.direction is not None:
        return Along(_find_direction(edit, edit.direction, width, directions).to(device).float())
    if edit.dictionary is not None:
        source = _find_source(edit, sources)
        _check(edit, source.width, f"{source.id}")
        if edit.negative and not source.signed:
            raise NeuronautError(f"{edit}: activations of {source.id} are never below 0; leave the trailing - out")
        chosen = range(source.width) if edit.units is None else edit.units
        return Coded(source, torch.tensor(chosen, device=device), sign)
    if edit.units is None:
        return Columns(torch.arange(width, device=device))
    if heads := subject.heads(edit.site):
        _check(edit, heads, f"{subject.name}:{edit.site}")
        d_head = width // heads
        return Columns(torch.cat([torch.arange(h * d_head, (h + 1) * d_head) for h in edit.units]).to(device))
    _check(edit, width, f"{subject.name}:{edit.site}")
    return Columns(torch.tensor(edit.units, device=device), sign)


GRADIENTS = "a prediction by gradients"
"""What is refused of features of several sites."""


class Sites(NamedTuple):
    """The sites of an edit."""

    reads: tuple[str, ...]
    """Whose vectors, side by side, its units are read from."""
    writes: tuple[str, ...]
    """Whose vectors it changes."""
    source: Source | None = None
    """The dictionary that its units are features of."""

    @property
    def looks_back(self) -> bool:
        """Whether what its units are read from depends on the positions before."""
        return self.source is not None and self.source.looks_back

    def join(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """What its units are read from, of the vectors by site, (..., width)."""
        return join_vectors(vectors, self.reads) if self.source is None else self.source.join(vectors)

    @property
    def apart(self) -> bool:
        """Whether it looks at other vectors than those that it changes."""
        return self.reads != self.writes or len(self.reads) > 1 or self.looks_back

    def is_ahead(self, subject: Subject) -> bool:
        """Whether it changes a site before all that it reads are computed, which one forward pass cannot do."""
        order = subject.sites.index
        return self.apart and min(map(order, self.writes)) < max(map(order, self.reads))


def sites_of(edit: Edit, sources: Mapping[str, Source]) -> Sites:
    """Where the edit reads its units and changes vectors: its own site, but for transcoders and crosscoders."""
    if edit.dictionary is None:
        return Sites((edit.site,), (edit.site,))
    source = _find_source(edit, sources)
    return Sites(source.reads, source.writes, source)


def written_site(edit: Edit, sources: Mapping[str, Source], purpose: str) -> str:
    """The one site that an edit changes. Raises NeuronautError where it is of several; `purpose` wants one."""
    if edit.dictionary is None:
        return edit.site
    source = _find_source(edit, sources)
    require_vectorwise(source, purpose)
    return require_one_site(source, purpose)


def _check(edit: Edit, count: int, name: str) -> None:
    wrong = next((unit for unit in edit.units or () if unit >= count), None)
    if wrong is not None:
        raise NeuronautError(f"{edit}: there is no unit {wrong} at {name}, which has 0 to {count - 1}")


def _find_source(edit: Edit, sources: Mapping[str, Source]) -> Source:
    name = f"{edit.site}@{edit.dictionary}"
    if name not in sources:
        raise NeuronautError(f"{edit}: there is no dictionary {name}; there are {', '.join(sources) or 'none'}")
    return sources[name]


def _find_direction(
    edit: Edit, direction: str | tuple[float, ...], width: int, directions: Mapping[str, Tensor]
) -> Tensor:
    if not isinstance(direction, str):
        vector = torch.tensor(direction)
    elif direction in directions:
        vector = directions[direction]
    else:
        choices = ", ".join(directions) or "none"
        raise NeuronautError(f"{edit}: there is no direction {direction!r}; there are {choices}; pass it in")
    if vector.shape != (width,) or not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise NeuronautError(
            f"{edit}: the direction has shape {tuple(vector.shape)}; wanted ({width},), finite and not zero"
        )
    return vector


def compile_changes(edit: Edit, units: Units, supply: Supply, sites: Sites) -> dict[str, Change]:
    """What the edit makes of the vectors it touches, by site."""
    if len(sites.writes) == 1 or not isinstance(units, Coded):
        return {site: compile_change(edit, units, supply) for site in sites.writes}
    return {site: compile_change(edit, replace(units, site=site), supply) for site in sites.writes}


def compile_change(edit: Edit, units: Units, supply: Supply) -> Change:
    """What the edit makes of the vectors it touches at one site."""
    operation = _OPERATIONS[edit.operation](edit, supply)

    def changed(vectors: Tensor, inputs: Tensor | None = None) -> Tensor:
        return units.put(vectors, operation(units.get(vectors if inputs is None else inputs)), inputs)

    return changed if edit.control is None else _randomise(changed, edit.control)


def _randomise(changed: Change, seed: int) -> Change:
    """Vectors of the same norms as the changes, all in one random direction, added instead of them."""

    def control(vectors: Tensor, inputs: Tensor | None = None) -> Tensor:
        direction = torch.randn(vectors.shape[1], generator=torch.Generator().manual_seed(seed)).to(vectors.device)
        norms = (changed(vectors, inputs) - vectors).float().norm(dim=1, keepdim=True)
        return vectors + (norms * (direction / direction.norm())).to(vectors.dtype)

    return control


def _resolve_amount(edit: Edit, supply: Supply, number: float | None) -> Tensor | float | None:
    """A number of the edit as activations: itself, or that multiple of each unit's own quantile."""
    if edit.quantile is None or number is None:
        return number
    reference = _require_reference(supply).float()
    firing = reference.masked_fill(reference <= 0, torch.nan)
    peaks = firing.nanquantile(edit.quantile / 100, dim=0)
    if bool(peaks.isnan().any()):
        raise NeuronautError(
            f"{edit}: a unit is never above zero in the reference, so it has no quantile; give a number"
        )
    return number * peaks


def _require_reference(supply: Supply) -> Tensor:
    assert supply.reference is not None, "apply() gathers what an edit needs"
    return supply.reference


def _set(edit: Edit, supply: Supply) -> Operation:
    amount = _resolve_amount(edit, supply, edit.value)
    assert amount is not None, "the edit was checked"
    return lambda values: torch.zeros_like(values) + amount


def _add(edit: Edit, supply: Supply) -> Operation:
    amount = _resolve_amount(edit, supply, edit.value)
    assert amount is not None, "the edit was checked"
    return lambda values: values + amount


def _scale(edit: Edit, supply: Supply) -> Operation:
    del supply
    factor = edit.value
    assert factor is not None, "the edit was checked"
    return lambda values: values * factor


def _clamp(edit: Edit, supply: Supply) -> Operation:
    low, high = _resolve_amount(edit, supply, edit.low), _resolve_amount(edit, supply, edit.high)

    def clamped(values: Tensor) -> Tensor:
        values = values if low is None else values.maximum(torch.as_tensor(low, device=values.device).to(values))
        return values if high is None else values.minimum(torch.as_tensor(high, device=values.device).to(values))

    return clamped


def _mean(edit: Edit, supply: Supply) -> Operation:
    del edit
    mean = _require_reference(supply).float().mean(0)
    return lambda values: mean.expand_as(values)


def _resample(edit: Edit, supply: Supply) -> Operation:
    reference = _require_reference(supply)

    def drawn(values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(edit.seed)
        rows = torch.randint(len(reference), (len(values),), generator=generator)
        return reference[rows.to(reference.device)]

    return drawn


def _noise(edit: Edit, supply: Supply) -> Operation:
    assert edit.value is not None, "the edit was checked"
    size = _require_reference(supply).float().std(0, correction=0) * edit.value

    def noisy(values: Tensor) -> Tensor:
        drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(edit.seed))
        return values + size * drawn.to(values.device)

    return noisy


def _patch(edit: Edit, supply: Supply) -> Operation:
    del edit
    source_run = supply.source_run
    assert source_run is not None, "apply() gathers what an edit needs"
    return lambda values: source_run.expand_as(values)


_OPERATIONS: Mapping[str, Callable[[Edit, Supply], Operation]] = {
    "zero": lambda _edit, _supply: torch.zeros_like,
    "set": _set,
    "scale": _scale,
    "add": _add,
    "clamp": _clamp,
    "mean": _mean,
    "resample": _resample,
    "noise": _noise,
    "patch": _patch,
}
"""Each gives what an operation makes of the values (touched, value)."""
