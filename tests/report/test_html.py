from __future__ import annotations

import re

import pytest

from app.report.html import MOST_LISTED, Page, SubjectEntry, Table, distribution_plot, render


def test_warnings_come_first_and_text_is_escaped():
    page = Page("t", {"a": "b"}, failures=["<script>x</script> failed"], warnings=["careful"])
    text = render(page).decode()
    assert "<script>" not in text
    assert text.index("careful") < text.index("What was done")


@pytest.mark.parametrize(
    "page",
    [
        Page("<i>&", {}),
        Page("t", {"<i>&": "a"}),
        Page("t", {"a": "<i>&"}),
        Page("t", {}, warnings=["<i>&"]),
        Page("t", {}, tables=[Table("<i>&", ["a"], [["b"]])]),
        Page("t", {}, tables=[Table("a", ["<i>&"], [["b"]])]),
        Page("t", {}, tables=[Table("a", ["b"], [["<i>&"]])]),
        Page("t", {}, subjects=[SubjectEntry("<i>&", "c", b"x")]),
        Page("t", {}, subjects=[SubjectEntry("s", "<i>&")]),
    ],
)
def test_every_text_is_escaped(page):
    text = render(page).decode()
    assert "<i>" not in text
    assert "&lt;i&gt;&amp;" in text


def test_what_is_not_given_leaves_no_trace():
    text = render(Page("t", {}, subjects=[SubjectEntry("s", "c")])).decode()
    assert "No warnings." in text
    assert "<img" not in text
    assert "Distribution of the scores" not in text


def test_a_plot_of_scores_that_are_not_finite():
    values = {"ssim": {"t1c": [0.9, float("nan")], "t1n": []}, "psnr": {"t1c": [float("inf")], "t1n": [20.0]}}
    assert distribution_plot(values).startswith(b"\x89PNG")


def test_a_hundred_subjects_stay_under_ten_megabytes(run_folder):
    image = max(re.findall(r"jpeg;base64,([^\"]*)", (run_folder / "report" / "tetrad-run.html").read_text()), key=len)
    real_sized = b"x" * 70_000
    page = Page("t", {}, subjects=[SubjectEntry(f"s{i}", "c", real_sized) for i in range(100)])
    assert len(image) * 3 / 4 < 70_000
    assert len(render(page)) < 10e6


def test_ten_thousand_subjects_are_summarised():
    names = [f"s{i:05}" for i in range(10_000)]
    entries = [SubjectEntry(n, "c", b"x" * 10 * (i % 100 == 0)) for i, n in enumerate(names)]
    text = render(Page("t", {}, failures=names, warnings=names, subjects=entries)).decode()
    assert text.count("<img") == 100
    assert text.count("<figure") == MOST_LISTED
    assert "9500 more without a picture" in text
    assert text.count("<li>") == 2 * MOST_LISTED
    assert "<strong>10000 failed</strong>" in text
    assert text.count("and 9500 more") == 2
    assert len(text) < 300_000
