"""A server that speaks OpenAI's protocol over real HTTP, with faults by a script or by chance.

    python -m neuronaut.benchmarks.fault_server --port 0 --faults 0.2 --delay 1.0 --seed 1 --log FILE

It prints its port.
A fault is taken from a script, in order of arrival, or drawn. Faults of transport are drawn anew for every attempt at
a request, faults of the model's reply once for each request: so the last reply to a request does not depend on how
often it was sent, nor on the server's address. A request is identified by its Idempotency-Key, else by the hash of
its body, and is paid for once per key.

Faults: a status ("500"; "429:2", "429:300ms" and "429:date" say when to come back), "quota", "hang" (beyond any
client's patience), "drop" (the connection, amid the reply), "malformed" (JSON), "refusal", "empty", "truncated",
"error-word" (a good reply about errors), "bad-call" (of a tool, whose arguments are no JSON); of a batch's lines also
"expired" and "invalid" (spoils the batch). A shape of fault_shapes.py is a reply in that shape. Beyond the protocol:
"drip" and "drip-head" (a byte every half second, without end), "flood" (bytes without end), "gzip" (compressed),
"redirect" (to another host), "moved" (within this one), "echo" and "echo-401" (the Authorization header in the error).
"""

import argparse
import gzip
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from .fault_answers import answer, chance, pieces, predict
from .fault_shapes import SHAPES, Body, refusal

TRANSPORT = ("429", "429:1", "500", "503", "hang", "drop", "malformed")
SPEECH = ("refusal", "empty", "truncated", "error-word")
KINDS = TRANSPORT + SPEECH
CALLING = ("429", "bad-call", "empty", "refusal", "error-word")
"""Faults of a model that calls tools: with faults=0.5, each in one of ten requests."""

_OF_MODEL = frozenset((*SPEECH, "bad-call", *SHAPES))

_CODES = {400: "context_length_exceeded", 401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


@dataclass(frozen=True)
class SeenRequest:
    """One request as it came, and the fault that it met."""

    path: str
    key: str
    fault: str
    body: Body
    at: float
    good: bool
    """A whole reply with status 200 was sent."""


class FaultServer:
    """The server; serves from `with` until its end. Figures may be read at any time."""

    def __init__(
        self,
        *,
        port: int = 0,
        faults: float = 0.0,
        kinds: Sequence[str] = KINDS,
        script: Sequence[str] = (),
        housekeeping: Sequence[str] = (),
        delay: float = 0.0,
        hang: float = 60.0,
        seed: int = 0,
        polls: int = 1,
        log: Path | None = None,
        answer: Callable[[Sequence[Body]], str] = answer,
        predict: Callable[[Sequence[int]], dict[int, float]] = predict,
        calls: Callable[[Body], Sequence[tuple[str, Body]]] | None = None,
        refuses: Mapping[str, str] | None = None,
    ) -> None:
        """`faults` is the share of requests that meet one of `kinds`.

        `script` replaces the draw for the first requests and lines of batches; `housekeeping` holds faults of calls
        about files and batches. A good reply takes `delay` seconds, a batch ends after `polls` looks at it. Where a
        request has tools, `calls` gives from its body the names and arguments to call, instead of a text; none at
        all leaves it to `answer`. Parameters that it `refuses` are told as fault_shapes.refusal says.
        """
        self.faults, self.kinds, self.seed = faults, tuple(kinds), seed
        self.delay, self.hang, self.polls, self.log = delay, hang, polls, log
        self.answer, self.predict, self.calls, self.refuses = answer, predict, calls, refuses or {}
        self.script, self.housekeeping = iter(script), iter(housekeeping)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self._seen: list[SeenRequest] = []
        self.attempts: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self.paid: dict[str, tuple[int, int]] = {}
        """Tokens in and out of each request that the model answered, whether or not the reply arrived."""
        self.busy = self.most_busy = self.flooded = 0
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Body] = {}
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.http = _Server(("127.0.0.1", port), handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def fault(self, body: Body, attempt: int) -> str:
        """The fault that this attempt at a request meets; "ok" for none."""
        content = json.dumps(body, sort_keys=True)
        with self.lock:
            if scripted := next(self.script, None):
                return scripted
        for of_model, salt in ((False, attempt), (True, "speech")):
            mine = [kind for kind in self.kinds if (kind in _OF_MODEL) is of_model]
            share = self.faults * len(mine) / len(self.kinds)
            roll = chance(self.seed, content, salt)
            if roll < share:
                return mine[int(roll / share * len(mine))]
        return "ok"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts the requests that are here at once."""
        with self.lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1

    @property
    def seen(self) -> list[SeenRequest]:
        """Every request so far; waits a moment, since a client may have its reply before the request is noted."""
        until = time.monotonic() + 1.0
        while self.busy and time.monotonic() < until:
            time.sleep(0.005)
        return self._seen

    def note(self, request: SeenRequest) -> None:
        """Keep a record, in the log file too."""
        with self.lock:
            self._seen.append(request)
            self.good[request.key] += request.good
            if self.log:
                line = {
                    "key": request.key,
                    "fault": request.fault,
                    "good": request.good,
                    "at": request.at,
                    "paid": self.paid.get(request.key),
                }
                with self.log.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    def chat(self, key: str, body: Body, fault: str) -> Body:
        """A chat completion."""
        calls = self.calls(body) if self.calls and body.get("tools") else ()
        text = "" if calls else self.answer(body["messages"])
        text = f"Without error:\n{text}" if fault == "error-word" else text
        if fault in ("empty", "refusal"):
            text, calls = "", ()
        whole = pieces(text)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or len(whole)
        sent = whole[: len(whole) // 2 if fault == "truncated" else limit]
        refusal = "I cannot help with that." if fault == "refusal" else None
        choice: Body = {
            "index": 0,
            "message": {"role": "assistant", "content": None if refusal else "".join(sent), "refusal": refusal},
            "finish_reason": "length" if len(sent) < len(whole) else "stop",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_logprobs(token, body.get("top_logprobs", 0)) for token in sent]}
        used = sum(len(pieces(m["content"] or "")) + 4 for m in body["messages"]) + 3
        written = [(name, json.dumps(arguments)) for name, arguments in calls]
        if written and fault in ("bad-call", "truncated"):
            written[-1] = (written[-1][0], written[-1][1][:-1])
        if written:
            choice["message"]["tool_calls"] = [_tool_call(key, place, *call) for place, call in enumerate(written)]
            choice["finish_reason"] = "length" if fault == "truncated" else "tool_calls"
        length = len(sent) + sum(len(pieces(name + arguments)) for name, arguments in written)
        return self._completion(
            key, body=body, kind="chat.completion", choice=choice, input_tokens=used, output_tokens=length
        )

    def completion(self, key: str, body: Body) -> Body:
        """A completion whose prompt is token ids, as vLLM gives it."""
        ids, count = body["prompt"], body.get("prompt_logprobs", 0)
        logprobs = [None, *(_ranked(self.predict(ids[:end]), ids[end], count) for end in range(1, len(ids)))]
        choice = {"index": 0, "text": "0", "finish_reason": "length", "prompt_logprobs": logprobs}
        return self._completion(
            key, body=body, kind="text_completion", choice=choice, input_tokens=len(ids), output_tokens=1
        )

    def batch(self, batch_id: str, *, looks: int = 1) -> Body:
        """A batch as it stands; looks bring it on."""
        batch = self.batches[batch_id]
        batch["looks"] += looks
        ended = batch["looks"] > self.polls
        public = {name: value for name, value in batch.items() if name not in ("looks", "end")}
        return public | (batch["end"] if ended else {})

    def make_batch(self, body: Body) -> Body:
        """Answer all lines of a batch at once, and show them when it has been looked at often enough."""
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        faults = [self.fault(line["body"], 0) for line in lines]
        results = [self._batch_line(line, fault) for line, fault in zip(lines, faults, strict=True)]
        right = [result for result in results if result["response"] and result["response"]["status_code"] == 200]
        wrong = [result for result in results if result not in right]
        status = "failed" if "invalid" in faults else "expired" if "expired" in faults else "completed"
        end: Body = {
            "status": status,
            "request_counts": {"total": len(lines), "completed": len(right), "failed": len(wrong)},
        }
        if status == "failed":
            end["errors"] = {"object": "list", "data": [{"code": "invalid_json_line", "message": "line 1 is not JSON"}]}
        else:
            for name, part in (("output", right), ("error", wrong)):
                content = "\n".join(json.dumps(result) for result in part)
                end |= {f"{name}_file_id": self.keep(content.encode())} if part else {}
        batch_id = f"batch_{len(self.batches)}"
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "endpoint": body["endpoint"],
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "created_at": int(time.time()),
            "metadata": body.get("metadata"),
            "status": "in_progress",
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "looks": 0,
            "end": end,
        }
        return self.batch(batch_id, looks=0)

    def keep(self, content: bytes) -> str:
        """Store a file and give its id."""
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        return file_id

    def _batch_line(self, line: Body, fault: str) -> Body:
        result: Body = {"id": f"batch_req_{line['custom_id']}", "custom_id": line["custom_id"], "response": None}
        if fault == "expired":
            return result | {"error": {"code": "batch_expired", "message": "not executed before the window expired"}}
        if fault[0].isdigit():
            status = int(fault[:3])
            return result | {"response": {"status_code": status, "body": _error(status)}, "error": None}
        return result | {
            "response": {"status_code": 200, "body": self.chat(line["custom_id"], line["body"], fault)},
            "error": None,
        }

    def _completion(self, key: str, body: Body, kind: str, choice: Body, input_tokens: int, output_tokens: int) -> Body:
        self.paid[key] = (input_tokens, output_tokens)
        return {
            "id": f"cmpl-{key[:12]}",
            "object": kind,
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": input_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": input_tokens + output_tokens,
            },
        }


def _tool_call(key: str, place: int, name: str, arguments: str) -> Body:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{key[:8]}_{place}", "type": "function", "function": function}


def _logprobs(token: str, count: int) -> Body:
    top = [{"token": token, "logprob": -0.1, "bytes": None}]
    top += [{"token": f"{token}~{n}", "logprob": -2.0 - n, "bytes": None} for n in range(1, count)]
    return top[0] | {"top_logprobs": top[:count]}


def _ranked(logprobs: dict[int, float], actual: int, count: int) -> Body:
    """A prompt's token as vLLM gives it: the likeliest tokens, and the actual one."""
    likeliest = sorted(logprobs, key=lambda token: -logprobs[token])
    listed = dict.fromkeys([actual, *likeliest[:count]])
    ranks = {token: rank for rank, token in enumerate(likeliest, start=1)}
    return {
        str(token): {"logprob": logprobs.get(token, -30.0), "rank": ranks.get(token, 99), "decoded_token": f"<{token}>"}
        for token in listed
    }


def _error(status: int, code: str | None = None) -> Body:
    code = code or _CODES.get(status, "server_error")
    return {"error": {"message": f"planted: {code}", "type": code, "param": None, "code": code}}


def _come_back(when: str) -> dict[str, str]:
    """The header that says when to come back: "2", "300ms" or "date"."""
    if when.endswith("ms"):
        return {"retry-after-ms": when[:-2]}
    return {"Retry-After": formatdate(time.time() + 2, usegmt=True) if when == "date" else when} if when else {}


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server_state: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path.removeprefix("/v1")
        if path in ("/chat/completions", "/completions"):
            with self.server_state.at_work():
                self._complete(path, content)
        elif path == "/files":
            self._keep_house(lambda: {"id": self._upload(content), "object": "file", "purpose": "batch"})
        elif path == "/batches":
            self._keep_house(lambda: self.server_state.make_batch(json.loads(content)))
        else:
            self.send(404, _error(404))

    def do_GET(self) -> None:
        state, parts = self.server_state, urlsplit(self.path).path.removeprefix("/v1/").split("/")
        if parts == ["models"]:
            self.send(200, {"object": "list", "data": [{"id": "planted", "object": "model"}]})
        elif parts[0] == "files" and parts[1] in state.files:
            self.send(200, state.files[parts[1]])
        elif parts == ["batches"]:
            newest = [state.batch(batch_id, looks=0) for batch_id in reversed(state.batches)]
            self._keep_house(lambda: {"object": "list", "data": newest, "has_more": False})
        elif parts[0] == "batches" and parts[1] in state.batches:
            self._keep_house(lambda: state.batch(parts[1]))
        else:
            self.send(404, _error(404))

    def log_message(self, format: str, *args: object) -> None:
        """Not on the terminal."""

    def _complete(self, path: str, content: bytes) -> None:
        """A chat or completion, or the fault that is due."""
        state, body, at = self.server_state, json.loads(content), time.monotonic()
        key = self.headers.get("Idempotency-Key") or hashlib.sha256(content).hexdigest()
        with state.lock:
            state.attempts[key] += 1
            attempt = state.attempts[key]
        refused = refusal(body, state.refuses)
        fault = "refused" if refused else state.fault(body, attempt)
        good = False
        try:
            if refused:
                self.send(400, refused)
            elif fault in _TRANSPORTS:
                _TRANSPORTS[fault](self, state)
            elif fault == "quota":
                self.send(429, _error(429, "insufficient_quota"))
            elif fault[0].isdigit():
                self.send(int(fault[:3]), _error(int(fault[:3])), _come_back(fault[4:]))
            elif fault == "hang":
                state.stopping.wait(state.hang)
                self.close_connection = True
            else:
                state.stopping.wait(state.delay)
                reply = state.chat(key, body, fault) if path.startswith("/chat") else state.completion(key, body)
                good = self._reply(reply, fault)
        finally:
            state.note(SeenRequest(path=path, key=key, fault=fault, body=body, at=at, good=good))

    def _reply(self, reply: Body, fault: str) -> bool:
        """Send a reply, whole or spoilt; whether it was whole."""
        if fault == "drop":
            self.send(200, json.dumps(reply).encode(), cut=True)
            return False
        if fault in SHAPES:
            self.send(200, SHAPES[fault](reply))
            return True
        self.send(200, json.dumps(reply).encode()[: -40 if fault == "malformed" else None])
        return fault != "malformed"

    def _keep_house(self, work: Callable[[], Body]) -> None:
        """A call about files or batches; where the connection drops, the work is done all the same."""
        fault = next(self.server_state.housekeeping, "ok")
        if fault[0].isdigit():
            self.send(int(fault[:3]), _error(int(fault[:3])), _come_back(fault[4:]))
            return
        self.send(200, work(), cut=fault == "drop")

    def _upload(self, content: bytes) -> str:
        """The file in a multipart form."""
        boundary = b"--" + self.headers["Content-Type"].split("boundary=")[1].strip('"').encode()
        parts = [part.partition(b"\r\n\r\n") for part in content.split(boundary)]
        return self.server_state.keep(next(data[:-2] for head, _, data in parts if b"filename=" in head))

    def send(
        self, status: int, body: Body | bytes, headers: dict[str, str] | None = None, *, cut: bool = False
    ) -> None:
        """One reply; `cut` drops the connection after half of it."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.wfile.flush()
        self.close_connection = self.close_connection or cut


def _drip(handler: _Handler, state: FaultServer, *, head: bool = False) -> None:
    """Send a byte every half second until the client, or the server, has enough."""
    if head:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
    else:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
    handler.close_connection = True
    with suppress(OSError):
        while not state.stopping.wait(0.5):
            handler.wfile.write(b" " if not head else b"x")
            handler.wfile.flush()


def _flood(handler: _Handler, state: FaultServer) -> None:
    """Send without end; `flooded` counts the bytes that went."""
    handler.send_response(200)
    handler.end_headers()
    handler.close_connection = True
    with suppress(OSError):
        while not state.stopping.is_set():
            handler.wfile.write(b" " * 1_000_000)
            state.flooded += 1_000_000


def _echo(handler: _Handler, status: int) -> None:
    """An error that holds the Authorization header, whole and cut short."""
    sent = handler.headers["Authorization"]
    told = f"planted: {sent} is no good, I mean {sent[:-6]}... or ...{sent[-9:]}"
    handler.send(status, {"error": {"message": told, "code": None}})


_TRANSPORTS: Mapping[str, Callable[[_Handler, FaultServer], None]] = {
    "drip": _drip,
    "drip-head": lambda handler, state: _drip(handler, state, head=True),
    "flood": _flood,
    "gzip": lambda handler, _: handler.send(200, gzip.compress(b" " * 1000), {"Content-Encoding": "gzip"}),
    "redirect": lambda handler, state: handler.send(
        307, {}, {"Location": f"http://localhost:{state.port}{handler.path}"}
    ),
    "moved": lambda handler, _: handler.send(307, {}, {"Location": handler.path}),
    "echo": lambda handler, _: _echo(handler, 400),
    "echo-401": lambda handler, _: _echo(handler, 401),
}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that meet a fault")
    parser.add_argument("--kinds", default=",".join(KINDS), help="faults to draw from")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that a good reply takes")
    parser.add_argument("--hang", type=float, default=60.0, help="seconds that a hanging one takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a JSON line per request")
    options = vars(parser.parse_args())
    kinds = options["kinds"].split(",")
    known = (*TRANSPORT, "quota", *_TRANSPORTS, *_OF_MODEL)
    if unknown := [kind for kind in kinds if kind not in known and not re.fullmatch(r"\d{3}(:\w+)?", kind)]:
        parser.error(f"no fault is called {', '.join(unknown)}; there are a status, {', '.join(sorted(known))}")
    with FaultServer(**options | {"kinds": kinds}) as server:
        print(server.port, flush=True)  # noqa: T201
        threading.Event().wait()


if __name__ == "__main__":
    main()
