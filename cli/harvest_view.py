"""What a harvest shows: how far it is, what was read, and a row for every source."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..data.harvest.watch import Watch
from .common import Progress, Row, say

if TYPE_CHECKING:
    from ..data.harvest.estimate import Estimate
    from ..data.records import HarvestResult


class Shown(Watch):
    """Shows on stderr how far a harvest is: bars of tokens, of windows and of features, then that it writes."""

    def __init__(self, stack: ExitStack, *, what: str = "harvest") -> None:
        self._stack = stack
        self._bar = self._begin(what, "tokens")
        self._mining: Progress | None = None
        self._ranking: Progress | None = None
        self.tokens = 0
        """Tokens that were read in this call."""
        self._before = 0

    def _begin(self, what: str, unit: str) -> Progress:
        return self._stack.enter_context(Progress(what, total=None, unit=unit, resumes=True))

    def begins(self, done: int, of: int) -> None:
        """Note, and say, what was read before."""
        if done:
            say(f"goes on from {done:,} tokens, which were kept")
        self._before = done
        self._bar.expect(of)

    def read(self, tokens: int) -> None:
        """Move the bar."""
        self.tokens = tokens - self._before
        self._bar.reach(tokens)

    def mined(self, windows: int, of: int) -> None:
        """Begin another bar, of windows, and move it."""
        if self._mining is None:
            self._stack.close()
            say(f"the text is read; silent windows and near misses are looked for in {of:,} windows")
            self._mining = self._begin("silent windows", "windows")
            self._mining.expect(of)
        self._mining.reach(windows)

    def ranked(self, features: int, of: int) -> None:
        """Begin another bar, of features, and move it."""
        if self._ranking is None:
            self._stack.close()
            self._ranking = self._begin("tokens that they raise", "features")
            self._ranking.expect(of)
        self._ranking.reach(features)

    def writes(self) -> None:
        """Say so: a large harvest takes its time."""
        self._stack.close()
        say("writing to the database")


def say_what_was_read(result: "HarvestResult") -> None:
    """Say which of the corpus's tokens are in the statistics, and which are not, and why."""
    if isinstance(stopped := result.provenance.get("stopped_at"), dict):
        budget = "all" if stopped["budget"] is None else f"{stopped['budget']:,}"
        say(f"ended with {stopped['tokens']:,} of {budget} tokens: of the corpus's beginning, not of all of it")
    counts, fewest = result.counts, min(source.tokens for source in result.sources)
    left_out = {
        "beyond the budget": counts.beyond_budget,
        "special tokens": counts.special,
        "of massive norm": result.tokens - counts.special - fewest,
    }
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count) or "none"
    say(f"{fewest:,} of {counts.given:,} tokens that were read are counted; left out: {reasons}")
    if counts.own_bos:
        say(f"documents that bring a BOS themselves: {counts.own_bos:,}; it stands there once")
    if counts.spelled:
        say(f"documents that spell special tokens: {counts.spelled:,}; these are text, with --special-tokens tokens")


def make_rows(result: "HarvestResult", seconds: float, read: int) -> list[Row]:
    """One row per source; `read` is the number of tokens that were read in these seconds."""
    alive = {source.source: int((source.count > 0).sum()) for source in result.sources}
    return [
        {
            "source": source.source,
            "features": source.width,
            "alive": alive[source.source],
            "dead": source.width - alive[source.source],
            "tokens": result.tokens,
            "counted": source.tokens,
            "given": result.counts.given,
            "corpus": result.corpus,
            "window": result.window,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(read / seconds) if read else None,
        }
        for source in result.sources
    ]


def format_row(row: Row) -> str:
    """Write a source's row as a line."""
    rate = "" if row["tokens_per_second"] is None else f", {row['tokens_per_second']:,} tokens/s"
    return (
        f"{row['source']}: {row['features']:,} features, {row['alive']:,} alive, {row['dead']:,} dead, "
        f"{row['tokens']:,} tokens of {row['corpus']}{rate}"
    )


def make_estimate_row(estimate: "Estimate") -> Row:
    """Return what a harvest will need: bytes, and seconds with those at the speed of the fastest and slowest batch."""
    low, high = (estimate.total_seconds(speed) for speed in estimate.spread)
    return {
        "tokens": estimate.tokens,
        "memory": {"peak": estimate.peak, **estimate.memory},
        "sources": dict(estimate.sources),
        "disk": {"peak": estimate.disk, "database": estimate.database, "checkpoint": estimate.checkpoint},
        "seconds": {name: round(seconds, 3) for name, seconds in estimate.seconds.items()}
        | {"total": round(estimate.total_seconds(), 3), "low": round(low, 3), "high": round(high, 3)},
        "text_beside_model": estimate.overlap,
    }


def format_estimate(row: Row) -> str:
    """Write what a harvest will need as lines."""
    memory, disk, seconds = row["memory"], row["disk"], row["seconds"]
    parts = ", ".join(f"{name} {_megabytes(memory[name])}" for name in memory if name != "peak")
    text = "text to tokens beside it" if row["text_beside_model"] else "text to tokens"
    return "\n".join(
        [
            f"memory: {_megabytes(memory['peak'])} MB at the peak, of which {parts}",
            *(f"  {source}: {_megabytes(size)} MB" for source, size in row["sources"].items()),
            f"disk: {_megabytes(disk['database'])} MB more in the database; beside it, until it is whole, a checkpoint "
            f"of {_megabytes(disk['checkpoint'])} MB and the log of what is written: {_megabytes(disk['peak'])} MB at "
            "the peak",
            f"time: {seconds['total']:,.0f} s ({seconds['low']:,.0f} to {seconds['high']:,.0f}) for {row['tokens']:,} "
            f"tokens: splits {seconds['splits']:,.0f}, model and lists {seconds['model']:,.0f}, {text} "
            f"{seconds['text']:,.0f}, mining {seconds['mining']:,.0f}, tokens that features raise "
            f"{seconds['ranking']:,.0f}, writing {seconds['writing']:,.0f}",
            "nothing is written",
        ]
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}"
