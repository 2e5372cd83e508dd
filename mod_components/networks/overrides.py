"""Attributes of modules, set for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

__all__ = ["KEPT", "attributes_set", "kept"]

KEPT = "_fast_forward"
_ABSENT = object()


def kept(function: Callable[..., Any], module: nn.Module) -> Any:
    """A function bound to a module, the same one each time.

    It is kept for good in the module's ``__dict__``: torch.compile compiles anew for each new
    function.

    Args:
        function: takes the module first; always the same one for a module.
        module: the module.
    """
    return module.__dict__.setdefault(KEPT, partial(function, module))


@contextmanager
def attributes_set(changes: Iterable[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    """Set attributes of modules and put back what was there, also after an error.

    A function under ``"forward"`` takes the place of the class's, as PyTorch calls
    ``self.forward``.

    Args:
        changes: module, name of an attribute that is no parameter, buffer or module, value.
    """
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, value in changes:
            before.append((module, name, module.__dict__.get(name, _ABSENT)))
            module.__dict__[name] = value
        yield
    finally:
        for module, name, value in reversed(before):
            if value is _ABSENT:
                del module.__dict__[name]
            else:
                module.__dict__[name] = value
