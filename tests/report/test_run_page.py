from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from app.cli import main


def test_run_page(run_folder):
    text = (run_folder / "report" / "tetrad-run.html").read_text()
    assert "not for diagnosis" in text
    assert text.count("data:image/jpeg") == 12
    assert len(list((run_folder / "report" / "pictures").glob("*.png"))) == 12
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)


def test_it_renders_in_a_browser(run_folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium here")
    shot = tmp_path / "page.png"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,3000", f"--screenshot={shot}",
               (run_folder / "report" / "tetrad-run.html").as_uri()]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    import matplotlib.image

    pixels = matplotlib.image.imread(shot)[..., :3]
    # A page with a heading, a red notice and black picture panels; not a blank or an error page.
    assert pixels.shape[:2] == (3000, 1200)
    assert (pixels.max(axis=2) < 0.05).mean() > 0.1
    red = (pixels[..., 0] > 0.45) & (pixels[..., 1] < 0.2) & (pixels[..., 2] < 0.2)
    assert red[:300].sum() > 50


def test_a_run_may_have_pages_to_scroll_through(subject, tmp_path, weights_dir):
    arguments = ["synthesize", "--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights_dir,
                 "--model", "regression", "--report-dir", tmp_path / "report", "--view"]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    assert (tmp_path / "report" / "views" / "sub01-t2f-view.html").is_file()
    assert 'href="views/sub01-t2f-view.html"' in (tmp_path / "report" / "tetrad-run.html").read_text()
