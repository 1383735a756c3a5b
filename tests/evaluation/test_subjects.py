"""Covariates of subjects and their file forms."""

import numpy as np
import pytest

from adjointdeis.evaluation import PolicyError, ScoreError, Subjects, read_subjects


def test_reads_the_london_set_names(tmp_path):
    path = tmp_path / "info.csv"
    path.write_text(
        "face_id,face_age,face_gender,face_eth\n001,24,female,west_asian\n002,,male,x\n"
    )
    subjects = read_subjects(path)
    values = subjects.values(np.array(["002", "001", "002"]), "sex")
    assert values.tolist() == ["male", "female", "male"]
    assert subjects.by_id["001"].age == "24"


def test_errors_name_the_subject_or_the_line(tmp_path):
    path = tmp_path / "info.csv"
    path.write_text("name,sex\n001,f\n")
    with pytest.raises(ScoreError, match=r"info\.csv:1: no subject_id column"):
        read_subjects(path)
    path.write_text("subject_id,sex\n001\n")
    with pytest.raises(ScoreError, match=r"info\.csv:2: 1 fields, expected 2"):
        read_subjects(path)
    path.write_text("subject_id,sex\n001,f\n001,m\n")
    with pytest.raises(ScoreError, match=r"info\.csv: subject '001' appears twice"):
        read_subjects(path)
    subjects = Subjects.from_rows([{"subject_id": "1", "sex": "f"}])
    with pytest.raises(PolicyError, match="subject '2' is not in the subjects table"):
        subjects.values(np.array(["1", "2"]), "sex")
    with pytest.raises(PolicyError, match="subject '1' has no group"):
        subjects.values(np.array(["1"]), "group")
