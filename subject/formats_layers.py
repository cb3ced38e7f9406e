"""Folders that hold a file, or a pair of files, for each layer of a dictionary.

Each layer is a source of its own, called after the site that it reads. Of a cross-layer dictionary none of them
rebuilds a site alone, so each can open the others (`companions`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .errors import NeuronautError
from .formats_cross import file_number, layer_place
from .formats_files import PICKLES, READERS, find_local, locate
from .formats_sites import same_site


class MissingLayersError(NeuronautError):
    """Layers of a dictionary are not there, without which no site can be rebuilt."""


class Layers(NamedTuple):
    """The layers that a folder holds."""

    folder: Path
    by_site: Mapping[str, Path]
    """By the site that it reads, the file of each layer in their order."""

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that they read."""
        return tuple(self.by_site)

    def choose(self, site: str | None) -> Path:
        """The file of the layer that reads a site. Raises NeuronautError where none does."""
        file = next((file for own, file in self.by_site.items() if site and same_site(own, site)), None)
        if file is None:
            raise NeuronautError(
                f"{self.folder} holds a dictionary for each of {', '.join(self.by_site)}, and "
                f"{site or 'none of them'} is asked for; name one of these, or a file"
            )
        return file


def find_layers(path: str | Path) -> Layers | None:
    """The layers of a folder that holds one for each of several; None of everything else.

    A file of such a folder stands for itself, as does one that is alone there.
    """
    local = find_local(path)
    if not local.is_dir():
        return None
    safe = [file for file in local.iterdir() if file.suffix in READERS and file.suffix not in PICKLES]
    files = sorted((file for file in safe if file_number(file) is not None), key=lambda file: file_number(file) or 0)
    if len(files) < 2:
        return None
    places = [(layer_place(locate(file)).site, file) for file in files]
    if any(site is None for site, _ in places):
        raise NeuronautError(
            f"{local} holds {len(files)} layers, and nothing says which sites they read; write a config.yaml beside "
            "them, such as: feature_input_hook: hook_resid_mid and feature_output_hook: hook_mlp_out"
        )
    return Layers(local, {site: file for site, file in places if site})


def require_layers(layers: Layers | None, count: int, own: Path) -> dict[str, Path]:
    """The files of the layers beside `own`, by site. Raises MissingLayersError where some of `count` are not there."""
    files = {own.stem: own} if layers is None else layers.by_site
    if missing := sorted(set(range(count)) - {file_number(file) for file in files.values()}):
        raise MissingLayersError(
            f"layers {', '.join(map(str, missing))} of {count} are not in {own.parent}, and a site is rebuilt by all "
            "layers together; fetch them, or pass --force to go on without the gate"
        )
    return {site: file for site, file in files.items() if file.name != own.name}
