"""Landmarks of synthetic faces: where the head says they are, and where dlib sees them."""

import numpy as np
import pytest

from synthetic_faces import landmarks
from synthetic_faces.assets import load_assets
from synthetic_faces.capture import Capture
from synthetic_faces.expression import REST, neutral, smile
from synthetic_faces.identity import sample_identity
from synthetic_faces.landmarks import (
    IBUG_68,
    TEMPLATE_POINTS,
    choose_vertices,
    project,
    template_vertices,
)
from synthetic_faces.renderer import Renderer
from synthetic_faces.roles import identity_seed
from synthetic_faces.seeds import Streams


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer()


def test_vertices_are_distinct_and_the_template_extends_the_68() -> None:
    vertices = template_vertices(load_assets())
    assert len(IBUG_68) == 68
    assert len(set(vertices)) == len(vertices) == TEMPLATE_POINTS
    assert vertices[:68] == IBUG_68


def test_the_68_are_in_ibug_order(renderer) -> None:
    points = project(renderer, sample_identity(3), REST, Capture(), 256)[list(IBUG_68)]
    jaw, left_eye, right_eye = points[:17], points[36:42].mean(0), points[42:48].mean(0)
    mouth = (points[48] + points[54]) / 2
    assert jaw[0, 0] < jaw[8, 0] < jaw[16, 0] and jaw[8, 1] > points[57, 1] > mouth[1] - 8
    assert left_eye[0] < points[30, 0] < right_eye[0]
    assert points[19, 1] < left_eye[1] < points[30, 1] < points[51, 1] < points[57, 1] < jaw[8, 1]
    # Head and frame are nearly symmetric about the middle of the picture.
    assert abs((left_eye + right_eye)[0] / 2 - 127.5) < 6


def test_scale_and_shift_act_as_in_the_picture(renderer) -> None:
    identity = sample_identity(3)
    small, large = (project(renderer, identity, REST, Capture(), size) for size in (64, 128))
    np.testing.assert_allclose((small + 0.5) * 2, large + 0.5, atol=1e-3)
    moved = project(renderer, identity, REST, Capture(shift=(0.1, -0.05)), 100)
    np.testing.assert_allclose(
        moved - project(renderer, identity, REST, Capture(), 100),
        [[10, -5]] * len(moved),
        atol=1e-3,
    )


def test_a_smile_lifts_the_corners_of_the_mouth(renderer) -> None:
    identity = sample_identity(3)
    rest, smiling = (
        project(renderer, identity, face, Capture(), 256)[list(IBUG_68)]
        for face in (REST, smile(identity.shape, 1.0))
    )
    assert (smiling[[48, 54], 1] < rest[[48, 54], 1]).all()
    assert smiling[54, 0] - smiling[48, 0] > rest[54, 0] - rest[48, 0]


def test_dlib_sees_them_where_they_are(renderer) -> None:
    pytest.importorskip("dlib")
    from adjointdeis.faces.dlib_models import DlibLandmarker

    identity = sample_identity(11)
    picture = (renderer.render(identity, size=192) * 255).round().byte().permute(1, 2, 0).numpy()
    found = DlibLandmarker(box="hog-then-frame").landmarks(np.ascontiguousarray(picture))
    points = project(renderer, identity, size=192)[list(IBUG_68)]
    distance = np.linalg.norm(points - found, axis=1) / 192
    assert np.median(distance) < 0.02 and distance.max() < 0.08


def test_the_choice_of_vertices_finds_those_whose_projections_it_is_given(monkeypatch) -> None:
    # A finder that knows the answer: the true projections of every 7th vertex of the face.
    front = landmarks._front(load_assets()).numpy()
    wanted, shown = front[:: len(front) // 68][:68], []

    def project_and_remember(*arguments, **named):
        shown.append(project(*arguments, **named))
        return shown[-1]

    def find(picture: np.ndarray) -> np.ndarray:
        seed = identity_seed("tuning", len(shown))
        face = neutral(Streams(seed)("landmark face"))
        return project(Renderer(), sample_identity(seed), face, size=len(picture))[wanted]

    monkeypatch.setattr(landmarks, "project", project_and_remember)
    vertices, distance = choose_vertices(find, identities=2, size=32)
    assert vertices == tuple(wanted) and distance.max() < 1e-6
