"""`synthesize` with models that expect their own error, leave sequences to others, or have a refiner."""

from __future__ import annotations

import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from app.batch.processors.case_processor import CaseProcessor
from app.cli import main
from app.core.config import ModelOptions, RunConfig, RuntimeOptions
from app.core.errors import ExitCode
from app.data.nifti_reader import load_volume
from app.inference.pipeline import predict, prepare
from app.inference.synthesizer import Synthesizer
from app.registry.manifest import read_manifest


class TestConfidenceMaps:
    @pytest.fixture
    def weights(self, confident_weights):
        return confident_weights

    @pytest.fixture
    def call(self, weights, tmp_path, subject, capsys):
        def run(*options, model="unet"):
            code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                         str(weights), "--model", model, "--precision", "fp32", "--device", "cpu",
                         *map(str, options)])  # fmt: skip
            messages = capsys.readouterr().err
            assert "Traceback" not in messages
            return code, messages

        return run

    def test_the_map_lies_beside_on_the_outputs_grid(self, call, tmp_path):
        place = tmp_path / "maps"
        assert call("--confidence-dir", place, "--fusion", "confidence", "--flip-average")[0] == 0
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["sub01-t2f.nii.gz"]
        assert [p.name for p in place.iterdir()] == ["sub01-t2f-confidence.nii.gz"]
        made, sure = (nib.load(p) for p in (tmp_path / "out" / "sub01-t2f.nii.gz", next(place.iterdir())))
        np.testing.assert_array_equal(made.affine, sure.affine)
        assert sure.get_data_dtype() == np.float32
        assert bytes(sure.header["descrip"].item()).startswith(b"confidence of synthetic t2f")
        values, brain = sure.get_fdata(), made.get_fdata() > 0
        assert values[brain].min() > 0
        assert values.max() <= 1
        assert (values > 0).sum() < values.size
        assert values[brain].std() > 0

    def test_a_map_is_what_the_head_expects(self, call, tmp_path, weights, subject):
        call("--confidence-dir", tmp_path / "maps")
        model = Synthesizer("unet", weights=weights, device="cpu", precision="fp32", with_error=True).model
        prepared = prepare({m: load_volume(f) for m, f in subject.items()}, model)
        expected = 1 / (1 + predict(prepared, "t2f", model).error)
        found = load_volume(tmp_path / "maps" / "sub01-t2f-confidence.nii.gz").data
        np.testing.assert_allclose(found, np.where(prepared.foreground, expected, 0), rtol=1e-3)

    @pytest.mark.parametrize("place", ["out", "out/maps", "in"])
    def test_never_into_the_output_or_the_input(self, call, tmp_path, place):
        code, messages = call("--confidence-dir", tmp_path / place)
        assert code == 2
        assert "for confidence" in messages
        assert not (tmp_path / "out" / "maps").exists()

    @pytest.mark.parametrize("options", [("--fusion", "confidence"), ("--confidence-dir", "maps")])
    def test_without_a_head_one_sentence(self, call, tmp_path, monkeypatch, options):
        monkeypatch.chdir(tmp_path)
        code, messages = call(*options, model="plain")
        assert code == 2
        assert "does not say how sure it is" in messages
        assert not list((tmp_path / "out").glob("*"))

    def test_the_mirrored_exam_as_the_manifest_says_or_the_command(self, call, tmp_path, weights):
        file = tmp_path / "out" / "sub01-t2f.nii.gz"
        made = {}
        for options in ((), ("--flip-average",)):
            assert call("--overwrite", *options)[0] == 0
            made[options] = file.read_bytes()
        assert made[()] != made["--flip-average",]
        folder = shutil.copytree(weights, tmp_path / "w")
        form = json.loads((folder / "manifest.json").read_text())
        form["models"]["unet"]["flip_average"] = True
        (folder / "manifest.json").write_text(json.dumps(form))
        for options, expected in (((), made["--flip-average",]), (("--no-flip-average",), made[()])):
            assert call("--overwrite", "--weights", folder, *options)[0] == 0
            # (Their difference would be shown byte by byte.)
            assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(expected).digest()

    def test_an_output_without_its_map_is_made_again(self, call, tmp_path):
        assert call()[0] == 0
        code, messages = call("--confidence-dir", tmp_path / "maps")
        assert (code, "1 made" in messages) == (0, True)
        assert "1 kept" in call("--confidence-dir", tmp_path / "maps")[1]

    def test_what_the_fallback_makes_has_none(self, call, tmp_path, monkeypatch):
        (tmp_path / "maps").mkdir()
        stale = tmp_path / "maps" / "sub01-t2f-confidence.nii.gz"
        stale.write_bytes(b"of another day")

        def broken(*_):
            raise MemoryError("no room")

        monkeypatch.setattr("app.batch.processors.case_processor.predict", broken)
        code, messages = call("--confidence-dir", tmp_path / "maps")
        assert code == 0
        assert "has no map of confidence" in messages
        assert not stale.exists()

    @pytest.mark.cluster
    @pytest.mark.usefixtures("ray_package")
    def test_several_devices_carry_the_options(self, call, tmp_path):
        options = "--fusion", "confidence", "--flip-average"
        assert call(*options, "--confidence-dir", tmp_path / "one")[0] == 0
        alone = (tmp_path / "out" / "sub01-t2f.nii.gz").read_bytes()
        code, _ = call(*options, "--confidence-dir", tmp_path / "two", "--overwrite", "--device", "cpu,cpu")
        assert code == 0
        assert (tmp_path / "out" / "sub01-t2f.nii.gz").read_bytes() == alone
        assert (tmp_path / "two" / "sub01-t2f-confidence.nii.gz").exists()


class TestSpecialists:
    @pytest.fixture
    def weights(self, specialist_weights):
        return specialist_weights

    def _run(self, weights, tmp_path, *more):
        return main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(weights), "--model", "tiny", "--device", "cpu", "--report-dir", str(tmp_path / "report"),
                     *more])  # fmt: skip

    def _record(self, tmp_path):
        return json.loads((tmp_path / "report" / "tetrad-run.json").read_text())

    def test_a_run_says_who_made_what(self, weights, write_subject, tmp_path):
        write_subject(tmp_path / "in" / "sub01", lacks=("t1c", "t2f"))
        assert self._run(weights, tmp_path, "--complete-all") == ExitCode.OK
        record = self._record(tmp_path)
        entry = read_manifest(weights).entry("expert")
        told = {"name": "expert", "sha256": entry.identity.fingerprint, "weights_sha256": entry.sha256}
        assert record["model"]["specialists"] == {"t2f": told}
        made = {o["target"]: (o["model"], o["weights_sha256"]) for o in record["subjects"][0]["outputs"]}
        assert made["t2f"] == ("expert", entry.sha256)
        assert made["t1c"][0] == "tiny"
        assert "t2f by expert" in (tmp_path / "report" / "tetrad-run.html").read_text()
        assert self._run(weights, tmp_path, "--complete-all") == ExitCode.OK
        (again,) = self._record(tmp_path)["subjects"]
        assert (again["status"], again["warnings"]) == ("kept", [])

    @pytest.mark.cluster
    @pytest.mark.usefixtures("ray_package")
    def test_several_devices_say_the_same(self, weights, subject, tmp_path):
        assert self._run(weights, tmp_path, "--device", "cpu,cpu") == ExitCode.OK
        record = self._record(tmp_path)
        assert record["model"]["specialists"]["t2f"]["name"] == "expert"
        assert record["subjects"][0]["outputs"][0]["model"] == "expert"

    def test_without_them_all_is_made_by_one(self, weights, subject, tmp_path):
        assert self._run(weights, tmp_path, "--no-specialists") == ExitCode.OK
        record = self._record(tmp_path)
        assert record["model"]["specialists"] == {}
        assert record["subjects"][0]["outputs"][0]["model"] == "tiny"
        # What is there was made in another way than this run would make it.
        assert self._run(weights, tmp_path) == ExitCode.OK
        assert any("--overwrite" in w for w in self._record(tmp_path)["subjects"][0]["warnings"])

    def test_the_regression_stands_in_where_it_breaks(self, weights, subject, tmp_path, monkeypatch):
        def broken(*_, **__):
            raise MemoryError("none left")

        monkeypatch.setattr("app.inference.backends.TorchBackend.run", broken)
        assert self._run(weights, tmp_path) == ExitCode.OK
        (told,) = self._record(tmp_path)["subjects"]
        assert told["outputs"][0]["model"] == "regression"
        assert "expert could not make t2f" in " ".join(told["warnings"])

    def test_info_names_them(self, weights, capsys):
        assert main(["info", "--weights", str(weights)]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert "t2f by expert" in shown
        assert "makes t2f only" in shown


class TestRefiner:
    def test_a_run_records_it(self, refined_weights, subject, tmp_path):
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(refined_weights), "--model", "tiny", "--refine", "--device", "cpu", "--on-error", "stop",
                     "--report-dir", str(tmp_path / "report")])  # fmt: skip
        assert code == ExitCode.OK
        record = next(json.loads(p.read_text()) for p in (tmp_path / "report").glob("*.json"))
        (output,) = record["subjects"][0]["outputs"]
        assert output["model"] == "tiny+sharp"
        assert output["refiner_sha256"] == read_manifest(refined_weights).entry("sharp").sha256
        model = ModelOptions(refined_weights, "tiny", refine=True)
        config = RunConfig(tmp_path / "in", tmp_path / "out", RuntimeOptions("cpu"), model)
        assert "refined by sharp" in CaseProcessor(config).runtime

    def test_info_names_it(self, refined_weights, capsys):
        assert main(["info", "--weights", str(refined_weights)]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert "refiner sharp (off by default)" in shown
        assert "sharp: refiner" in shown
