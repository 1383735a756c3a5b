"""Metric classes: equal to the functions, and exact over processes with any share of the data."""

import json
import multiprocessing
import os
from datetime import timedelta

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from adjointdeis.evaluation import (
    EvaluationError,
    ScoreError,
    ThresholdMismatch,
    group,
    threshold_at_fmr,
    vulnerability,
)
from adjointdeis.evaluation.attack_potential import attack_potential
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.torchmetrics import (
    FNMR,
    IAPMR,
    MMPMR,
    RMMR,
    AttackPotential,
    FMRThreshold,
    MADRates,
    stable_id,
)

N_MORPHS, FMR = 30, 0.05


def data():
    """Comparisons as columns (score, kind, morph, subject, probe), kinds in one list."""
    generator = np.random.default_rng(0)
    rows = []
    for m in range(N_MORPHS):
        for n in range(2):
            for i in range(2):
                rows.append((generator.normal(0.3, 0.2), "morph", m, (m + n) % 17, i))
    rows[5] = (float("nan"), *rows[5][1:])
    rows += [(generator.normal(0, 0.2), "nonmated", i, i % 17, i) for i in range(211)]
    rows += [(generator.normal(0.7, 0.2), "mated", i, i, i) for i in range(17)]
    return rows


def metrics():
    """One metric of every kind."""
    return MetricCollection(
        {
            "minmax": MMPMR(fmr=FMR),
            "prodavg": MMPMR(fmr=FMR, variant="ProdAvg"),
            "fmmpmr": MMPMR(fmr=FMR, variant="FMMPMR"),
            "iapmr": IAPMR(fmr=FMR),
            "rmmr": RMMR(fmr=FMR),
            "fnmr": FNMR(fmr=FMR),
            "tau": FMRThreshold(fmr=FMR),
        }
    )


def feed(metric, rows, batch=7):
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        for kind in dict.fromkeys(row[1] for row in part):
            own = [row for row in part if row[1] == kind]
            score, morph, subject, probe = (
                torch.tensor([row[c] for row in own], dtype=torch.float64) for c in (0, 2, 3, 4)
            )
            metric.update(score, kind=kind, morph=morph, subject=subject, probe=probe)


def matrices(rows, **options):
    """MAP[r, c] and the detection rates, whose states hold the same kinds of comparisons."""
    potential = AttackPotential(fmr=FMR, **options)
    detection = MADRates(higher_is="morph", **options)
    feed(potential, rows)
    for kind, name in (("morph", "morph"), ("nonmated", "bonafide")):
        own = [row for row in rows if row[1] == kind]
        if own:
            score, morph, subject, probe = (
                torch.tensor([row[c] for row in own], dtype=torch.float64) for c in (0, 2, 3, 4)
            )
            detection.update(score, kind=name, morph=morph, subject=subject, probe=probe)
    map_ = {f"map{i}": float(v) for i, v in enumerate(potential.compute().flatten())}
    return map_ | {name: float(v) for name, v in detection.compute().items()}


def expected():
    rows = data()
    column = {kind: [r for r in rows if r[1] == kind] for kind in ("morph", "nonmated", "mated")}
    record = threshold_at_fmr(np.array([r[0] for r in column["nonmated"]]), FMR)
    groups = group(*(np.array([r[c] for r in column["morph"]]) for c in (0, 2, 3, 4)))
    values = {
        name: vulnerability(groups, record.value, variant).value
        for name, variant in (
            ("minmax", "MinMax"),
            ("prodavg", "ProdAvg"),
            ("fmmpmr", "FMMPMR"),
            ("iapmr", "IAPMR"),
        )
    }
    values["tau"] = record.value
    mated = np.array([r[0] for r in column["mated"]])
    values["fnmr"] = float((mated <= record.value).mean())
    values["rmmr"] = values["minmax"] + values["fnmr"]
    return values


def share(rows, rank, world, layout):
    """The rows of one rank: as samplers, data modules and bad luck deal them out."""
    if layout == "uneven":
        return [row for i, row in enumerate(rows) if (i * i) % world == rank]
    if layout == "padded":
        padded = [*rows, *rows[: (-len(rows)) % (8 * world) + 3]]
        return padded[rank::world]
    return rows if rank == world - 1 else []


def worker(rank, world, store, results):
    """One of four processes; groups of 1, 2 and 4 compute every layout."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(store, world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=400),
    )
    found = {}
    for size in (1, 2, 4):
        members = torch.distributed.new_group(list(range(size)))
        if rank >= size:
            continue
        for layout in ("uneven", "padded", "empty"):
            collection = metrics()
            for metric in collection.values():
                metric.process_group = members
            feed(collection, share(data(), rank, size, layout))
            values = collection.compute()
            found[f"{size} {layout}"] = {name: float(v) for name, v in values.items()} | matrices(
                share(data(), rank, size, layout), process_group=members
            )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    with open(f"{results}.{rank}", "w", encoding="utf-8") as f:
        json.dump(found, f)


def test_exact_over_one_two_and_four_processes(tmp_path):
    # A server that has imported torch forks the four at once; each would take seconds alone.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchmetrics"])
    results = str(tmp_path / "found")
    arguments = (4, str(tmp_path / "store"), results)
    processes = [context.Process(target=worker, args=(rank, *arguments)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=450)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * 4
    truth = expected() | matrices(data())
    assert {"map0", "d_eer", "bscer100"} <= truth.keys() and truth["map0"] == truth["minmax"]
    for rank in range(4):
        with open(f"{results}.{rank}", encoding="utf-8") as f:
            found = json.load(f)
        assert len(found) == 3 * sum(rank < size for size in (1, 2, 4))
        for values in found.values():
            assert values == pytest.approx(truth, abs=1e-12)


def test_equals_the_functions_in_one_process():
    collection = metrics()
    feed(collection, data())
    values = {name: float(v) for name, v in collection.compute().items()}
    assert values == pytest.approx(expected(), abs=1e-12)


def test_a_collection_keeps_one_copy_of_the_states():
    collection = metrics()
    feed(collection, data()[::-1])
    assert len(collection.compute_groups) == 1
    assert {n: float(v) for n, v in collection.compute().items()} == pytest.approx(expected())


def test_reset_forgets_and_forward_only_updates():
    metric = MMPMR(0.3)
    assert metric(torch.tensor([0.5, 0.1]), morph=1, subject=["a", "b"]) is None
    assert float(metric.compute()) == 0.0
    metric.reset()
    metric.update(torch.tensor([0.5, 0.4]), morph=1, subject=["a", "b"])
    assert float(metric.compute()) == 1.0


def test_given_thresholds():
    impostors = np.linspace(0, 1, 101)
    record = threshold_at_fmr(impostors, 0.1)
    rows = [r for r in data() if r[1] == "morph"]
    values = []
    for threshold in (record, record.value):
        metric = MMPMR(threshold)
        feed(metric, rows)
        values.append(float(metric.compute()))
    assert values[0] == values[1]
    distances = MMPMR(-record.value, score_type="dissimilarity")
    feed(distances, [(-r[0], *r[1:]) for r in rows])
    assert float(distances.compute()) == values[0]
    with pytest.raises(ThresholdMismatch, match="score_type"):
        MMPMR(record, score_type="dissimilarity")


def test_repeats_of_a_float32_network_count_once():
    metric = MMPMR(0.3)
    for jitter in (0.0, 1e-7):
        metric.update(torch.tensor([0.5, 0.4]) + jitter, morph=1, subject=[1, 2])
    assert float(metric.compute()) == 1.0
    metric.update(torch.tensor([0.2]), morph=1, subject=1)
    with pytest.raises(ScoreError, match="one comparison came with two scores"):
        metric.compute()


def test_attack_potential_over_systems():
    generator = np.random.default_rng(1)
    metric = AttackPotential({"arc": 0.1, "ada": -0.1})
    groups = {}
    m, n, i = np.indices((6, 2, 3)).reshape(3, -1)
    for system in ("arc", "ada"):
        scores = generator.normal(size=36)
        groups[system] = group(scores, m, n, i)
        metric.update(
            torch.tensor(scores),
            morph=torch.tensor(m),
            subject=torch.tensor(n),
            probe=torch.tensor(i),
            system=system,
        )
    expected_values = attack_potential(groups, {"arc": 0.1, "ada": -0.1}).values
    assert np.array_equal(metric.compute().numpy(), expected_values)
    metric.thresholds = {0.0: 1.0}
    metric._computed = None
    with pytest.raises(EvaluationError, match="has no threshold"):
        metric.compute()


def test_detection_rates():
    generator = np.random.default_rng(2)
    bona, morph = generator.normal(0, 1, 60), generator.normal(1, 1, 70)
    metric = MADRates(higher_is="morph")
    metric.update(torch.tensor(bona), kind="bonafide", morph=list(range(60)))
    metric.update(torch.tensor(morph), kind="morph", morph=[f"m{i}" for i in range(70)])
    scores = DetectionScores(bona, {"a": morph}, "morph")
    found = metric.compute()
    assert float(found["d_eer"]) == scores.d_eer()[0]
    assert float(found["bscer20"]) == scores.bscer_at_macer(0.05).value


def test_perspective_decides_what_is_better():
    assert MMPMR(0.1).higher_is_better is None
    assert MMPMR(0.1, perspective="attack").higher_is_better is True
    assert MMPMR(0.1, perspective="system").higher_is_better is False
    with pytest.raises(EvaluationError, match="perspective 'police'"):
        MMPMR(0.1, perspective="police")


def test_bad_updates():
    metric = MMPMR(0.1)
    with pytest.raises(EvaluationError, match="kind 'genuine'"):
        metric.update(torch.ones(1), kind="genuine")
    with pytest.raises(EvaluationError, match="3 morphs for 2 scores"):
        metric.update(torch.ones(2), morph=[1, 2, 3])
    with pytest.raises(ScoreError, match="no comparison was given"), pytest.warns(UserWarning):
        MMPMR(0.1).compute()
    lonely = MMPMR(0.1)
    lonely.update(torch.ones(1), morph=1, subject=1)
    with pytest.raises(ScoreError, match="probes of one subject only"):
        lonely.compute()


def test_plots():
    os.environ.setdefault("MPLBACKEND", "Agg")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    metric = MMPMR(0.3)
    metric.update(torch.tensor([0.5, 0.4]), morph=1, subject=[1, 2])
    _, axes = metric.plot()
    assert axes.get_ylim()[1] >= 1.0
    _, axes = metric.plot([torch.tensor(0.1), torch.tensor(0.4)])
    assert len(axes.lines) >= 1


def test_stable_ids_are_exact_in_float64():
    ids = [stable_id(f"{i:03d}_08") for i in range(2000)]
    assert len(set(ids)) == 2000
    assert all(int(float(i)) == i for i in ids)
    # Every process, and every version of this library, must agree.
    assert stable_id("001_002") == 6551471488199156
