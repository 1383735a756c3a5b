"""Everything that a denoiser or a sampler holds: its modules, generators, counters and caches.

Python does not say what a function depends on. This walks over closures, referenced globals,
attributes and containers, which is where the state of published samplers lives.
"""

import itertools
import logging
import random
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

# Attributes that every module has say nothing about this one.
_EVERY_MODULE = frozenset(vars(nn.Module()))
_LARGEST = 20_000  # values; a bound for what is no sampler but leads everywhere
_PLAIN = (bool, int, float, complex, str, type(None))
_NAMED = (nn.Module, Tensor, torch.Generator, random.Random, itertools.count, ContextVar)
# A logger leads to every other one of the process.
_HOLDS_NOTHING = (
    *(Tensor, types.ModuleType, type, bytes, range),
    *(logging.Logger, logging.Handler),
)
_EXACT = frozenset({bool, int, str, type(None)})  # whose equal values are the same
_BUILT_IN = frozenset({dict, list, tuple, set, frozenset, deque, bytes, range})
_KNOWN_PURE = ("torch.", "adjointdeis.")


def reachable(*roots: Any) -> list[tuple[str, Any]]:
    """Every module, tensor, generator and plain value that the roots lead to, with its name.

    Weights and buffers of modules are left out. Several values may have one name.
    """
    return list(_walk(roots))


def comparable(found: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """What was reached, in a form that shows later whether it has changed."""
    return {name: _comparable(value) for name, value in found}


def own_state(*roots: Any) -> dict[str, Any]:
    """What the roots hold, with the global generators of Python and numpy; torch's are repeated."""
    found = comparable(reachable(*roots))
    found["random"] = hash(random.getstate())
    if "numpy" in sys.modules:
        found["numpy.random"] = _frozen(sys.modules["numpy"].random.get_state())
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names of what was added, removed or changed between two states."""
    missing = object()
    return [n for n in {**before, **after} if before.get(n, missing) != after.get(n, missing)]


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; inference tensors do not count it."""
    try:
        return tensor._version
    except RuntimeError:
        return 0


def next_number() -> int:
    """The number of the next node of a graph that this thread makes."""
    return torch.autograd._get_sequence_nr()


def _comparable(value: Any) -> Any:
    kind = type(value)
    if kind in _EXACT:
        return kind, value
    if isinstance(value, _PLAIN):
        # 1 == True == 1.0, and nan differs from itself.
        return kind, repr(value)
    if isinstance(value, Tensor):
        return id(value), version(value)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if kind is itertools.count:
        return repr(value)  # with where it is
    if kind is ContextVar:
        return _comparable(value.get(None))
    if not isinstance(value, nn.Module) and hasattr(value, "bit_generator"):
        return _frozen(value.bit_generator.state)
    return id(value)


def _frozen(state: Any) -> Any:
    """The state of a generator of numpy, which holds arrays and dictionaries."""
    if isinstance(state, Mapping):
        return tuple((key, _frozen(value)) for key, value in state.items())
    if isinstance(state, tuple):
        return tuple(map(_frozen, state))
    return state.tobytes() if hasattr(state, "tobytes") else state


def _walk(roots: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    kinds = _KINDS.copy()  # a sampler holds thousands of values of a few classes
    queue = deque((type(root).__name__, root) for root in roots)
    while queue and len(seen) < _LARGEST:
        name, value = queue.popleft()
        kind = kinds.get(type(value))
        if kind is None:
            kind = _Kind(value)
            if value.__class__ is type(value):  # unlike a proxy
                kinds[type(value)] = kind
        if kind.plain:
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            if kind.named or (kind.may_draw and hasattr(value, "bit_generator")):
                yield name, value
            queue.extend(kind.parts(name, value))


class _Kind:
    """How the values of a class are walked; found by one of them.

    Attributes:
        plain: whether they are numbers or texts.
        named: whether each is reported.
        may_draw: whether one may be a generator of numpy.
        parts: from a name and a value to what it holds, with names.
    """

    __slots__ = ("may_draw", "named", "parts", "plain")

    def __init__(self, value: Any) -> None:
        self.plain, self.named = isinstance(value, _PLAIN), isinstance(value, _NAMED)
        self.may_draw = type(value) not in _BUILT_IN and not isinstance(value, type)
        self.parts: Callable[[str, Any], Iterable[tuple[str, Any]]]
        if isinstance(value, nn.Module):
            self.parts = partial(_of_module, _methods(value, "forward"))
        elif isinstance(value, types.FunctionType):
            self.parts = _of_function
        elif isinstance(value, types.MethodType):
            self.parts = lambda name, method: (
                (name, method.__self__),
                (name, method.__func__),
            )
        elif isinstance(value, partial):
            self.parts = lambda name, bound: [
                (name, part) for part in (bound.func, bound.args, bound.keywords)
            ]
        elif isinstance(value, _HOLDS_NOTHING):
            self.parts = lambda name, value: ()
        elif isinstance(value, Mapping):
            self.parts = lambda name, value: [
                (f"{name}[{key!r}]", part) for key, part in list(value.items())
            ]
        elif isinstance(value, (Sequence, Set, deque)):
            self.parts = lambda name, value: [
                (f"len({name})", len(value)),
                *((f"{name}[{place}]", part) for place, part in enumerate(list(value))),
            ]
        else:
            self.parts = partial(_of_object, _methods(value, "__call__", "step"))


_Functions = tuple[types.FunctionType, ...]


def _methods(value: Any, *methods: str) -> _Functions:
    """The functions by which a user's object is run."""
    if f"{type(value).__module__}.".startswith(_KNOWN_PURE):
        return ()
    found = (getattr(type(value), method, None) for method in methods)
    return tuple(f for f in found if isinstance(f, types.FunctionType))


def _of_module(methods: _Functions, name: str, module: nn.Module) -> list[tuple[str, Any]]:
    held = [(f"{name}.{k}", part) for k, part in vars(module).items() if k not in _EVERY_MODULE]
    held += [(f"{name}.{key}", part) for key, part in module._modules.items()]
    return [*held, *((name, method) for method in methods)]


def _of_object(methods: _Functions, name: str, value: Any) -> list[tuple[str, Any]]:
    if not hasattr(value, "__dict__"):
        return []
    held = [(f"{name}.{key}", part) for key, part in vars(value).items()]
    return [*held, *((name, method) for method in methods)]


def _of_function(name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code, cells = function.__code__, function.__closure__ or ()
    for key, cell in zip(code.co_freevars, cells, strict=True):
        try:
            yield key, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from ((f"{name}.{key}", part) for key, part in vars(function).items())
    yield name, function.__defaults__
    known = function.__globals__
    for key in _global_names(code):
        if key not in known:
            continue
        part = known[key]
        # Functions of other files would lead through whole libraries.
        elsewhere = isinstance(part, types.FunctionType) and (
            part.__code__.co_filename != code.co_filename
        )
        if not elsewhere:
            yield key, part


@lru_cache(1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Globals that a function may read, those of the functions inside it included."""
    inside = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return (*code.co_names, *(name for each in inside for name in _global_names(each)))


# Those of Python and torch, found once; a class of the user's may be changed between two walks.
_EXAMPLES = (
    True, 0, 0.0, "", None, {}, [], (), set(), deque(), b"", torch, int, torch.empty(0),
    nn.Parameter(torch.empty(0)), torch.Generator(), _comparable, random.seed,
    partial(int), random.Random(),
)  # fmt: skip
_KINDS = {type(value): _Kind(value) for value in _EXAMPLES}
