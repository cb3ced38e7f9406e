"""Harvests by several processes: workers here or on a Ray cluster, and shards that are harvested by hand."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..subject.errors import NeuronautError
from .common import Progress, Row, interruptible, say
from .harvest_view import Shown, make_rows, say_what_was_read

if TYPE_CHECKING:
    from ..data.harvest.shards import Part
    from ..data.splits import Splits
    from ..data.store.store import Store
    from .harvest_request import HarvestRequest, OpenHarvest, ShardFile


class Apart(NamedTuple):
    """Into how many parts a harvest goes, and where they are harvested."""

    jobs: int
    devices: tuple[str, ...]
    """One for each worker; none: as the model's device is."""
    on: str | None
    shard: str | None
    output: str | None

    @property
    def workers(self) -> int:
        """How many processes harvest."""
        return len(self.devices) or self.jobs

    def check(self, corpus: str | None, *, close: bool, function: bool, dry_run: bool) -> None:
        """Refuse what does not go together."""
        if (self.shard is None) != (self.output is None):
            raise click.UsageError("--shard I/N and -o FILE.npz go together; give both, or neither")
        apart = self.workers > 1 or self.on is not None or self.shard is not None
        if self.devices and self.jobs not in (1, len(self.devices)):
            raise click.UsageError(f"-j {self.jobs} and {len(self.devices)} --devices came; leave -j out")
        if self.shard is not None and (self.workers > 1 or self.on is not None):
            raise click.UsageError("--shard is harvested by one process; leave -j, --devices and --on out")
        if dry_run and (apart or close or function):
            raise click.UsageError(
                "--dry-run tells of one process that harvests a model; leave -j, --devices, --on, --shard, --close and "
                "--function out (each worker needs as much memory as one process)"
            )
        if not apart:
            return
        if function:
            raise click.UsageError("a --function is harvested by one process; leave -j, --devices, --on, --shard out")
        if close:
            raise click.UsageError("--close ends a harvest of one process; leave it out, and the same command goes on")
        if corpus == "-":
            raise click.UsageError("stdin cannot be read by several processes; write it into a file, and name that")


def split_devices(text: str | None) -> tuple[str, ...]:
    """Read `cuda:0,cuda:1`; empty where nothing is given."""
    return tuple(filter(None, (part.strip() for part in (text or "").split(","))))


def collect_by_hand(request: "HarvestRequest", apart: Apart) -> Row:
    """Harvest one shard into its file, with progress; returns what is in it."""
    from ..data.harvest.shards import Shard
    from ..data.harvest.windows import expected_tokens
    from ..data.splits import assign
    from .harvest_request import harvest_shard

    assert apart.shard is not None and apart.output is not None
    shard, path = Shard.parse(apart.shard), Path(apart.output)
    if path.suffix != ".npz":
        raise NeuronautError(f"-o {path} ends in {path.suffix or 'nothing'}; wanted a name that ends in .npz")
    opened = request.open()
    request.pass_gate(opened)
    say(f"reading shard {shard} of {opened.corpus.name} for {_name_sources(opened)}")
    with (
        interruptible(lambda: f"what was read up to the last checkpoint is kept in {path}"),
        Progress("harvest", total=None, unit="tokens", resumes=True) as progress,
    ):
        splits = assign(opened.corpus, seed=request.seed)
        progress.expect(expected_tokens(opened.subject, splits, request.tokens) // shard.count)
        part = harvest_shard(request, opened, splits, shard, path, progress=progress.reach)
    return {
        "shard": str(part.shard),
        "tokens": part.tokens,
        "sources": [str(s.id) for s in opened.sources],
        "file": str(path),
    }


def format_part(row: Row) -> str:
    """Write what a shard's file holds as a line."""
    return f"{row['file']}: shard {row['shard']}, {row['tokens']:,} tokens of {', '.join(row['sources'])}"


def collect_by_workers(request: "HarvestRequest", opened: "OpenHarvest", store: "Store", apart: Apart) -> list[Row]:
    """Harvest by workers, a shard each, and write the whole to the store; returns one row per source."""
    from ..data.harvest.harvest import check_sources
    from ..data.harvest.shards import read_parts
    from ..data.splits import assign

    check_sources(store, opened.subject, opened.sources)
    say(f"reading {opened.corpus.name} for {_name_sources(opened)} by {apart.workers} workers")
    say(opened.subject.convention.sentence)
    started, splits = time.monotonic(), assign(opened.corpus, seed=request.seed)
    folder = Path(f"{store.path}.shards-{_hash_request(request, splits, apart.workers)}")
    folder.mkdir(exist_ok=True)
    with interruptible(lambda: f"what the workers have read is kept in {folder}"):
        paths = _run_workers(request, opened, splits, folder, apart)
        parts = read_parts(paths)
        rows = absorb_parts(request, opened, store, parts, started=started)
    for path in paths:
        path.unlink()
    folder.rmdir()
    return rows


def _run_workers(
    request: "HarvestRequest", opened: "OpenHarvest", splits: "Splits", folder: Path, apart: Apart
) -> list[Path]:
    """Have every shard harvested; returns their files."""
    from ..data.harvest.shards import Shard
    from ..data.harvest.windows import expected_tokens
    from ..labelling.pools import start_workers
    from .harvest_request import open_shard_worker

    done: dict[int, int] = {}
    with Progress("harvest", total=None, unit="tokens") as progress:
        progress.expect(expected_tokens(opened.subject, splits, request.tokens))

        def show(told: tuple[int, int]) -> None:
            if told[0] not in done:  # what its file holds from before
                progress.skip(told[1])
            done.update([told])
            progress.reach(sum(done.values()))

        remote = apart.on is not None
        open_worker = partial(open_shard_worker, request, splits, folder.resolve(), apart.devices, remote=remote)
        with start_workers(apart.workers, open_worker, on=apart.on, on_tell=show) as workers:
            shards = [Shard(number, apart.workers) for number in range(1, apart.workers + 1)]
            return [_receive(file) for file in workers.run(shards)]


def _receive(file: "ShardFile") -> Path:
    """Write down what a worker on another machine harvested."""
    if file.content is not None and not file.path.exists():
        file.path.write_bytes(file.content)
    return file.path


def absorb_by_hand(files: "Sequence[Path]", store: "Store", given: "Mapping[str, str]") -> list[Row]:
    """Merge the shards that were harvested by hand; `given` says where model, sae and corpus lie here, and the device.

    Returns one row per source.
    """
    from ..data.harvest.shards import read_parts
    from ..data.splits import find_digest
    from .harvest_request import HarvestRequest

    started, parts = time.monotonic(), read_parts(files)
    asked = HarvestRequest.from_json(parts[0].request)
    options = replace(asked.load_options, **{key: given[key] for key in ("sae", "device") if key in given})
    request = replace(asked, **{key: given[key] for key in ("model", "corpus") if key in given}, load_options=options)
    opened = request.open()
    if find_digest(opened.corpus) != parts[0].digest:
        raise NeuronautError(
            f"the corpus {opened.corpus.name} is not what the shards were taken from; name that with --corpus"
        )
    opened = opened._replace(corpus=opened.corpus.named(parts[0].corpus))
    return absorb_parts(request, opened, store, parts, started=started)


def absorb_parts(
    request: "HarvestRequest", opened: "OpenHarvest", store: "Store", parts: "Sequence[Part]", *, started: float
) -> list[Row]:
    """Merge shards into the store, with progress; returns one row per source."""
    from ..data.harvest.shards import absorb

    with ExitStack() as stack:
        watch = Shown(stack, what="absorb")
        result = absorb(
            parts,
            opened.subject,
            opened.sources,
            opened.corpus,
            store,
            window=opened.window,
            seed=request.seed,
            paths=opened.paths,
            watch=watch,
        )
    say_what_was_read(result)
    return make_rows(result, time.monotonic() - started, result.tokens)


def _name_sources(opened: "OpenHarvest") -> str:
    return ", ".join(str(source.id) for source in opened.sources)


def _hash_request(request: "HarvestRequest", splits: "Splits", workers: int) -> str:
    """Name what is harvested by how many, for the folder of its shards."""
    asked: dict[str, Any] = request.to_json() | {"digest": splits.digest, "workers": workers}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
