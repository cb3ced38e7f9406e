"""The arithmetic of training a dictionary, one batch of vectors at a time.

Vectors are scaled to unit mean square (those of a crosscoder site by site), and the scales are folded back into the
weights at the end, so that the dictionary reads raw vectors. Decoder rows have unit norm (those of a crosscoder over
all sites together); of an autoencoder the encoder begins as their transpose and the decoder's bias as the mean vector.
Adam with a warm-up and a linear decay at the end. What a batch keeps of the pre-activations is the kind's own:

    topk       the k largest of each vector
    batchtopk  the k x batch largest of the whole batch; afterwards one threshold that keeps k a vector in the mean
    jumprelu   those above a threshold of each feature's own, which learns by the kernel estimate of its gradient and
               by the penalty (L0 / k - 1)^2 (Rajamanoharan et al. 2024, arXiv:2407.14435)

Features that were silent for 50 batches are revived by an auxiliary loss on the raw pre-activations, negative ones
too, of what the live ones missed (AuxK; Gao et al. 2024, arXiv:2406.04093). All of it follows from the seed, the
vectors and their order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...subject.address import SourceId
from ...subject.dictionary import Dictionary
from ...subject.errors import NeuronautError

Kind = Literal["topk", "batchtopk", "jumprelu"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DEAD_AFTER = 50
"""Batches without a firing after which a feature counts as dead."""
AUXILIARY = 1 / 32
"""Weight of the auxiliary loss."""
BANDWIDTH = 0.1
"""Width of the kernel that estimates a threshold's gradient, in units of pre-activations."""
WARM_UP, DECAY = 0.05, 0.2
"""Shares of the training at its beginning and its end in which the rate rises and falls."""
CALIBRATION = 4096
"""Vectors that the threshold of `batchtopk` is set on."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training run is, but for its vectors."""

    kind: Kind
    width: int
    """Features."""
    k: int
    """Features that are active on a vector, in the mean."""
    tokens: int
    """Vectors to train on, repeats counted."""
    rate: float = 2e-3
    batch: int = 1024
    seed: int = 0

    def check(self) -> None:
        """Raise NeuronautError where no dictionary can be trained so."""
        if not 0 < self.k < self.width:
            raise NeuronautError(f"k is {self.k} and the width {self.width}; wanted k from 1 to less than the width")
        if self.tokens < self.batch:
            raise NeuronautError(f"{self.tokens} tokens are less than a batch of {self.batch}; give more --tokens")


class Trainer:
    """Weights in training."""

    def __init__(self, recipe: Recipe, inputs: Tensor, targets: Tensor, *, auto: bool, sites: int = 1) -> None:
        """Begin, with scales and biases from a sample of what will come.

        inputs (row, d_in), targets (row, d_out); `auto`: an autoencoder, whose targets are its inputs and whose decoder
        bias is taken off them; `sites`: of a crosscoder, how many have their vectors side by side.
        """
        recipe.check()
        self.recipe, self.auto, self.sites = recipe, auto, sites
        generator = torch.Generator().manual_seed(recipe.seed)
        self.scale_in, self.scale_out = (_scales(part, sites) for part in (inputs, targets))
        width, device = recipe.width, inputs.device
        decoder = normalize(torch.randn(width, targets.shape[1], generator=generator), dim=1)
        encoder = decoder if auto else normalize(torch.randn(width, inputs.shape[1], generator=generator), dim=1)
        self.weights: dict[str, Tensor] = {
            "decoder": decoder,
            "encoder": encoder.T.contiguous(),
            "encoder_bias": torch.zeros(width),
            "bias": (targets.float().mean(0) * self.scale_out).cpu(),
        }
        self.weights = {name: part.clone().to(device).requires_grad_() for name, part in self.weights.items()}
        if recipe.kind == "jumprelu":
            raw = self._raw(self._scaled(inputs[:CALIBRATION])).detach()
            threshold = _threshold_for(raw, recipe.k).clamp_min(1e-3)
            self.weights["log_threshold"] = threshold.log().expand(width).clone().requires_grad_()
        self.optimizer = torch.optim.Adam(list(self.weights.values()), lr=recipe.rate, betas=(0.9, 0.999))
        self.silent = torch.zeros(width, dtype=torch.long, device=device)
        self.seen = 0
        """Vectors trained on so far."""

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Learn from one batch; the fraction of its variance that was left unexplained. (row, d_in), (row, d_out)."""
        recipe, weights = self.recipe, self.weights
        done = self.seen / recipe.tokens
        self.optimizer.param_groups[0]["lr"] = recipe.rate * min(1.0, done / WARM_UP + 0.02, (1 - done) / DECAY)
        wanted = targets.float() * self.scale_out
        raw = self._raw(self._scaled(inputs))
        codes, penalty = _KEEP[recipe.kind](self, raw)
        error = wanted - (codes @ weights["decoder"] + weights["bias"])
        loss = error.square().sum(1).mean() + penalty
        self.silent = torch.where((codes > 0).any(0), 0, self.silent + 1)
        dead = self.silent > DEAD_AFTER
        if dead.any():
            loss = loss + AUXILIARY * _revive(raw, error.detach(), dead, weights["decoder"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            weights["decoder"].copy_(normalize(weights["decoder"], dim=1))
            self.seen += len(inputs)
            return float(error.square().sum() / (wanted - wanted.mean(0)).square().sum())

    def _scaled(self, inputs: Tensor) -> Tensor:
        return inputs.float() * self.scale_in

    def _raw(self, scaled: Tensor) -> Tensor:
        centred = scaled - self.weights["bias"] if self.auto else scaled
        return torch.addmm(self.weights["encoder_bias"], centred, self.weights["encoder"])

    @property
    def dead_share(self) -> float:
        """Share of the features that are dead."""
        return float((self.silent > DEAD_AFTER).double().mean())

    @torch.no_grad()
    def dictionary(self, id: SourceId, sample: Tensor, **fields: Any) -> Dictionary:
        """The dictionary for raw vectors; thresholds of `batchtopk` are set on a `sample` of them (row, d_in)."""
        weights, kind = {name: part.detach() for name, part in self.weights.items()}, self.recipe.kind
        subtracted = self.auto and self.sites > 1
        threshold: Tensor | None = None
        if kind == "batchtopk":
            raw = self._raw(self._scaled(sample[:CALIBRATION]))
            threshold = _threshold_for(raw, self.recipe.k).expand(self.recipe.width).clone()
        elif kind == "jumprelu":
            threshold = weights["log_threshold"].exp()
        return Dictionary(
            id=id,
            kind="topk" if kind == "topk" else "jumprelu",
            k=self.recipe.k if kind == "topk" else 0,
            threshold=threshold,
            W_enc=weights["encoder"] * self.scale_in[:, None],
            # What a crosscoder takes off first is folded in.
            b_enc=weights["encoder_bias"] - (weights["bias"] @ weights["encoder"] if subtracted else 0.0),
            W_dec=weights["decoder"] / self.scale_out,
            b_dec=weights["bias"] / self.scale_out,
            subtract_b_dec=self.auto and not subtracted,
            **fields,
        )

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, as named tensors."""
        state = {f"weights.{name}": part.detach() for name, part in self.weights.items()}
        for name, part in self.weights.items():
            state |= {f"adam.{name}.{key}": torch.as_tensor(value) for key, value in self.optimizer.state[part].items()}
        numbers = {"scale_in": self.scale_in, "scale_out": self.scale_out, "seen": torch.tensor(self.seen)}
        return state | {"silent": self.silent} | numbers

    def restore(self, state: Mapping[str, Tensor]) -> Self:
        """Go on from a state."""
        with torch.no_grad():
            for name, part in self.weights.items():
                part.copy_(state[f"weights.{name}"])
                prefix = f"adam.{name}."
                own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                # Adam keeps its count of steps on the CPU.
                self.optimizer.state[part] = {
                    key: value.clone() if key == "step" else value.to(part.device) for key, value in own.items()
                }
        self.silent = state["silent"].to(self.silent.device)
        device = self.silent.device
        self.scale_in, self.scale_out = (state[name].to(device) for name in ("scale_in", "scale_out"))
        self.seen = int(state["seen"])
        return self


def _scales(vectors: Tensor, sites: int) -> Tensor:
    """By coordinate, what gives vectors (row, width) of each site a unit mean square: (width,)."""
    each = vectors.float().unflatten(1, (sites, -1)).square().mean(dim=(0, 2)).rsqrt()
    return each.repeat_interleave(vectors.shape[1] // sites)


def _keep_topk(trainer: Trainer, raw: Tensor) -> tuple[Tensor, Tensor | float]:
    top = raw.topk(trainer.recipe.k, dim=1)
    return torch.zeros_like(raw).scatter(1, top.indices, top.values.relu()), 0.0


def _keep_batch_topk(trainer: Trainer, raw: Tensor) -> tuple[Tensor, Tensor | float]:
    flat = raw.flatten()
    top = flat.topk(trainer.recipe.k * len(raw), sorted=False)
    return torch.zeros_like(flat).scatter(0, top.indices, top.values.relu()).view_as(raw), 0.0


def _keep_jumprelu(trainer: Trainer, raw: Tensor) -> tuple[Tensor, Tensor | float]:
    threshold = trainer.weights["log_threshold"].exp()
    codes, active = _JumpReLU.apply(raw, threshold)
    off = active.sum(1).mean() / trainer.recipe.k - 1
    # In the units of the loss, so that one weight fits all widths.
    return codes, off.square() * (PENALTY * trainer.weights["decoder"].shape[1])


PENALTY = 0.1
"""Weight of an L0 that is wrong by k, as a share of the variance of the targets."""


class _JumpReLU(torch.autograd.Function):
    """Pre-activations above the threshold, and which these are: both with the kernel estimate of the gradient."""

    @staticmethod
    def forward(ctx: Any, raw: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        active = (raw > threshold).to(raw.dtype)
        ctx.save_for_backward(raw, threshold, active)
        return raw * active, active

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        codes, counts = gradients
        raw, threshold, active = ctx.saved_tensors
        near = ((raw - threshold).abs() < BANDWIDTH / 2).to(raw.dtype) / BANDWIDTH
        return codes * active, -(near * (codes * threshold + counts)).sum(0)


_KEEP: Mapping[Kind, Callable[[Trainer, Tensor], tuple[Tensor, Tensor | float]]] = {
    "topk": _keep_topk,
    "batchtopk": _keep_batch_topk,
    "jumprelu": _keep_jumprelu,
}
"""From pre-activations (row, F) to activations, and what the loss has beside the error."""


def _threshold_for(raw: Tensor, k: int) -> Tensor:
    """The threshold above which k features a vector are active in the mean; at least 0. (row, F) -> ()."""
    return raw.flatten().topk(k * len(raw) + 1, sorted=False).values.min().clamp_min(0)


def _revive(raw: Tensor, error: Tensor, dead: Tensor, decoder: Tensor) -> Tensor:
    """How badly the dead features' strongest pre-activations rebuild what the live ones missed."""
    count = min(decoder.shape[1] // 2, int(dead.sum()))
    top = raw.masked_fill(~dead, -torch.inf).topk(count, dim=1)
    codes = torch.zeros_like(raw).scatter(1, top.indices, top.values)
    return (error - codes @ decoder).square().sum(1).mean()
