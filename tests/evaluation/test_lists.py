"""Lists of triples, pairs to generate, labels and landmarks: round trips and errors."""

import pytest

from adjointdeis.evaluation import ScoreError
from adjointdeis.evaluation.formats import lists

TRIPLES = [
    lists.Triple("001_08-vs-010_08.jpg", "001_08.jpg", "010_08.jpg"),
    lists.Triple("002_08-vs-003_08.jpg", "002_08.jpg", "003_08.jpg"),
]


def test_round_trips(tmp_path):
    path = tmp_path / "list.txt"
    lists.write_triples(TRIPLES, path)
    assert path.read_text().splitlines()[0] == "001_08-vs-010_08.jpg\t001_08.jpg\t010_08.jpg"
    assert lists.read_triples(path) == TRIPLES
    lists.write_generation_list(TRIPLES, path)
    assert path.read_text().splitlines()[0] == "001_08.jpg,010_08.jpg,001_08-vs-010_08.jpg"
    assert lists.read_generation_list(path) == TRIPLES
    labels = {"a.png": True, "b.png": False}
    lists.write_labels(labels, path)
    assert lists.read_labels(path) == labels
    faces = [lists.FaceBox("a.png", (1, 100, 2, 99.5), tuple((i, i + 0.25) for i in range(5)))]
    lists.write_landmarks(faces, path)
    assert lists.read_landmarks(path) == faces


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (lists.read_triples, "m\ta\tb\nm\ta\n", ":2: 2 fields, expected 3"),
        (lists.read_triples, "m\ta\tb\nm\tc\td\n", ":2: 'm' is listed twice"),
        (lists.read_generation_list, "a,,o\n", ":1: an empty field"),
        (lists.read_labels, "a,real\n", ":1: label 'real', expected bonafide or attack"),
        (lists.read_labels, "a,attack\na,attack\n", ":2: image 'a' is listed twice"),
        (lists.read_landmarks, "a 1 2 3\n", ":1: 4 fields, expected 15"),
        (lists.read_landmarks, "a 9 1" + " 1" * 12 + "\n", ":1: the box is empty"),
    ],
)
def test_errors_name_the_line(tmp_path, reader, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ScoreError) as error:
        reader(path)
    assert f"{path}{message}" in str(error.value)
