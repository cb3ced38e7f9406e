"""A connection to one server: what is sent is bounded in time, what comes back is bounded in size.

The requests of all threads run on one event loop, on a thread of its own, since only there a whole request has a
deadline: a read's own time limit begins anew with every byte that drips in. Every response is read here, before anybody
sees it: no more of it than `most_bytes`, and without the keys that were sent with the request. A redirect is followed
within its host only, since it would take the prompt and perhaps the key along.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from threading import Thread
from typing import TypeVar

import httpx2
from openai import APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient

from ...subject.errors import NeuronautError
from .keys import KnownKeys, hide_keys
from .retrying import Malformed, one_line
from .wire import is_openai

T = TypeVar("T")

MOST_BYTES = 32_000_000
"""Of one reply; log-probabilities of thousands of tokens take a tenth of it."""


class Connection:
    """The package's client for one server, without its own retries."""

    def __init__(
        self, endpoint: str, *, api_key: str | None, timeout: float, most_bytes: int = MOST_BYTES, width: int = 64
    ) -> None:
        """A request takes `timeout` seconds at most, from its beginning to the last byte of its reply.

        Raises a NeuronautError where OpenAI's server lacks a key. `width` connections are kept open.
        """
        key = api_key or os.environ.get("OPENAI_API_KEY") or ("" if is_openai(endpoint) else "none")
        if not key:
            raise NeuronautError(
                f"{endpoint} wants a key; set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that wants none"
            )
        self._endpoint, self._timeout, self._most_bytes = endpoint, timeout, most_bytes
        self._keys = KnownKeys.of(endpoint, key)
        http = DefaultAsyncHttpxClient(
            headers={"Accept-Encoding": "identity"},
            event_hooks={"response": [self._receive]},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=width),
        )
        self._client = AsyncOpenAI(api_key=key, base_url=endpoint, timeout=timeout, max_retries=0, http_client=http)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="llm-connection", daemon=True)
        self._thread.start()

    def post(self, path: str, body: Mapping[str, object], *, headers: Mapping[str, str]) -> str:
        """The body that the server sends in answer."""
        response = self.run(
            lambda client: client.post(path, cast_to=httpx2.Response, body=body, options={"headers": headers})
        )
        return response.content.decode("utf-8-sig", "replace")

    def run(self, ask: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        """What a call of the package's client gives, from any thread."""
        return asyncio.run_coroutine_threadsafe(self._run(ask), self._loop).result()

    def close(self) -> None:
        """Disconnect, and end the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _run(self, ask: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._timeout):
                return await ask(self._client)
        except TimeoutError as error:
            raise APITimeoutError(httpx2.Request("POST", self._endpoint)) from error

    async def _disconnect(self) -> None:
        await self._client.close()
        # A socket is let go of in the loop's next turn.
        await asyncio.sleep(0)
        await self._loop.shutdown_default_executor()

    async def _receive(self, response: httpx2.Response) -> None:
        """Read a response to its end, and put what may be seen of it in its stream's place."""
        if response.has_redirect_location:
            _check_redirect(response)
        if response.headers.get("content-encoding", "identity") != "identity":
            # Its size is not known before it is unpacked, and none was asked for.
            raise Malformed("the reply is compressed, which was not asked for", passing=False)
        content, stream = bytearray(), response.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        async for part in stream:
            content += part
            if len(content) > self._most_bytes:
                raise Malformed(f"the reply has over {self._most_bytes / 1e6:.0f} MB; given up", passing=False)
        await stream.aclose()
        text = content.decode("utf-8", "surrogateescape")
        shown = self._keys.hide(hide_keys(text) if response.is_error else text)
        response.stream = httpx2.ByteStream(shown.encode("utf-8", "surrogateescape"))


def _check_redirect(response: httpx2.Response) -> None:
    """Refuse a redirect to another host, or from https to http; Malformed says where it would lead."""
    here = response.request.url
    try:
        there = here.join(response.headers["location"])
    except httpx2.InvalidURL as error:
        raise Malformed(f"{response.status_code}: redirected to no URL ({error})", passing=False) from error
    same = (there.scheme, there.host, there.port) == (here.scheme, here.host, here.port)
    if not same and (there.host, there.scheme, here.scheme) != (here.host, "https", "http"):
        where = one_line(f"{there.scheme}://{there.netloc.decode('ascii', 'replace')}")
        told = f"{response.status_code}: redirected to {where}, which is not followed"
        raise Malformed(f"{told}; if that is right, name it as base URL", passing=False)
