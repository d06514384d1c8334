from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from app.batch import run_record
from app.batch.outcomes import Outcome, OutputRecord, Provenance, Summary, exit_code_of
from app.batch.run import run
from app.core.errors import OutputError
from app.report import run_page
from tests.batch.helpers import config_of


class TestRecord:
    def test_what_it_says(self, three, weights_dir, no_page):
        run(config_of(three, weights_dir, model="tiny", report_dir=three / "report"))
        (file,) = (three / "report").glob("*.json")
        record = json.loads(file.read_text())
        assert record["exit_code"] == 0
        assert record["model"]["name"] == "tiny"
        assert "cpu" in record["runtime"]
        a, b, _ = record["subjects"]
        assert set(a["inputs"]) == {"t1c", "t1n", "t2w"}
        assert a["lacked"] == ["t2f"]
        sums = [a["outputs"][0][key] for key in ("sha256", "weights_sha256", "model_sha256")]
        assert [len(s) for s in sums] == [64] * 3
        for modality, path in a["inputs"].items():
            assert a["input_sha256"][modality] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert any("fallback" in w for w in b["warnings"])

    @pytest.mark.parametrize(
        "name",
        ["$\\frac$", "<b>&", "Müller 1", "{{ 7 * 7 }} %s $(touch x) `id`", b"\xff".decode("utf-8", "surrogateescape")],
    )
    def test_odd_names_do_not_spoil_the_report(self, tmp_path, write_subject, weights_dir, name):
        write_subject(tmp_path / "in" / name)
        summary = run(config_of(tmp_path, weights_dir, report_dir=tmp_path / "report"))
        assert exit_code_of(summary) == 0
        assert (tmp_path / "report" / "tetrad-run.html").read_text().count("data:image/jpeg") == 1

    def test_a_report_that_cannot_be_written_is_a_failure(self, three, weights_dir, monkeypatch):
        def full(*_args):
            raise OutputError("no space")

        monkeypatch.setattr(run_record, "write_run_report", full)
        assert exit_code_of(run(config_of(three, weights_dir, report_dir=three / "report"))) == 1

    @pytest.mark.parametrize("error", [MemoryError(), ImportError("failed to map segment"), PermissionError(13, "no")])
    def test_a_page_that_cannot_be_made_is_said_to_lack(self, three, weights_dir, monkeypatch, error, caplog):
        def broken(*_args):
            raise error

        monkeypatch.setattr(run_record, "write_run_report", broken)
        (three / "report").mkdir()
        (three / "report" / "tetrad-run.html").write_text("of an earlier run")
        assert exit_code_of(run(config_of(three, weights_dir, report_dir=three / "report"))) == 0
        assert "tetrad-run.html lacks: it could not be made" in caplog.text
        assert [p.name for p in (three / "report").iterdir()] == ["tetrad-run.json"]

    def test_a_page_without_pictures_says_so(self, three, weights_dir, monkeypatch, caplog):
        def nowhere(*_args):
            raise FileNotFoundError("there is no folder for temporary files")

        monkeypatch.setattr(run_page, "figure_class", nowhere)
        assert exit_code_of(run(config_of(three, weights_dir, report_dir=three / "report"))) == 0
        text = (three / "report" / "tetrad-run.html").read_text()
        assert "the page has no pictures" in text
        assert "<img" not in text
        assert "no folder for temporary files" in caplog.text

    def test_a_second_run_keeps_what_the_first_said(self, three, weights_dir, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(run_record, "write_run_report", lambda *_: None)
            run(config_of(three, weights_dir, model="tiny", report_dir=three / "report"))
        run(config_of(three, weights_dir, model="tiny", report_dir=three / "report"))
        record = json.loads((three / "report" / "tetrad-run.json").read_text())
        assert [s["status"] for s in record["subjects"]] == ["kept"] * 3
        a, b, _ = record["subjects"]
        assert set(a["inputs"]) == {"t1c", "t1n", "t2w"}
        assert a["outputs"][0]["model"] == "tiny"
        assert any("made from what is left" in w for w in b["warnings"])
        assert (three / "report" / "tetrad-run.html").read_text().count("data:image/jpeg") == 3
        # Of an output that another run made since, it knows no more.
        monkeypatch.setattr(run_record, "write_run_report", lambda *_: None)
        run(config_of(three, weights_dir, model="tiny", flip_average=True, overwrite=True))
        run(config_of(three, weights_dir, model="tiny", report_dir=three / "report"))
        record = json.loads((three / "report" / "tetrad-run.json").read_text())
        assert "model" not in record["subjects"][0]["outputs"][0]

    def test_exams_of_one_name_have_histories_of_their_own(self, two_of_one, weights_dir, no_page):
        for _ in range(2):
            run(config_of(two_of_one, weights_dir, model="tiny", report_dir=two_of_one / "report"))
        record = json.loads((two_of_one / "report" / "tetrad-run.json").read_text())
        told = {o["target"]: (s["status"], set(s["inputs"])) for s in record["subjects"] for o in s["outputs"]}
        assert told == {"t1c": ("kept", {"t1n", "t2f", "t2w"}), "t2f": ("kept", {"t1c", "t1n", "t2w"})}

    def test_a_record_that_is_no_record_is_replaced(self, three, weights_dir, no_page):
        for content in ("[]", "{", '{"subjects": [3]}', '{"subjects": [{"subject": "a", "outputs": 3}]}'):
            (three / "report").mkdir(exist_ok=True)
            (three / "report" / "tetrad-run.json").write_text(content)
            run(config_of(three, weights_dir, report_dir=three / "report"))
            assert len(json.loads((three / "report" / "tetrad-run.json").read_text())["subjects"]) == 3

    def test_parts_do_not_overwrite_each_others(self, three, weights_dir, no_page):
        for part in (0, 1):
            run(config_of(three, weights_dir, report_dir=three / "report", part_id=part, num_parts=2))
        assert len(list((three / "report").glob("*.json"))) == 2


class TestHistory:
    @staticmethod
    def _outcome(status, sha256="ab", lacked=("t2f",), warnings=(), model="unet", subject="s"):
        provenance = None if model is None else Provenance("t2w", model, "cd", None, "mean", "cpu")
        return Outcome(subject, status, {}, lacked, (OutputRecord("t2f", "p", sha256, provenance),), warnings)

    def test_a_kept_output_has_the_warnings_of_both(self):
        earlier = self._outcome("made", warnings=("old", "both"))
        kept = self._outcome("kept", model=None, warnings=("both", "new"))
        (outcome,) = run_record.with_history(Summary([kept], ()), [earlier])
        assert (outcome.status, outcome.outputs[0].model) == ("kept", "unet")
        assert outcome.warnings == ("old", "both", "new")

    @pytest.mark.parametrize("status,sha256", [("kept", "other"), ("made", "ab")])
    def test_one_of_another_making_has_none(self, status, sha256):
        outcome = self._outcome(status, sha256, model="other")
        assert run_record.with_history(Summary([outcome], ()), [self._outcome("made")]) == [outcome]

    @pytest.mark.parametrize("ending", [{"signal_number": 15}, {"stopped": True}, {}])
    def test_a_run_that_was_ended_keeps_the_subjects_that_it_has_not_come_to(self, ending):
        earlier = [self._outcome("made"), self._outcome("made", subject="t")]
        now = self._outcome("failed")
        outcomes = run_record.with_history(Summary([now], (), **ending), earlier)
        assert outcomes == ([now, earlier[1]] if ending else [now])

    def test_a_record_of_an_older_version_is_read(self, tmp_path):
        earlier = self._outcome("made")
        form = earlier.to_json()
        form["outputs"][0]["joined"] = form["outputs"][0].pop("fusion")
        (tmp_path / "record.json").write_text(json.dumps({"subjects": [form]}))
        assert run_record.read_outcomes(tmp_path / "record.json") == [earlier]
        assert run_record.read_outcomes(tmp_path / "none.json") == []
