"""Training tasks on a pool of a few pictures: steps, checkpoints, resume, the same batches."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_profile import composed, draw_face, write_profile

from adjointdeis.diffusion.prediction import eps_from_x0, v_from_eps
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.image_io import write_image
from adjointdeis.faces.networks import DiffAE, IResNet
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.faces.weights import fingerprint, load_network, read_header
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import train
from adjointdeis.harness.trainer import OtherTraining, RandomnessOfStep, precision
from adjointdeis.harness.training.autoencoder import (
    AutoencoderTraining,
    descent,
    v_error,
)
from adjointdeis.harness.training.data import (
    Augmentation,
    EndlessBatches,
    FaceFolder,
    PoolDataset,
    augment_identity,
    held_out,
)
from adjointdeis.harness.training.recogniser import RecogniserTraining
from synthetic_faces.pool_spec import PoolSpec

COMMON = (
    "logger=none",
    "task.pool.identities=8",
    "+task.pool.size=16",
    "task.render_workers=0",
    "task.batch_size=4",
    "task.precision=32-true",
    "task.checkpoint_every=1",
)
UNMEASURED = "task.quality_faces=0"
SCHEDULE = ("task.learning_rate_steps=8", "task.warmup=2")
AUTOENCODER = (
    "task=train/autoencoder",
    *SCHEDULE,
    UNMEASURED,
    "task.pool.images_per_identity=1",
    "task.network.image_size=16",
    "task.network.patch_size=2",
    "task.network.model_channels=8",
    "task.network.channel_mult=[1,2]",
    "task.network.encoder_channel_mult=[1,2]",
    "task.network.attention_resolutions=[]",
    "task.network.embed_channels=16",
    "task.network.code_channels=8",
)
RECOGNISER = (
    "task=train/recogniser",
    *SCHEDULE,
    "task.pool.images_per_identity=2",
    "task.network.image_size=16",
    "task.network.layers=[1,1,1,1]",
    "task.network.widths=[8,8,8,8]",
    "task.network.stem_stride=1",
    "task.network.embedding_dim=8",
    "task.crop.size=16",
)


@pytest.fixture(scope="module")
def pools(tmp_path_factory) -> Path:
    """Each pool is rendered once, by the first task that needs it."""
    folder = tmp_path_factory.mktemp("pools")
    write_profile(folder / "profile")
    return folder


def configured(pools: Path, run: Path, task: tuple[str, ...], *more: str):
    places = (f"paths.root={pools}", f"assets.root={pools}/profile", f"paths.run={run}")
    return composed([*task, *COMMON, *places, *more])


@pytest.fixture
def seen(monkeypatch) -> list[torch.Tensor]:
    """Every batch that a training step got."""
    batches: list[torch.Tensor] = []
    for kind in (AutoencoderTraining, RecogniserTraining):
        inner = kind.training_step

        def step(self, batch, index, inner=inner):
            batches.append(batch[0].clone())
            return inner(self, batch, index)

        monkeypatch.setattr(kind, "training_step", step)
    return batches


TASKS = [
    pytest.param(AUTOENCODER, train.autoencoder, DiffAE, id="autoencoder"),
    pytest.param(RECOGNISER, train.recogniser, IResNet, id="recogniser"),
]


@pytest.mark.parametrize(("task", "function", "kind"), TASKS)
def test_trains_and_continues(pools, tmp_path, seen, task, function, kind) -> None:
    first = function(configured(pools, tmp_path / "a", task, "task.steps=2"))
    assert first["steps"] == 2 and len(seen) == 2
    assert np.isfinite(first["final_loss"])
    weights = tmp_path / "a" / "weights.safetensors"
    network = load_network(weights, first["sha256"])
    assert isinstance(network, kind)
    recipe = read_header(weights)["training"]
    assert recipe["seed"] == 0 and recipe["steps"] == 2
    assert recipe["recipe"]["batch_size"] == 4
    assert (tmp_path / "a" / "last.ckpt").is_file()

    # More steps in the same folder go on where the checkpoint is, not at zero.
    more = function(configured(pools, tmp_path / "a", task, "task.steps=4"))
    assert more["steps"] == 4 and len(seen) == 4
    assert more["sha256"] != first["sha256"]

    # A run that was never interrupted sees the same batches at the same steps.
    calm = function(configured(pools, tmp_path / "b", task, "task.steps=4"))
    assert len(seen) == 8
    # With the same noise and augmentation it arrives at the same weights, to the last bit.
    assert calm["sha256"] == more["sha256"]
    for interrupted, whole in zip(seen[:4], seen[4:], strict=True):
        assert torch.equal(interrupted, whole)


def test_a_stopped_training_continues_and_a_finished_one_is_skipped(
    pools, tmp_path, seen, monkeypatch, capsys
) -> None:
    run = tmp_path / "run"
    inner = AutoencoderTraining.training_step

    def stumble(self, batch, index):
        if len(seen) == 1:
            raise RuntimeError("power cut")
        return inner(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderTraining, "training_step", stumble)
        with pytest.raises(SystemExit, match="power cut"):
            launch(configured(pools, run, AUTOENCODER, "task.steps=2"))
    assert len(seen) == 1 and (run / "last.ckpt").is_file()
    launch(configured(pools, run, AUTOENCODER, "task.steps=2"))
    assert len(seen) == 2
    data = PoolDataset(pools / "data" / "pools" / "autoencoder", studio_only=True)
    orders = itertools.islice(EndlessBatches(len(data), 4, seed=0), 2)
    for order, batch in zip(orders, seen, strict=True):
        assert torch.equal(data[order][0], batch)
    launch(configured(pools, run, AUTOENCODER, "task.steps=2"))
    assert len(seen) == 2
    assert "is finished" in capsys.readouterr().out


def test_weights_are_the_averaged_ones(pools, tmp_path) -> None:
    frozen = train.autoencoder(
        configured(pools, tmp_path / "a", AUTOENCODER, "task.steps=2", "task.ema_decay=1.0")
    )
    free = train.autoencoder(
        configured(pools, tmp_path / "b", AUTOENCODER, "task.steps=2", "task.ema_decay=0.0")
    )
    assert frozen["sha256"] != free["sha256"]


# What the autoencoder predicts


@pytest.mark.parametrize("spread", [0.0, 0.06, 1.0])
def test_the_loss_is_the_error_of_v_whatever_is_predicted(spread) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0, m, eps = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    alpha = torch.linspace(0.01, 0.999, 9, dtype=torch.float64)[:, None]
    sigma = (1 - alpha**2).sqrt()
    x = alpha * x_0 + sigma * eps
    v = v_from_eps(x, eps_from_x0(x, m, alpha, sigma, spread), alpha, sigma)
    of_v = v_error(v, x_0, eps, alpha, sigma, None)
    torch.testing.assert_close(v_error(m, x_0, eps, alpha, sigma, spread), of_v)
    assert float(v_error(alpha * eps - sigma * x_0, x_0, eps, alpha, sigma, None).abs().max()) == 0


def continued(pools, tmp_path, *more: str):
    """A training of no effect from the weights of another one that predicted v."""
    task = (*AUTOENCODER, "task.steps=1")
    train.autoencoder(configured(pools, tmp_path / "a", task, "task.prediction=v", "task.spread=0"))
    start = tmp_path / "a" / "weights.safetensors"
    cfg = configured(
        pools, tmp_path / "b", task, f"task.initial={start}", "task.ema_decay=1", *more
    )
    return start, train.autoencoder(cfg), tmp_path / "b" / "weights.safetensors"


def test_weights_that_predict_v_start_a_data_prediction_negated(pools, tmp_path) -> None:
    start, record, end = continued(pools, tmp_path, "task.learning_rate=1e-12")
    before, after = load_network(start).state_dict(), load_network(end).state_dict()
    for name, value in before.items():
        sign = -1 if name.startswith("out.2.") else 1
        torch.testing.assert_close(after[name], sign * value, rtol=0, atol=1e-6)
    assert record["initial"]["prediction"] == "v" and record["initial"]["steps"] == 1
    assert record["initial"]["sha256"] == fingerprint(start)
    # A data prediction is continued as it is, and starts nothing that predicts v.
    task = (*AUTOENCODER, "task.steps=1", f"task.initial={end}")
    again = train.autoencoder(configured(pools, tmp_path / "c", task))
    assert again["initial"]["prediction"] == "x0"
    with pytest.raises(ValueError, match="predicts x0: no start for a prediction of v"):
        train.autoencoder(
            configured(pools, tmp_path / "d", task, "task.prediction=v", "task.spread=0")
        )


def test_an_encoder_that_is_not_trained_keeps_its_codes(pools, tmp_path) -> None:
    start, _, end = continued(pools, tmp_path, "task.ema_decay=0", "task.train_encoder=false")
    before, after = load_network(start).state_dict(), load_network(end).state_dict()
    moved = {name for name in before if not torch.equal(before[name].abs(), after[name].abs())}
    assert moved and not any(name.startswith("encoder.") for name in moved)


def test_initial_weights_of_another_network_are_refused(pools, tmp_path) -> None:
    wrong = f"task.initial={pools}/profile/guide.safetensors"
    with pytest.raises(ValueError, match=r"make task.network"):
        train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.steps=1", wrong))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("task.prediction=v",), "task.spread=0.06 must be 0 with"),
        (("task.spread=0",), "must be above 0"),
        (("task.prediction=eps",), "task.prediction='eps' must be one of x0, v"),
    ],
)
def test_a_spread_that_does_not_belong_is_refused(pools, tmp_path, more, message) -> None:
    with pytest.raises(ValueError, match=message):
        train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.steps=1", *more))


# Folders of faces


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """Five people, two images of 16 x 16 each."""
    folder = tmp_path_factory.mktemp("people")
    for k, subject in enumerate(("001", "002", "003", "010", "011")):
        for smiling, capture in ((False, "03"), (True, "08")):
            write_image(folder / f"{subject}_{capture}.png", draw_face(k, smiling))
    return folder


def test_folds_are_disjoint_and_cover_everybody() -> None:
    ids = [f"{i:03d}" for i in range(102)]
    parts = [held_out(ids, fold, 3) for fold in range(3)]
    assert [len(part) for part in parts] == [34, 34, 34]
    assert sorted(i for part in parts for i in part) == ids
    assert parts[0][:2] == ("000", "003")
    assert held_out(ids[::-1], 1, 3) == parts[1]
    for fold, folds in ((3, 3), (-1, 3), (0, 1)):
        with pytest.raises(ValueError, match=f"task.fold={fold}, task.folds={folds}"):
            held_out(ids, fold, folds)


def test_a_folder_serves_everybody_but_the_fold(people) -> None:
    dataset = load_folder(people)
    whole, part = FaceFolder(dataset, 16, None, 3), FaceFolder(dataset, 16, 1, 3)
    assert len(whole) == 10 and whole.identities == 5 and whole.held_out == ()
    assert part.held_out == ("002", "011") and len(part) == 6
    images, labels = part[list(range(6))]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    wanted = [draw_face(k, smiling) for k in (0, 2, 3) for smiling in (False, True)]
    torch.testing.assert_close(images, to_tensor(np.stack(wanted)))
    assert part.fingerprint != whole.fingerprint
    with pytest.raises(ValueError, match="are not 32x32"):
        FaceFolder(dataset, 32, None, 3)


def test_adapts_to_photographs_of_other_people(pools, people, tmp_path, seen) -> None:
    tiny = [line for line in AUTOENCODER if line.startswith(("task.network", "task.warmup"))]
    task = ("task=train/photographs", *tiny, f"task.faces={people}", "task.fold=2", "task.steps=2")
    start = configured(pools, tmp_path / "a", task, "task.quality_faces=2")
    record = train.autoencoder(start)
    assert record["held_out"] == ["003"] and record["initial"]["prediction"] == "v"
    header = read_header(tmp_path / "a" / "weights.safetensors")["training"]
    assert header["held_out"] == ["003"] and header["recipe"]["faces"] == str(people)
    # One person is too few to measure: a sheet compares two.
    assert "quality" not in record
    shown = to_tensor(np.stack([draw_face(k, s) for k in (0, 1, 3, 4) for s in (False, True)]))
    assert len(seen) == 2
    for image in torch.cat(seen):  # as loaded, before the augmentation
        assert (image == shown).flatten(1).all(1).any()
    plain = configured(pools, tmp_path / "b", task, "task.quality_faces=2", "task.fold=0")
    quality = train.autoencoder(plain)["quality"]
    assert quality["images"] == 2 and quality["noise"]["std"] > 0
    assert json.loads((tmp_path / "b" / "quality.json").read_text()) == quality
    assert Image.open(tmp_path / "b" / "autoencoder.png").size == (64, 32)


def test_folds_without_a_folder_are_refused(pools, tmp_path) -> None:
    with pytest.raises(ValueError, match="change nothing without"):
        train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.fold=1"))


def test_no_augmentation_is_no_change_and_each_range_is_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(64, 3, 4, 4, generator=generator), 16, mode="bicubic") - 0.5
    still = Augmentation(0, 0, 0, 0, 0, 0)(images)
    mirrored = (still - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-5
    torch.testing.assert_close(still[~mirrored], images[~mirrored], rtol=0, atol=1e-5)
    assert 16 < int(mirrored.sum()) < 48
    # Colours: a gain of (x + 1) within (1 +- channels +- gain), then a shift.
    flat = torch.zeros(500, 3, 16, 16)
    for name, value in (("channels", 0.06), ("gain", 0.1), ("brightness", 0.05)):
        ranges = dict.fromkeys(("rotation", "scale", "shift", "channels", "gain", "brightness"), 0)
        out = Augmentation(**(ranges | {name: value}))(flat).amax((2, 3))
        assert 0.9 * value < float(out.abs().max()) <= value + 1e-6
        assert (name == "channels") == (float(out.std(1).max()) > 1e-6)
    with pytest.raises(ValueError, match=r"augmentation\.scale=1\.5"):
        Augmentation(scale=1.5)


def test_a_shift_moves_by_its_share_of_the_side() -> None:
    ramp = torch.linspace(-1 + 1 / 64, 1 - 1 / 64, 64).expand(200, 1, 64, 64).contiguous()
    out = Augmentation(0, 0, 0.1, 0, 0, 0)(ramp.expand(-1, 3, -1, -1))[:, 0, 32, 32]
    # The ramp rises by 2 over the side; a mirrored one falls.
    assert 0.18 < float(out.abs().max()) < 0.22 + 1 / 32


# Batches


def test_the_batch_of_a_step_depends_on_the_seed_and_the_step_only() -> None:
    whole = list(itertools.islice(EndlessBatches(10, 3, seed=4), 12))
    for first in (0, 1, 3, 5, 11):
        part = list(itertools.islice(EndlessBatches(10, 3, seed=4, first=first), 12 - first))
        assert part == whole[first:]
    assert whole != list(itertools.islice(EndlessBatches(10, 3, seed=5), 12))
    # Within an epoch of three batches no image comes twice; the order changes between epochs.
    for epoch in range(4):
        images = [i for batch in whole[3 * epoch : 3 * epoch + 3] for i in batch]
        assert len(images) == len(set(images)) == 9
    assert whole[:3] != whole[3:6]


def test_a_pool_smaller_than_a_batch_still_serves(pools) -> None:
    batches = list(itertools.islice(EndlessBatches(2, 8, seed=0), 3))
    assert all(sorted(batch) == [0, 1] for batch in batches)


def test_studio_only_leaves_out_the_wild_pictures(tmp_path) -> None:
    from synthetic_faces.pool import render_pool

    spec = PoolSpec("probe", identities=4, images_per_identity=2, size=16, wild=0.5)
    pool = render_pool(spec, tmp_path / "pool", workers=0, progress=False)
    studio = int((np.asarray(pool.meta["capture"]) == "studio").sum())
    assert 0 < studio < 8
    assert len(PoolDataset(tmp_path / "pool")) == 8
    kept = PoolDataset(tmp_path / "pool", studio_only=True)
    assert len(kept) == studio
    images, labels = kept[list(range(studio))]
    assert images.shape == (studio, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() >= -1 and images.max() <= 1
    assert labels.max() < 4


def test_augmentation_keeps_shape_and_range() -> None:
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    out = augment_identity(images)
    assert out.shape == images.shape
    assert out.min() >= -1 and out.max() <= 1
    assert not torch.allclose(out, images)


def test_learning_rate_rises_and_falls_to_zero() -> None:
    made = descent([torch.zeros(1, requires_grad=True)], 2.0, 0.0, 5, 25)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(25):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(2.0)
    assert int(np.argmax(rates)) == 5
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)


def test_a_training_continued_with_another_length_follows_its_cosine(pools, tmp_path) -> None:
    """At step 2 of 8 the rate is near its peak; a run cut to 3 steps ends at zero there."""
    lines = [line for line in AUTOENCODER if "learning_rate_steps" not in line]
    run = tmp_path / "run"
    train.autoencoder(
        configured(pools, run, (*lines, "task.learning_rate_steps=8"), "task.steps=2")
    )
    train.autoencoder(
        configured(pools, run, (*lines, "task.learning_rate_steps=3"), "task.steps=3")
    )
    state = torch.load(run / "last.ckpt", weights_only=True)
    (schedule,) = state["lr_schedulers"]
    assert schedule["last_epoch"] == 3 and schedule["_last_lr"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("task.learning_rate=0.01", r"task\.learning_rate=0\.0006, and .*=0\.01 is asked for"),
        ("task.batch_size=2", r"task\.batch_size=4, and"),
        ("task.network.code_channels=4", r"task\.network\.code_channels=8, and"),
        ("seed=1", "seed=0, and seed=1"),
    ],
)
def test_a_checkpoint_of_other_settings_is_not_continued(pools, tmp_path, change, named) -> None:
    """The optimiser's state holds its own learning rate: the new one would be said, not used."""
    train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.steps=1"))
    with pytest.raises(OtherTraining, match=named):
        train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.steps=2", change))
    # How often it is saved and how long it is to be are no other training.
    more = ("task.steps=2", "task.checkpoint_every=2", "task.quality_faces=0")
    assert train.autoencoder(configured(pools, tmp_path, AUTOENCODER, *more))["steps"] == 2
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(OtherTraining, match=r"recipe\.json, which tells, is not beside it"):
        train.autoencoder(configured(pools, tmp_path, AUTOENCODER, "task.steps=3"))


def test_randomness_depends_on_seed_process_and_step() -> None:
    def drawn(seed: int, rank: int, step: int) -> float:
        trainer = SimpleNamespace(global_rank=rank, global_step=step)
        RandomnessOfStep(seed).on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
        return torch.rand(()).item()

    places = list(itertools.product((0, 1), (0, 1), (0, 1, 2)))
    assert len({drawn(*place) for place in places}) == len(places)
    assert drawn(1, 0, 2) == drawn(1, 0, 2)


def test_stated_precision_is_obeyed() -> None:
    assert precision("16-mixed") == "16-mixed"
    assert precision("auto") in ("32-true", "bf16-mixed")
