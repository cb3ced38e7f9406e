"""Opens sources as they were harvested: at the place, of the revision and by the convention of then."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..data.store.evidence import recorded_source
from ..data.store.store import Store
from ..subject.address import SourceId, harvest_command
from ..subject.errors import NeuronautError
from ..subject.model import Subject
from ..subject.opening import open_source
from ..subject.sources import Source


def open_harvested(
    store: Store, subject: Subject, source_id: SourceId, sources: Mapping[SourceId, Source] | None
) -> Source:
    """Open a source as the store knows it, unless `sources` has it; an error if another one was harvested."""
    source = (sources or {}).get(source_id) or open_stored(store, subject, source_id)
    store.check_source(
        source_id,
        revision=source.revision,
        model_revision=subject.revision,
        width=source.width,
        convention=subject.convention,
    )
    # What the harvest left out of its examples is left out of everything that explainers and scorers read.
    limits = {**subject.convention.norm_limits, **store.convention(source_id).norm_limits}
    subject.convention = replace(subject.convention, norm_limits=limits)
    return source


def as_harvested(subject: Subject, store: Store, sources: Iterable[SourceId]) -> Subject:
    """The subject with the convention by which the text of these sources' harvests was read.

    Raises NeuronautError where they differ.
    """
    conventions = {str(source): store.convention(source) for source in sources}
    if not conventions:
        return subject
    first, *others = conventions.values()
    if not all(first.agrees(other) for other in others):
        ways = "; ".join(f"{name} with {convention}" for name, convention in conventions.items())
        raise NeuronautError(f"these were harvested in different ways: {ways}; name those of one way at a time")
    bos = first.bos if subject.bos_id is not None else None
    return subject.with_convention(replace(first, bos=bos, norm_limits={}))


def open_stored(store: Store, subject: Subject, source_id: SourceId) -> Source:
    """Open a source that was harvested into the store, at the place it was harvested from."""
    if (recorded := recorded_source(store, source_id)) is not None:
        return recorded
    row = next((row for row in store.sources() if row["source"] == str(source_id)), None)
    if row is None:
        raise NeuronautError(
            f"nothing of {source_id} in the database; run: {harvest_command(source_id.model, source_id.site)}"
        )
    if row["model_revision"] != subject.revision:
        raise NeuronautError(
            f"{source_id} was harvested on {source_id.model} of revision {row['model_revision']}, but revision "
            f"{subject.revision} is loaded; harvest it again, or load the model it was harvested on"
        )
    return open_source(subject, source_id, path=row["provenance"].get("paths", {}).get(str(source_id)))
