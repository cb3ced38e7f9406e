"""How near the calls of a run come to the server's limit: 64 in flight, each of which takes a second.

    python -m neuronaut.benchmarks.throughput [--calls 640] [--in-flight 64] [--delay 1.0]

The server (fault_server.py) is a process of its own. Every call goes the whole way: client, log in a database on
disk, client, retry policy, HTTP. Ideal is calls / in flight x delay.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..data.store.store import Store
from ..llm.client import LLMClient
from ..llm.openai.chat import OpenAIChat
from ..llm.tasks import LLMTask
from ..llm.types import Chat, Message, Reply
from .faults import server


def main() -> None:
    """Time the calls and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=640)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay", type=float, default=1.0)
    parser.add_argument("--faults", type=float, default=0.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "log", options) as url:
        llm = OpenAIChat("planted", base_url=url, in_flight=options.in_flight)
        with Store(Path(folder) / "calls.db") as store:
            # The first calls open connections and load modules.
            list(LLMClient(llm, store.calls).run(_questions(0, options.in_flight)))
            begun, cpu = time.monotonic(), time.process_time()
            replies = list(LLMClient(llm, store.calls).run(_questions(options.in_flight, options.calls)))
            seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
        llm.close()
    ideal = options.calls / options.in_flight * options.delay
    assert len(replies) == options.calls
    figures = {"calls": options.calls, "seconds": round(seconds, 2), "ideal": ideal, "ratio": round(ideal / seconds, 3)}
    print(json.dumps(figures | {"cpu_ms_per_call": round(1000 * cpu / options.calls, 2)}))


def _questions(first: int, count: int) -> Iterator[LLMTask[Reply]]:
    return (_question(number) for number in range(first, first + count))


def _question(number: int) -> LLMTask[Reply]:
    text = f"question {number} " + "of some length that a prompt has " * 60
    (reply,) = yield [Chat((Message("user", text),))]
    return reply


if __name__ == "__main__":
    main()
