"""A weight file that has been read, and the helpers that every format's row converts it with.

Names do not tell which way round a matrix lies: its shape does, against the width of the subject's site (an encoder)
or the number of features (a decoder). Where both sides are equal, only a format that fixes the orientation is taken.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .address import SourceId
from .dictionary import Dictionary, Kind
from .errors import NeuronautError
from .formats_files import Location
from .formats_sites import Place, read_prepend_bos, same_site


class Checkpoint(NamedTuple):
    """A weight file that has been read, and what it is read for."""

    location: Location
    tensors: Mapping[str, Tensor]
    """Float32, on the CPU."""
    settings: Mapping[str, object]
    """What the weight file holds beside tensors."""
    id: SourceId
    d_site: int
    place: Place
    """The sites that its files name."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What the configuration beside the weights says."""
        return self.location.config

    @property
    def targets(self) -> tuple[str, ...]:
        """The sites that a transcoder or a crosscoder writes; none of an autoencoder."""
        writes = self.place.writes
        return () if len(writes) == 1 and same_site(writes[0], self.id.site) else writes

    def encoder(self, name: str, *, side: int = 0, fixed: bool) -> Tensor:
        """A matrix as (d_site, F); `side`: where the format has the site's width, `fixed`: also of a square one."""
        wide = f"neither side fits {self.id.site} of {self.id.model}, {self.d_site} wide"
        matrix = self._matrix(name, self.d_site, wide, side=side, fixed=fixed)
        return matrix if side == 0 else matrix.T

    def decoder(self, name: str, width: int, *, side: int = 0, fixed: bool) -> Tensor:
        """A matrix as (F, d_out); `side`: where the format has the features, `fixed`: also of a square one."""
        matrix = self._matrix(name, width, f"neither side fits {width} features", side=side, fixed=fixed)
        return matrix if side == 0 else matrix.T

    def _matrix(self, name: str, size: int, misfit: str, *, side: int, fixed: bool) -> Tensor:
        matrix = self.tensors[name]
        if matrix.ndim != 2 or size not in matrix.shape:
            raise NeuronautError(
                f"{name} of {self.location.weights} is {'x'.join(map(str, matrix.shape))}, and {misfit}; "
                "name the model and site it was trained on"
            )
        if matrix.shape[0] == matrix.shape[1] and not fixed:
            raise NeuronautError(
                f"{name} of {self.location.weights} is square, so that its orientation cannot be told; save it with "
                "a SAELens cfg.json"
            )
        return matrix if matrix.shape[side] == size else matrix.T

    def check_size(self, table: Mapping[str, Any] | None = None, **sizes: int) -> None:
        """Refuse weights of another size than the configuration beside them says."""
        for field, size in sizes.items():
            if (said := (self.config if table is None else table).get(field) or size) != size:
                raise self.refusal(
                    f"weights whose {field} is {size}", f"{said}, as {field} of its {self.location.config_file} says"
                )

    def refusal(self, content: str, wanted: str) -> NeuronautError:
        """The error for something in the file that cannot be read."""
        return NeuronautError(f"{self.location.weights} holds {content}; wanted {wanted}")

    def require_target(self, field: str) -> None:
        """Refuse a transcoder of which nothing says where it writes."""
        if not self.place.writes:
            raise self.refusal("a transcoder, and nothing says which site it writes", f"{field} in its configuration")

    def build(
        self,
        kind: Kind,
        *,
        W_enc: Tensor,
        W_dec: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        subtract_b_dec: bool = False,
        k: int = 0,
        **more: Any,
    ) -> Dictionary:
        """The dictionary of these tensors, laid out feature by feature."""
        reads = self.place.reads or (self.id.site,)
        if W_enc.shape[0] != self.d_site * len(reads):
            raise self.refusal(
                f"an encoder of {W_enc.shape[0]} coordinates, and its configuration names {', '.join(reads)}",
                f"{self.d_site * len(reads)} of these, {self.d_site} each",
            )
        return Dictionary(
            id=self.id,
            kind=kind,
            W_enc=W_enc.T.contiguous().T,
            W_dec=W_dec.contiguous(),
            b_enc=b_enc,
            b_dec=b_dec,
            subtract_b_dec=subtract_b_dec,
            k=k,
            targets=self.targets,
            inputs=self.place.reads,
            prepend_bos=read_prepend_bos(self.config),
            **more,
        )


class Format(NamedTuple):
    """One row of the table of formats."""

    name: str
    told_by: str
    """What it is recognised by, in words."""
    recognises: Callable[[Location, Mapping[str, Tensor]], bool]
    """Whether the tensors' names and ranks, and only then what lies beside them, are of this format."""
    convert: Callable[[Checkpoint], Dictionary]
    scaled: bool = False
    """Whether its training vectors were multiplied by a constant that its files never hold."""
    find_place: Callable[[Location, Mapping[str, Tensor]], Place] | None = None
    """What tells the sites, where names and configuration alone do not."""
