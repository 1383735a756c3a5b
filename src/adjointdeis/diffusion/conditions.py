"""The condition z of the network: a tensor or a pytree, one for all steps or one per step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The same registry that torch.func and torch.export read; it knows named tuples and the output
# classes of the transformers library. The module has no public name yet.
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten


def recordable(value: Any) -> Any:
    """A copy of a tensor that ``torch.inference_mode`` made, which a graph may not hold."""
    made = isinstance(value, Tensor) and value.is_inference()
    return value.clone() if made and not torch.is_inference_mode_enabled() else value


@dataclass(frozen=True, eq=False)
class PerStep:
    """A schedule of conditions: z_i for step i, in the order of the grid.

    Args:
        values: N conditions, each a tensor or a pytree; all of one structure.
    """

    values: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))


@dataclass(frozen=True, eq=False)
class Conditions:
    """z of a run, flattened. A slot is one condition: there is one, or one per step.

    Attributes:
        trees: the condition of each slot as it was given.
        scheduled: whether step i has its own condition.
        leaves: the leaves of each slot.
        spec: the structure that all slots share.
        active: places of the leaves that require a gradient in any slot. All others (numbers,
            flags, None, tensors without a gradient) are handed to the network as they are.
    """

    trees: tuple[Any, ...]
    scheduled: bool
    leaves: tuple[tuple[Any, ...], ...]
    spec: TreeSpec
    active: tuple[int, ...]

    @classmethod
    def of(cls, z: Any, steps: int) -> "Conditions":
        """The conditions of a run of ``steps`` steps.

        Raises:
            ValueError: a bare list, a schedule of another length, or one whose entries differ
                in structure.
        """
        if isinstance(z, list):
            raise ValueError(
                f"z is a list of {len(z)}, which may mean a schedule or one condition of several "
                f"tensors: write z=PerStep([z_0, ..., z_{steps - 1}]) for one condition per step, "
                "or a tuple or dict for a condition of several tensors"
            )
        trees = tuple(z.values) if isinstance(z, PerStep) else (z,)
        if isinstance(z, PerStep) and len(trees) != steps:
            raise ValueError(f"PerStep needs one condition per step: {steps}, got {len(trees)}")
        flat = [tree_flatten(tree) for tree in trees]
        if any(isinstance(leaf, PerStep) for found, _ in flat for leaf in found):
            raise ValueError(
                "PerStep is inside z, and holds whole conditions: write z=PerStep([{'a': a_0, "
                f"'b': b}}, ..., {{'a': a_{steps - 1}, 'b': b}}])"
            )
        spec = flat[0][1]
        for step, (_, other) in enumerate(flat):
            if other != spec:
                raise ValueError(
                    f"PerStep needs conditions of one structure; that of step {step} is {other}, "
                    f"that of step 0 is {spec}"
                )
        leaves = tuple(tuple(map(recordable, found)) for found, _ in flat)
        if any(isinstance(x, Tensor) and x.is_inference() for found, _ in flat for x in found):
            trees = tuple(tree_unflatten(found, spec) for found in leaves)
        active = tuple(
            place
            for place, column in enumerate(zip(*leaves, strict=True))
            if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in column)
        )
        return cls(trees, isinstance(z, PerStep), leaves, spec, active)

    def slot(self, step: int) -> int:
        """Which condition a step uses."""
        return step if self.scheduled else 0

    def of_step(self, step: int) -> Any:
        """The condition of a step as it was given."""
        return self.trees[self.slot(step)]

    def wanted(self, slot: int) -> tuple[Tensor, ...]:
        """The leaves of a slot at the active places; something empty where None is the leaf."""
        found = (self.leaves[slot][place] for place in self.active)
        return tuple(leaf if isinstance(leaf, Tensor) else torch.empty(0) for leaf in found)

    def tensors(self) -> list[Tensor]:
        """Every tensor in any slot."""
        return [leaf for found in self.leaves for leaf in found if isinstance(leaf, Tensor)]

    def at(self, slot: int, wanted: Sequence[Tensor]) -> Any:
        """The condition of a slot with these tensors at the active places."""
        if not self.active:
            return self.trees[slot]
        leaves = list(self.leaves[slot])
        for place, tensor in zip(self.active, wanted, strict=True):
            leaves[place] = tensor if isinstance(leaves[place], Tensor) else leaves[place]
        return leaves[0] if self.spec.is_leaf() else tree_unflatten(leaves, self.spec)

    def is_intact(self, tree: Any, slot: int, wanted: Sequence[Tensor]) -> bool:
        """Whether a dictionary or list that :meth:`at` made holds what it was made of."""
        if not self.active or self.spec.is_leaf():
            return True
        found, spec = tree_flatten(tree)
        made, _ = tree_flatten(self.at(slot, wanted))
        return spec == self.spec and all(a is b for a, b in zip(found, made, strict=True))


def divided(z: Any, batch: int, rows: slice | list[int]) -> Any:
    """The condition of some samples: their rows of every tensor as long as the batch."""
    if isinstance(z, PerStep):
        return PerStep([divided(value, batch, rows) for value in z.values])

    def taken(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
        return leaf[rows] if whole else leaf

    return z if isinstance(z, list) else tree_map(taken, z)
