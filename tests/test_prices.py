"""Prices, budgets and the opening of a model by name."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuronaut.llm.local.local import LocalLLM
from neuronaut.llm.open import open_llm
from neuronaut.llm.prices import OPENAI, Budget, Price, cost, find_price
from neuronaut.subject.errors import NeuronautError

SERVER = "https://api.openai.com/v1"


def test_a_price_is_read() -> None:
    assert Price.parse("in=0.15,out=0.60") == Price(0.15, 0.6)
    assert Price.parse(" out = 1 , in = 0") == Price(0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no key=value"),
        ("0.15", "'0.15' is no key=value"),
        ("in=0.15", "lacks out="),
        ("out=0.15", "lacks in="),
        ("in=1,out=2,cached=3", "unknown key 'cached'"),
        ("in=1,in=2", "says in= twice"),
        ("in=1,out=$2", r"out=\$2 is not a number"),
        ("in=nan,out=2", "in=nan is not a number"),
        ("in=1,out=-2", "out=-2 is below zero"),
    ],
)
def test_a_bad_price_is_one_line(text: str, message: str) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        Price.parse(text)
    assert "\n" not in str(caught.value)


def test_only_openai_has_openai_prices() -> None:
    assert find_price("gpt-4o-mini", SERVER) == Price(0.15, 0.6)
    assert find_price("gpt-4o-mini-2024-07-18", SERVER) == Price(0.15, 0.6)
    assert find_price("gpt-4o-2024-05-13", SERVER) == Price(5.0, 15.0) != find_price("gpt-4o-2024-08-06", SERVER)
    for unknown in ("gpt-4o-mini-audio", "gpt-4o-mini-2024", "gpt-4o-minimal", "llama", "", "-2024-07-18"):
        assert find_price(unknown, SERVER) is None
    for endpoint in ("http://localhost:8000/v1", "https://api.openai.com.example.org/v1", "https://example.org", ""):
        assert find_price("gpt-4o-mini", endpoint) is None
    assert find_price("whatever@1234", "local") == Price(0.0, 0.0)
    assert find_price("gpt-4o-mini", SERVER, Price(1.0, 2.0)) == Price(1.0, 2.0)
    assert find_price("gpt-4o-mini", "http://localhost:8000/v1", Price(1.0, 2.0)) == Price(1.0, 2.0)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        OPENAI["gpt-4o"] = Price(0.0, 0.0)  # pyright: ignore[reportIndexIssue]


def test_cost() -> None:
    assert cost(Price(0.15, 0.6), 2_000_000, 500_000) == pytest.approx(0.6)
    assert cost(Price(0.15, 0.6), 2_000_000, 500_000, batch=True) == pytest.approx(0.3)
    assert cost(Price(0.0, 0.0), 10**9, 10**9) == 0.0


def test_a_budget_is_read() -> None:
    assert Budget.parse("usd=5,tokens=2M,calls=100,minutes=30") == Budget(5.0, 2_000_000, 100, 30.0)
    assert Budget.parse("tokens=1.5k") == Budget(tokens=1500)
    assert Budget.parse(" minutes = 0.5 , calls = 2b ") == Budget(calls=2 * 10**9, minutes=0.5)
    assert Budget() == Budget(usd=None, tokens=None, calls=None, minutes=None)


@given(st.integers(1, 10**12), st.sampled_from([("", 1), ("k", 10**3), ("K", 10**3), ("M", 10**6), ("B", 10**9)]))
def test_counts_are_exact(count: int, unit: tuple[str, int]) -> None:
    text = format(Decimal(count) / unit[1], "f") + unit[0]
    assert Budget.parse(f"tokens={text},calls={text}") == Budget(tokens=count, calls=count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no key=value"),
        ("5", "'5' is no key=value"),
        ("usd=5,", "'' is no key=value"),
        ("eur=5", "unknown key 'eur'; wanted any of usd, tokens, calls and minutes"),
        ("usd=5,usd=6", "says usd= twice"),
        ("usd=five", "usd=five is not a number"),
        ("usd=", "usd= is not a number"),
        ("usd=inf", "usd=inf is not a number"),
        ("usd=2k", "usd=2k is not a number"),
        ("usd=0", "usd=0.0 is not positive"),
        ("minutes=-1", "minutes=-1.0 is not positive"),
        ("calls=0", "calls=0 is not positive"),
        ("calls=2.5", "calls=2.5 is not a whole number"),
        ("tokens=M", "tokens=M is not a number"),
        ("tokens=2T", "tokens=2T has an unknown unit"),
    ],
)
def test_a_bad_budget_is_one_line(text: str, message: str) -> None:
    with pytest.raises(NeuronautError, match=message) as caught:
        Budget.parse(text)
    assert "\n" not in str(caught.value)


def test_a_budget_of_nothing_is_refused_in_code_too() -> None:
    with pytest.raises(NeuronautError, match="usd=nan is not positive"):
        Budget(usd=float("nan"))


@pytest.mark.parametrize("text", ["gpt-4o-mini", "llama3.1:8b", "HF:demo", "", ":", "openai:", "hf:"])
def test_a_model_needs_a_known_scheme(text: str) -> None:
    with pytest.raises(NeuronautError, match=r"openai:gpt-4o-mini.*hf:PATH") as caught:
        open_llm(text)
    assert "\n" not in str(caught.value)


def test_a_local_model_is_opened_lazily(tmp_path: Path) -> None:
    llm = open_llm(f"hf:{tmp_path}/nothing")
    assert isinstance(llm, LocalLLM)
    assert (llm.endpoint, llm.can_probe) == ("local", True)
    with pytest.raises(NeuronautError, match="there is no folder"):
        llm.model  # noqa: B018


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("hf:demo", {"base_url": "http://localhost:1"}, "base_url is for openai: models"),
        ("hf:demo", {"thinking": 100}, "thinking is for openai: models"),
        ("openai:gpt-4o-mini", {"device": "cpu"}, "device is for hf: models"),
    ],
)
def test_an_option_of_the_other_scheme_is_refused(text: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(NeuronautError, match=message):
        open_llm(text, **options)  # pyright: ignore[reportArgumentType]


def test_a_server_model_keeps_colons_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    llm = open_llm("openai:llama3.1:8b", base_url="http://localhost:1/v1")
    assert llm.model == "llama3.1:8b"
    assert "localhost:1" in llm.endpoint
    llm.close()
