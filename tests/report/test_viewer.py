from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from app.core.errors import WeightsError
from app.report import viewer
from app.report.viewer import ASSET, ViewColumn, viewer_page, write_files_view
from tests.conftest import load

SHAPE = (60, 70, 50)


@pytest.fixture(scope="module")
def page():
    random = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[26:40, 26:50, 25:30] = True
    volumes = [np.where(brain, 200, random.uniform(0, 50, SHAPE)).astype(np.float32) for _ in range(4)]
    columns = [ViewColumn(f"sequence {n}", v, made=n == 3) for n, v in enumerate(volumes)]
    return viewer_page(columns, brain, "</script>@VOLUMES@ <b>")


def _content(page):
    text = re.search(r'id="volumes">(.*?)</script>', page.decode(), re.DOTALL)[1]
    return json.loads(text)


def test_all_lies_in_the_page(page):
    text = page.decode()
    assert text.count("</script>") == 3
    assert "<!--" not in text
    assert not re.search(r'(src|href)="', text)
    assert "default-src 'none'" in text
    assert "not for diagnosis" in text
    assert [c["name"] for c in _content(page)["columns"]] == [f"sequence {n}" for n in range(4)]
    assert "&lt;/script&gt;&#64;VOLUMES&#64; &lt;b&gt;" in text


def test_a_damaged_or_missing_viewer_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(viewer, "ASSET", tmp_path / "none.gz")
    with pytest.raises(WeightsError, match="cannot be read"):
        viewer._niivue()
    (tmp_path / "none.gz").write_bytes(ASSET.read_bytes()[:-4000])
    with pytest.raises(WeightsError, match="leave out --view"):
        viewer._niivue()


def test_files_on_one_grid_have_a_page(subject, tmp_path):
    write_files_view({m: subject[m] for m in ("t1n", "t2w")}, "t2f", subject["t1c"], "s", tmp_path / "page.html")
    content = _content((tmp_path / "page.html").read_bytes())
    assert [c["name"] for c in content["columns"]] == ["T1n", "T2w", "T2-FLAIR (synthesis)"]
    small = tmp_path / "small.nii.gz"
    load(subject["t1c"]).slicer[4:].to_filename(small)
    with pytest.raises(ValueError, match="several shapes"):
        write_files_view({"t1n": subject["t1n"]}, "t2f", small, "s", tmp_path / "other.html")


def test_a_browser_shows_it_without_a_network(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    (tmp_path / "page.html").write_bytes(page)
    options = [browser, "--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run",
               "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}",
               "--window-size=1000,800", "--virtual-time-budget=20000"]  # fmt: skip
    address = (tmp_path / "page.html").as_uri()
    shot = tmp_path / "page.png"
    shown = subprocess.run(
        [*options, f"--screenshot={shot}", "--dump-dom", address], capture_output=True, check=False, timeout=120
    )
    text = shown.stdout.decode()
    if ">The images cannot be shown: this browser has no WebGL 2" in text:
        pytest.skip("this chromium has no WebGL 2")
    assert 'data-state="ready"' in text, text[-600:]
    assert len(re.findall(r'<canvas id="c\d"', text)) == 4
    import matplotlib.image

    pixels = matplotlib.image.imread(shot)[100:, :, :3]
    # The brain is bright, and its outline's mask green.
    assert (pixels.min(axis=2) > 0.5).sum() > 500
    green = (pixels[..., 1] > pixels[..., 0] + 0.05) & (pixels[..., 1] > pixels[..., 2] + 0.05)
    assert green.sum() > 100
