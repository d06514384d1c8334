from __future__ import annotations

import pytest

from app.batch.clinic.studies import find_studies
from app.core.errors import NothingToDo, UsageError


def test_each_folder_is_an_exam(tmp_path):
    for name in ("b", "a", ".hidden", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "list.csv").write_text("")
    found = find_studies(tmp_path, [tmp_path / "out"])
    assert [(c.subject, c.folder) for c in found.cases] == [("a", tmp_path / "a"), ("b", tmp_path / "b")]
    assert found.notes == (f"{tmp_path / 'list.csv'}: passed over, since exams lie in folders of their own.",)


def test_what_holds_no_exam(tmp_path):
    with pytest.raises(NothingToDo, match="holds no folder"):
        find_studies(tmp_path)
    with pytest.raises(UsageError, match="is no folder"):
        find_studies(tmp_path / "nowhere")
