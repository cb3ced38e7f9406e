"""Where a model and its dictionary lie and how they are loaded, as it was asked for."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Options for opening a subject and its dictionary, where these differ from the store's."""

    model: str | None = None
    """Folder or repository of the model."""
    sae: str | None = None
    """Folder, file or repository of the dictionary."""
    along: str | None = None
    """A direction of the residual stream along which heads write: a file, or `token:" Paris"`."""
    norm_scale: float | None = None
    allow_pickle: bool = False
    device: str | None = None
    dtype: str | None = None
    bos: str = "auto"
    """Whether BOS stands before each row: auto, always or never."""
    special_tokens: bool = False
    chat: bool = False
