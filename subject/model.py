"""The subject: a Hugging Face language model, or text encoder, as it is, read and edited at named sites.

The model's own modules run, unchanged; plain forward hooks look on, and live no longer than one call.
A read stops right after the last site wanted. Sites come from the architecture table and exist
only where `conformance.prove` proved them on this very model.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .address import SourceId
from .architecture import Architecture, kv_heads
from .conformance import prove
from .convention import Convention, TextReader, choose_convention
from .discovery import architecture_of
from .errors import NeuronautError
from .forward import forward
from .hooks import Point, attach, record
from .loading import load, quiet, weights_digest
from .memory import Batching
from .vocabulary import token_strings

Edit = Callable[[Tensor], Tensor]
"""From a site's tensor (row, position, width) to the one that takes its place."""


class Subject(TextReader):
    """A model under study with its tokenizer.

    Attributes: `name` (on the command line and in feature addresses), `model` (in eval mode, no
    parameter requires a gradient), `tokenizer`, `device`, `sites` (the proven ones, in forward
    order), `refused` (site -> why it could not be proven), `checks` (the identities that were measured), `n_layers`,
    `n_heads` (query heads), `d_model`, `convention` (how text becomes rows), `context` (the most positions of a row),
    `causal` (False for an encoder: its tokens read both sides, and there are no next-token logits).

    >>> subject = Subject.load("demo")
    >>> subject.read(Batch.of(subject, ["import os"]).tokens, ["mlp.1"])["mlp.1"].shape[-1] == subject.width("mlp.1")
    True
    """

    inside: ClassVar[bool] = True
    """Whether there is a model to look into: with weights, sites along its way, and an output that can be edited."""
    unit_kind: ClassVar[str] = "neurons"
    """What the coordinates of a site are, in the store's words."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str, bos: str = "auto"
    ) -> None:
        """Take over a model in memory: it is put into eval mode and its parameters stop requiring gradients.

        `bos`: whether BOS stands before each row, "auto", "always" or "never" (see `convention`).
        """
        _check_name(name)
        config = model.config
        if missing := [key for key in DIMENSIONS if not isinstance(getattr(config, key, None), int)]:
            raise NeuronautError(
                f"the config of {name}, a {type(model).__name__}, gives no {' and no '.join(missing)}; wanted blocks "
                "with heads of attention, which a state space or a recurrence has not"
            )
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device = model.device
        self.batching = Batching()
        """What fits into memory at once, as far as it is known."""
        self.n_layers: int = config.num_hidden_layers
        self.n_heads: int = config.num_attention_heads
        self.d_model: int = config.hidden_size
        self._token_count: int = config.vocab_size
        self.architecture = architecture_of(self.model, name=name)
        """Where the family keeps its sites."""
        self.causal = self.architecture.is_causal(config)
        if self.causal and model.get_output_embeddings() is None:
            raise NeuronautError(
                f"{name} is a {type(model).__name__} without unembedding; wanted its ...ForCausalLM class"
            )
        self.convention = choose_convention(tokenizer, config.model_type, name=name, bos=bos, causal=self.causal)
        self.context = _context_of(config, self.architecture, name=name)
        self._points, self._widths, self.refused, self.checks = prove(model, self.architecture)
        self.sites = tuple(self._points)
        self._order = {site: rank for rank, site in enumerate(self.sites)}

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        name: str | None = None,
        revision: str | None = None,
        bos: str = "auto",
    ) -> Self:
        """Load a local folder, a Hugging Face id (at `revision`), or `demo`, the built-in subject.

        `name` replaces the folder's base name, or the id, in feature addresses. `dtype` is "float32",
        "bfloat16" or "float16"; `device` "auto" is a GPU where there is one; `bos` is "auto", "always" or "never".
        Raises NeuronautError for what the user can mend.
        """
        loaded = load(name_or_path, device=device, dtype=dtype, revision=revision)
        with quiet():
            return cls(loaded.model, loaded.tokenizer, name=name or loaded.name, bos=bos)

    @cached_property
    def revision(self) -> str:
        """The first 16 hex digits of SHA-256 over the parameters' names, dtypes, shapes and values."""
        return weights_digest(self.model)

    @property
    def dtype(self) -> str:
        """What the model computes in, as `load` takes it."""
        return str(self.model.dtype).removeprefix("torch.")

    @contextmanager
    def watching(self, ran: Callable[[Tensor], None]) -> Generator[None]:
        """Within the block, `ran` is told the token ids (row, position) of every forward pass, whoever asks for it."""

        def tell(_: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ran(next(value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)))

        handle = self.model.base_model.register_forward_pre_hook(tell, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """One string per token id, such that joining them gives the text."""
        return token_strings(self.tokenizer, count=self._token_count)

    def decode_tokens(self, ids: Iterable[int]) -> tuple[str, ...]:
        """The string of each token id."""
        return tuple(self.vocabulary[id] for id in ids)

    @property
    def unembedding(self) -> nn.Module:
        """The module that gives logits; an encoder's is refused, as it tells no next token."""
        self.require_causal("it has no next-token logits, which this needs")
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module), "an unembedding is a module"
        return head

    def require_causal(self, why: str) -> None:
        """Raise a NeuronautError for an encoder; `why` says in a clause what does not go with one."""
        if not self.causal:
            raise NeuronautError(
                f"{self.name} is an encoder, whose tokens read both sides: {why}; harvest, label, score, show, "
                "try and find work on it, or load a causal language model"
            )

    def width(self, site: str) -> int:
        """Coordinates of the vector at `site`."""
        self._point(site)
        return self._widths[site]

    def heads(self, site: str) -> int | None:
        """How many heads have their vectors side by side at `site`: query heads or key/value heads; None elsewhere."""
        kind = site.partition(".")[0]
        if kind in ("key", "value"):
            return kv_heads(self.model.config)
        return self.n_heads if kind in ("query", "head", "pattern", "score") else None

    @torch.inference_mode()
    def read(self, tokens: Tensor, sites: Sequence[str]) -> dict[str, Tensor]:
        """The vectors at `sites`, from one forward pass that stops after the last of them.

        tokens: (row, position) ids -> site: (row, position, width), in the subject's dtype and not copied. In an
        encoder's rows ids below 0 are padding at the end, which no token sees; in a causal model's any token will do.
        """
        tokens = self._check_tokens(tokens)
        return self._record(lambda: forward(self.model, tokens, causal=self.causal), sites)

    @torch.inference_mode()
    def read_endings(
        self, beginnings: Tensor, endings: Tensor, sites: Sequence[str], *, of: Tensor
    ) -> dict[str, Tensor]:
        """As `read` of rows that begin alike, at the positions of their endings; a beginning is run only once.

        beginnings: (beginning, position) ids, endings: (row, position) ids, of: the beginning of each row (row,)
        -> site: (row, position of the ending, width). Equal to `read` but for rounding. Of a causal subject alone: a
        beginning is not the same before every ending where its tokens read both sides.
        """
        self.require_causal("a beginning is not the same before every ending, so that rows are read whole")
        rows = self._check_tokens(torch.cat([beginnings[of], endings], dim=1))
        start, cache = beginnings.shape[1], DynamicCache(config=self.model.config)
        self._record(lambda: self.model.base_model(beginnings, past_key_values=cache, use_cache=True), sites)
        if not cache.get_seq_length():
            # The sites come before any attention, so nothing of the beginning matters.
            return {site: tensor[:, start:] for site, tensor in self.read(rows, sites).items()}
        cache.batch_select_indices(of)
        return self._record(
            lambda: self.model.base_model(rows[:, start:], past_key_values=cache, use_cache=True), sites
        )

    def _record(self, run: Callable[[], object], sites: Sequence[str]) -> dict[str, Tensor]:
        """The tensors at `sites` in one forward pass, which is stopped after the last of them."""
        points = {site: self._point(site) for site in sites}
        if not points:
            raise NeuronautError(f"no site to read; {self.name} has {join_sites(self.sites)}")
        last = points[max(sites, key=self._order.__getitem__)]
        passed = record(run, dict.fromkeys(points.values()), last=last)
        fired, tensors = Counter(point for point, _ in passed), dict(passed)
        for site, point in points.items():
            if fired[point] != 1:
                raise NeuronautError(
                    f"the hook at {site} of {self.name} fired {fired[point]} times in one forward pass, wanted once; "
                    "a fused kernel or a wrapper bypasses the module, so load the model without it"
                )
        return {site: tensors[point] for site, point in points.items()}

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """The model's own logits. (row, position) -> (row, position, token)."""
        return self.run(tokens)

    def run(self, tokens: Tensor, *, positions: Sequence[int] | None = None) -> Tensor:
        """As `logits`, in the caller's grad mode: an edit that returns a tensor with a gradient is differentiated.

        With `positions`, only theirs are computed, in their order: (row, chosen, token).
        """
        self.require_causal("it has no next-token logits, which this needs")
        tokens = self._check_tokens(tokens)
        options = {} if positions is None else {"logits_to_keep": torch.as_tensor(positions, device=self.device)}
        return self.model(tokens, use_cache=False, **options).logits

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Generator[None]:
        """Within the block, `read` and `logits` run with each site's tensor replaced by its edit's result.

        Sites read within the block show the edited values. `resid_mid.L` is changed on both of its
        paths, by adding the difference to `attn_out.L`.
        """
        with ExitStack() as hooks:
            points = {site: self._point(site) for site in edits}
            for site in sorted(edits, key=self._order.__getitem__):
                kind, _, layer = site.partition(".")
                if kind == "resid_mid" and not self.architecture.stream_norms:
                    self._edit_resid_mid(layer, edits[site], hooks)
                else:
                    hooks.enter_context(attach(points[site], edits[site]))
            yield

    def _edit_resid_mid(self, layer: str, edit: Edit, hooks: ExitStack) -> None:
        before: list[Tensor] = []

        def shifted(contribution: Tensor) -> Tensor:
            middle = before.pop() + contribution
            # The difference of an identity edit is exactly zero, so it leaves every bit as it was.
            return contribution + (edit(middle) - middle)

        hooks.enter_context(attach(self._point(f"resid_pre.{layer}"), before.append))
        hooks.enter_context(attach(self._point(f"attn_out.{layer}"), shifted))

    def _point(self, site: str) -> Point:
        if site in self._points:
            return self._points[site]
        if site in self.refused:
            raise NeuronautError(f"site {site} of {self.name} is refused: {self.refused[site]}")
        if site.startswith(("pattern.", "score.")):
            raise NeuronautError(
                f"{site} is no site of vectors, because it has a number for each pair of tokens; edit it, as in "
                f"`run --edit {site}:0=0`, or read query, key or head of that layer"
            )
        close = get_close_matches(site, self.sites, n=1)
        guess = f"; did you mean {close[0]}?" if close else ""
        raise NeuronautError(f"{self.name} has no site {site!r}; it has {join_sites(self.sites)}{guess}")

    def _check_tokens(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 2 or tokens.numel() == 0 or tokens.is_floating_point():
            raise NeuronautError(
                f"tokens have shape {tuple(tokens.shape)} and dtype {tokens.dtype}; wanted (row, position) of ids"
            )
        if tokens.shape[1] > self.context:
            raise NeuronautError(f"a row has {tokens.shape[1]} tokens; {self.name} takes at most {self.context}")
        if not self.causal:
            self._check_padding(tokens)
        low, high = (int(bound) for bound in (tokens if self.causal else tokens.clamp(min=0)).aminmax())
        if low < 0 or high >= self._token_count:
            raise NeuronautError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {self.name}, "
                f"0 to {self._token_count - 1}; encode the text with its own tokenizer"
            )
        return tokens.to(self.device)

    def _check_padding(self, tokens: Tensor) -> None:
        real = tokens >= 0
        if not real[:, 0].all() or (real[:, 1:] & ~real[:, :-1]).any():
            raise NeuronautError("a row of an encoder is empty or goes on behind padding; pad rows at their end only")


class ModellessSubject(Subject):
    """Tokens with what is known about them, in place of a model: whatever only a model has is refused."""

    inside = False

    def __init__(self, name: str, vocabulary: tuple[str, ...], *, revision: str, convention: Convention) -> None:
        _check_name(name)
        self.name, self.convention, self.batching = name, convention, Batching()
        # They take the place of what a subject computes when it is asked.
        self.__dict__.update(vocabulary=vocabulary, revision=revision)
        self._watchers: list[Callable[[Tensor], None]] = []

    @property
    def dtype(self) -> str:
        """What activations are kept in until they are stored."""
        return "float32"

    @contextmanager
    def watching(self, ran: Callable[[Tensor], None]) -> Generator[None]:
        """Within the block, `ran` is told the token ids (row, position) of all that is read."""
        self._watchers.append(ran)
        try:
            yield
        finally:
            self._watchers.remove(ran)

    def tell_watchers(self, tokens: Tensor) -> None:
        """Tell them what is read."""
        for ran in self._watchers:
            ran(tokens)

    @abstractmethod
    def refuse(self) -> NoReturn:
        """Raise a NeuronautError that says what this is, and what goes with it."""
        raise NotImplementedError

    def run(self, tokens: Tensor, *, positions: Sequence[int] | None = None) -> Tensor:
        """Refused: there are no logits."""
        del tokens, positions
        self.refuse()

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Generator[None]:
        """Refused: there is nothing to edit."""
        del edits
        self.refuse()
        yield

    def __getattr__(self, attribute: str) -> NoReturn:
        """Refuse everything that only a model has."""
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        self.refuse()


DIMENSIONS = ("num_hidden_layers", "num_attention_heads", "hidden_size")
"""Config keys of the numbers of blocks and heads, and of the width of the residual stream."""
LENGTHS = ("max_position_embeddings", "max_seq_len", "seq_length")
"""Config keys of the most tokens in a row; families whose attention is biased by distance have one of the last two."""


def _context_of(config: PreTrainedConfig, architecture: Architecture, *, name: str) -> int:
    length = next((length for key in LENGTHS if (length := getattr(config, key, None))), architecture.context)
    if length is None:
        raise NeuronautError(f"the config of {name} does not say how many tokens it reads; wanted one of {LENGTHS}")
    reserved = getattr(config, architecture.reserved, None) if architecture.reserved else None
    return length if reserved is None else length - reserved - 1


def _check_name(name: str) -> None:
    try:
        SourceId.parse(f"{name}:embed")
    except NeuronautError as error:
        raise NeuronautError(
            f"model name {name!r} does not fit into a feature's address (no space, colon or @); "
            "give it another with --model-name (Subject.load: name)"
        ) from error


def join_sites(sites: Iterable[str]) -> str:
    """Sites in short, for an error: `embed, resid_pre.0-3, mlp.0, mlp.2-3`."""
    layers: dict[str, list[int]] = {}
    for kind, _, layer in (site.partition(".") for site in sites):
        layers.setdefault(kind, []).extend([int(layer)] if layer else [])
    parts: list[str] = []
    for kind, numbers in layers.items():
        runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
        parts += [f"{kind}.{run[0]}-{run[-1]}" if len(run) > 1 else f"{kind}.{run[0]}" for run in runs] or [kind]
    return ", ".join(parts) or "no sites"
