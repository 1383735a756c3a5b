"""The embedded detectors: their cards, and that they tell what they were trained to tell."""

import shutil

import numpy as np
import pytest
from tiny_profile import composed

from adjointdeis.detection import Suspects, score_in_batches
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.datasets.pairs import read_pairs
from adjointdeis.faces.image_io import read_image
from adjointdeis.harness import assets
from adjointdeis.harness.assets import AssetError
from adjointdeis.harness.detectors import EMBEDDED, candidates_of, weights_of
from experiments.detection import publish

pytest.importorskip("sklearn")
NAMES = ("convolutional", "difference", "difference_texture", "lbp", "residual")


def test_the_cards_say_what_the_files_are(tmp_path) -> None:
    assert (EMBEDDED / "CARDS.md").read_text() == publish.cards(EMBEDDED)
    for path in EMBEDDED.iterdir():
        if path.name != "CARDS.md":
            (tmp_path / "run" / "detectors" / path.stem).mkdir(parents=True)
            target = tmp_path / "run" / "detectors" / path.stem / f"all{path.suffix}"
            shutil.copyfile(path, target)
    publish.publish(tmp_path / "run", tmp_path / "there")
    for path in EMBEDDED.iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(FileNotFoundError, match="finish the run"):
        publish.publish(tmp_path / "there", tmp_path / "nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_embedded_detectors_find_pixel_averages_of_people_they_never_saw(name: str) -> None:
    cfg = composed(["+experiment=detection", "paths.root=.", "task.validation=null"])
    recipe = candidates_of(cfg.task)[name][0].recipe
    detector = recipe.load(weights_of(name, "mini"))
    assert "300 bona fide images" in detector.training and "60 dim_a" in detector.training
    faces, pairs = load_folder(assets.MINI / "faces"), read_pairs(assets.MINI / "pairs.csv")[::5]

    def images(people: list[str], capture: str) -> np.ndarray:
        return np.stack([read_image(faces.subject(p).images[capture]) for p in people])

    one, two = ([p.subject_a for p in pairs], [p.subject_b for p in pairs])
    bona = images(one, "03")
    morphs = np.rint((bona.astype(float) + images(two, "03")) / 2).astype(np.uint8)
    live, names = images(one, "08"), tuple(p.morph_id for p in pairs)
    b, m = (score_in_batches(detector, Suspects(x, names, live)) for x in (bona, morphs))
    assert (m[:, None] > b[None]).mean() > 0.9


def test_a_detector_that_is_not_shipped_is_named() -> None:
    assert weights_of("mine", "some/file.npz") == "some/file.npz"
    with pytest.raises(AssetError, match=r"weights\.mine=mini: the package ships convolutional"):
        weights_of("mine", "mini")
