from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from app.core.config import WEIGHTS_DIR
from app.core.errors import OutputError, UsageError, WeightsError
from app.preprocessing.normalization import Normalization
from app.registry.checkpoints import load_generator, load_regression
from app.registry.manifest import add_file, read_manifest, write_entry
from app.registry.spec import RegressionSpec
from tests.networks.small_models import save_generator


@pytest.fixture
def copy(weights_dir, tmp_path):
    return shutil.copytree(weights_dir, tmp_path / "w")


class TestShipped:
    def test_every_file_is_there_unchanged_and_small(self):
        manifest = read_manifest(WEIGHTS_DIR)
        listed = {"manifest.json", "lineage.json", "MODEL_CARD.md"}
        for entry in manifest.entries.values():
            for role, file in entry.files.items():
                assert entry.path_of(role).stat().st_size == file.bytes
                listed.add(file.path)
        assert {p.name for p in WEIGHTS_DIR.iterdir()} == listed
        assert sum(p.stat().st_size for p in WEIGHTS_DIR.iterdir()) < 100e6

    def test_the_fallback_is_a_regression_for_every_subset(self):
        manifest = read_manifest(WEIGHTS_DIR)
        assert manifest.fallback is not None
        assert len(load_regression(manifest.entry(manifest.fallback)).coefficients) == 28

    def test_the_default_reaches_its_floors_and_the_card_tells_its_scores(self):
        manifest = read_manifest(WEIGHTS_DIR)
        default = manifest.entry()
        rows = []
        for target, label in (("t1c", "T1c"), ("t1n", "T1n"), ("t2f", "T2-FLAIR"), ("t2w", "T2w")):
            maker = manifest.specialists_of(default).get(target, default)
            last = manifest.entries[maker.spec.refiner] if maker.spec.refine else maker
            scores = manifest.lineage.scores_of(last.sha256)
            rows.append((label, 6, scores.by_target[target]))
            assert len(scores.subjects) == 6
        mean = {k: sum(row[k] for *_, row in rows) / 4 for k in rows[0][2]}
        # Floors of the project: official score without and with the tumour only, SSIM and PSNR in the brain.
        assert mean["official_healthy"] >= 0.945
        assert mean["official_tumour"] >= 0.9970
        assert mean["ssim_brain"] >= 0.66
        assert mean["psnr_brain"] >= 18.5
        card = (WEIGHTS_DIR / "MODEL_CARD.md").read_text()
        for label, count, row in [*rows, ("all", 24, mean)]:
            shown = [f"{row[k]:.4f}" for k in ("official_healthy", "official_tumour")]
            shown += [f"{row[k]:.3f}" for k in ("ssim_brain", "ssim_tumour")]
            shown += [f"{row[k]:.2f}" for k in ("psnr_brain", "stripe_superior")]
            assert f"| {label} | {count} | {' | '.join(shown)} |" in card, label

    def test_no_validation_subject_was_fitted_on(self, data_dir):
        held_out = {p.name for p in (data_dir / "val").iterdir()}
        manifest = read_manifest(WEIGHTS_DIR)
        assert not held_out & manifest.lineage.subjects
        for entry in manifest.entries.values():
            assert manifest.lineage.ancestry([entry.sha256]).subjects, entry.name


@pytest.mark.parametrize("fails", range(4))
def test_a_full_disk_costs_no_model(copy, fails, monkeypatch):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    entry = read_manifest(copy).entry("tiny")
    network, calls, real = load_generator(entry), iter(range(9)), os.fsync

    def full(handle):
        if next(calls) == fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", full)
    state = {k: v + 1 for k, v in network.state_dict().items()}
    with pytest.raises(OutputError, match="free space"):
        spec = entry.spec
        save_generator(copy, "tiny", network.config, state, spec.normalization, spec.canvas, spec.views,
                       intensity=b"{}", onnx=b"graph")  # fmt: skip
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.parametrize("role", ["torch", "onnx"])
def test_one_flipped_byte_is_found(copy, role):
    entry = add_file(read_manifest(copy).entry("tiny"), "onnx", b"a graph")
    path = copy / entry.files[role].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum"):
        entry.path_of(role)


def test_missing_manifest_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "3", '"a"', '{"schema": 1}', '{"schema": 99, "models": {}}', '{"schema": [], "models": {}}',
     '{"schema": 2, "models": [], "default": null, "fallback": null}',
     '{"schema": 2, "models": {"a": 3}, "default": null, "fallback": null}',
     '{"schema": 2, "models": {"a": {"files": []}}, "default": null, "fallback": null}',
     '{"schema": 2, "models": {}, "default": ["a"], "fallback": null}',
     '{"schema": 2, "models": {}, "default": null, "fallback": "a"}',
     '{"schema": 1, "models": {"a": {"kind": "generator", "files": {}}}}',
     "[" * 100_000, '{"schema": 2, "models": ' + "[" * 100_000, '{"schema":' * 50_000],
)  # fmt: skip
def test_damaged_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(WeightsError, match=r"manifest\.json") as error:
        read_manifest(tmp_path)
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def _changed(folder, model, path, value):
    """Changes one value of the manifest; None takes it out."""
    form = json.loads((folder / "manifest.json").read_text())
    *way, last = path.split(".")
    place = form["models"][model]
    for key in way:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    (folder / "manifest.json").write_text(json.dumps(form))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("files.torch.path", "/dev/zero"),
        ("files.torch.path", "../tiny.safetensors"),
        ("files.torch.path", 5),
        ("files.torch.path", ""),
        ("files.torch.path", "a\x1b[2Jb"),
        ("files.torch.path", None),
        ("files.torch.sha256", None),
        ("files.torch.sha256", "short"),
        ("files.torch.bytes", -1),
        ("files.torch", None),
        ("files", []),
        ("files", None),
        ("canvas", None),
        ("canvas.sizes", {"axial": [48, 48]}),
        ("canvas.sizes.axial", [16_000_000_000, 16]),
        ("canvas.sizes.axial", [-16, 16]),
        ("architecture.width", 10**9),
        ("architecture.width", -1),
        ("architecture.width", 0),
        ("architecture.background", float("nan")),
        ("architecture.network", "other"),
        ("specialists", ["tiny"]),
        ("specialists", {"t9": "tiny"}),
        ("refiner", ["tiny"]),
        ("views", []),
        ("targets", []),
        ("contrast", 1e9),
        ("contrast", "much"),
        ("normalization.percentile", 0),
        ("normalization.background", float("inf")),
        ("normalization.scheme", "none"),
        ("kind", "oracle"),
        ("kind", None),
    ],
)
def test_an_entry_that_cannot_be_is_one_sentence(copy, path, value):
    _changed(copy, "tiny", path, value)
    with pytest.raises(WeightsError) as error:
        read_manifest(copy)
    assert "manifest.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_name_that_no_model_can_have(copy):
    form = json.loads((copy / "manifest.json").read_text())
    form["models"]["a\x1b[2J"] = form["models"]["tiny"]
    (copy / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="no name of a model"):
        read_manifest(copy)


def test_the_fallback_is_a_regression(copy):
    form = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(form | {"fallback": "tiny"}))
    with pytest.raises(WeightsError, match="tiny is no regression"):
        read_manifest(copy)


@pytest.mark.parametrize("what", ["pipe", "device", "link", "folder", "longer"])
def test_only_plain_files_of_the_folder_are_opened(copy, tmp_path, what):
    path = copy / "tiny.safetensors"
    content = path.read_bytes()
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "link":
        (tmp_path / "other").write_bytes(content)
        path.symlink_to(tmp_path / "other")
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
        os.truncate(path, 2**40)
    entry = read_manifest(copy).entry("tiny")
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        entry.path_of("torch")


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(WeightsError, match="no plain file"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["", "../escaped", "a/b", ".hidden", "a b", "-x"])
def test_no_model_leaves_its_folder_or_has_no_name(copy, name):
    before = sorted(copy.parent.rglob("*"))
    with pytest.raises(UsageError, match="no model can be called"):
        write_entry(copy, name, RegressionSpec(normalization=Normalization("volume")), {"torch": b"x"})
    assert sorted(copy.parent.rglob("*")) == before
    with pytest.raises(WeightsError, match="no model '"):
        read_manifest(copy).entry(name)


def test_unknown_model_names_the_known(copy):
    with pytest.raises(WeightsError, match="regression, tiny"):
        read_manifest(copy).entry("huge")


def test_a_model_of_a_later_version(copy):
    form = json.loads((copy / "manifest.json").read_text())
    form["models"]["tiny"]["architecture"]["mamba"] = True
    (copy / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="update Tetrad"):
        load_generator(read_manifest(copy).entry("tiny"))
