"""The scan of a tile of activations, compiled where there is a C compiler, in PyTorch where not.

`scan.c` is built at the first harvest into the user's cache folder and loaded through ctypes; on a
GPU, or on a machine without a compiler, `scan_torch` does the same on any device. Both give the
same statistics and the same lists, whatever the tiles, batches and their order.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...subject.errors import NeuronautError
from . import histogram
from .lists import Lists

SUM_UNIT = 2.0**20
"""Sums are kept as integers of 1/SUM_UNIT, so that adding them up is exact in any order."""

HALF_MAX = 65504.0
"""The largest float16."""


class Rows(NamedTuple):
    """The identity of a tile's windows; every array has shape (window,) but the last."""

    uid: NDArray[np.int64]
    group: NDArray[np.int64]
    split: NDArray[np.int8]
    hash: NDArray[np.uint32]
    """Seed of the windows' sampling priorities, from `window_hash`."""
    counted: NDArray[np.bool_]
    """Which positions count, (window, position): the others are in no statistic, and 0 in examples."""


@dataclass(slots=True)
class SourceState:
    """The statistics and lists of one source while a harvest runs; their size does not depend on the corpus."""

    count: NDArray[np.int64]
    sum: NDArray[np.int64]
    uncounted: NDArray[np.int64]
    """Tokens left out of the statistics: special ones and massive ones. Shape (1,)."""
    peak: NDArray[np.float32]
    trough: NDArray[np.float32]
    histogram: NDArray[np.int64]
    top: Lists
    quantile: Lists
    bottom: Lists | None

    @classmethod
    def empty(
        cls, width: int, positions: int, *, signed: bool, top: tuple[int, int, int], quantile: tuple[int, int, int]
    ) -> "SourceState":
        """The state before the first window; `top` and `quantile` are capacities in (train, select, holdout)."""
        return cls(
            count=np.zeros(width, np.int64),
            sum=np.zeros(width, np.int64),
            uncounted=np.zeros(1, np.int64),
            peak=np.zeros(width, np.float32),
            trough=np.zeros(width, np.float32),
            histogram=np.zeros((width, histogram.BINS), np.int64),
            top=Lists.empty(width, positions, top),
            quantile=Lists.empty(width, positions, quantile),
            bottom=Lists.empty(width, positions, top) if signed else None,
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays themselves, by name, a list's as `LIST/NAME`: what a checkpoint holds."""
        lists = {"top": self.top, "quantile": self.quantile, "bottom": self.bottom}
        return {
            "count": self.count,
            "sum": self.sum,
            "uncounted": self.uncounted,
            "peak": self.peak,
            "trough": self.trough,
            "histogram": self.histogram,
        } | {
            f"{kind}/{name}": array
            for kind, part in lists.items()
            if part is not None
            for name, array in part.arrays().items()
        }

    def absorb(self, other: "SourceState") -> None:
        """Merge another shard's state into this one."""
        self.count += other.count
        self.sum += other.sum
        self.uncounted += other.uncounted
        np.maximum(self.peak, other.peak, out=self.peak)
        np.minimum(self.trough, other.trough, out=self.trough)
        self.histogram += other.histogram
        self.top.absorb(other.top)
        self.quantile.absorb(other.quantile)
        if self.bottom is not None and other.bottom is not None:
            self.bottom.absorb(other.bottom)


def window_hash(uid: NDArray[np.int64]) -> NDArray[np.uint32]:
    """32 well-mixed bits per window (splitmix64's finaliser)."""
    x = uid.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def priority(window_hashes: NDArray[np.uint32], features: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sampling priority in [0, 1) of window-feature pairs: uniform, and a function of the pair alone."""
    x = window_hashes ^ (features.astype(np.uint32) * np.uint32(0x9E3779B9))
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def as_half(activations: Tensor) -> Tensor:
    """As float16; what is too large becomes its largest number, never infinity."""
    return activations.clamp(-HALF_MAX, HALF_MAX).half()


class Scanner:
    """Scans tiles into a SourceState; by the C kernel where `compiled` is true."""

    def __init__(self, *, compiled: bool | None = None) -> None:
        """Use the kernel where it can be built (`compiled=None`), always (True: an error if not), never (False)."""
        self._kernel = None if compiled is False else _compiled_kernel()
        if compiled and self._kernel is None:
            raise NeuronautError("no C compiler was found for the harvest kernel; install gcc or clang")
        self.compiled = self._kernel is not None
        self._pool = ThreadPoolExecutor(torch.get_num_threads()) if torch.get_num_threads() > 1 else None
        self._known: dict[int, tuple[SourceState, tuple[object, ...]]] = {}

    def scan(self, tile: Tensor, rows: Rows, state: SourceState, *, first_feature: int) -> None:
        """Scan activations (window, position, feature) of features `first_feature` onwards.

        The feature axis is contiguous; window and position may be strided. Activations that are not
        finite raise NeuronautError.
        """
        if self._kernel is None or tile.device.type != "cpu" or tile.dtype != torch.float32 or tile.stride(2) != 1:
            broken = scan_torch(tile, rows, state, first_feature=first_feature)
        else:
            broken = self._scan_compiled(tile, rows, state, first_feature)
        if broken:
            raise NeuronautError(
                f"{broken} windows of features {first_feature} to {first_feature + tile.shape[2] - 1} hold NaN or "
                "infinite activations; check the dictionary, or load the model in float32"
            )

    def _scan_compiled(self, tile: Tensor, rows: Rows, state: SourceState, first_feature: int) -> int:
        features = tile.shape[2]
        if self._pool is None or features < 256:
            return self._call(tile, rows, state, first_feature)
        parts = torch.get_num_threads()
        edges = [features * part // parts // 64 * 64 for part in range(parts)] + [features]
        spans = [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if start < stop]

        def run(span: tuple[int, int]) -> int:
            return self._call(tile[:, :, span[0] : span[1]], rows, state, first_feature + span[0])

        return sum(self._pool.map(run, spans))

    def _call(self, tile: Tensor, rows: Rows, state: SourceState, first_feature: int) -> int:
        windows, positions, features = tile.shape
        counted = np.ascontiguousarray(rows.counted)
        assert self._kernel is not None
        return self._kernel(
            ctypes.c_void_p(tile.data_ptr()),
            windows,
            positions,
            features,
            tile.stride(0),
            tile.stride(1),
            first_feature,
            _pointer(rows.uid),
            _pointer(rows.group),
            _pointer(rows.hash),
            _pointer(rows.split),
            _pointer(counted),
            *self._arguments(state),
        )

    def _arguments(self, state: SourceState) -> tuple[object, ...]:
        """What the kernel is told of a state, whose arrays stay where they are; made once, for it takes a while."""
        if id(state) not in self._known:
            statistics = (state.count, state.sum, state.peak, state.trough, state.histogram)
            lists = [_as_struct(part) for part in (state.top, state.bottom, state.quantile)]
            whole = *map(_pointer, statistics), *(part and ctypes.byref(part) for part in lists)
            self._known[id(state)] = state, whole
        return self._known[id(state)][1]


def scan_torch(tile: Tensor, rows: Rows, state: SourceState, *, first_feature: int) -> int:
    """The scan in PyTorch, on the tile's own device; returns how many window-feature pairs are not finite."""
    features = tile.shape[2]
    span = slice(first_feature, first_feature + features)
    tile = tile.masked_fill(~torch.from_numpy(rows.counted).to(tile.device)[:, :, None], 0)
    high, low, total = tile.amax(1).float(), tile.amin(1).float(), tile.double().sum(1)
    finite = total.isfinite()
    if not bool(finite.all()):
        return int((~finite).sum())
    state.count[span] += (tile > 0).sum((0, 1)).cpu().numpy()
    state.sum[span] += (total * SUM_UNIT).round().long().sum(0).cpu().numpy()
    # Adding zero turns a negative zero into the positive one, so that no order of tiles shows.
    np.maximum(state.peak[span], high.amax(0).cpu().numpy() + 0, out=state.peak[span])
    np.minimum(state.trough[span], low.amin(0).cpu().numpy() + 0, out=state.trough[span])
    _, _, feature = (tile > 0).nonzero(as_tuple=True)
    bins = histogram.bins(tile[tile > 0].float().cpu().numpy())
    counts = np.bincount(feature.cpu().numpy() * histogram.BINS + bins, minlength=features * histogram.BINS)
    state.histogram[span] += counts.reshape(features, histogram.BINS)
    chance = priority(rows.hash[:, None], np.arange(span.start, span.stop)[None])
    active = (high > 0).cpu().numpy()
    _offer(
        state.top,
        tile=tile,
        score=high.cpu().numpy(),
        eligible=active,
        rows=rows,
        group=rows.group,
        first_feature=first_feature,
    )
    _offer(
        state.quantile, tile=tile, score=chance, eligible=active, rows=rows, group=rows.uid, first_feature=first_feature
    )
    if state.bottom is not None:
        negative = -low.cpu().numpy()
        _offer(
            state.bottom,
            tile=tile,
            score=negative,
            eligible=negative > 0,
            rows=rows,
            group=rows.group,
            first_feature=first_feature,
        )
    return 0


def _offer(
    lists: Lists,
    tile: Tensor,
    score: NDArray[np.float32],
    eligible: NDArray[np.bool_],
    rows: Rows,
    group: NDArray[np.int64],
    first_feature: int,
) -> None:
    """Offer a tile's eligible windows to the lists; `score` and `eligible` have shape (window, feature)."""
    worst = lists.worst[first_feature : first_feature + tile.shape[2]].T[rows.split]
    window, feature = np.nonzero(eligible & (score >= worst))
    if len(window) == 0:
        return
    where = torch.from_numpy(window).to(tile.device), torch.from_numpy(feature).to(tile.device)
    activations = as_half(tile.transpose(1, 2)[where]).cpu().numpy()
    lists.offer(
        feature + first_feature,
        splits=rows.split[window].astype(np.int64),
        scores=score[window, feature],
        uids=rows.uid[window],
        groups=group[window],
        activations=activations,
    )


class _List(ctypes.Structure):
    """The `list` of scan.c."""

    _fields_ = [  # noqa: RUF012
        *((name, ctypes.c_void_p) for name in ("score", "worst", "uid", "group", "activations")),
        ("features", ctypes.c_int64),
        ("per_feature", ctypes.c_int64),
        ("offsets", ctypes.c_int64 * 4),
    ]


def _as_struct(lists: Lists | None) -> _List | None:
    if lists is None:
        return None
    assert lists.worst.T.flags.c_contiguous
    pointers = (lists.score, lists.worst, lists.uid, lists.group, lists.activations)
    return _List(*map(_pointer, pointers), *lists.score.shape, (ctypes.c_int64 * 4)(*lists.offsets))


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@cache
def _compiled_kernel() -> Callable[..., int] | None:
    """The compiled scan function, or None where it cannot be built."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    source = Path(__file__).with_name("scan.c")
    key = hashlib.sha256(source.read_bytes() + f"{compiler} {platform.processor()} {_cpu_flags()}".encode()).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "neuronaut"
    built = folder / f"scan-{key[:16]}.so"
    try:
        if not built.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, source, built)
        scan = ctypes.CDLL(str(built)).scan
    except (OSError, subprocess.CalledProcessError):
        return None
    scan.restype = ctypes.c_int64
    integers, pointers = [ctypes.c_int64] * 6, [ctypes.c_void_p] * 13
    scan.argtypes = [ctypes.c_void_p, *integers, *pointers]
    return scan


def _compile(compiler: str, source: Path, built: Path) -> None:
    """Build beside the target and rename, so that two processes may build at once."""
    with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
        library = Path(scratch) / "scan.so"
        flags = ["-O3", "-march=native", "-fno-math-errno", "-fPIC", "-shared"]
        subprocess.run([compiler, *flags, "-o", str(library), str(source), "-lm"], check=True, capture_output=True)
        library.replace(built)


def _cpu_flags() -> str:
    """The CPU's features, on which -march=native depends; a home folder may be shared by machines of several kinds."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
