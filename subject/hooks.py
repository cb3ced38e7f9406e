"""Watching and editing the tensors that pass a point of a model, with plain forward hooks.

Every hook lives inside a `with` block, so an exception leaves none behind. A hook's tensor is the
module's first positional argument (or `hidden_states`) on the input side, and its output (or the
output tuple's first element) on the output side, or the part of it that the point is about.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .architecture import Part, Side


class Point(NamedTuple):
    """A port of a loaded model."""

    module: nn.Module
    side: Side
    copied: bool = False
    """Whether the model goes on with a copy, since it would change what passed in place."""
    joined: nn.Module | None = None
    """Where all rows pass as one: a module whose input still has them apart."""
    part: Part | None = None
    """The coordinates that are meant; all of them where it is None."""


class _Stop(Exception):
    """Cuts a forward pass short once the last tensor wanted has been seen."""


@contextmanager
def attach(point: Point, function: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    """Within the block, call `function` on every tensor at `point`; where it returns one, that one flows on instead."""
    with ExitStack() as hooks:
        if point.part is not None:
            function = _take_part(point.part, function)
        if point.joined is not None:
            function = _keep_rows(point.joined, function, hooks)
        hooks.enter_context(_hook(point, function))
        yield


def _take_part(part: Part, function: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
    """The function for a whole tensor, of which it is given the part."""

    def apply(whole: Tensor) -> Tensor | None:
        result = function(part.take(whole))
        return None if result is None else part.put(whole, result)

    return apply


def _keep_rows(
    whole: nn.Module, function: Callable[[Tensor], Tensor | None], hooks: ExitStack
) -> Callable[[Tensor], Tensor | None]:
    """The function for rows that pass joined to one, (row x position, width): it is given them apart."""
    shape: list[int] = []

    def note(tensor: Tensor) -> None:
        shape[:] = tensor.shape[:-1]

    def apply(joined: Tensor) -> Tensor | None:
        result = function(joined.unflatten(0, shape))
        return None if result is None else result.flatten(0, 1)

    hooks.enter_context(_hook(Point(whole, "input"), note))
    return apply


def _hook(point: Point, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        replacement = function(args[0] if args else kwargs["hidden_states"])
        if replacement is None:
            return None
        return ((replacement, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": replacement})

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        replacement = function(output[0] if isinstance(output, tuple) else output)
        if replacement is None:
            return None
        return (replacement, *output[1:]) if isinstance(output, tuple) else replacement

    if point.side == "input":
        return point.module.register_forward_pre_hook(before, with_kwargs=True)
    return point.module.register_forward_hook(after)


def record(
    run: Callable[[], object], points: Iterable[Point], *, last: Point | None = None
) -> list[tuple[Point, Tensor]]:
    """Every tensor that passes `points` during `run()`, in the order of passing, not copied.

    Where `last` is given, `run()` is cut short as soon as a tensor has passed it.
    """
    passed: list[tuple[Point, Tensor]] = []

    def receiver(point: Point) -> Callable[[Tensor], Tensor | None]:
        def receive(tensor: Tensor) -> Tensor | None:
            passed.append((point, tensor))
            if point == last:
                raise _Stop
            return tensor.clone() if point.copied else None

        return receive

    with ExitStack() as hooks:
        for point in points:
            hooks.enter_context(attach(point, receiver(point)))
        with suppress(_Stop):
            run()
    return passed
