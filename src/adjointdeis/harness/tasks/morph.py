"""The main task: make morphs by every attack of the experiment, score them, report.

`python run.py +experiment=quickstart` and everything else that ends in a table of morphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

import adjointdeis
from adjointdeis.evaluation import (
    write_scores,
)
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.files import write_atomically
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import (
    OTHER,
    SOURCE,
    Benchmark,
    ImageCheck,
    face_detector,
    load_benchmark,
    load_faces,
)
from adjointdeis.harness.command_line import this_command
from adjointdeis.harness.degrading import degradation_of
from adjointdeis.harness.dry_run import cost_table, expected_costs
from adjointdeis.harness.interruption import one_process
from adjointdeis.harness.latent_morphing import LatentMorphing, PairData
from adjointdeis.harness.progress import LargeStepsOnce, ProgressLine
from adjointdeis.harness.provenance import config_hash, digest, environment, git_revision
from adjointdeis.harness.records import every_record, read_records, summary_of, write_record
from adjointdeis.harness.resources import (
    guided_by,
    identity_of,
    in_folds,
    made_of,
    times_of,
    workbenches,
)
from adjointdeis.harness.scoring import (
    applicable_thresholds,
    operating_conditions,
    rates_of,
    score_morphs,
)
from adjointdeis.harness.trainer import make_trainer, own_device
from adjointdeis.harness.wandb_logger import conclude, loggers
from adjointdeis.morphing.attack import Attack, Workbench
from adjointdeis.reporting import write_report
from adjointdeis.texts import file_key

DRY_RUN = True
"""With ``dry_run=true`` the task prints what it will cost, and leaves nothing behind."""
REUSED = ("morphs", "degraded")
"""What a run with other settings takes over: files that are used only where they fit."""


def run(cfg: DictConfig, plots: bool = True) -> dict[str, Any]:
    """Runs the experiment and returns its result, which is also written to ``result.json``.

    Args:
        cfg: The whole configuration.
        plots: Whether the report has plots; a task that goes on with the result, and reports on
            all of it at its end, draws them then.
    """
    start, directory = monotonic(), Path(cfg.paths.run)
    # First, so that a run that fails on its input is logged with its exit code too.
    logger = loggers(cfg)
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    attacks = chosen_attacks(cfg)
    dataset = load_faces(cfg.data.faces)
    benches = workbenches(cfg, profile, dataset, attacks)
    sizes = (attack.image_size(next(iter(benches.values()))) for attack in attacks)
    check = ImageCheck(
        next(filter(None, sizes), None), face_detector() if cfg.data.get("check_faces") else None
    )
    benchmark = load_benchmark(dataset, cfg.data.pairs, cfg.data.limit, check)
    if cfg.data.get("originals"):
        originals = load_folder(cfg.data.originals, dataset.name)
        originals.require((SOURCE, OTHER))
        benchmark = replace(benchmark, originals=originals)
    benchmark = replace(benchmark, degradation=degradation_of(cfg.degradation))
    parts = in_folds(benchmark, benches)
    judges = judges_of(cfg, cfg.assets.recognisers, profile)
    fmr, policies = operating_conditions(cfg, benchmark)
    _require_distinct(judges)
    records = applicable_thresholds(
        cfg.assets.thresholds, profile, judges, benchmark, fmr, policies
    )
    if cfg.dry_run:
        return dry_run(cfg, directory, parts, attacks)
    # A task that runs this one as a part changes its configuration, and the run is the task's.
    identifier = cfg.paths.id or config_hash(cfg)
    overrides = this_command()

    large_steps = LargeStepsOnce()
    done: dict[str, dict[str, dict[str, Any]]] = {}
    for attack in attacks:
        folder = directory / "morphs" / attack.name
        with large_steps.row(attack.label):
            done[attack.name] = make_morphs(cfg, attack, parts, folder, logger, overrides)
    for entry in logger:
        entry.finalize("success")
    if rank_zero_only.rank:
        return {}
    result = _conclude(
        cfg, directory, benchmark, attacks, done, judges, records, identifier, start, benches, plots
    )
    conclude(logger, directory, result)
    return result


def make_morphs(
    cfg: DictConfig,
    attack: Attack,
    parts: Sequence[tuple[Workbench, Benchmark]],
    folder: Path,
    logger: list,
    overrides: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """Makes an attack's morphs where they are not there yet; the record of each by pair.

    Args:
        cfg: The whole configuration: trainer and batch size.
        attack: What to do.
        parts: Workbenches, each with the pairs that it makes.
        folder: Where morphs and records go.
        logger: Lightning's loggers.
        overrides: Command line of the run, for the command that repeats a pair that failed.

    Returns:
        The records; none in any process but the first.
    """
    done: dict[str, dict[str, Any]] = {}
    for bench, part in parts:
        recipe = recipe_of(attack, bench, cfg.trainer.precision)
        finished = read_records(folder, part, recipe)
        todo = [pair for pair in part.pairs if pair.morph_id not in finished]
        other = sum((folder / f"{pair.morph_id}.json").is_file() for pair in todo)
        if other and not rank_zero_only.rank:
            print(
                f"{attack.label}: {other} of {len(part.pairs)} morphs are made again, for they "
                "are damaged or of other settings, networks, images or an earlier version"
            )
        # Processes may see different files finished; if one of them has work, all of them meet.
        if todo or not one_process(cfg.trainer):
            module = LatentMorphing(attack, bench, part, folder, recipe, overrides)
            batch_size = cfg.optimisation.batch_size
            if batch_size == "auto":
                device = own_device(cfg.trainer)
                batch_size = module.find_batch_size(todo, device) if todo else 1
            data = PairData(part.pairs, batch_size, attack.steps, finished)
            trainer = make_trainer(
                cfg,
                max_epochs=1,
                logger=logger,
                log_every_n_steps=1,
                callbacks=[ProgressLine(attack.label, len(part.pairs), len(finished))],
                enable_checkpointing=False,
            )
            trainer.fit(module, data)
            trainer.strategy.barrier()
        if not rank_zero_only.rank:
            done |= every_record(folder, part, recipe)
    return done


def dry_run(
    cfg: DictConfig,
    directory: Path,
    parts: Sequence[tuple[Workbench, Benchmark]],
    attacks: Sequence[Attack],
) -> dict[str, Any]:
    """What the run will cost, printed; everything that it needs is loaded and tried.

    Args:
        cfg: The whole configuration.
        directory: Of the run, whose finished pairs are not counted.
        parts: A workbench and its pairs for each fold.
        attacks: The rows of the run.
    """
    todo = {attack.name: 0 for attack in attacks}
    for attack in attacks:
        folder = directory / "morphs" / attack.name
        for bench, part in parts:
            finished = read_records(folder, part, recipe_of(attack, bench, cfg.trainer.precision))
            todo[attack.name] += sum(pair.morph_id not in finished for pair in part.pairs)
    return priced(cfg, parts[0][0], attacks, todo)


def priced(
    cfg: DictConfig, bench: Workbench, attacks: Sequence[Attack], todo: Mapping[str, int]
) -> dict[str, Any]:
    """Prints what morphs will cost, from one evaluation of each kind on the run's device.

    Args:
        cfg: The whole configuration.
        bench: Resources of the attacks.
        attacks: The rows of the run.
        todo: How many pairs each has to make, by name.
    """
    device = own_device(cfg.trainer)
    batch_size = 1 if cfg.optimisation.batch_size == "auto" else cfg.optimisation.batch_size
    bench = replace(bench, device=device)
    batch_size = max(1, min(batch_size, max(todo.values(), default=1)))
    rows = expected_costs(attacks, bench, todo, batch_size, times_of(bench, batch_size))
    print(cost_table(rows, device, batch_size))
    return {"rows": rows}


def judges_of(cfg: DictConfig, names: Sequence[str], profile: assets.Profile) -> list[Any]:
    """Recognisers under attack: those of the profile by name, and those of ``judges``.

    Args:
        cfg: The whole configuration.
        names: Files of the profile's recognisers.
        profile: Where they are.
    """
    found: list[Any] = [assets.recogniser(name, profile) for name in names]
    return found + [instantiate(judge) for judge in (cfg.judges or {}).values()]


def _require_distinct(judges: Sequence[Any]) -> None:
    """Refuses two recognisers of one name, whose scores could not be told apart."""
    names = [judge.name for judge in judges]
    keys = [file_key(name) for name in names]
    twice = sorted(n for n, key in zip(names, keys, strict=True) if keys.count(key) > 1)
    if twice:
        raise ValueError(
            f"two recognisers are called {twice[0]!r} (assets.recognisers and judges): list each "
            "file once, and give each judge a name of its own, such as judges.onnx.name=mine"
        )


def recipe_of(attack: Attack, bench: Workbench, precision: str = "32-true") -> str:
    """Hash of what a morph depends on: its attack, its resources and the seed; not its judges.

    Args:
        attack: What makes the morph.
        bench: Its resources and the seed.
        precision: Lightning's, in which the networks run.
    """
    made_of = identity_of(attack, bench)
    if precision != "32-true":
        made_of["precision"] = precision
    return digest({"attack": attack.settings(), "assets": made_of, "seed": bench.seed})


def chosen_attacks(cfg: DictConfig) -> list[Attack]:
    """The experiment's rows; or, when a gradient is chosen at the top, the baseline and that one.

    `gradient=...` on the command line therefore answers "how does this gradient do?" beside DiM-A,
    whatever rows the experiment has.
    """
    rows = [instantiate(row) for row in cfg.rows.values() if row]
    if cfg.gradient is None:
        if not rows:
            raise ValueError(
                "the experiment has no rows and no gradient: choose one, for example "
                "gradient=discrete_adjoint, or an experiment, for example +experiment=quickstart"
            )
        return rows
    return [row for row in rows if not row.guided] + [instantiate(cfg.guided)]


def _conclude(
    cfg: DictConfig,
    directory: Path,
    benchmark: Benchmark,
    attacks: list[Attack],
    done: dict[str, dict[str, dict[str, Any]]],
    judges: list[Any],
    thresholds: dict[str, list[Any]],
    identifier: str,
    start: float,
    benches: Mapping[str, Workbench],
    plots: bool,
) -> dict[str, Any]:
    """Scores the morphs and writes scores.csv, result.json and the report."""
    morphs = {
        attack.name: {
            pair: directory / "morphs" / attack.name / f"{pair}.png"
            for pair, record in done[attack.name].items()
            if not record["failed"]
        }
        for attack in attacks
    }
    everyone = {judge.name for judge in judges} - set(thresholds)
    table = score_morphs(
        benchmark, morphs, judges, benchmark.pairs, everyone=everyone, copies=directory / "degraded"
    )
    write_scores(table, directory / "scores.csv")
    wanted, rows = rates_of(cfg, table, thresholds, judges, benchmark)
    result = {
        "schema": 1,
        "tool": f"adjointdeis {adjointdeis.__version__}",
        "experiment": cfg.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {
            "profile": cfg.assets.name,
            "config_hash": identifier,
            "git": git_revision(),
            "seed": cfg.seed,
            "degradation": benchmark.degradation and benchmark.degradation.name,
            **environment(),
            "wall_seconds": round(monotonic() - start, 1),
            "assets": made_of(benches),
        },
        "attacks": {
            attack.name: summary_of(attack, done[attack.name], len(benchmark.pairs))
            | {"guides": guided_by(attack, next(iter(benches.values())))}
            for attack in attacks
        },
        "systems": {
            judge.name: {
                "label": judge.label,
                "alignment": benchmark.alignment(judge),
                "fingerprint": judge.fingerprint,
                "licence": judge.licence,
                "score_type": judge.score_type,
            }
            for judge in judges
        },
        "rows": rows,
        "thresholds": [record.to_dict() for record in wanted],
        "pairs": _copy_sources(directory, benchmark, attacks, morphs),
        "scores": "scores.csv",
    }
    write_record(directory / "result.json", result)
    write_report(directory, plots=plots)
    return result


def _copy_sources(
    directory: Path,
    benchmark: Benchmark,
    attacks: list[Attack],
    morphs: dict[str, dict[str, Path]],
) -> list[dict[str, Any]]:
    """Copies the sources beside the morphs, so that the run directory stands alone."""
    (directory / "sources").mkdir(parents=True, exist_ok=True)
    rows = []
    for pair in benchmark.pairs:
        row: dict[str, Any] = {
            "pair_id": pair.morph_id,
            "subject_a": pair.subject_a,
            "subject_b": pair.subject_b,
            "morphs": {
                attack.name: f"morphs/{attack.name}/{pair.morph_id}.png"
                for attack in attacks
                if pair.morph_id in morphs[attack.name]
            },
        }
        for side, subject in (("source_a", pair.subject_a), ("source_b", pair.subject_b)):
            path = benchmark.image(subject, SOURCE)
            target = directory / "sources" / path.name
            content = path.read_bytes()
            if not target.is_file() or target.read_bytes() != content:
                write_atomically(target, content)
            row[side] = f"sources/{path.name}"
        rows.append(row)
    return rows
