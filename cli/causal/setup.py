"""The setup of the causal verbs: the subject, its edits, and the dictionaries, directions and text these refer to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...subject.address import split_random
from ...subject.errors import NeuronautError
from ..common import Count, all_of, convention_options, say_later
from .inputs import read

if TYPE_CHECKING:
    from torch import Tensor

    from ...causal.prompts import Batch
    from ...causal.setup import CausalSetup
    from ...subject.model import Subject
    from ...subject.sources import Source

device_options = all_of(
    click.option("--device", metavar="D", help="auto (default: a GPU where there is one), cpu, cuda, cuda:1 or mps."),
    click.option("--dtype", metavar="T", help="float32 (default), bfloat16 or float16."),
)
text_options = all_of(device_options, convention_options)
subject_options = all_of(
    text_options,
    click.option("--chat", is_flag=True, help="Each prompt is a message to the model, in its chat template."),
)
dictionary_options = all_of(
    click.option(
        "--sae", metavar="PATH", help="The dictionary, or directions: folder, file, or OWNER/NAME[/FOLDER] on the hub."
    ),
    click.option(
        "--norm-scale", type=float, metavar="X", help="What vectors were multiplied by in the dictionary's training."
    ),
    click.option("--allow-pickle", is_flag=True, help="Read a dictionary that is a pickle."),
)
material_options = all_of(
    click.option(
        "--reference",
        metavar="NAME",
        help="Text that means, draws and quantiles are of: stdlib, a file or folder, or a dataset.",
    ),
    click.option(
        "--reference-tokens", type=Count(), default="4k", show_default=True, metavar="N", help="How much of it."
    ),
    click.option(
        "--direction",
        "directions",
        multiple=True,
        metavar="NAME=FILE",
        help="A direction that edits name: JSON numbers, or what `neuronaut probe --json` printed.",
    ),
    dictionary_options,
    subject_options,
)


def open_subject(model: str, options: Mapping[str, Any]) -> "Subject":
    """The subject, as `subject_options` say."""
    say_later(f"opening {model}")
    from ...labelling.opening import LoadOptions, load_subject

    names = ("device", "dtype", "bos", "special_tokens", "chat")
    return load_subject(model, LoadOptions(**{name: options[name] for name in names if name in options}))


def open_setup(
    model: str, texts: Sequence[str], options: Mapping[str, Any], *, always: str | None = None
) -> "CausalSetup":
    """The subject with what the edits refer to, as `material_options` say; an option that no edit needs is an error.

    `always` says for what reference text is read whatever the edits need.
    """
    from ...causal.edits import Edit
    from ...causal.setup import CausalSetup
    from ...labelling.opening import settle_bos

    # Edits and directions are read first, because a large model takes its time to load.
    edits = tuple(Edit.parse(_strip_model(model, text)) for text in texts)
    directions = dict(map(_read_direction, options["directions"]))
    _check_used("--direction", directions.keys(), {edit.direction for edit in edits})
    needing = always or next((f"edit {edit} is about" for edit in edits if edit.needs_reference), None)
    if options["reference"] is not None and needing is None:
        raise NeuronautError("no edit needs --reference; means, draws, noise and quantiles do")
    if needing is not None and options["reference"] is None and split_random(model)[0] != "demo":
        raise NeuronautError(
            f"{needing} reference text; add --reference FILE, FOLDER, stdlib, or a Hugging Face dataset"
        )
    subject = open_subject(model, options)
    named = [f"{edit.site}@{edit.dictionary}" for edit in edits if edit.dictionary]
    dictionaries = open_dictionaries(subject, named, options)
    subject = settle_bos(subject, dictionaries.values(), asked=options["bos"])
    reference = needing and _read_reference(subject, options["reference"] or "stdlib", options["reference_tokens"])
    return CausalSetup(subject, edits, dictionaries, directions, reference or None)


def _strip_model(model: str, text: str) -> str:
    """The edit without the model's name, which a feature's full address has."""
    return text.removeprefix(f"{model}:").removeprefix(f"{Path(model).name}:")


def _check_used(option: str, names: Iterable[str], used: Iterable[object]) -> None:
    if unused := sorted({*names} - {*used}):
        raise NeuronautError(f"no edit names {', '.join(unused)} of {option}; name it in one, or leave it out")


def sites_named(subject: "Subject", texts: Iterable[str]) -> list[str]:
    """Sites as they are named: `head` is that of every layer, `mlp.0-3` of these; anything else is itself."""
    from ...labelling.opening import sites_of

    return [site for text in texts for site in ([text] if "@" in text else sites_of(subject, text))]


def open_dictionaries(subject: "Subject", named: Iterable[str], options: Mapping[str, Any]) -> "dict[str, Source]":
    """The dictionaries and directions `SITE@NAME`: the built-in ones, and the one that `dictionary_options` say."""
    from ...labelling.opening import LoadOptions, open_sources
    from ...subject.address import SourceId
    from ...subject.opening import built_in

    ids = {name: SourceId.parse(f"{subject.name}:{name}") for name in named}
    own = [name for name, id in ids.items() if built_in(id) is None]
    if options["sae"] is not None and len(own) != 1:
        raise NeuronautError(
            f"--sae is one dictionary, and {', '.join(own) or 'nothing'} names one; write SITE@NAME for it, once"
        )
    load_options = LoadOptions(**{key: options[key] for key in ("sae", "norm_scale", "allow_pickle")})
    dictionaries: dict[str, Source] = {}
    for name in ids:
        (source,) = open_sources(subject, [name], load_options if name in own else LoadOptions(), name=None)
        dictionaries[name] = source
    return dictionaries


def _read_direction(text: str) -> "tuple[str, Tensor]":
    """`NAME=FILE` as a name and a vector."""
    import torch

    name, _, file = text.partition("=")
    if not name or not file:
        raise NeuronautError(f"--direction {text} is not NAME=FILE; an example: --direction round=round.json")
    try:
        data = json.loads(read(file))
    except ValueError as error:
        raise NeuronautError(f"--direction {text}: {file} is no JSON ({error}); wanted a list of numbers") from None
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    vector = data.get("direction") if isinstance(data, dict) else data
    if not isinstance(vector, list) or not vector or not all(isinstance(x, int | float) for x in vector):
        raise NeuronautError(
            f"--direction {text}: {file} holds no direction; wanted a list of numbers, or what "
            "`neuronaut probe MODEL --site SITE --json` printed for one site"
        )
    return name, torch.tensor(vector, dtype=torch.float32)


def _read_reference(subject: "Subject", name: str, tokens: int | None) -> "Batch":
    from ...data.corpus import Corpus
    from ...labelling.opening import reference_rows

    if tokens is None:
        raise NeuronautError("--reference-tokens all is too much; give a number such as 20k")
    return reference_rows(subject, Corpus.load(name), tokens=tokens)
