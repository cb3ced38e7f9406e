"""The client against a real `transformers serve` process with a tiny local chat model; nothing is downloaded."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from neuronaut.llm.openai.chat import OpenAIChat
from neuronaut.llm.types import Chat, Message, Sampling

NEEDED = ("fastapi", "uvicorn", "accelerate")
"""What `transformers serve` imports beyond what is installed anyway."""

MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"`transformers serve` needs {', '.join(MISSING)}")

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    plain = ByteLevelBPETokenizer()
    plain.train_from_iterator(["the neuron fires on colons"] * 9, 300, special_tokens=["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain._tokenizer, bos_token="<s>", eos_token="<s>")
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def endpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server on that checkpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [Path(sys.executable).with_name("transformers"), "serve", checkpoint, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*map(str, command), "--host", "127.0.0.1", "--device", "cpu"],
            stdout=output,
            stderr=output,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path, *, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"transformers serve did not start:\n{log.read_text()[-3000:]}")


def test_chats_end_to_end(endpoint: str, checkpoint: Path) -> None:
    """A random model stops where it will, so lengths and determinism are what can be known of its words."""
    llm = OpenAIChat(str(checkpoint), base_url=endpoint, tokenizer=str(checkpoint), attempts=1)

    def chat(text: str, most: int) -> Chat:
        return Chat((Message("system", "Be short."), Message("user", text)), Sampling(max_tokens=most))

    requests = [chat("What does the neuron fire on?", 12), chat("What does the neuron fire on?", 5), chat("Why?", 9)]
    first, short, other = [future.result(timeout=30) for future in [llm.submit(request) for request in requests]]
    again = llm.submit(requests[0]).result(timeout=30)
    llm.close()

    for request, reply in zip(requests, (first, short, other), strict=True):
        assert reply.status in ("ok", "truncated"), reply.reason
        assert reply.text
        assert 0 < reply.output_tokens <= request.sampling.max_tokens
        assert reply.input_tokens == llm.count(request)
    assert again.text == first.text
    assert first.text.startswith(short.text[:-1])
    assert other.text != first.text
