"""Pairs of people and the autoencoders that never saw them: one workbench for every fold."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from adjointdeis.faces.datasets.pairs import PairListError
from adjointdeis.faces.recognisers.network import Guides
from adjointdeis.faces.weights import WeightsError, read_header
from adjointdeis.harness.benchmark import Benchmark
from adjointdeis.morphing.attack import Attack, Workbench


def held_out(file: str) -> frozenset[str]:
    """People that the training of a weight file of your own left out.

    Raises:
        WeightsError: The file does not say.
    """
    header = read_header(file) if Path(file).is_file() else {}
    people = header.get("training", {}).get("held_out")
    if not people:
        raise WeightsError(
            f"{file} does not say whom its training left out; a list of autoencoders is of folds: "
            "the weights.safetensors of `python run.py -m task=train/photographs task.fold=0,1,2`"
        )
    return frozenset(people)


def in_folds(
    benchmark: Benchmark, benches: Mapping[str, Workbench]
) -> list[tuple[Workbench, Benchmark]]:
    """The pairs that each workbench makes: all, or those whose people its autoencoder never saw.

    Raises:
        PairListError: A pair of people that no autoencoder left out of its training.
    """
    if len(benches) == 1:
        ((file, bench),) = benches.items()
        if bench.autoencoder is not None:
            _refuse_seen(file, benchmark)
        return [(bench, benchmark)]
    left, parts = list(benchmark.pairs), []
    for file, bench in benches.items():
        people = held_out(file)
        mine = tuple(pair for pair in left if pair.subjects <= people)
        left = [pair for pair in left if pair not in mine]
        if mine:
            parts.append((bench, replace(benchmark, pairs=mine)))
    if left:
        raise PairListError(
            f"{len(left)} pairs, such as {left[0].image_a} + {left[0].image_b}, are of people whom "
            "every autoencoder of assets.autoencoder was trained on, or of two folds: pairs must "
            "lie within one fold"
        )
    return parts


def _refuse_seen(file: str, benchmark: Benchmark) -> None:
    """Raises where one autoencoder of a fold is to morph people that it was trained on."""
    header = read_header(file) if Path(file).is_file() else {}
    people = frozenset(header.get("training", {}).get("held_out") or ())
    seen = [pair for pair in benchmark.pairs if people and not pair.subjects <= people]
    if seen:
        raise PairListError(
            f"{file} was trained on people of {len(seen)} pairs, such as {seen[0].image_a} + "
            f"{seen[0].image_b}: name the autoencoders of all folds in assets.autoencoder, or "
            "leave those pairs out"
        )


def guided_by(attack: Attack, bench: Workbench) -> dict[str, str]:
    """Recognisers that an attack sees the gradient or the loss of: fingerprint by name."""
    if bench.identity is None or "identity" not in attack.needs:
        return {}
    members = bench.identity.members if isinstance(bench.identity, Guides) else (bench.identity,)
    return {member.name: member.fingerprint for member in members}


def made_of(benches: Mapping[str, Workbench]) -> dict[str, dict[str, str]]:
    """Fingerprint and licence of every network; autoencoders of folds are numbered."""
    bench = next(iter(benches.values()))
    autoencoders = {
        "autoencoder" if len(benches) == 1 else f"autoencoder of fold {k}": one.autoencoder
        for k, one in enumerate(benches.values())
    }
    found = autoencoders | {"identity": bench.identity, "generator": bench.gan}
    return {
        name: {"fingerprint": item.fingerprint, "licence": item.licence}
        for name, item in found.items()
        if item is not None
    }
