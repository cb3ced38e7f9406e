"""The command `neuronaut`: finds a verb, and says in one line what went wrong in it.

A verb's module is imported when the verb is named, and itself imports what is heavy (torch,
transformers, numpy) when the verb runs, so that help is immediate.
"""

import os
import shlex
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

from ..subject.errors import NeuronautError, UnknownNameError
from . import display
from .common import ARGUMENTS, DEBUG, Stopped, Terminated, debug_option, drop_later, say

VERBS: Mapping[str, str] = {
    "demo": "demo:demo",
    "harvest": "harvest:harvest",
    "label": "label:label",
    "score": "label:score",
    "show": "show:show",
    "try": "try_:try_",
    "list": "query:list_",
    "search": "query:search",
    "similar": "query:similar",
    "map": "map:map_",
    "find": "find:find",
    "summary": "summary:summary",
    "train": "train:train",
    "serve": "serve:serve",
    "export": "exchange:export",
    "import": "exchange:import_",
    "datasette": "datasette:datasette",
    "models": "models:models",
    "sources": "sources:sources",
    "investigate": "investigate:investigate",
    "sessions": "sessions:sessions",
    "bench": "bench:bench",
    "prompts": "prompts:prompts",
    "llm": "llm:llm",
    "run": "causal.run:run",
    "lens": "causal.read:lens",
    "attribute": "causal.attribute:attribute",
    "heads": "causal.read:heads",
    "probe": "causal.probe:probe",
    "directions": "directions:directions",
    "patch": "causal.sweep:patch",
    "sweep": "causal.sweep:sweep",
    "circuit": "causal.circuit:circuit",
    "steer": "causal.steer:steer",
    "reproduce": "llm:reproduce",
    "mcp": "mcp:mcp",
    "db": "db:db",
}
"""The module and the name of each verb, in the order of the help."""

INTERRUPTED, TERMINATED = 130, 143


class Verbs(click.Group):
    """A group whose verbs are imported when they are asked for, and whose errors are one line each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of `VERBS`."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name].partition(":")
        return getattr(import_module(f".{module}", __package__), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a verb; of one that there is not, the most alike is named."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = get_close_matches(args[0], VERBS, n=1)
            guess = f" Did you mean {close[0]}?" if close else " Try 'neuronaut -h', which lists them."
            ctx.fail(f"No such command {args[0]!r}.{guess}")
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and remember what was typed, so that an interrupted command can be repeated."""
        ctx.meta[ARGUMENTS] = list(args)
        with _spelled_out():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; an error becomes one line and exit code 1, an interrupt exit code 130, SIGTERM 143."""
        # Read by torch when it is imported: an idle OpenMP thread would spin on a core that the harvest's scan needs.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            with _spelled_out():
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except (Stopped, KeyboardInterrupt) as stop:
            if ctx.meta.get(DEBUG):
                raise
            say(_format_stop(stop, ctx.meta[ARGUMENTS]))
            ctx.exit(TERMINATED if isinstance(stop.__cause__, Terminated) else INTERRUPTED)
        except UnknownNameError as error:
            raise click.UsageError(display.visible(str(error))) from error
        except Exception as error:
            # Whatever a verb raises, a user gets one line, and with --debug the traceback.
            if ctx.meta.get(DEBUG):
                raise
            raise click.ClickException(display.visible(_format_error(error))) from error
        finally:
            drop_later()


@contextmanager
def _spelled_out() -> Generator[None]:
    """Spell out what does not print in click's own errors, which repeat what was typed."""
    try:
        yield
    except click.ClickException as error:
        message = error.format_message()
        if (spelled := display.harmless(message)) == message:
            raise
        if isinstance(error, click.UsageError):
            raise click.UsageError(spelled, error.ctx) from error
        raise click.ClickException(spelled) from error


def _format_stop(stop: BaseException, arguments: list[str]) -> str:
    advice = f"{stop}; go on with" if str(stop) else "run it again with"
    return f"\nStopped: {advice}: {shlex.join(['neuronaut', *arguments])}"


def _format_error(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, NeuronautError):
        return message
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; mend that and run the command again (--debug shows where it happened)"
    if (full := _describe_memory(error, message)) is not None:
        return full
    return f"{type(error).__name__}: {message or 'no message'}; this was not expected, --debug shows where it happened"


def _describe_memory(error: Exception, message: str) -> str | None:
    """What to do where there was no memory for work that cannot be cut into batches; None of other errors."""
    if "torch" not in sys.modules:
        return None
    from ..subject.memory import ADVICE, is_out_of_memory

    return (
        f"memory has no room for this ({message or type(error).__name__}); {ADVICE}"
        if is_out_of_memory(error)
        else None
    )


@click.group("neuronaut", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="neuronaut")
@debug_option
def main() -> None:
    """Explain what the units inside a language model respond to, and prove it.

    A feature is one neuron, or one unit of a sparse autoencoder (SAE). Harvest the text that activates
    features, label them, then search what was found. All of it is kept in one SQLite file.

    \b
    Examples:
      neuronaut demo
      neuronaut harvest gpt2 mlp.5 --corpus wikitext:wikitext-103-raw-v1 --tokens 2M
      neuronaut label gpt2:mlp.5:0-99
      neuronaut show gpt2:mlp.5:17
    """
