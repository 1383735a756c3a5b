"""The page of the package: what it shows runs, and gives the picture that it shows."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

import synthetic_faces

FOLDER = Path(synthetic_faces.__file__).parent


def test_the_example_gives_the_picture_of_the_page() -> None:
    text = (FOLDER / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1]
    shown: dict = {}
    # A quarter of the side: the picture is the same, only smaller.
    exec(code.replace("size = 128", "size = 32"), shown)
    sheet = shown["sheet"].permute(1, 2, 0).numpy()
    with Image.open(FOLDER / "faces.jpg") as picture:
        assert picture.size == (8 * 128, 3 * 128)
        shrunk = np.asarray(picture.resize((8 * 32, 3 * 32), Image.Resampling.BOX)) / 255
    assert np.abs(sheet - shrunk).mean() < 0.03
