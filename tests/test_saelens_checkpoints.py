"""SAELens' training checkpoints of every class, where it is installed: what we read is what it saves for use."""

import json
from pathlib import Path

import pytest
import torch

from neuronaut.subject.formats import load_dictionary

from .test_formats import ID, D, F

sae_lens = pytest.importorskip("sae_lens")
registry = pytest.importorskip("sae_lens.registry")
RANKED = ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk")
CASES = [
    (architecture, scale, rescale)
    for architecture in registry.SAE_TRAINING_CLASS_REGISTRY
    for scale in (None, 0.4)
    for rescale in ((False, True) if architecture in RANKED else (None,))
]


def train(architecture: str, *, scale: float | None, rescale: bool | None) -> "sae_lens.TrainingSAE":
    """An SAE in training with nothing special about it."""
    build, configure = registry.SAE_TRAINING_CLASS_REGISTRY[architecture]
    options = {} if rescale is None else {"k": 5, "rescale_acts_by_decoder_norm": rescale}
    options |= {"matryoshka_widths": [10, F]} if architecture == "matryoshka_batchtopk" else {}
    options |= {"normalize_activations": "expected_average_only_in"} if scale else {}
    config = configure(d_in=D, d_sae=F, **options)
    config.metadata.hook_name = "blocks.3.hook_resid_post"
    sae, generator = build(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            draws = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draws * 0.3 - 1 if name == "log_threshold" else draws * 0.6)
        if hasattr(sae, "topk_threshold"):
            sae.topk_threshold.fill_(0.7)
        if architecture == "matching_pursuit":
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
    return sae


@pytest.mark.parametrize(("architecture", "scale", "rescale"), CASES)
def test_a_checkpoint_is_the_model_that_is_saved_of_it(
    tmp_path: Path, architecture: str, scale: float | None, rescale: bool | None
) -> None:
    sae = train(architecture, scale=scale, rescale=rescale)
    sae.save_model(tmp_path / "checkpoint")
    if scale:
        (tmp_path / "checkpoint" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale}))
        sae.fold_activation_norm_scaling_factor(scale)
        sae.cfg.normalize_activations = "none"
    sae.save_inference_model(tmp_path / "inference")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "inference"))
    ours = load_dictionary(tmp_path / "checkpoint", id=ID, d_site=D)
    vectors = torch.randn(40, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    with torch.no_grad():
        activations = theirs.encode(vectors)
        rebuilt = theirs.decode(activations)
    assert 0 < activations.count_nonzero() < activations.numel()
    torch.testing.assert_close(ours.encode(vectors), activations, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(ours.reconstruct(vectors), rebuilt, atol=1e-4, rtol=1e-4)
