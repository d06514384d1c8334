"""Folders and files as users of this and of similar tools reported them, from the command line, under both policies."""

from __future__ import annotations

import gzip
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from app.cli import main

SHAPE = (48, 54, 45)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
GREY = {
    "t1n": (400, 560, 160, 300),
    "t1c": (430, 590, 170, 900),
    "t2w": (520, 360, 1000, 800),
    "t2f": (430, 350, 110, 760),
}
CHALLENGE = {"t1n": "P001/P001-t1n", "t1c": "P001/P001-t1c", "t2w": "P001/P001-t2w"}
NAME = "P001-t2f.nii.gz"


def _exam(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> dict[str, Any]:
    """Four sequences of a ball: rim, white matter, ventricle, lesion; background 0."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2) / 0.8
    parts = [
        radius < 1,
        radius < 0.75,
        np.sqrt((x / 0.2) ** 2 + (y / 0.4) ** 2 + (z / 0.2) ** 2) < 1,
        np.sqrt((x - 0.4) ** 2 + y**2 + z**2) < 0.2,
    ]
    volumes = {}
    for name, values in GREY.items():
        volume = random.normal(0, 12, shape)
        for part, value, inner in zip(parts, values, (0, values[0], values[1], values[1]), strict=True):
            volume[part] += value - inner
        volumes[name] = np.where(parts[0], np.maximum(volume, 1), 0)
    return volumes


def _save(data: Any, path: Path, affine: Any = LPS, dtype: Any = np.int16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.rint(data) if np.issubdtype(dtype, np.integer) else data
    nib.save(nib.Nifti1Image(np.asarray(data).astype(dtype), affine), path)


def _write(root: Path, names: dict[str, str], seed: int = 0, ending: str = ".nii.gz") -> None:
    """Write an exam under these names, without ending; several names of one sequence get seeds of their own."""
    for number, (stem, sequence) in enumerate(names.items()):
        _save(
            _exam(seed + (number if list(names.values()).count(sequence) > 1 else 0))[sequence],
            root / f"{stem}{ending}",
        )


def _plain(root: Path) -> None:
    _write(root, {stem: m for m, stem in CHALLENGE.items()})


@dataclass(frozen=True)
class Report:
    """What was reported, and what is right.

    Attributes:
        build: writes the input.
        makes: names of the outputs.
        code: exit code under `fallback`; under `skip`, `skip_code`.
        says: regular expression that the messages match.
        skip_makes: names of the outputs under `skip`; None where they are the same.
        never: regular expression that no message matches.
    """

    build: Callable[[Path], None]
    makes: tuple[str, ...] = (NAME,)
    code: int = 0
    says: str = ""
    skip_code: int | None = None
    skip_makes: tuple[str, ...] | None = None
    never: str = "Traceback|unexpected|please report"
    options: tuple[str, ...] = ()


REPORTS: dict[str, Report] = {}


def _report(name: str, *makes: str, **more: Any) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def keep(build: Callable[[Path], None]) -> Callable[[Path], None]:
        REPORTS[name] = Report(build, makes, **more)
        return build

    return keep


# ------------------------------------------------------------ names and folders


@_report("01 T2_FLAIR", code=3)
def _t2_flair(root: Path) -> None:
    _write(root, {"P001/P001_T1": "t1n", "P001/P001_T1C": "t1c", "P001/P001_T2": "t2w", "P001/P001_T2_FLAIR": "t2f"})


@_report("02 a folder per sequence", "P001-t2w.nii.gz")
def _folder_per_sequence(root: Path) -> None:
    _write(root, {"P001/T1/P001_T1": "t1n", "P001/T1GD/P001_T1GD": "t1c", "P001/FLAIR/P001_FLAIR": "t2f"})


@_report("03 two BIDS data sets", code=1, says=r"two subjects are named sub-01 .*siteA.*siteB")
def _two_data_sets(root: Path) -> None:
    anat = "sub-01/anat/sub-01"
    _write(root, {f"siteA/{anat}_T1w": "t1n", f"siteA/{anat}_ce-gd_T1w": "t1c"})
    _write(root, {f"siteB/{anat}_T2w": "t2w"}, seed=2)


@_report("04 CT1", code=3)
def _ct1(root: Path) -> None:
    _write(
        root, {"Patient-001/T1": "t1n", "Patient-001/CT1": "t1c", "Patient-001/T2": "t2w", "Patient-001/FLAIR": "t2f"}
    )


@_report("05 fla", "exam01-t2w.nii.gz")
def _fla(root: Path) -> None:
    _write(root, {"exam01/exam01_t1": "t1n", "exam01/exam01_t1c": "t1c", "exam01/exam01_fla": "t2f"})


@_report("07 lost+found", NAME)
def _lost_and_found(root: Path) -> None:
    _plain(root)
    (root / "lost+found").mkdir(mode=0o700)


@_report("12 two forms of one letter", "Müller-t2f.nii.gz")
def _two_forms(root: Path) -> None:
    forms = {"t1n": "NFC", "t1c": "NFC", "t2w": "NFD"}
    _write(root, {unicodedata.normalize(form, f"Müller-{m}"): m for m, form in forms.items()})


_LONG = ("acq-VARIANT" + "EchoTimeRepetitionTimeObliquity" * 7 + "x" * 250)[: 246 - len("-t2f.nii.gz")]


@_report("13 a long name", f"{_LONG}-t2f.nii.gz")
def _long_name(root: Path) -> None:
    _write(root, {f"{_LONG}-{m}": m for m in CHALLENGE})


@_report("15 DICOM", code=3, says="300 files that look like DICOM.*dcm2niix")
def _dicom(root: Path) -> None:
    for series in ("T1", "T2"):
        folder = root / "DICOM" / "PAT00001" / series
        folder.mkdir(parents=True)
        for number in range(150):
            (folder / f"IM{number:06d}").write_bytes(bytes(128) + b"DICM" + bytes(200))


@_report("16 acq-gad", "sub-001-t1n.nii.gz")
def _acq_gad(root: Path) -> None:
    anat = "sub-001/anat/sub-001"
    _write(root, {f"{anat}_acq-gad_T1w": "t1c", f"{anat}_T2w": "t2w", f"{anat}_FLAIR": "t2f"})


@_report("17 registered copies", "P001-t1c.nii.gz")
def _registered(root: Path) -> None:
    _write(root, {"P001/P001_T1": "t1n", "P001/P001_T2_to_T1": "t2w", "P001/P001_FLAIR_to_T1": "t2f"})


@_report("18 own outputs", code=1, says="completed/sub-02-t2f.nii.gz was made by Tetrad")
def _own_outputs(root: Path) -> None:
    _write(root, {"sub-02/anat/sub-02_T1w": "t1n", "sub-02/anat/sub-02_T2w": "t2w"})
    image = nib.Nifti1Image(np.rint(_exam()["t2f"]).astype(np.int16), LPS)
    image.header["descrip"] = b"synthetic t2f from 3, tetrad 0.1.0, unet 00000000 mean, mirrored"
    (root / "completed").mkdir()
    nib.save(image, root / "completed" / "sub-02-t2f.nii.gz")


@_report("18 own outputs beside three scans", "sub-02-t2f.nii.gz", says="was made by Tetrad")
def _own_outputs_beside_three(root: Path) -> None:
    _own_outputs(root)
    _write(root, {"sub-02/anat/sub-02_ce-gd_T1w": "t1c"})


@_report("19 @eaDir and #recycle", NAME)
def _nas(root: Path) -> None:
    _plain(root)
    (root / "P001" / "@eaDir" / "P001-t1n.nii.gz").mkdir(parents=True)
    (root / "P001" / "@eaDir" / "P001-t1n.nii.gz" / "SYNOINDEX_MEDIA_INFO").write_bytes(b"x")
    _write(root, {f"#recycle/P001/P001-{m}": m for m in ("t1n", "t1c")}, seed=5)


@_report("21 weeks", "Patient-001_week-000-t1c.nii.gz", "Patient-002_week-000-t1c.nii.gz")
def _weeks(root: Path) -> None:
    for patient in ("Patient-001", "Patient-002"):
        folder = f"{patient}/week-000"
        _write(root, {f"{folder}/T1": "t1n", f"{folder}/T2": "t2w", f"{folder}/FLAIR": "t2f"})


@_report("23 .mgz", code=3)
def _mgz(root: Path) -> None:
    _plain(root)
    nib.save(nib.MGHImage(_exam()["t2f"].astype(np.float32), LPS), root / "P001" / "P001-t2f.mgz")


@_report("27 four volumes in one file", code=3, says="holds 4 volumes")
def _msd(root: Path) -> None:
    exam = _exam()
    _save(np.stack([exam[m] for m in ("t2f", "t1n", "t1c", "t2w")], axis=-1), root / "imagesTr" / "BRATS_001.nii.gz")


@_report("30 two runs", code=1, says="2 files for t1n.*keep one")
def _two_runs(root: Path) -> None:
    anat = "sub-01/anat/sub-01"
    _write(root, {f"{anat}_run-1_T1w": "t1n", f"{anat}_run-2_T1w": "t1n", f"{anat}_ce-gd_T1w": "t1c"})
    _write(root, {f"{anat}_T2w": "t2w", f"{anat}_FLAIR": "t2f"})


@_report("34 Latin-1", "M\udcfcller-t2f.nii.gz")
def _latin1(root: Path) -> None:
    _write(root, {f"tmp-{m}": m for m in CHALLENGE})
    for m in CHALLENGE:
        (root / f"tmp-{m}.nii.gz").rename(root / f"M\udcfcller-{m}.nii.gz")


@_report("35 UPENN-GBM", code=3)
def _upenn(root: Path) -> None:
    subject = "UPENN-GBM-00001_11"
    tokens = {"T1": "t1n", "T1GD": "t1c", "T2": "t2w", "FLAIR": "t2f"}
    _write(root, {f"images_structural/{subject}/{subject}_{t}": m for t, m in tokens.items()})
    _write(root, {f"images_structural_unstripped/{subject}/{subject}_{t}_unstripped": m for t, m in tokens.items()})
    _save(_exam()["t1c"] > 800, root / "images_segm" / f"{subject}_segm.nii.gz", dtype=np.uint8)


@_report("39 UCSF-PDGM", "UCSF-PDGM-0004-t2w.nii.gz")
def _ucsf(root: Path) -> None:
    stem = "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004"
    _write(root, {f"{stem}_T1": "t1n", f"{stem}_T1c": "t1c", f"{stem}_FLAIR": "t2f"})
    _write(
        root, {f"{stem}_{t}": m for t, m in {"T1_bias": "t1n", "T1c_bias": "t1c", "SWI": "t2w", "ADC": "t2w"}.items()}
    )
    _save(_exam()["t1n"] > 0, root / f"{stem}_brain_segmentation.nii.gz", dtype=np.uint8)


@_report("40 empty folders", "sub-01-t2f.nii.gz")
def _empty_folders(root: Path) -> None:
    anat = "sub-01/anat/sub-01"
    _write(root, {f"{anat}_T1w": "t1n", f"{anat}_ce-gd_T1w": "t1c", f"{anat}_T2w": "t2w"})
    (root / "sub-01" / "func").mkdir()
    (root / "stimuli").mkdir()


@_report("several from one", code=1, says="lacks t1c, t2f, t2w; pass --complete-all")
def _several_from_one(root: Path) -> None:
    _write(root, {"P001/P001_T1": "t1n"})


@_report("an image that is not understood", NAME, says="P001_odd.nii.gz may be a sequence", skip_code=1, skip_makes=())
def _not_understood(root: Path) -> None:
    _plain(root)
    _save(_exam()["t2f"], root / "P001" / "P001_odd.nii.gz")


# ------------------------------------------------------------ what is in the files


def _bspline(volume: Any, shift: float = 0.5) -> Any:
    """Interpolate by cubic B-splines at index + shift along every axis: a recursive filter, then four weights."""
    pole, t = np.sqrt(3) - 2, shift
    weights = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    for axis in range(3):
        padded = np.pad(volume, [(1, 3) if a == axis else (0, 0) for a in range(3)], mode="edge")
        c = np.moveaxis(padded, axis, 0) * 6.0
        for k in range(1, len(c)):
            c[k] += pole * c[k - 1]
        c[-1] = pole / (pole * pole - 1) * (c[-1] + pole * c[-2])
        for k in range(len(c) - 2, -1, -1):
            c[k] = pole * (c[k + 1] - c[k])
        n = volume.shape[axis]
        volume = np.moveaxis(sum(w * c[k : k + n] for k, w in enumerate(weights)), 0, axis)
    return volume


@_report("08 ringing", NAME, never="z-scored|no dark border|Traceback")
def _ringing(root: Path) -> None:
    for m, stem in CHALLENGE.items():
        _save(_bspline(_exam()[m]), root / f"{stem}.nii.gz", dtype=np.float32)


@_report("09 zero that was scaled", NAME, never="z-scored|no dark border|Traceback")
def _scaled_zero(root: Path) -> None:
    for (m, stem), gain in zip(CHALLENGE.items(), (1.03, 0.97, 1.11), strict=True):
        path = root / f"{stem}.nii.gz"
        _save(_exam()[m], path)
        image = nib.load(path)
        data = image.get_fdata() * gain
        data[tuple(np.argwhere(data > 0)[:40].T)] = -4.7 * gain
        nib.save(nib.Nifti1Image(data, image.affine, image.header), path)


@_report("37 a negative constant", NAME, never="z-scored|Traceback")
def _negative_constant(root: Path) -> None:
    for (m, stem), lowest in zip(CHALLENGE.items(), (-12.3, -15.1, -9.8), strict=True):
        volume = _exam()[m]
        _save(np.where(volume > 0, volume, lowest), root / f"{stem}.nii.gz", dtype=np.float32)


def _turned() -> Any:
    """A grid turned by 12 and half a degree, as an oblique scan."""
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    d, e = np.cos(np.radians(0.5)), np.sin(np.radians(0.5))
    affine = np.eye(4)
    about_z = np.array([[d, -e, 0], [e, d, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine[:3, :3] = about_z @ about_x @ np.diag([-1, 1, 1])
    affine[:3, 3] = 90, -126, -72
    return affine


@_report("10 one file with a qform only", NAME)
def _qform_only(root: Path) -> None:
    for m, stem in CHALLENGE.items():
        image = nib.Nifti1Image(np.rint(_exam(shape=(160, 192, 150))[m]).astype(np.int16), _turned())
        image.set_qform(_turned(), 1)
        image.set_sform(_turned(), 1)
        content = bytearray(image.to_bytes())
        if m == "t2w":
            content[254:256] = bytes(2)
        path = root / f"{stem}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(bytes(content), 1, mtime=0))


@_report("11 gzip named .nii", NAME)
def _gzip_named_nii(root: Path) -> None:
    _plain(root)
    (root / "P001" / "P001-t2w.nii.gz").rename(root / "P001" / "P001-t2w.nii")


@_report("20 an extension with a name in it", NAME)
def _extension(root: Path) -> None:
    for m, stem in CHALLENGE.items():
        image = nib.Nifti1Image(np.rint(_exam()[m]).astype(np.int16), LPS)
        text = f"<AFNI_attributes self_idcode='{m}'>PatientName DOE^JANE</AFNI_attributes>".encode()
        image.header.extensions.append(nib.nifti1.Nifti1Extension(4, text))
        image.header["aux_file"] = b"DOE^JANE"
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, root / f"{stem}.nii.gz")


def _bgzip(data: bytes) -> bytes:
    out = b""
    for start in [*range(0, len(data), 60000), len(data)]:
        block = data[start : start + 60000]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = packer.compress(block) + packer.flush()
        out += b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff\x06\x00BC\x02\x00" + struct.pack("<H", len(body) + 25) + body
        out += struct.pack("<II", zlib.crc32(block), len(block))
    return out


@_report("24 gzip of several members", NAME)
def _members(root: Path) -> None:
    (root / "P001").mkdir(parents=True)
    for m, stem in CHALLENGE.items():
        raw = nib.Nifti1Image(np.rint(_exam()[m]).astype(np.int16), LPS).to_bytes()
        contents = {
            "t1n": _bgzip(raw),
            "t1c": gzip.compress(raw) + bytes(8192),
            "t2w": gzip.compress(raw[:9999]) + gzip.compress(raw[9999:]),
        }
        (root / f"{stem}.nii.gz").write_bytes(contents[m])


@_report("25 a Git LFS pointer", NAME, says="Git LFS pointer|git lfs pull", skip_code=1, skip_makes=())
def _pointer(root: Path) -> None:
    _plain(root)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 1834567\n"
    (root / "P001" / "P001-t2w.nii.gz").write_text(text)


@_report("26 int64 and NIfTI-2", NAME)
def _int64(root: Path) -> None:
    exam = _exam()
    (root / "P001").mkdir(parents=True)
    path = root / "P001" / "P001"
    nib.save(nib.Nifti2Image(np.rint(exam["t2w"]).astype(np.int64), LPS, dtype=np.int64), f"{path}-t2w.nii.gz")
    nib.save(nib.Nifti1Image(np.rint(exam["t1n"]).astype(np.int64), LPS, dtype=np.int64), f"{path}-t1n.nii.gz")
    nib.save(nib.Nifti1Image(np.rint(exam["t1c"]).astype(np.uint32), LPS), f"{path}-t1c.nii.gz")


@_report("28 gantry tilt", NAME)
def _tilt(root: Path) -> None:
    affine = LPS.copy()
    affine[1, 2] = np.tan(np.radians(12))
    for m, stem in CHALLENGE.items():
        image = nib.Nifti1Image(np.rint(_exam()[m]).astype(np.int16), affine)
        image.header["qform_code"] = 0
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, root / f"{stem}.nii.gz")


@_report("32 other units", "P001-t1c.nii.gz")
def _units(root: Path) -> None:
    exam = _exam()
    _save(exam["t1n"] / exam["t1n"].max() * 255, root / "P001" / "P001-t1n.nii.gz", dtype=np.uint8)
    for m in ("t2w", "t2f"):
        _save(exam[m] / exam[m].max(), root / "P001" / f"P001-{m}.nii.gz", dtype=np.float32)


@_report("33 skull in blackened air", NAME, says="skull")
def _skull(root: Path) -> None:
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")))
    scalp, skull = (radius > 0.88) & (radius < 0.97), (radius > 0.8) & (radius <= 0.88)
    for m, stem in CHALLENGE.items():
        _save(_exam()[m] + 900 * scalp + 40 * skull, root / f"{stem}.nii.gz")


# ------------------------------------------------------------ the tests


@pytest.fixture
def synthesize(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, set[str], str]]]:
    def run(build: Callable[[Path], None], *options: str) -> tuple[int, set[str], str]:
        source, output = tmp_path / "in", tmp_path / "out"
        if not source.exists():
            source.mkdir()
            build(source)
        code = main(["synthesize", "--input", str(source), "--output", str(output), "--model", "regression", *options])
        return code, set(os.listdir(output)), capfd.readouterr().err

    yield run


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("policy", ["fallback", "skip"])
def test_reported_input(name, policy, synthesize):
    report = REPORTS[name]
    code, outputs, said = synthesize(report.build, "--on-error", policy)
    skip = policy == "skip"
    assert code == (report.skip_code if skip and report.skip_code is not None else report.code), said
    assert outputs == set(report.skip_makes if skip and report.skip_makes is not None else report.makes), said
    assert re.search(report.says, said), said
    assert not re.search(report.never, said), said


@pytest.mark.parametrize("name", ["08 ringing", "09 zero that was scaled", "37 a negative constant"])
def test_traces_in_the_background_change_nothing(name, synthesize, tmp_path):
    synthesize(REPORTS[name].build)
    clean = tmp_path / "clean"
    for (m, stem), gain in zip(CHALLENGE.items(), (1.03, 0.97, 1.11), strict=True):
        volume = _exam()[m]
        if name.startswith("08"):
            # The same interpolation, where the brain is in each voxel of its reach.
            volume = np.where(_bspline(volume > 0) > 0.5, _bspline(volume), 0)
        _save(volume * (gain if name.startswith("09") else 1), clean / f"{stem}.nii.gz", dtype=np.float32)
    options = ["--input", str(clean), "--output", str(tmp_path / "clean-out"), "--model", "regression"]
    assert main(["synthesize", *options]) == 0
    traced, expected = (nib.load(tmp_path / f / NAME).get_fdata() for f in ("out", "clean-out"))
    brain = (expected > 0) & (traced > 0)
    assert abs(traced[brain].mean() / expected[brain].mean() - 1) < 0.02
    assert (traced[:4] == 0).all()
    assert abs((traced > 0).sum() / (expected > 0).sum() - 1) < 0.05


def test_two_sites_are_kept_apart_by_their_folders(synthesize):
    anat = "sub-01/anat/sub-01"

    def build(root: Path) -> None:
        for seed, site in enumerate(("siteA", "siteB")):
            names = {f"{site}/{anat}_T1w": "t1n", f"{site}/{anat}_ce-gd_T1w": "t1c", f"{site}/{anat}_T2w": "t2w"}
            _write(root, names, seed=seed)

    assert synthesize(build)[:2] == (1, set())
    code, outputs, _ = synthesize(build, "--name-from-folders")
    assert (code, outputs) == (0, {"siteA_sub-01-t2f.nii.gz", "siteB_sub-01-t2f.nii.gz"})


def test_a_convention_is_taught(synthesize):
    def build(root: Path) -> None:
        _write(root, {"P1/P1_native": "t1n", "P1/P1_kern": "t1c", "P1/P1_wasser": "t2w"})

    options = [f"--name={m}=*_{word}.nii.gz" for m, word in (("t1n", "native"), ("t1c", "kern"), ("t2w", "wasser"))]
    assert synthesize(build, *options)[:2] == (0, {"P1-t2f.nii.gz"})


def test_a_run_is_chosen(synthesize):
    def build(root: Path) -> None:
        anat = "sub-01/anat/sub-01"
        _write(root, {f"{anat}_run-1_T1w": "t1n", f"{anat}_run-2_T1w": "t1n", f"{anat}_ce-gd_T1w": "t1c"})
        _write(root, {f"{anat}_T2w": "t2w"})

    assert synthesize(build, "--on-error", "skip")[0] == 1
    assert synthesize(build, "--run", "last")[:2] == (0, {"sub-01-t2f.nii.gz"})


def test_a_long_name_is_written_again(synthesize):
    assert synthesize(_long_name)[0] == 0
    assert synthesize(_long_name, "--overwrite")[:2] == (0, {f"{_LONG}-t2f.nii.gz"})


def test_no_text_of_a_scan_reaches_the_synthetic_file(synthesize, tmp_path):
    synthesize(_extension)
    content = gzip.decompress((tmp_path / "out" / NAME).read_bytes())
    assert b"DOE" not in content
    assert b"AFNI" not in content
    image = nib.load(tmp_path / "out" / NAME)
    assert np.asarray(image.dataobj)[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 4] > 0


def test_grey_levels_survive_other_units(synthesize, tmp_path):
    synthesize(_units)
    assert len(np.unique(nib.load(tmp_path / "out" / "P001-t1c.nii.gz").get_fdata())) > 64


def test_the_native_t1_is_made_from_the_one_with_contrast(synthesize, tmp_path):
    synthesize(_acq_gad)
    header = nib.load(tmp_path / "out" / "sub-001-t1n.nii.gz").header
    assert bytes(header["descrip"].item()).startswith(b"synthetic t1n from 3")
