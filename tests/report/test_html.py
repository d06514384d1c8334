from __future__ import annotations

import re

from app.report.html import Page, SubjectEntry, render


def test_warnings_come_first_and_text_is_escaped():
    page = Page("t", {"a": "b"}, failures=["<script>x</script> failed"], warnings=["careful"])
    text = render(page).decode()
    assert "<script>" not in text
    assert text.index("careful") < text.index("What was done")


def test_a_hundred_subjects_stay_under_ten_megabytes(run_folder):
    image = max(re.findall(r"jpeg;base64,([^\"]*)", (run_folder / "report" / "tetrad-run.html").read_text()), key=len)
    real_sized = b"x" * 70_000
    page = Page("t", {}, subjects=[SubjectEntry(f"s{i}", "c", real_sized) for i in range(100)])
    assert len(image) * 3 / 4 < 70_000
    assert len(render(page)) < 10e6
