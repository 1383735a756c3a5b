"""The average of two aligned photographs: the cheapest morph, and a bar that others must clear."""

from dataclasses import dataclass

from adjointdeis.morphing.attack import Attack, MorphCost, Morphs, Progress, Sources, Workbench


@dataclass(frozen=True, kw_only=True)
class PixelAverage(Attack):
    """(1 - w) a + w b, pixel by pixel, of faces that were aligned by their eyes and mouth only.

    It ghosts wherever the faces differ, which a person sees and a recogniser may not.

    Args:
        weight: w, share of the second source, in [0, 1].
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise ValueError(f"attack {self.name}: weight={self.weight}, expected 0 .. 1")

    def begin(self, sources: Sources, bench: Workbench) -> "_Averaging":
        return _Averaging(self.weight, sources, bench)


class _Averaging:
    def __init__(self, weight: float, sources: Sources, bench: Workbench) -> None:
        self.weight, self.sources, self.bench = weight, sources, bench

    def step(self) -> Progress:
        raise RuntimeError("a pixel average makes no steps")

    def finish(self) -> Morphs:
        a, b = self.sources.tensors(self.bench.device)
        return Morphs(a.lerp(b, self.weight), MorphCost())
