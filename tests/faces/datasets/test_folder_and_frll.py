"""Loading of FRLL in every layout it comes in, and of any folder of faces."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from adjointdeis.faces.datasets.folder import (
    DatasetError,
    LeftOutWarning,
    OnePictureWarning,
    load_folder,
)
from adjointdeis.faces.datasets.frll import load_frll, read_info
from adjointdeis.faces.datasets.tem import TemplateError, read_tem
from adjointdeis.faces.image_io import ImageError, read_image, write_image

IDS = ("001", "002", "010")
TEM = "3\n1 2\n3.5\t4\n5 6\n1\n1\n3\n0 1 2\n"


def picture(value: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def members() -> dict[str, bytes]:
    files = {"london_faces_info.csv": b"face_id,face_age,face_sex,face_eth\n"}
    for n, key in enumerate(IDS):
        files[f"neutral_front/neutral_front/{key}_03.jpg"] = picture(10 * n + 1)
        files[f"neutral_front/neutral_front/{key}_03.tem"] = TEM.encode()
        files[f"smiling_front/{key}_08.jpg"] = picture(10 * n + 2)
        files["london_faces_info.csv"] += f"X{key},2{n},{'FM'[n % 2]}emale,White\n".replace(
            "Memale", "male"
        ).encode()
    return files


def litter() -> dict[str, bytes]:
    return {
        "__MACOSX/neutral_front/._001_03.jpg": b"\x00resource fork",
        "neutral_front/neutral_front/._002_03.jpg": b"\x00resource fork",
        "neutral_front/.DS_Store": b"x",
        "neutral_front/readme.txt": b"not an image",
        "neutral_front/001_03_copy.jpg": b"another name",
    }


def put(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def put_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def layout_folders(root):
    put(root, members() | litter())
    return root


def layout_official_zips(root):
    everything = members() | litter()
    for top in ("neutral_front", "smiling_front"):
        inside = {k: v for k, v in everything.items() if k.startswith((top, "__MACOSX"))}
        put_zip(root / "downloads" / f"{top}.zip", inside)
    put(root, {"london_faces_info.csv": everything["london_faces_info.csv"]})
    return root


def layout_one_zip(root):
    put_zip(root / "frll.zip", members() | litter())
    return root / "frll.zip"


def layout_webmorphr(root):
    put(root, {name.rsplit("/", 1)[-1]: data for name, data in members().items()})
    return root


@pytest.mark.parametrize(
    "layout", [layout_folders, layout_official_zips, layout_one_zip, layout_webmorphr]
)
def test_every_layout_gives_the_same_subjects(tmp_path, layout):
    dataset = load_frll(layout(tmp_path))
    assert dataset.ids == IDS
    assert [s.gender for s in dataset.subjects] == ["female", "male", "female"]
    assert [s.ethnicity for s in dataset.subjects] == ["white"] * 3
    assert [s.age for s in dataset.subjects] == [20.0, 21.0, 22.0]
    for n, subject in enumerate(dataset.subjects):
        assert abs(int(read_image(subject.images["03"])[0, 0, 0]) - (10 * n + 1)) <= 1
        assert abs(int(read_image(subject.images["08"])[0, 0, 0]) - (10 * n + 2)) <= 1
        assert read_tem(subject.templates["03"]).points[1].tolist() == [3.5, 4.0]


def test_equal_copies_are_one_file_and_different_ones_an_error(tmp_path):
    layout_folders(tmp_path)
    put(tmp_path, {"again/001_03.jpg": picture(1)})
    assert load_frll(tmp_path).ids == IDS
    put(tmp_path, {"again/001_03.jpg": picture(99)})
    with pytest.raises(DatasetError, match=r"001_03\.jpg and .*001_03\.jpg"):
        load_frll(tmp_path)


def test_all_missing_files_are_listed_together(tmp_path):
    layout_folders(tmp_path)
    (tmp_path / "smiling_front/002_08.jpg").unlink()
    (tmp_path / "neutral_front/neutral_front/010_03.tem").unlink()
    with pytest.raises(DatasetError, match=r"002_08 \(image\), 010_03 \(template .tem\)"):
        load_frll(tmp_path)
    (tmp_path / "smiling_front/002_08.jpg").write_bytes(picture(12))
    assert load_frll(tmp_path, need_templates=False).ids == IDS


def test_missing_info_file_and_missing_row(tmp_path):
    layout_folders(tmp_path)
    info = tmp_path / "london_faces_info.csv"
    info.write_text("face_id,face_gender\n001,female\n")
    with pytest.raises(DatasetError, match="no row for the subjects 002, 010"):
        load_frll(tmp_path)
    info.unlink()
    with pytest.raises(DatasetError, match=r"london_faces_info\.csv is missing"):
        load_frll(tmp_path)


@pytest.mark.parametrize("header", ["face_id,face_gender", "\ufeffid, sex", "face_id,gender"])
@pytest.mark.parametrize("key", ["7", "007", "X007"])
def test_column_and_id_variants_of_the_info_file(tmp_path, header, key):
    (tmp_path / "info.csv").write_text(f"{header}\n{key},f\n", encoding="utf-8")
    assert read_info(tmp_path / "info.csv")["007"]["gender"] == "female"


def test_bad_info_files_name_line_and_column(tmp_path):
    path = tmp_path / "info.csv"
    path.write_text("face_id,height\n001,3\n")
    with pytest.raises(DatasetError, match="face_gender or face_sex"):
        read_info(path)
    path.write_text("face_id,face_sex\n001,f\n002,x\n")
    with pytest.raises(DatasetError, match=":3: gender 'x'"):
        read_info(path)


def test_any_folder_of_faces(tmp_path):
    put(tmp_path, {"a/s12_03.png": picture(1, "PNG"), "b/s12_08.png": picture(2, "PNG")})
    dataset = load_folder(tmp_path, "mine")
    assert dataset.ids == ("s12",) and sorted(dataset.subject("s12").images) == ["03", "08"]
    with pytest.raises(KeyError, match="no subject 999"):
        dataset.subject("999")


def test_a_root_that_holds_no_face(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_folder(tmp_path / "absent")
    with pytest.raises(DatasetError, match="no image is named"):
        load_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="neither a folder nor a readable zip"):
        load_folder(tmp_path / "notes.txt")
    (tmp_path / "neutral_front.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DatasetError, match=r"neutral_front\.zip: .*truncated"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "number of points"),
        ("three\n", "number of points"),
        ("3\n1 2\n3 4\n", "line 4: expected a point"),
        ("3\n1 2\n3 4 5\n5 6\n", "line 3: expected a point"),
        ("3\n1 2\n3 nan\n5 6\n", "not finite"),
        ("3\n1 2\n3 4\n5 6\n1\n0\n2\n0 3\n", "beyond 2"),
    ],
)
def test_a_bad_template_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "001_03.tem"
    path.write_text(text)
    with pytest.raises(TemplateError, match=message) as caught:
        read_tem(path)
    assert "001_03.tem" in str(caught.value)


def test_a_template_with_curves(tmp_path):
    path = tmp_path / "x.tem"
    path.write_text(TEM)
    template = read_tem(path)
    assert template.curves == ((0, 1, 2),) and template.closed == (True,)
    path.write_text("2\n1 2\n3 4\n")
    with pytest.raises(TemplateError, match="2 points, expected at least 3"):
        read_tem(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_tem(tmp_path / "absent.tem")


def test_images_that_are_none(tmp_path):
    (tmp_path / "x.jpg").write_text("hello")
    with pytest.raises(ImageError, match=r"x\.jpg: not a readable image"):
        read_image(tmp_path / "x.jpg")
    (tmp_path / "y.jpg").write_bytes(picture(3)[:200])
    with pytest.raises(ImageError, match=r"y\.jpg"):
        read_image(tmp_path / "y.jpg")
    with pytest.raises(FileNotFoundError, match=r"z\.jpg"):
        read_image(tmp_path / "z.jpg")


def test_images_are_turned_upright_and_converted(tmp_path):
    tall = Image.fromarray(np.zeros((6, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    tall.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (4, 6, 3)


def test_written_images_come_back_with_their_provenance(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_image(tmp_path / "new" / "m.png", image, {"Description": "synthetic"})
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "m.png"), image)
    with Image.open(tmp_path / "new" / "m.png") as stored:
        assert stored.text["Description"] == "synthetic"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.png"]
    assert (tmp_path / "new" / "m.png").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match=r"no image format; expected one of \.jpg"):
        write_image(tmp_path / "m.txt", image)
    with pytest.raises(ValueError, match=r"\.png"):
        write_image(tmp_path / "m.jpg", image, {"Description": "synthetic"})


def test_what_a_folder_leaves_out_is_said_and_counted(tmp_path):
    for name in ("001_03.png", "001_08.png", "002_3.png", "003-03.png", "Zoe\u0301_03.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("004_03.HEIC", "005_03.avif", "006_03", "007_03.xyz", "008_03.heif"):
        (tmp_path / name).write_bytes(b"x")
    # Files that are no images, and what lies beside one, are none of the reader's business.
    for name in ("readme.txt", "001_03.tem", "001_03.pts", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(LeftOutWarning) as said:
        assert load_folder(tmp_path).ids == ("001",)
    (text,) = [str(w.message) for w in said]
    assert "3 (not named <subject number>_<two digits>): 002_3.png, 003-03.png, Zoe" in text
    for word in (".heic is not read", ".avif", "a file without suffix", ".xyz", ".heif"):
        assert f"1 ({word}" in text
    assert "readme" not in text and ".pts" not in text
    for name in ("001_03.png", "001_08.png"):
        (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=r"no image is named .*; it has 3 \(not named"):
        load_folder(tmp_path)


def test_one_face_in_two_spellings_is_one_file(tmp_path):
    for name in ("001_03.png", "\uff10\uff10\uff12_03.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert load_folder(tmp_path).ids == ("001", "002")


def test_pictures_of_strangers(tmp_path):
    """Suffixes in capitals, links and folders are read; what stands for two people is refused."""
    put(tmp_path, {"a b/001_03.PNG": picture(1, "PNG"), "c/\u00e9/001_08.Jpg": picture(2, "PNG")})
    (tmp_path / "002_03.png").symlink_to(tmp_path / "a b" / "001_03.PNG")
    faces = load_folder(tmp_path)
    assert faces.ids == ("001", "002")
    with pytest.raises(DatasetError, match="001_03 and 002_03 are one picture"):
        faces.refuse_one_picture_twice()
    (tmp_path / "002_03.png").unlink()
    before = load_folder(tmp_path).fingerprint
    put(tmp_path, {"d/001_03.png": picture(1, "PNG")})
    assert load_folder(tmp_path).fingerprint == before
    put(tmp_path, {"d/001_03.png": picture(3, "PNG")})
    with pytest.raises(DatasetError, match=r"different files have the same name: .*001_03"):
        load_folder(tmp_path)
    put(tmp_path, {"d/001_03.png": picture(2, "PNG"), "a b/001_03.PNG": picture(2, "PNG")})
    with pytest.warns(OnePictureWarning, match=r"1 people have one .* as 001_03 and 001_08"):
        load_folder(tmp_path).refuse_one_picture_twice()


@pytest.mark.parametrize(("one", "two"), [("001", "1"), ("s12", "S12"), ("000", "0")])
def test_two_spellings_of_one_subject(tmp_path, one, two):
    put(tmp_path, {f"{one}_03.png": picture(1, "PNG"), f"{two}_03.png": picture(2, "PNG")})
    with pytest.raises(DatasetError, match=f"({two}|{one}) differ in case, .* leading zeros"):
        load_folder(tmp_path)


def test_a_link_that_leads_nowhere(tmp_path):
    put(tmp_path, {"001_03.png": picture(1, "PNG")})
    (tmp_path / "002_03.png").symlink_to(tmp_path / "annex" / "object")
    with pytest.raises(DatasetError, match=r"002_03\.png: a link to what is not there \(1 such"):
        load_folder(tmp_path)
