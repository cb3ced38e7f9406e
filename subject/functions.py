"""Functions from the tokens of a text to one number a token: in a Python file, behind an HTTP endpoint, or in memory.

A function is told the strings of a text's tokens, in order, and gives one finite number for each. Whatever else comes
back, an exception, or nothing in time is a NeuronautError that names the function. A file is the user's own code: it is
read once, known by its hash, and run when the first number is wanted, so that one that has changed can be refused
unrun. An endpoint gets POST requests of JSON, `{"texts": [...], "tokens": [[...], ...]}`, and answers
`{"activations": [[...], ...]}`; it is asked again after what may pass, and no redirect is followed.
"""

import hashlib
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Protocol, TypeVar

import httpx2
import numpy as np
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from .errors import NeuronautError

SECONDS = 60.0
"""The most that BATCH texts may take."""
BATCH = 64
"""Texts that a function gets together."""
LARGEST = 65504.0
"""The largest number that the store keeps (float16)."""
_ATTEMPTS, _LONGEST_WAIT = 4, 8.0
_MOST_BYTES = 32_000_000
"""Of one answer of an endpoint."""

Tokens = Sequence[str]
"""The strings of a text's tokens: joined, they are the text."""
T = TypeVar("T")


class Functions(Protocol):
    """One or several functions that are called together."""

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called; as many as there are numbers for a token."""
        ...

    @property
    def location(self) -> str:
        """Where they are found again: FILE.py:NAME[,NAME...] or a URL."""
        ...

    @property
    def digest(self) -> str:
        """What tells them from others: the hash of a file, the URL of an endpoint."""
        ...

    def call(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """The numbers of each text, (token, function)."""
        ...


class PythonFunctions:
    """Functions in memory, by name. Each takes the list of token strings and returns one number for each.

    >>> functions = PythonFunctions({"length": lambda tokens: [len(token) for token in tokens]}, digest="1")
    >>> functions.call([["a", " cat"]])[0].tolist()
    [[1.0], [4.0]]
    """

    def __init__(self, functions: Mapping[str, Callable[[list[str]], Any]], *, digest: str, location: str = "") -> None:
        """`digest` must be another one whenever the functions are."""
        self._functions, self.digest, self.location = functions, digest, location

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called."""
        return tuple(self._functions)

    def call(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """The numbers of each text, (token, function)."""
        return [
            part
            for start in range(0, len(texts), BATCH)
            for part in run_within(
                SECONDS, lambda start=start: self._call(texts[start : start + BATCH]), what=self._title()
            )
        ]

    def _call(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        return [
            np.stack([self._ask(name, function, tokens) for name, function in self._functions.items()], axis=1)
            for tokens in texts
        ]

    def _ask(self, name: str, function: Callable[[list[str]], Any], tokens: Tokens) -> NDArray[np.float32]:
        try:
            given = function(list(tokens))
        # It is anybody's code, which may raise anything, an exit included; Ctrl-C is the user's.
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
            raise NeuronautError(f"{self._title(name)} raised {what} on {_excerpt(tokens)}; mend it") from error
        return check_numbers(self._title(name), given, tokens)

    def _title(self, name: str = "") -> str:
        named = name or ", ".join(self._functions)
        return f"the function {named}" + (f" of {self.location.rpartition(':')[0]}" if self.location else "")


class FileFunctions:
    """Functions of a Python file, which is run when they are first called."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        """Read the file; NeuronautError where it cannot be read."""
        self.names = names
        self.location = f"{path.expanduser().resolve()}:{','.join(names)}"
        self._path = path.expanduser()
        try:
            self._code = self._path.read_bytes()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise NeuronautError(f"cannot read {path} ({reason}); name a function as FILE.py:NAME") from error
        self.digest = hashlib.sha256(self._code).hexdigest()
        self._loaded: PythonFunctions | None = None

    def call(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """The numbers of each text, (token, function)."""
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded.call(texts)

    def load(self) -> PythonFunctions:
        """Run the file, as it was read, and take its functions."""
        module = types.ModuleType(self._path.stem)
        module.__file__ = str(self._path)
        try:
            code = compile(self._code, str(self._path), "exec")
            run_within(SECONDS, lambda: exec(code, module.__dict__), what=f"the file {self._path}")
        except NeuronautError:
            raise
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise NeuronautError(f"{self._path} cannot be run ({what}); mend it") from error
        functions = {name: getattr(module, name, None) for name in self.names}
        for name, function in functions.items():
            if not callable(function):
                there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
                raise NeuronautError(
                    f"{self._path} has no function {name}; it has {', '.join(there) or 'none'}; name it so"
                )
        return PythonFunctions(functions, digest=self.digest, location=self.location)  # pyright: ignore[reportArgumentType]


class EndpointFunction:
    """A function behind an HTTP endpoint."""

    def __init__(self, url: str) -> None:
        """Refuse what is no URL of HTTP."""
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise NeuronautError(
                f"{url!r} is no URL ({error}); wanted http://HOST/PATH or https://HOST/PATH"
            ) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise NeuronautError(f"{url!r} is no URL of an endpoint; wanted http://HOST/PATH or https://HOST/PATH")
        last = parsed.path.rstrip("/").rpartition("/")[2]
        self.names = (last or parsed.host,)
        self.location = self.digest = url
        self._retrying = Retrying(
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.25, max=_LONGEST_WAIT),
            retry=retry_if_exception(_is_passing),
            reraise=True,
        )

    def call(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        """The numbers of each text, (token, 1)."""
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [numbers for part in parts for numbers in self._ask(part)]

    def _ask(self, texts: Sequence[Tokens]) -> list[NDArray[np.float32]]:
        what = f"the endpoint {self.location}"
        body = {"texts": ["".join(tokens) for tokens in texts], "tokens": [list(tokens) for tokens in texts]}
        try:
            answer = self._retrying(lambda: run_within(SECONDS, lambda: self._post(body), what=what))
            given = json.loads(answer)["activations"]
        except _Refusal as error:
            raise NeuronautError(f"{what} answers {error}; mend it") from error
        except httpx2.HTTPError as error:
            raise NeuronautError(f"no answer of {what} ({_one_line(error)}); is it running?") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NeuronautError(f'{what} answers something else than {{"activations": [[...], ...]}}') from error
        if not isinstance(given, list) or len(given) != len(texts):
            count = len(given) if isinstance(given, list) else "no"
            raise NeuronautError(f"{what} gave {count} lists for {len(texts)} texts; wanted one for each")
        return [check_numbers(what, own, tokens)[:, None] for own, tokens in zip(given, texts, strict=True)]

    def _post(self, body: object) -> bytes:
        content = bytearray()
        with (
            httpx2.Client(timeout=SECONDS, follow_redirects=False, headers={"Accept-Encoding": "identity"}) as client,
            client.stream("POST", self.location, json=body) as response,
        ):
            if response.status_code != 200:
                redirect = ", a redirect, which is not followed" if response.is_redirect else ""
                raise _Refusal(f"with status {response.status_code}{redirect}", response.status_code)
            for part in response.iter_raw():
                content += part
                if len(content) > _MOST_BYTES:
                    raise _Refusal(f"with over {_MOST_BYTES / 1e6:.0f} MB", response.status_code)
        return bytes(content)


class _Refusal(Exception):
    """An answer that is no list of numbers."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


def _is_passing(error: BaseException) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, _Refusal):
        return error.status in (408, 425, 429) or error.status >= 500
    return isinstance(error, httpx2.TransportError)


_FILE = re.compile(r"(?P<path>.+\.py):(?P<names>[^:/\\]+)", re.DOTALL)


def open_functions(location: str) -> Functions:
    """The functions at FILE.py:NAME[,NAME...], or the one at an http:// or https:// URL."""
    if location.startswith(("http://", "https://")):
        return EndpointFunction(location)
    match = _FILE.fullmatch(location)
    names = () if match is None else tuple(dict.fromkeys(name.strip() for name in match["names"].split(",")))
    if match is None or not all(name.isidentifier() for name in names):
        raise NeuronautError(
            f"{location!r} is no function; wanted FILE.py:NAME, FILE.py:NAME,NAME or https://HOST/PATH"
        )
    return FileFunctions(Path(match["path"]), names)


def check_numbers(what: str, given: object, tokens: Tokens) -> NDArray[np.float32]:
    """What a function gave, as (token,) numbers; NeuronautError where it is not one finite number a token."""
    wanted = "wanted one finite number a token"
    try:
        numbers = np.asarray(given)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise NeuronautError(f"{what} gave no list of numbers on {_excerpt(tokens)}; {wanted}") from error
    if numbers.ndim != 1 or (numbers.dtype.kind not in "biuf" and len(numbers)):
        kind = f"an array of shape {numbers.shape}" if numbers.ndim > 1 else f"{str(given)[:40]!r}"
        raise NeuronautError(f"{what} gave {kind} on {_excerpt(tokens)}; {wanted}")
    if len(numbers) != len(tokens):
        raise NeuronautError(
            f"{what} gave {len(numbers)} numbers for {len(tokens)} tokens, {_excerpt(tokens)}; {wanted}"
        )
    unfit = ~(np.abs(numbers.astype(np.float64)) <= LARGEST)
    if unfit.any():
        place = int(unfit.argmax())
        limit = f", of at most {LARGEST:g}" if np.isfinite(numbers[place]) else ""
        raise NeuronautError(
            f"{what} gave {numbers[place]} at the token {tokens[place]!r} of {_excerpt(tokens)}; {wanted}{limit}"
        )
    return numbers.astype(np.float32)


def run_within(seconds: float, call: Callable[[], T], *, what: str) -> T:
    """What a call returns or raises; a NeuronautError where it takes longer, and it is left behind."""
    done: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            raised.append(error)

    # Python cannot end a thread: this one ends with the process, at the latest.
    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not done:
        raise NeuronautError(f"{what} took more than {seconds:g} s for {BATCH} texts or fewer; make it faster")
    return done[0]


def _excerpt(tokens: Tokens) -> str:
    text = "".join(tokens)
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
