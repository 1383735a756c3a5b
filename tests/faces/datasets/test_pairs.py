"""Pair lists: the most-similar rule on embeddings whose answer is known, formats, validation."""

from pathlib import Path

import numpy as np
import pytest

from adjointdeis.faces.datasets.folder import FaceDataset, SubjectImages
from adjointdeis.faces.datasets.pairs import (
    MorphPair,
    PairListError,
    most_similar_pairs,
    overlap,
    parse_pair,
    read_pairs,
    validate_pairs,
    write_pairs,
)
from adjointdeis.faces.recogniser import cosine_similarity, euclidean_distance


class OnALine:
    """A recogniser whose similarity is minus the distance of one-dimensional embeddings."""

    name = "line"

    def compare(self, e1, e2):
        return -euclidean_distance(e1, e2)


IDS = ["001", "002", "003", "004", "005", "006"]
AT = np.array([0.0, 1.0, 3.0, 0.1, 0.2, 9.0])[:, None]
GROUPS = ["f", "f", "f", "m", "m", "m"]


def choose(**changes):
    arguments = {
        "embeddings": AT,
        "ids": IDS,
        "groups": GROUPS,
        "recogniser": OnALine(),
        "per_group": 2,
    } | changes
    return most_similar_pairs(**arguments)


def test_the_most_similar_pairs_of_each_group_come_first_and_never_cross():
    pairs = choose()
    assert [p.name for p in pairs] == ["001_002.png", "002_003.png", "004_005.png", "005_006.png"]
    assert [p.group for p in pairs] == ["f", "f", "m", "m"]
    assert pairs[0].similarity == pytest.approx(-1.0)


def test_excluded_pairs_are_replaced_by_the_next():
    pairs = choose(excluded=[frozenset(("002", "001"))])
    assert [p.name for p in pairs[:2]] == ["002_003.png", "001_003.png"]


def test_the_order_of_the_subjects_does_not_matter():
    order = [5, 2, 0, 4, 1, 3]
    turned = choose(
        embeddings=AT[order], ids=[IDS[i] for i in order], groups=[GROUPS[i] for i in order]
    )
    assert turned == choose()


def test_the_pair_rule_refuses_what_it_cannot_do():
    with pytest.raises(PairListError, match="group f: 3 pairs can be made of 3 subjects; 4"):
        choose(per_group=4)
    with pytest.raises(ValueError, match="at least 1"):
        choose(per_group=0)
    with pytest.raises(ValueError, match=r"failure to acquire.*003"):
        choose(embeddings=np.where(np.arange(6)[:, None] == 2, np.nan, AT))
    with pytest.raises(ValueError, match="5 ids"):
        choose(ids=IDS[:5])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("001_03.png,013_03.png,x.png", ("001", "03", "013", "03", "x")),
        ("a/b/001_08.jpg, c/013_03.jpg, out/y.png", ("001", "08", "013", "03", "y")),
        ("001_013.png", ("001", "03", "013", "03", "001_013")),
        ("dim_a/001_013.png", ("001", "03", "013", "03", "001_013")),
        ("001_08-vs-010_08.jpg", ("001", "08", "010", "08", "001_08-vs-010_08")),
        ("m.jpg\t001_03.jpg\t010_03.jpg", ("001", "03", "010", "03", "m")),
        ("s7_03.png,s8_03.png", ("s7", "03", "s8", "03", "s7_03-vs-s8_03")),
    ],
)
def test_every_format_of_a_pair(line, expected):
    pair = parse_pair(line)
    found = (pair.subject_a, pair.capture_a, pair.subject_b, pair.capture_b, pair.morph_id)
    assert found == expected


@pytest.mark.parametrize("line", ["001_03.png", "hello", "001,002,003", "a\tb\tc", "1,2,3,4"])
def test_lines_that_are_no_pair(line):
    with pytest.raises(ValueError, match=r"expected"):
        parse_pair(line)


def test_a_file_with_bad_lines_lists_them_all(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("001_002.png\nwrong\n\n# a comment\n003_004.png\nworse\n")
    with pytest.raises(PairListError, match=r"pairs\.csv: line 2: 'wrong'.*line 6: 'worse'"):
        read_pairs(path)


def test_an_empty_list_and_a_missing_one(tmp_path):
    (tmp_path / "empty.csv").write_text("# nothing\n")
    with pytest.raises(PairListError, match="empty"):
        read_pairs(tmp_path / "empty.csv")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_pairs(tmp_path / "absent.csv")


def test_a_folder_of_morphs_is_a_list(tmp_path):
    for name in ("001_013.png", "002_020.png", "._001_013.png", "readme.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.morph_id for p in read_pairs(tmp_path)] == ["001_013", "002_020"]


def test_what_is_written_is_what_is_read(tmp_path):
    pairs = choose()
    write_pairs(tmp_path / "new" / "pairs.csv", pairs)
    again = read_pairs(tmp_path / "new" / "pairs.csv")
    assert [(p.image_a, p.image_b, p.name) for p in again] == [
        (p.image_a, p.image_b, p.name) for p in pairs
    ]


def dataset():
    image = Path("x.jpg")
    subjects = [SubjectImages(i, {"03": image, "08": image}, {}) for i in IDS[:3]]
    return FaceDataset("set", Path("root"), (*subjects, SubjectImages("004", {"03": image}, {})))


def test_validation_lists_all_problems_together():
    pairs = [
        MorphPair("001", "002", name="a.png"),
        MorphPair("001", "999", name="b.png"),
        MorphPair("003", "003", name="c.png"),
        MorphPair("004", "001", "08", "08", name="d.png"),
        MorphPair("002", "001", name="e.png"),
        MorphPair("001", "003", name="a.png"),
    ]
    with pytest.raises(PairListError) as caught:
        validate_pairs(pairs, dataset(), "my list")
    message = str(caught.value)
    assert "my list" in message and "5 problems" in message
    for part in (
        "unknown subject 999",
        "both images show subject 003",
        "no image 004_08",
        "002_03 + 001_03: the same pair as 001_03 + 002_03",
        "the output name a.png is taken twice",
    ):
        assert part in message


def test_validation_accepts_a_good_list_and_refuses_an_empty_one():
    validate_pairs(
        [MorphPair("001", "002", name="a.png"), MorphPair("001", "003", name="b.png")], dataset()
    )
    with pytest.raises(PairListError, match="the list is empty"):
        validate_pairs([], dataset())


def test_overlap_ignores_the_order_within_a_pair():
    one = [MorphPair("001", "002"), MorphPair("001", "003")]
    two = [MorphPair("003", "001"), MorphPair("002", "003")]
    assert overlap(one, two) == (1, 2)


def test_comparisons_broadcast_and_keep_nan():
    e = np.array([[3.0, 4.0], [4.0, -3.0], [np.nan, 0.0]])
    cosines = cosine_similarity(e[:, None], e[None])
    np.testing.assert_allclose(cosines[:2, :2], np.eye(2), atol=1e-15)
    assert np.isnan(cosines[2]).all()
    assert euclidean_distance(e[0], e[1]) == pytest.approx(np.sqrt(50))
