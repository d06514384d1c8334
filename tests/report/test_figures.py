from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from app.report import figures
from tests.conftest import volumes_of

SHAPE = (40, 44, 36)
NOTICE = "synthetic, not for diagnosis"
#: Where the four letters of a panel stand, in shares of its width and height.
EDGES = {(0.04, 0.5): "left", (0.96, 0.5): "right", (0.5, 0.96): "top", (0.5, 0.07): "bottom"}


@pytest.fixture
def drawn(monkeypatch):
    """The figure that was drawn last."""
    figures_drawn: list[Figure] = []
    save = Figure.savefig

    def keep(self, *arguments, **options):
        figures_drawn.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return lambda: np.array(figures_drawn[-1].axes).reshape(3, -1)


def _halves(image: np.ndarray) -> dict[str, float]:
    """Mean brightness at each edge, as the image is shown: its first row on top."""
    rows, columns = (n // 2 for n in image.shape)
    return {"top": image[:rows].mean(), "bottom": image[rows:].mean(),
            "left": image[:, :columns].mean(), "right": image[:, columns:].mean()}  # fmt: skip


def test_the_letters_name_the_patients_sides(drawn):
    x, y, z = np.indices(SHAPE)
    # Brighter on the right, in front and above; axes run to the left, to the back and up.
    volume = (10 + 4 * (x < SHAPE[0] // 2) + 2 * (y < SHAPE[1] // 2) + (z >= SHAPE[2] // 2)).astype(np.float32)
    figures.picture({"t1n": volume}, "t2f", volume)
    brighter = {"R": "L", "A": "P", "S": "I"}
    for panel, letters in zip(drawn()[:, 0], ("RLAP", "RLSI", "APSI"), strict=True):
        places = {text.get_text(): EDGES[text.get_position()] for text in panel.texts}
        assert set(places) == set(letters)
        halves = _halves(panel.images[0].get_array())
        for one, other in brighter.items():
            if one in places:
                assert halves[places[one]] > halves[places[other]]


@pytest.mark.parametrize("known", [False, True])
def test_the_synthesis_alone_is_marked(phantom, drawn, known):
    truth = phantom.volumes["t2f"]
    confidence = (truth > 0).astype(np.float32) if known else None
    figures.picture(volumes_of(phantom, "t2f"), "t2f", truth, truth if known else None, confidence=confidence)
    titles = [panel.get_title() for panel in drawn()[0]]
    inputs, others = ["T1c (input)", "T1n (input)", "T2w (input)"], []
    if known:
        others = ["T2-FLAIR (truth)", "synthesis - truth\n(red: too bright)", "confidence\n(bright: sure)"]
    assert titles == [*inputs, "T2-FLAIR (synthesis)", *others]
    for column, title in zip(drawn().T, titles, strict=True):
        marked = [NOTICE in [text.get_text() for text in panel.texts] for panel in column]
        assert marked == [title == "T2-FLAIR (synthesis)"] * 3


def test_the_cut_goes_through_the_lesion(phantom, drawn):
    lesion = np.zeros(phantom.volumes["t2f"].shape, bool)
    lesion[20:24, 30:34, 12:16] = True
    synthesis = np.where(lesion, 5.0, 1.0).astype(np.float32)
    figures.picture({"t2w": synthesis}, "t2f", synthesis, lesion=lesion)
    for panel in drawn()[:, 0]:
        assert (panel.images[0].get_array() == 5).sum() == 16


def test_the_same_volumes_give_the_same_bytes(phantom):
    first, second = (figures.picture({}, "t2f", phantom.volumes["t2f"], title="$\\frac$ \udcff") for _ in range(2))
    assert first == second
    small = figures.shrink(first)
    with Image.open(io.BytesIO(small)) as image:
        assert image.format == "JPEG"
    assert len(small) < len(first)


def test_an_empty_synthesis_is_pictured_too(phantom):
    empty = np.zeros_like(phantom.volumes["t2f"])
    png = figures.picture({"t1n": phantom.volumes["t1n"]}, "t2f", empty, confidence=empty)
    assert png.startswith(b"\x89PNG")


class TestFiles:
    def test_a_picture_beside_the_page(self, subject, tmp_path):
        inputs = {m: subject[m] for m in ("t1n", "t1c")}
        jpeg = figures.draw_files("sub01", inputs, "t2w", subject["t2w"], tmp_path)
        assert jpeg.startswith(b"\xff\xd8")
        assert (tmp_path / "pictures" / "sub01-t2w.png").read_bytes().startswith(b"\x89PNG")

    def test_a_file_that_is_unreadable_is_named(self, subject, tmp_path, caplog):
        subject["t2w"].write_bytes(b"damaged")
        assert figures.draw_files("sub01", {}, "t2w", subject["t2w"], tmp_path) == b""
        assert "No picture of sub01" in caplog.text
        assert not (tmp_path / "pictures").exists()
