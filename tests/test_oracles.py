"""TransformerLens as an oracle: the same weights in its HookedTransformer, whose every part is written anew.

It runs where TransformerLens 3 is installed (the extra `oracles`); version 4 has no HookedTransformer any more. Its
usual processing is on: it folds norms into weights, and takes means out of what is written and unembedded. It also
moves value biases behind the attention, where its heads come without them: a pattern's rows sum to 1, so that b_V
reaches the residual stream as b_V W_O whatever the pattern is. Its b_V has taken up the bias of the norm before it by
then, as that bias W_V, so this goes too. `fold_value_biases` does the same to ours.
"""

from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedModel

from neuronaut.causal.edits import Edit
from neuronaut.causal.grids import Grid, sites_of
from neuronaut.causal.heads import Kind, head_scores, repeated_tokens
from neuronaut.causal.logit_attribution import logit_attribution
from neuronaut.causal.measures import Direction, Effect
from neuronaut.causal.prompts import Batch, Pairs
from neuronaut.causal.sweeps import sweep
from neuronaut.subject.attention import patterns
from neuronaut.subject.model import Subject
from tests.families import CONTEXT, D_MODEL, HEADS, VOCABULARY, byte_tokenizer, tiny_model, tiny_tokens

ROWS, POSITIONS = 3, 7
close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
PAIRS_ENDS = tiny_tokens(ROWS, 2, seed=3)


class Both(NamedTuple):
    """The same weights twice."""

    ours: Subject
    theirs: Any
    """A HookedTransformer."""


@torch.no_grad()
def fold_value_biases(model: PreTrainedModel) -> None:
    """Move what is constant in GPT-2's values into its output biases. What the model computes stays."""
    assert isinstance(model, GPT2LMHeadModel), "the fused projection is GPT-2's"
    blocks: Any = model.transformer.h
    for block in blocks:
        fused, d_model = block.attn.c_attn, model.config.n_embd
        constant = fused.bias[-d_model:] + block.ln_1.bias @ fused.weight[:, -d_model:]
        block.attn.c_proj.bias += constant @ block.attn.c_proj.weight
        fused.bias[-d_model:] -= constant


def both(*, fold: bool) -> Both:
    """Random weights, in both with or without value biases at the heads."""
    module = pytest.importorskip(
        "transformer_lens.HookedTransformer", reason="transformer-lens 3 is not installed; it is in the extra oracles"
    )
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights

    model = tiny_model("gpt2")
    config = HookedTransformerConfig(
        n_layers=model.config.n_layer,
        d_model=D_MODEL,
        n_heads=HEADS,
        d_head=D_MODEL // HEADS,
        d_mlp=4 * D_MODEL,
        n_ctx=CONTEXT,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=1e-5,
        device="cpu",
    )
    theirs = module.HookedTransformer(config)
    weights = {name: tensor.detach().clone() for name, tensor in convert_gpt2_weights(model, config).items()}
    theirs.load_and_process_state_dict(weights, fold_value_biases=fold)
    if fold:
        fold_value_biases(model)
    return Both(Subject(model, byte_tokenizer(), name="gpt2"), theirs.eval())


@pytest.fixture(scope="module")
def models() -> Both:
    return both(fold=True)


def batch(seed: int) -> Batch:
    return Batch(tiny_tokens(ROWS, POSITIONS, seed=seed), torch.full((ROWS,), POSITIONS))


def test_the_two_are_the_same_model(models: Both) -> None:
    tokens = tiny_tokens(ROWS, POSITIONS)
    with torch.no_grad():
        theirs = models.theirs(tokens).log_softmax(-1)
    close(models.ours.logits(tokens).log_softmax(-1), theirs)


def attributed(models: Both, unit: str) -> dict[str, Tensor]:
    from transformer_lens.tools.analysis import direct_logit_attribution

    with torch.no_grad():
        found = direct_logit_attribution(models.theirs, batch(0).tokens, *PAIRS_ENDS.T, unit=unit)
    return dict(zip(found.labels, found.attribution, strict=True))


@pytest.mark.parametrize("fold", [False, True])
def test_logit_attribution_of_heads_and_layers(fold: bool) -> None:
    pair = both(fold=fold)
    layers = range(pair.ours.n_layers)
    asked = {"token": PAIRS_ENDS[:, 0], "against": PAIRS_ENDS[:, 1]}
    whole = logit_attribution(pair.ours, batch(0), **asked)
    split = logit_attribution(pair.ours, batch(0), **asked, split=[f"head.{layer}" for layer in layers])
    parts = dict(zip(whole.components, whole.values.T, strict=True))
    heads = dict(zip(split.components, split.values.T, strict=True))
    theirs, their_heads = attributed(pair, "component"), attributed(pair, "head")
    close(parts["embed"], theirs["embed"] + theirs["pos_embed"])
    for layer in layers:
        close(parts[f"attn_out.{layer}"], theirs[f"{layer}_attn_out"])
        close(parts[f"mlp_out.{layer}"], theirs[f"{layer}_mlp_out"])
        for head in range(HEADS):
            close(heads[f"head.{layer}:{head}"], their_heads[f"L{layer}H{head}"])


def test_value_biases_are_what_the_two_conventions_differ_by() -> None:
    """Otherwise the test above could not tell the one from the other."""
    plain, folded = (attributed(both(fold=fold), "head")["L0H0"] for fold in (False, True))
    assert (plain - folded).abs().max() > 0.1


PATCHES = {
    "resid_pre": ("get_act_patch_resid_pre", ("positions",)),
    "resid_mid": ("get_act_patch_resid_mid", ("positions",)),
    "attn_out": ("get_act_patch_attn_out", ("positions",)),
    "mlp_out": ("get_act_patch_mlp_out", ("positions",)),
    "head": ("get_act_patch_attn_head_out_all_pos", ("units",)),
    "head, by position": ("get_act_patch_attn_head_out_by_pos", ("positions", "units")),
    "pattern": ("get_act_patch_attn_head_pattern_all_pos", ("units",)),
}
"""By kind of site: the function, and what it sweeps beside layers, in the order of its result's axes."""


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("kind", PATCHES)
def test_patching(models: Both, kind: str, direction: Direction) -> None:
    patching = pytest.importorskip("transformer_lens.patching")
    name, swept = PATCHES[kind]
    pairs = Pairs(batch(1), batch(2), *PAIRS_ENDS.T)
    sites = sites_of(models.ours, kind.partition(",")[0])
    grid = Grid.of(
        Edit.parse(f"{sites[0]}=patch@every"),
        sites=sites,
        units=range(HEADS) if "units" in swept else None,
        positions=range(POSITIONS) if "positions" in swept else None,
    )
    ours = [cell.effect("logit_difference", direction) for cell in sweep(models.ours, pairs, grid).cells]

    def difference(logits: Tensor) -> Tensor:
        right, wrong = (logits[torch.arange(ROWS), -1, ids] for ids in (pairs.answers, pairs.wrong))
        return (right - wrong).mean()

    tokens = [pairs.corrupted.tokens, pairs.clean.tokens]
    base, source_run = tokens if direction == "denoise" else reversed(tokens)
    with torch.no_grad():
        start, end = difference(models.theirs(base)), difference(models.theirs(source_run))
        _, cache = models.theirs.run_with_cache(source_run)
        theirs = getattr(patching, name)(models.theirs, base, cache, difference)
    if swept == ("positions", "units"):
        theirs = theirs.transpose(1, 2)
    assert all(isinstance(one, Effect) for one in ours)
    patched = torch.tensor([sum(one.patched) / ROWS for one in ours])
    recovered = torch.tensor([one.recovered for one in ours])
    close(patched, theirs.flatten())
    torch.testing.assert_close(recovered, (theirs.flatten() - start) / (end - start), rtol=1e-3, atol=1e-3)
    assert (patched - start).abs().max() > 0.1


def test_patterns(models: Both) -> None:
    tokens = tiny_tokens(ROWS, POSITIONS)
    with torch.no_grad():
        _, cache = models.theirs.run_with_cache(tokens)
    for layer, pattern in patterns(models.ours, tokens, range(models.ours.n_layers)).items():
        close(pattern, cache["pattern", layer])


def scores(models: Both, rows: Batch, kind: Kind) -> Tensor:
    """(layer, head)."""
    found = torch.zeros(models.ours.n_layers, HEADS)
    for one in head_scores(models.ours, rows, kinds=(kind,)):
        found[one.layer, one.head] = one.score.value
    return found


def test_induction_scores_are_the_mean_of_a_diagonal(models: Both) -> None:
    rows = repeated_tokens(models.ours, rows=2)
    period = rows.tokens.shape[1] // 2
    with torch.no_grad():
        _, cache = models.theirs.run_with_cache(rows.tokens)
    diagonals = [
        cache["pattern", layer].diagonal(1 - period, dim1=-2, dim2=-1)[..., -period:].mean((0, 2))
        for layer in range(models.ours.n_layers)
    ]
    close(scores(models, rows, "induction"), torch.stack(diagonals))


@pytest.mark.parametrize("kind", ["previous", "duplicate", "induction"])
def test_head_scores_have_the_keys_of_its_head_detector(models: Both, kind: Kind) -> None:
    """Theirs is a share of all attention but that to BOS; ours the mean over the queries that have such a key."""
    detector = pytest.importorskip("transformer_lens.head_detector")
    rows = repeated_tokens(models.ours, rows=1)
    wanted = getattr(detector, f"get_{kind}{'_token' * (kind != 'induction')}_head_detection_pattern")(rows.tokens)
    queries = (wanted[:, 1:].sum(-1) > 0).sum()
    with torch.no_grad():
        _, cache = models.theirs.run_with_cache(rows.tokens, remove_batch_dim=True)

    def share(pattern: Tensor) -> Tensor:
        score = detector.compute_head_attention_similarity_score(
            pattern, wanted, exclude_bos=True, exclude_current_token=False, error_measure="mul"
        )
        return score * pattern[:, 1:].sum() / queries

    theirs = [torch.stack([share(one) for one in cache["pattern", layer]]) for layer in range(models.ours.n_layers)]
    close(scores(models, rows, kind), torch.stack(theirs))
