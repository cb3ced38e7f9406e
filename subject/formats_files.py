"""Where a dictionary's files are and what they hold, before any meaning is given to it.

A path that does not exist here names a folder of a Hugging Face repository, of which exactly the
files that the readers understand are fetched. Nothing in a file is ever executed: arrays are read
without pickle, and a pickled checkpoint only on demand, through torch's restricted unpickler.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .config_check import DICTIONARY, SCALE, Rule, check_fields
from .errors import NeuronautError
from .json_files import read_json

CONFIGS = ("cfg.json", "config.json", "hyperparams.json", "config.yaml", "conf.yaml")
_CHECKPOINTS = "checkpoints"
"""A folder of weights whose configuration lies above it."""
_SCALER = "activation_scaler.json"
_KNOWN = ("sae_weights.safetensors", "sae.safetensors", "params.safetensors", "params.npz", "ae.pt")
"""Preferred where a folder holds several weight files."""
_NOT_WEIGHTS = ("sparsity.safetensors", "activations_store_state.safetensors", "trainer_state.pt")
PICKLES = (".pt", ".pth")
_TIMEOUT = 20.0
"""Seconds."""
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)([/@](?P<folder>[^@]+))?")


@dataclass(frozen=True, slots=True)
class Location:
    """A dictionary's weight file and what is written beside it."""

    weights: Path
    config: Mapping[str, Any]
    """The content of the first of CONFIGS that there is; empty where there is none."""
    norm_scale: float | None
    """SAELens' estimate of the factor on the inputs, where a training checkpoint has one."""
    config_file: str | None = None
    """The name of the file that `config` is of."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the weights: of a pair, W_enc_2 and W_dec_2, both."""
        pair = self.weights.with_name(self.weights.name.replace("W_enc_", "W_dec_", 1))
        return (self.weights, pair) if pair != self.weights and pair.is_file() else (self.weights,)


class Contents(NamedTuple):
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    """By name, on the CPU and in the file's own dtype."""
    settings: dict[str, object]
    """What a pickle holds beside tensors: words, numbers and tables of these."""


def locate(path: str | Path, *, allow_pickle: bool = False) -> Location:
    """Find the weight file of a local file or folder, or of `OWNER/NAME[/FOLDER]` on the Hugging Face hub.

    Raises NeuronautError where there is none, several, or only a pickle without `allow_pickle`.
    """
    local = find_local(path)
    weights = local if local.is_file() else _find_weights(local, allow_pickle=allow_pickle)
    if weights.suffix not in READERS:
        raise NeuronautError(f"{weights.name} is no weight file; wanted one of {', '.join(READERS)}")
    if weights.suffix in PICKLES and not allow_pickle:
        raise NeuronautError(f"{weights} is a pickle, which can run code; if you trust it, pass --allow-pickle")
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name == _CHECKPOINTS else [])]
    configs = [folder / name for folder in folders for name in CONFIGS if (folder / name).is_file()]
    scaler = weights.parent / _SCALER
    scale = _read_fields(scaler, {"scaling_factor": SCALE}).get("scaling_factor") if scaler.is_file() else None
    if not configs:
        return Location(weights, {}, scale)
    return Location(weights, _read_fields(configs[0], DICTIONARY), scale, configs[0].name)


def find_local(path: str | Path) -> Path:
    """The file or folder here, or the local copy of `OWNER/NAME[/FOLDER]` on the Hugging Face hub."""
    local = Path(path).expanduser()
    return local if local.exists() else _fetch(str(path))


def read_contents(location: Location) -> Contents:
    """All that the weight files of a place hold."""
    parts = [_read(weights) for weights in location.files]
    return Contents({**parts[-1].tensors, **parts[0].tensors}, parts[0].settings)


def _read(weights: Path) -> Contents:
    try:
        return READERS[weights.suffix](weights)
    except (SafetensorError, UnpicklingError, zipfile.BadZipFile, ValueError, EOFError, RuntimeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise NeuronautError(f"{weights} cannot be read ({reason}); it may be damaged: fetch it again") from error


def _read_safetensors(path: Path) -> Contents:
    return Contents(load_file(path), {})


def _read_npz(path: Path) -> Contents:
    with np.load(path, allow_pickle=False) as arrays:
        return Contents({name: torch.from_numpy(arrays[name]) for name in arrays.files}, {})


def _read_pickle(path: Path) -> Contents:
    content: object = torch.load(path, map_location="cpu", weights_only=True)
    outer: object = None
    if isinstance(content, dict) and (name := next((n for n in ("ae", "sae", "state_dict") if n in content), None)):
        outer, content = content, content[name]
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__} where a table of tensors is wanted")
    settings = {str(name): value for name, value in content.items() if not isinstance(value, Tensor)}
    # dictionary_learning's backup of a run keeps the factor that it takes out of the weights when the run ends.
    if isinstance(outer, dict) and isinstance(factor := outer.get("norm_factor"), int | float | Tensor):
        settings["norm_factor"] = float(factor)
    return Contents({str(name): value for name, value in content.items() if isinstance(value, Tensor)}, settings)


READERS: Mapping[str, Callable[[Path], Contents]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    **dict.fromkeys(PICKLES, _read_pickle),
}


def _find_weights(folder: Path, *, allow_pickle: bool) -> Path:
    files = [file for file in sorted(folder.iterdir()) if file.suffix in READERS and file.name not in _NOT_WEIGHTS]
    safe = [file for file in files if file.suffix not in PICKLES]
    # Of a pair, W_enc_2 and W_dec_2, the first stands for both.
    halves = {file.name.replace("W_enc_", "W_dec_", 1) for file in safe if file.name.startswith("W_enc_")}
    candidates = [file for file in safe if file.name not in halves] or files
    if safe or allow_pickle:
        candidates = [file for file in candidates if file.name in _KNOWN] or candidates
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise NeuronautError(
            f"{folder} holds several weight files, {_join_first(candidates)}; name the one that is meant"
        )
    if (inner := folder / _CHECKPOINTS).is_dir():
        return _find_weights(inner, allow_pickle=allow_pickle)
    below = {file.parent.relative_to(folder) for suffix in READERS for file in folder.rglob(f"*{suffix}")}
    named = {str(place.parent if place.name == _CHECKPOINTS else place) for place in below}
    hint = f"; there are some in {_join_first(sorted(named))}" if named else ""
    raise NeuronautError(f"{folder} holds no weight file ({', '.join(READERS)}){hint}")


def _read_fields(path: Path, rules: Mapping[str, Rule]) -> dict[str, Any]:
    wanted = "an object with the SAE's settings"
    config = _read_yaml(path, wanted) if path.suffix == ".yaml" else read_json(path, dict, wanted=wanted)
    check_fields(path, config, rules)
    return config


def _read_yaml(path: Path, wanted: str) -> dict[str, Any]:
    try:
        config: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise NeuronautError(f"{path} is not readable YAML ({_first_line(error)}); wanted {wanted}") from error
    if not isinstance(config, dict):
        raise NeuronautError(f"{path} holds a {type(config).__name__}; wanted {wanted}")
    return {str(name): value for name, value in config.items()}


def _fetch(name: str) -> Path:
    """The local copy of a hub folder or file; without a connection, what was fetched before."""
    # Imported here because only a path that is not local needs it.
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if (match := _REPOSITORY.fullmatch(name)) is None:
        raise NeuronautError(f"{name} does not exist; wanted a file, a folder, or OWNER/NAME/FOLDER on Hugging Face")
    repository, inside = match["repository"], PurePosixPath(match["folder"] or ".")
    try:
        siblings = HfApi().model_info(repository, timeout=_TIMEOUT).siblings or []
        wanted = _files_in(inside, [sibling.rfilename for sibling in siblings], name)
        fetched = [Path(hf_hub_download(repository, file)) for file in wanted]
        return fetched[0] if str(inside) == wanted[0] else fetched[0].parent
    except NeuronautError:
        raise
    except HfHubHTTPError as error:
        raise NeuronautError(f"{name} is neither here nor on Hugging Face: {_first_line(error)}") from error
    # The hub's transport differs between its versions, and their errors have no base in common.
    except Exception as error:
        if (cached := _find_cached(lambda: snapshot_download(repository, local_files_only=True), inside)) is None:
            raise NeuronautError(
                f"{name} is not here, and Hugging Face cannot be reached ({type(error).__name__}): you seem to be "
                "offline; fetch it on a connected machine and give the folder"
            ) from error
        return cached


def _find_cached(snapshot: Callable[[], str], inside: PurePosixPath) -> Path | None:
    try:
        cached = Path(snapshot()) / inside
    except OSError:
        return None
    return cached if cached.exists() else None


def _files_in(folder: PurePosixPath, files: Iterable[str], name: str) -> list[str]:
    """The weight and configuration files of a repository's folder, or the one file that `folder` names."""
    paths = [PurePosixPath(file) for file in files]
    if folder in paths:
        folder, chosen = folder.parent, [folder]
    else:
        places = (folder, folder / _CHECKPOINTS)
        within = ([path for path in paths if path.parent == place and path.suffix in READERS] for place in places)
        chosen = next(filter(None, within), [])
    if not chosen:
        elsewhere = sorted({str(path.parent) for path in paths if path.suffix in READERS})
        raise NeuronautError(f"{name} holds no weight file; there are some in {_join_first(elsewhere)}")
    homes = {folder, chosen[0].parent, *([folder.parent] if folder.name == _CHECKPOINTS else [])}
    beside = [path for path in paths if path.parent in homes and path.name in (*CONFIGS, _SCALER)]
    return [str(path) for path in (*chosen, *beside)]


def _join_first(names: Iterable[object]) -> str:
    texts = [str(getattr(name, "name", None) or name) for name in names]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
