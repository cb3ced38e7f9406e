"""Loads a model and its tokenizer by the name that the command line gives.

Only safetensors weights are read, no code that comes with a model is run, and a checkpoint that lacks
a weight is an error instead of a random one. Whatever is wrong with what the user named becomes
one NeuronautError; transformers' bars and warnings are silent meanwhile, and as before afterwards.
"""

import hashlib
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.utils import logging

from .address import name_random, split_random
from .architecture import ARCHITECTURES
from .claims import ROUNDING
from .config_check import blame_layers, blame_shape, check_model
from .discovery import find_blocks
from .errors import NeuronautError
from .json_files import read_json
from .randomize import randomize_model
from .vocabulary import token_strings

DEMO = Path(__file__).parent.parent / "data" / "demo"
"""Folder of the built-in subject, whose name is `demo`."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


class Loaded(NamedTuple):
    """What a name stands for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    """Base name of the folder, or the repository's id."""


def load(
    name_or_path: str, *, device: str, dtype: str, revision: str | None = None, any_family: bool = False
) -> Loaded:
    """Load a local folder, a repository of the Hugging Face hub, or `demo`.

    `NAME~random-SEED` is the model NAME with every matrix drawn again (randomize.py), whatever folder lies there.
    With `any_family` whatever writes text will do; otherwise the weights of its blocks must all be there.
    """
    if dtype not in DTYPES:
        raise NeuronautError(f"dtype {dtype!r} is not known; wanted one of: {', '.join(DTYPES)}")
    target = _check_device(device)
    base, seed = split_random(name_or_path)
    folder = _find_folder(base)
    source = str(folder or base)
    with quiet():
        config = _read_config(source, base, revision=revision)
        model, report = _load_model(source, base, device=target, dtype=DTYPES[dtype], revision=revision)
        model = model if any_family else take_text_tower(model, name=base)
        layers = None if any_family else _find_layers(model, base)
        _check_weights(base, config, report, layers and rf"(?:{model.base_model_prefix}\.)?{layers}")
        tokenizer = _load_tokenizer(source, base, revision=revision)
    name = "demo" if folder == DEMO else folder.resolve().name if folder else base
    if seed is not None:
        randomize_model(model, seed)
        name = name_random(name, seed)
    return Loaded(model, tokenizer, name)


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, without the model; the folder may hold nothing else."""
    folder = Path(name_or_path).expanduser()
    if not (folder / "tokenizer.json").is_file():
        folder = _find_folder(name_or_path)
    with quiet():
        return _load_tokenizer(str(folder or name_or_path), name_or_path, revision=None)


def load_tokens(name_or_path: str) -> tuple[str, ...]:
    """The string of every token id of a model's tokenizer, without the model."""
    tokenizer = load_tokenizer(name_or_path)
    return token_strings(tokenizer, count=len(tokenizer))


def weights_digest(model: PreTrainedModel) -> str:
    """The first 16 hex digits of SHA-256 over the parameters' names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def take_text_tower(model: PreTrainedModel, *, name: str) -> PreTrainedModel:
    """The language model inside one that reads images too, its modules shared; any other model as it is.

    It is held to what the whole model says of text, and to reading from left to right; else it is refused.
    """
    text = model.config.get_text_config()
    if text is model.config or not hasattr(model.config, "text_config"):
        return model
    tower = _build_tower(model, text)
    if tower is None:
        raise NeuronautError(
            f"{name} is a {type(model).__name__}, and transformers has no ...ForCausalLM of its text alone "
            f"({text.model_type}); load a model of text"
        )
    tokens = torch.randint(text.vocab_size, (1, 8), generator=torch.Generator().manual_seed(0)).to(model.device)
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % text.vocab_size
    with torch.inference_mode():
        whole, alone = (part.eval()(input_ids=tokens, use_cache=False).logits for part in (model, tower))
        ahead = tower(input_ids=other, use_cache=False).logits[:, :-1] - alone[:, :-1]
    limit = ROUNDING * torch.finfo(model.dtype).eps
    if float(ahead.abs().max() / alone.abs().max()) > limit:
        raise NeuronautError(f"the tokens of {name} read what stands behind them; load a model of text alone")
    off = float((whole - alone).abs().max() / whole.abs().max())
    if not off <= limit:
        raise NeuronautError(f"the text of {name} read by its {type(tower).__name__} is off by {off:.2g}; load another")
    return tower


def _build_tower(model: PreTrainedModel, text: PreTrainedConfig) -> PreTrainedModel | None:
    """The class of a text configuration, around the modules of the whole; None where there is no such class."""
    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if family is None or head is None:
        return None
    try:
        with torch.device("meta"):
            tower: PreTrainedModel = family._from_config(text)
    # Some classes look at values as they are built, which are not there.
    except RuntimeError:
        return None
    if type(decoder) is not type(tower.base_model):
        return None
    setattr(tower, tower.base_model_prefix, decoder)
    tower.set_output_embeddings(head)
    return tower


@contextmanager
def quiet() -> Generator[None]:
    """Silence transformers' progress bars and warnings; downloads still show theirs."""

    def no_bar(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return logging.EmptyTqdm(*args, **kwargs)

    verbosity, hook = logging.get_verbosity(), logging.set_tqdm_hook(no_bar)
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)


def _check_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError) as error:
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise NeuronautError(f"device {device!r} is not there; this machine has: {', '.join(here)}") from error
    return target


def _find_folder(name_or_path: str) -> Path | None:
    """The local folder that is meant, or None where it must be a repository of the hub."""
    folder = DEMO if name_or_path == "demo" else Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder == DEMO:
        raise NeuronautError("the built-in subject is not in this installation: install neuronaut again, with its data")
    if folder.is_dir():
        raise NeuronautError(
            f"folder {name_or_path} is not a model: it has no config.json; give a folder that save_pretrained wrote"
        )
    if folder.exists():
        raise NeuronautError(f"{name_or_path} is a file; give the folder that holds config.json and model.safetensors")
    if not _REPOSITORY.fullmatch(name_or_path):
        raise NeuronautError(f"there is no folder {name_or_path}; give an existing folder, a Hugging Face id, or demo")
    return None


def _read_config(source: str, name: str, *, revision: str | None) -> dict[str, Any]:
    file = Path(source) / "config.json"
    if file.is_file():
        config = read_json(file, dict, wanted="an object with the model's settings")
    else:
        try:
            config, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(source, name, "config.json", error) from error
    check_model(f"{name}/config.json", config, ACT2FN)
    return config


def _build_config(source: str, name: str, *, revision: str | None) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    # A configuration that makes no sense fails wherever it is first used, with whatever that raises.
    except Exception as error:
        raise _unreadable(source, name, "config.json", error) from error


def _load_model(
    source: str, name: str, *, device: torch.device, dtype: torch.dtype, revision: str | None
) -> tuple[PreTrainedModel, dict[str, Any]]:
    config = _build_config(source, name, revision=revision)
    try:
        loaded: Any = _class_of(config).from_pretrained(
            source,
            config=config,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise _unreadable(source, name, "safetensors weights (no other format is read)", error) from error
    # What else it raises, as a division by zero, comes of what the configuration says.
    except Exception as error:
        raise _unreadable(source, name, "config.json", error) from error
    model, report = loaded
    if getattr(model, "pooler", None) is not None:
        # It reads what the encoder has finished; half of the checkpoints lack it.
        model.pooler = None
        report["missing_keys"] = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    return model.to(device), report


def _class_of(config: PreTrainedConfig) -> Any:
    """The class that reads the text of a configuration: with its unembedding, or the encoder alone where it is one."""
    family, row = type(config), ARCHITECTURES.get(config.model_type)
    if _is_encoder(config) if row is None else not row.is_causal(config):
        return AutoModelForTextEncoding if family in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    images = family in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and family not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def _is_encoder(config: PreTrainedConfig) -> bool:
    """Whether a family that is not in the table fills in masks, or encodes text for a decoder."""
    if config.is_encoder_decoder:
        return type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def _find_layers(model: PreTrainedModel, name: str) -> str:
    row = ARCHITECTURES.get(model.config.model_type)
    return row.layers if row else find_blocks(model, name=name)[0]


def _check_weights(name: str, config: dict[str, Any], report: dict[str, Any], layers: str | None) -> None:
    """Refuse weights that are not those that the configuration describes: transformers would fill in random ones."""
    missing, misshapen = sorted(report["missing_keys"]), list(report["mismatched_keys"])
    fault = layers and blame_layers(config, layers, missing=missing, unexpected=report["unexpected_keys"])
    if not (fault or missing or misshapen):
        return
    if not fault and misshapen:
        fault = blame_shape(config, misshapen)
    fault = fault or f"{len(missing)} tensors are missing, the first is {missing[0]}"
    raise NeuronautError(f"the weights of {name} do not fit its config.json: {fault}; get a complete copy of the model")


def _load_tokenizer(source: str, name: str, *, revision: str | None) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    # As for the model: a file that makes no sense raises anything.
    except Exception as error:
        raise _unreadable(source, name, "tokenizer", error) from error


def _unreadable(source: str, name: str, part: str, error: Exception) -> NeuronautError:
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        return NeuronautError(f"cannot read the {part} of {name} ({cause}); get a complete copy of the model")
    return NeuronautError(
        f"cannot get the {part} of {name} from the Hugging Face hub ({cause}); check the id and the connection, "
        "or give a local folder that holds config.json, safetensors weights and tokenizer.json"
    )
