"""Every attack through the whole program on the tiny profile: morphs, records, price, resume."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_profile import ENCODING, PAIRS, ROOT, SIZE, composed

from adjointdeis.evaluation.provenance import read_provenance, sources_match
from adjointdeis.faces.datasets.folder import DatasetError, load_folder
from adjointdeis.faces.image_io import read_image, sha256_of
from adjointdeis.harness.landmarks import BenchmarkLandmarks
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks.morph import chosen_attacks

STEPS, INNER, BLENDS, GRADIENT = 4, 3, 3, 1
LATENT = {
    "dim_a", "dim_b", "dim_c", "dim_d", "fast_dim", "fast_dim_ode", "morph_pipe", "greedy_dim",
    "greedy_dim_s", "adjoint_deis_ode", "adjoint_deis_sde", "adjoint_deis_2m_ode",
    "adjoint_deis_2m_sde", "exact", "exact_fast",
}  # fmt: skip
OWN = {"opencv", "facemorpher", "webmorph", "precomputed", "pixel_average"}
GUIDED = {name for name in LATENT if "deis" in name or "exact" in name}
STYLE = {"mipgan_i", "mipgan_ii"}
PROJECTION = 2
EVERY = sorted(LATENT | OWN | STYLE)


def arguments(tiny: Path, run: Path, published: Path, *more: str) -> list[str]:
    lines = [
        *(f"+attack@rows.{name}={name}" for name in EVERY),
        *(f"rows.{name}.sampling_steps={STEPS}" for name in sorted(LATENT)),
        *(f"rows.{name}.encoding_steps={ENCODING}" for name in sorted(LATENT)),
        *(f"rows.{name}.optimizer.lr=1e-9" for name in sorted(GUIDED)),
        *(f"rows.{name}.blends={BLENDS}" for name in ("morph_pipe", "greedy_dim_s")),
        *(f"rows.{name}.projection_steps={PROJECTION}" for name in sorted(STYLE)),
        *(f"rows.{name}.optimisation_steps={STEPS}" for name in sorted(STYLE)),
        "assets.generator=stylegan2.safetensors",
        "assets.perceptual=arcface.safetensors",
        f"rows.precomputed.folder={published}",
        "judges=none",
        f"paths.root={tiny}",
        f"paths.run={run}",
        f"assets.root={tiny}/profile",
        "assets.recognisers=[arcface.safetensors]",
        f"data.faces={tiny}/faces",
        f"data.pairs={tiny}/pairs.csv",
        f"optimisation.steps={GRADIENT}",
        f"optimisation.inner_steps={INNER}",
        "optimisation.batch_size=2",
        "optimisation.measure_gradient=false",
        "protocol.replicates=0",
        "logger=none",
    ]
    return [*lines, *more]


@pytest.fixture(scope="module")
def published(tiny, tmp_path_factory) -> Path:
    """Somebody's morphs: two of the three pairs, under both known names, and a stray file."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copy(tiny / "faces" / "001_03.png", folder / "002_001.png")
    shutil.copy(tiny / "faces" / "004_03.png", folder / "003_03-vs-004_03.png")
    (folder / "readme.txt").write_text("morphs")
    return folder


@pytest.fixture(scope="module")
def base(tiny, published, tmp_path_factory) -> Path:
    from adjointdeis.harness.tasks import morph

    run = tmp_path_factory.mktemp("every") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(morph, "write_report", lambda directory, **options: None)
        launch(composed(arguments(tiny, run, published)))
    return run


@pytest.fixture(scope="module")
def result(base) -> dict:
    return json.loads((base / "result.json").read_text())


def record(run: Path, attack: str, pair: str = PAIRS[0]) -> dict:
    return json.loads((run / "morphs" / attack / f"{pair}.json").read_text())


def test_every_file_of_the_attack_group_is_here() -> None:
    # An attack that somebody adds must be run here too.
    files = {path.stem for path in (ROOT / "conf" / "attack").glob("*.yaml")}
    assert files - set(EVERY) == {"guided"}


def test_the_result_is_valid(result) -> None:
    schema = pytest.importorskip("adjointdeis.reporting.schema")
    assert schema.validate_result(result) == []
    assert sorted(result["attacks"]) == EVERY


@pytest.mark.parametrize("attack", EVERY)
def test_morphs_and_records(base, tiny, attack: str) -> None:
    missing = {PAIRS[2]} if attack == "precomputed" else set()
    for pair in PAIRS:
        entry, path = record(base, attack, pair), base / "morphs" / attack / f"{pair}.png"
        assert entry["attack"] == attack and entry["pair"] == pair
        assert (entry["failed"] is not None) is (pair in missing) is not path.is_file()
        assert np.isfinite(entry["loss"]).all() and -1e-6 <= entry["distance_a"] <= 2
        if pair not in missing:
            assert read_image(path).shape == (SIZE, SIZE, 3)
            found = read_provenance(path)
            sources = [tiny / "faces" / f"{subject}_03.png" for subject in pair.split("_")]
            assert found["attack"] == attack and sources_match(found, sources)
    assert not list(base.rglob(".partial*"))


def test_counted_prices(result) -> None:
    def price(attack: str) -> tuple[int, ...]:
        nfe = result["attacks"][attack]["nfe"]
        return tuple(nfe[key] for key in ("encode", "forward", "vjps", "loss_gradients"))

    for plain in ("dim_a", "dim_b", "dim_c", "dim_d", "fast_dim", "fast_dim_ode"):
        assert price(plain) == (ENCODING, STEPS, 0, 0)
    assert price("morph_pipe") == (ENCODING, BLENDS * STEPS, 0, 0)
    assert price("greedy_dim") == (ENCODING, STEPS, 0, INNER * STEPS)
    # Two predictions a step, which the paper counts as one batch.
    assert price("greedy_dim_s") == (ENCODING, 2 * STEPS, 0, 0)
    for attack in sorted(GUIDED):
        encode = STEPS if "sde" in attack else ENCODING
        assert price(attack) == (encode, (GRADIENT + 1) * STEPS, GRADIENT * STEPS, 0)
    for attack in sorted(OWN):
        assert price(attack) == (0, 0, 0, 0)
    for attack in sorted(STYLE):
        gradients = PROJECTION + STEPS
        assert price(attack) == (PROJECTION, STEPS + 1, gradients, gradients)


def test_the_price_that_a_dry_run_states_is_what_is_counted(tiny, published, result) -> None:
    cfg = composed(arguments(tiny, tiny / "nowhere", published))
    for attack in chosen_attacks(cfg):
        if attack.name in EVERY:
            counted = result["attacks"][attack.name]["nfe"]
            stated = attack.expected_cost().counters()
            if attack.name == "exact_fast":
                # At most: the automatic budget finds room for every graph of so small a network.
                assert stated["backward"] == GRADIENT * STEPS
                stated["backward"] = 0
            assert {k: counted[k] for k in stated} == stated, attack.name


def test_prices_by_the_papers_accounting(result) -> None:
    paper = {name: attack["nfe_paper"] for name, attack in result["attacks"].items()}
    assert paper["dim_c"] == paper["fast_dim"] == paper["greedy_dim"] == ENCODING + STEPS
    assert paper["greedy_dim_s"] == ENCODING + STEPS
    assert paper["morph_pipe"] == ENCODING + BLENDS * STEPS
    assert paper["adjoint_deis_2m_ode"] == ENCODING + GRADIENT * 2 * STEPS
    assert paper["opencv"] is paper["precomputed"] is None


def test_attacks_differ_where_they_should(base) -> None:
    images = {a: read_image(base / "morphs" / a / f"{PAIRS[0]}.png").astype(int) for a in EVERY}
    base_image = images["dim_a"]
    for other in ("dim_b", "dim_c", "dim_d", "fast_dim", "fast_dim_ode", "greedy_dim_s"):
        assert np.abs(images[other] - base_image).max() > 0, other
    assert np.abs(images["opencv"] - images["facemorpher"]).max() > 0


def test_greedy_guidance_lowers_the_loss_it_follows(base) -> None:
    plain, guided = (record(base, name)["loss"][-1] for name in ("dim_a", "greedy_dim"))
    assert guided < plain
    assert len(record(base, "greedy_dim")["loss"]) == STEPS + 1


def test_morph_pipe_keeps_its_best_blend(base) -> None:
    entry = record(base, "morph_pipe")
    *tried, kept = entry["loss"]
    assert len(tried) == BLENDS
    assert kept == pytest.approx(min(tried), rel=1e-4)
    assert entry["blend"] == [0.0, 0.5, 1.0][int(np.argmin(tried))]


def test_a_published_morph_is_taken_as_it_is(base, tiny) -> None:
    taken = read_image(base / "morphs" / "precomputed" / f"{PAIRS[0]}.png")
    np.testing.assert_array_equal(taken, read_image(tiny / "faces" / "001_03.png"))
    assert "holds no morph of 001_03, 003_03" in record(base, "precomputed", PAIRS[2])["failed"]


def test_only_what_is_missing_is_made_again(base, tiny, published, tmp_path, quiet_report) -> None:
    run = Path(shutil.copytree(base, tmp_path / "run"))
    (run / "done.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in run.glob("morphs/*/*.png")}
    lost = [run / "morphs" / attack / f"{PAIRS[1]}.png" for attack in EVERY]
    for path in lost:
        path.unlink()
    launch(composed(arguments(tiny, run, published)))
    made = {p for p in run.glob("morphs/*/*.png") if p.stat().st_mtime_ns != before[p]}
    assert made == set(lost)
    for path in lost:
        was = read_image(base / path.relative_to(run)).astype(int)
        assert np.abs(read_image(path) - was).max() <= 1, path.parent.name


def test_another_folder_of_published_morphs_is_read_again(
    base, tiny, published, tmp_path, quiet_report
) -> None:
    run = Path(shutil.copytree(base, tmp_path / "run"))
    (run / "done.json").unlink()
    other = Path(shutil.copytree(published, tmp_path / published.name))
    shutil.copy(tiny / "faces" / "003_03.png", other / "001_003.png")
    launch(composed(arguments(tiny, run, other)))
    assert record(run, "precomputed", PAIRS[2])["failed"] is None


def test_a_face_without_landmarks_fails_alone(tiny, published, tmp_path, quiet_report) -> None:
    faces = Path(shutil.copytree(tiny / "faces", tmp_path / "faces"))
    with np.load(faces / "landmarks.npz") as stored:
        kept = {key: stored[key] for key in stored.files}
    seen = kept["stems"] != "004_03"
    kept |= {"stems": kept["stems"][seen], "points": kept["points"][seen]}
    np.savez(faces / "landmarks.npz", **kept)
    run = tmp_path / "run"
    rows = [f"~attack@rows.{name}" for name in EVERY if name not in ("webmorph", "dim_a")]
    keep = [
        line
        for line in arguments(tiny, run, published, f"data.faces={faces}")
        if not any(f"rows.{r.split('.')[1]}" in line for r in rows)
    ]
    launch(composed(keep))
    assert record(run, "webmorph", "001_002")["failed"] is None
    assert "004_03.png" in record(run, "webmorph", "003_004")["failed"]
    assert record(run, "dim_a", "003_004")["failed"] is None


def test_landmarks_of_a_picture_that_was_replaced_are_not_used(tiny, tmp_path) -> None:
    faces = Path(shutil.copytree(tiny / "faces", tmp_path / "faces"))
    with np.load(faces / "landmarks.npz") as stored:
        kept = {key: stored[key] for key in stored.files}
    hashes = [sha256_of(read_image(faces / f"{stem}.png")) for stem in kept["stems"]]
    np.savez(faces / "landmarks.npz", **kept, sha256=np.array(hashes))
    shutil.copy(faces / "004_03.png", faces / "003_03.png")
    find = BenchmarkLandmarks(load_folder(faces))
    for name in ("004_03", "003_03"):
        path, image = faces / f"{name}.png", read_image(faces / f"{name}.png")
        if name == "004_03":
            assert len(find(path, image, "tem")) == 189
        else:
            with pytest.raises(DatasetError, match=r"003_03\.png is another picture than the one"):
                find(path, image, "tem")


def test_landmark_morphs_need_no_network(tiny, published, tmp_path, quiet_report) -> None:
    profile = Path(shutil.copytree(tiny / "profile", tmp_path / "profile"))
    (profile / "diffae.safetensors").unlink()
    (profile / "guide.safetensors").unlink()
    run = tmp_path / "run"
    names = ("opencv", "facemorpher", "precomputed")
    keep = [
        line
        for line in arguments(tiny, run, published, f"assets.root={profile}")
        if "rows." not in line or any(f"rows.{name}" in line for name in names)
    ]
    launch(composed(keep))
    assert record(run, "opencv")["failed"] is None
    assert "distance_a" not in record(run, "opencv")
