"""What a user sees: one sentence and the right exit code, for good input and for every kind of bad input."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli import main
from app.cli.commands import synthesize
from app.cli.commands.synthesize import choose_part
from app.core.errors import UsageError


@pytest.fixture
def call(tmp_path, weights_dir, capsys):
    """Runs synthesize on `<tmp>/in` with --on-error skip; returns code, messages, outputs."""

    def run(*options: str, model: str = "regression"):
        arguments = ["synthesize", "--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights_dir,
                     "--model", model, "--on-error", "skip", *options]  # fmt: skip
        code = main([str(a) for a in arguments])
        messages = capsys.readouterr().err
        output = tmp_path / "out"
        assert "Traceback" not in messages
        return code, messages, sorted(p.name for p in output.iterdir()) if output.is_dir() else []

    return run


def _rewrite(path: Path, data: np.ndarray | None = None, affine: np.ndarray | None = None, **header: int) -> None:
    image = nib.load(path)
    fresh = nib.Nifti1Image(
        np.asarray(image.dataobj) if data is None else data, image.affine if affine is None else affine
    )
    for key, value in header.items():
        fresh.header[key] = value
    nib.save(fresh, path)


class TestGoodInput:
    def test_plain(self, subject, call):
        assert call()[::2] == (0, ["sub01-t2f.nii.gz"])

    def test_integers_with_a_slope(self, subject, call, tmp_path):
        for path in subject.values():
            raw = bytearray(gzip.decompress(path.read_bytes()))
            raw[112:120] = struct.pack("<2f", 0.5, 0.0)
            path.write_bytes(gzip.compress(bytes(raw)))
        assert call()[0] == 0
        image = nib.load(tmp_path / "out" / "sub01-t2f.nii.gz")
        raw = gzip.decompress((tmp_path / "out" / "sub01-t2f.nii.gz").read_bytes())
        assert image.get_data_dtype() == np.int16
        assert struct.unpack("<2f", raw[112:120]) == (1.0, 0.0)

    def test_fractions_stored_with_a_slope_keep_their_grey_levels(self, subject, call, tmp_path):
        for path in subject.values():
            image = nib.load(path)
            data = np.asarray(image.dataobj, dtype=np.float64)
            fresh = nib.Nifti1Image(data / data.max(), image.affine)
            fresh.set_data_dtype(np.uint8)
            nib.save(fresh, path)
        assert call()[0] == 0
        image = nib.load(tmp_path / "out" / "sub01-t2f.nii.gz")
        assert image.get_data_dtype() == np.float32
        assert len(np.unique(np.asarray(image.dataobj))) > 100

    @pytest.mark.parametrize("slope", [1e20, 3e38])
    def test_values_that_no_scanner_gives_are_a_damaged_file(self, subject, call, slope):
        raw = bytearray(gzip.decompress(subject["t1c"].read_bytes()))
        raw[112:120] = struct.pack("<2f", slope, 0.0)
        subject["t1c"].write_bytes(gzip.compress(bytes(raw)))
        code, messages, made = call()
        assert (code, made) == (1, [])
        assert str(subject["t1c"]) in messages
        assert "export it again" in messages
        assert "RuntimeWarning" not in messages

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
    def test_types(self, tmp_path, write_subject, call, dtype, phantom):
        write_subject(tmp_path / "in" / "sub01", dtype=np.float32)
        for path in (tmp_path / "in" / "sub01").iterdir():
            data = np.asarray(nib.load(path).dataobj)
            _rewrite(path, (data / 5 if dtype == np.uint8 else data).astype(dtype))
        assert call()[0] == 0
        assert nib.load(tmp_path / "out" / "sub01-t2f.nii.gz").get_data_dtype() == dtype

    def test_nan_is_mended_and_said(self, subject, call):
        data = np.asarray(nib.load(subject["t1n"]).dataobj).astype(np.float32)
        data[20:22, 20, 20] = np.nan
        _rewrite(subject["t1n"], data)
        code, messages, outputs = call()
        assert (code, len(outputs)) == (0, 1)
        assert "2 voxels that were NaN" in messages

    def test_fourth_axis_of_one(self, subject, call):
        for path in subject.values():
            _rewrite(path, np.asarray(nib.load(path).dataobj)[..., None])
        assert call()[0] == 0

    @pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1)])
    def test_ras_and_las(self, tmp_path, write_subject, call, signs):
        write_subject(tmp_path / "in" / "sub01", affine=np.diag([*map(float, signs), 1.0]))
        assert call()[0] == 0
        assert (np.sign(np.diag(nib.load(tmp_path / "out" / "sub01-t2f.nii.gz").affine)[:3]) == signs).all()

    def test_oblique(self, tmp_path, write_subject, call):
        c, s = np.cos(0.3), np.sin(0.3)
        affine = np.array([[-c, s, 0, 10.0], [-s, -c, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
        write_subject(tmp_path / "in" / "sub01", affine=affine)
        assert call()[0] == 0
        np.testing.assert_allclose(nib.load(tmp_path / "out" / "sub01-t2f.nii.gz").affine, affine, atol=1e-5)

    @pytest.mark.parametrize("sform,qform", [(1, 0), (0, 1)])
    def test_sform_or_qform_alone(self, subject, call, sform, qform, tmp_path):
        for path in subject.values():
            _rewrite(path, sform_code=sform, qform_code=qform)
        assert call()[0] == 0
        header = nib.load(tmp_path / "out" / "sub01-t2f.nii.gz").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (sform, qform)

    def test_neither_sform_nor_qform(self, subject, call):
        for path in subject.values():
            image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), None)
            image.header["sform_code"] = image.header["qform_code"] = 0
            nib.save(image, path)
        code, messages, _ = call()
        assert code == 0
        assert "neither sform nor qform" in messages

    def test_the_callers_of_2023(self, subject, tmp_path, capsys):
        code = main(["infer", f"--data_path={tmp_path / 'in'}", f"--output_path={tmp_path / 'out'}",
                     f"--weights={tmp_path}", "--parameters_file=/mlcube_io3/dummy.yml"])  # fmt: skip
        assert code == 0
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["sub01-t2f.nii.gz"]

    def test_profile_hospital(self, subject, tmp_path, weights_dir):
        (subject["t1n"].parent.parent / "sub02").mkdir()
        code = main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--profile", "hospital"])
        assert code == 1
        assert (tmp_path / "out-report" / "tetrad-run.json").is_file()
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["sub01-t2f.nii.gz"]

    @pytest.mark.parametrize("options", [["--resume"], ["--resume", "same"], ["--resume=any"], []])
    def test_what_is_there_is_kept(self, subject, call, options):
        assert call()[0] == 0
        code, messages, _ = call(*options)
        assert (code, "1 kept" in messages) == (0, True)


class TestHospital:
    """A container without a mount for the report would lose it."""

    @pytest.fixture
    def container(self, monkeypatch, tmp_path):
        def lost(folder):
            return not folder.is_relative_to(tmp_path / "out")

        monkeypatch.setattr(synthesize, "is_lost_with_container", lost)

    @pytest.mark.usefixtures("container")
    def test_it_is_said_before_the_run(self, subject, call, tmp_path):
        code, messages, outputs = call("--profile", "hospital")
        assert (code, outputs) == (2, [])
        assert f"mount a folder there (-v DIR:{tmp_path / 'out'}-report), or name another with --report-dir" in messages

    @pytest.mark.usefixtures("container")
    def test_who_names_a_folder_gets_it(self, subject, call, tmp_path, monkeypatch):
        assert call("--profile", "hospital", "--report-dir", tmp_path / "report")[0] == 0
        assert (tmp_path / "report" / "tetrad-run.json").is_file()

    def test_where_all_is_in_the_container_nothing_is_said(self, subject, call, monkeypatch):
        monkeypatch.setattr(synthesize, "is_lost_with_container", lambda _: True)
        assert call("--profile", "hospital")[0] == 0


class TestBadInput:
    def test_truncated_gzip(self, subject, call):
        content = subject["t2w"].read_bytes()
        subject["t2w"].write_bytes(content[: len(content) // 2])
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "sub01-t2w.nii.gz is truncated" in messages

    def test_text_named_nifti(self, subject, call):
        subject["t2w"].write_text("see the attached scan")
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "is text, not an image" in messages

    def test_three_volumes_in_one_file(self, subject, call):
        data = np.asarray(nib.load(subject["t2w"]).dataobj)
        _rewrite(subject["t2w"], np.stack([data] * 3, axis=-1))
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "holds 3 volumes" in messages

    def test_grids_that_do_not_match(self, subject, call):
        _rewrite(subject["t2w"], affine=np.diag([-1.1, -1, 1, 1]))
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "different grids" in messages

    def test_thick_slices(self, subject, call):
        for path in subject.values():
            _rewrite(path, np.random.default_rng(0).integers(0, 99, (512, 512, 30)).astype(np.int16))
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "512x512x30" in messages

    def test_two_files_for_one_sequence(self, subject, call):
        shutil.copy(subject["t1n"], subject["t1n"].with_name("sub01_t1.nii.gz"))
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "2 files for t1n" in messages

    def test_no_permission_to_read(self, subject, call, monkeypatch):
        real = Path.open

        def refuse(self, *args, **kwargs):
            if self.name == "sub01-t2w.nii.gz":
                raise PermissionError(13, "Permission denied")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", refuse)
        code, messages, outputs = call()
        assert (code, outputs) == (1, [])
        assert "may not be read" in messages

    def test_output_that_may_not_be_written(self, subject, call, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        code, messages, outputs = call()
        assert (code, outputs) == (2, [])
        assert "may not be written" in messages

    def test_output_that_is_a_file(self, subject, call, tmp_path):
        (tmp_path / "out").write_text("")
        code, messages, _ = call()
        assert code == 2
        assert "cannot be made" in messages

    def test_input_that_is_not_there(self, call):
        code, messages, _ = call()
        assert code == 2
        assert "does not exist" in messages

    def test_nothing_to_do(self, call, tmp_path):
        (tmp_path / "in").mkdir()
        code, messages, outputs = call()
        assert (code, outputs) == (3, [])
        assert "holds no subject" in messages

    def test_weights_with_one_flipped_byte(self, subject, tmp_path, weights_dir, capsys):
        copy = shutil.copytree(weights_dir, tmp_path / "w")
        content = bytearray((copy / "tiny.safetensors").read_bytes())
        content[-5] ^= 1
        (copy / "tiny.safetensors").write_bytes(content)
        code = main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
                     "--weights", str(copy), "--model", "tiny"])  # fmt: skip
        assert code == 4
        assert "does not match its checksum" in capsys.readouterr().err

    @pytest.mark.parametrize("model", ["regression", "tiny"])
    def test_a_gpu_that_is_not_there(self, subject, call, monkeypatch, model):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        code, messages, outputs = call("--device", "cuda", model=model)
        assert (code, outputs) == (5, [])
        assert "none is visible" in messages

    @pytest.mark.parametrize(
        "options",
        [
            ["--resume", "--overwrite"],
            ["--resume=any", "--overwrite"],
            ["--part-id", "1"],
            ["--part-id", "2", "--num-parts", "2"],
            ["--device", "tpu"],
        ],
    )
    def test_usage(self, subject, call, options):
        assert call(*options)[::2] == (2, [])

    @pytest.mark.parametrize(
        "options", [["--batch-size", "0"], ["--nonsense"], ["--on-error", "panic"], ["--report-dir", ""]]
    )
    def test_usage_that_the_parser_sees(self, options):
        with pytest.raises(SystemExit) as exit_info:
            main(["synthesize", *options])
        assert exit_info.value.code == 2


def _array(task, first, last, count, step=1, **more):
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    values = {f"SLURM_ARRAY_TASK_{n}": str(v) for n, v in zip(names, (task, first, last, count, step), strict=True)}
    return {k: v for k, v in (values | more).items() if v is not None}


def _tasks(tasks, step=1):
    """What Slurm sets for each task of an array."""
    return [_array(task, min(tasks), max(tasks), len(tasks), step) for task in tasks]


class TestParts:
    @pytest.mark.parametrize(
        ("tasks", "step"),
        [(range(5, 9), 1), (range(4), 1), (range(1, 10, 4), 4), (range(0, 10, 2), 2), ([7], 1), ([3, 4], 1)],
    )
    def test_slurm_arrays_with_and_without_steps(self, tasks, step):
        parts = [choose_part(None, None, environment) for environment in _tasks(list(tasks), step)]
        assert parts == [(number, len(tasks)) for number in range(len(tasks))]

    def test_slurm_tells_the_end_or_the_last_task(self):
        # `--array=0-9:4` has the tasks 0, 4 and 8.
        assert choose_part(None, None, _array(8, 0, 9, 3, 4)) == (2, 3)

    @given(st.sets(st.integers(0, 30), min_size=1, max_size=6))
    def test_tasks_cover_all_parts_once_or_all_are_refused(self, tasks):
        parts, refused = [], 0
        for environment in _tasks(sorted(tasks)):
            try:
                parts.append(choose_part(None, None, environment))
            except UsageError as error:
                refused += 1
                assert "--part-id" in str(error)
                assert "--num-parts" in str(error)
        assert refused in {0, len(tasks)}
        if not refused:
            assert sorted(parts) == [(number, len(tasks)) for number in range(len(tasks))]

    @pytest.mark.parametrize("tasks", [[3, 7], [0, 1, 2, 8], [1, 3, 5], [2, 900]])
    def test_a_list_of_tasks_is_refused_in_every_task(self, tasks):
        for environment in _tasks(tasks):
            with pytest.raises(UsageError, match=r"this Slurm array is a list.*give --part-id and --num-parts"):
                choose_part(None, None, environment)
            # Who knows the parts gives them.
            assert choose_part(1, 4, environment) == (1, 4)
            assert choose_part(None, 1, environment) == (0, 1)

    def test_a_list_is_refused_before_any_work(self, subject, call, monkeypatch):
        for name, value in _array(7, 3, 7, 2).items():
            monkeypatch.setenv(name, value)
        code, messages, outputs = call()
        assert (code, outputs) == (2, [])
        assert "--num-parts" in messages

    @pytest.mark.parametrize("missing", ["MIN", "MAX", "COUNT"])
    def test_what_slurm_does_not_tell_is_not_guessed(self, missing):
        environment = _array(2, 0, 3, 4)
        del environment[f"SLURM_ARRAY_TASK_{missing}"]
        with pytest.raises(UsageError, match=f"SLURM_ARRAY_TASK_{missing} is not set"):
            choose_part(None, None, environment)

    def test_the_only_task_does_all(self):
        environment = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "1"}
        assert choose_part(None, None, environment) == (0, 1)

    def test_without_a_step_it_is_one(self):
        environment = _array(6, 5, 8, 4, SLURM_ARRAY_TASK_STEP=None)
        assert choose_part(None, None, environment) == (1, 4)

    @pytest.mark.parametrize("environment", [_array(9, 0, 3, 4), _array(1, 2, 5, 4), _array(1, 0, 3, 4, 0),
                                             _array(2, 3, 0, 4), _array(1, 0, 8, 3, 4)])  # fmt: skip
    def test_numbers_that_contradict_each_other(self, environment):
        with pytest.raises(UsageError, match="do not tell which part"):
            choose_part(None, None, environment)

    def test_kubernetes(self):
        assert choose_part(None, 4, {"JOB_COMPLETION_INDEX": "3"}) == (3, 4)

    def test_options_win(self):
        assert choose_part(0, 2, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}) == (0, 2)
        assert choose_part(None, 1, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "9"}) == (0, 1)

    def test_alone(self):
        assert choose_part(None, None, {}) == (0, 1)

    @pytest.mark.parametrize(
        "environment",
        [_array("abc", 0, 5, 6), _array("", 0, 5, 6), _array("-1", -1, 4, 6), _array(1, 0, "5.0", 6),
         _array(1, 0, 5, "9" * 5000), _array(1, 0, 5, 6, " 1"), {"JOB_COMPLETION_INDEX": "x"}],
    )  # fmt: skip
    def test_no_numbers(self, environment):
        with pytest.raises(UsageError, match="not a whole number"):
            choose_part(None, 2 if "JOB_COMPLETION_INDEX" in environment else None, environment)

    def test_half_known(self):
        with pytest.raises(UsageError):
            choose_part(None, 3, {})


def test_export_of_a_regression_is_refused(weights_dir, capsys):
    assert main(["export", "--weights", str(weights_dir), "--model", "regression"]) == 4
    assert "runs without onnxruntime" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("app.training.trainer.build_cache", interrupted)
    assert main(["train", "smoke", "--data", str(tmp_path), "--run", str(tmp_path / "run")]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--help"])
    assert exit_info.value.code == 0
    assert "exit codes" in capsys.readouterr().out
