from __future__ import annotations

import csv

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.training import logger as logs
from app.training.logger import RunLog


@pytest.fixture
def rows():
    """Two rows of a truth and a guess, 8 x 6 pixels each."""
    random = np.random.default_rng(0)
    return [[random.normal(size=(8, 6)).astype(np.float32) for _ in range(2)] for _ in range(2)]


def events_of(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


class TestNumbers:
    def _log(self, folder):
        log = RunLog(folder)
        log.write(3, 0.5, {"l1": 0.25, "images_per_second": 40.0})
        log.write(6, 1.0, {"l1": 0.125})
        log.close()

    def test_every_one_is_a_row_of_the_table(self, tmp_path):
        self._log(tmp_path)
        with (tmp_path / "log.csv").open() as stream:
            found = [(r["step"], r["minutes"], r["name"], r["value"]) for r in csv.DictReader(stream)]
        assert found == [
            ("3", "0.500", "l1", "0.25"),
            ("3", "0.500", "images_per_second", "40"),
            ("6", "1.000", "l1", "0.125"),
        ]

    def test_every_one_is_a_scalar_of_tensorboards(self, tmp_path):
        self._log(tmp_path)
        events = events_of(tmp_path)
        assert set(events.Tags()["scalars"]) == {"l1", "images_per_second"}
        assert [(e.step, e.value) for e in events.Scalars("l1")] == [(3, 0.25), (6, 0.125)]
        assert [(e.step, e.value) for e in events.Scalars("images_per_second")] == [(3, 40.0)]

    def test_without_tensorboard_the_table_is_left(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(logs, "find_spec", lambda _: None)
        caplog.set_level("INFO", logger="app")
        self._log(tmp_path)
        assert "tensorboard is not installed" in caplog.text
        assert not (tmp_path / "tensorboard").exists()
        assert len((tmp_path / "log.csv").read_text().splitlines()) == 4


class TestPicture:
    def test_it_is_a_file_and_a_picture_of_tensorboards(self, tmp_path, rows):
        import matplotlib.image

        path = tmp_path / "samples" / "step.png"
        log = RunLog(tmp_path)
        log.picture(rows, path, 7)
        log.close()
        # Turned, side by side, one row below the other, each with a border of two pixels.
        sheet = matplotlib.image.imread(path)
        assert sheet.shape[:2] == (2 * (6 + 2), 2 * 8)
        (event,) = events_of(tmp_path).Images("sample")
        assert (event.step, event.width, event.height) == (7, 16, 16)
        assert event.encoded_image_string.startswith(b"\x89PNG")

    def test_a_guess_is_shown_in_the_range_of_its_truth(self, tmp_path, rows):
        import matplotlib.image

        truth = rows[0][0]
        log = RunLog(tmp_path)
        log.picture([[truth, truth], [truth, truth + 100]], tmp_path / "samples" / "step.png", 1)
        log.close()
        sheet = matplotlib.image.imread(tmp_path / "samples" / "step.png")[..., 0]
        assert np.array_equal(sheet[:6, :8], sheet[:6, 8:])
        assert np.array_equal(sheet[8:14, :8], sheet[:6, :8])
        assert (sheet[8:14, 8:] == 1).all()
