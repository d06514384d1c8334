"""The manifest of `docs/cluster/kubernetes.yaml`, held against the schema of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.cli import build_parser
from app.cli.commands.synthesize import choose_part

pytestmark = pytest.mark.cluster

MANIFEST = Path(__file__).parents[2] / "docs" / "cluster" / "kubernetes.yaml"
#: The oldest version that knows all its keys without a gate, and the newest that the package knows.
VERSIONS = ("1.33", "1.37")


@pytest.fixture
def job() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (requirements-cluster.txt)")
    return yaml.safe_load(MANIFEST.read_text())


@pytest.fixture
def validate():
    package = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (requirements-cluster.txt)"
    )
    return lambda form, version: package.validate(form, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_takes_it(job, validate, version):
    validate(job, version)


def test_the_schema_is_strict(job, validate):
    job["spec"]["completionmode"] = "Indexed"
    with pytest.raises(Exception, match="completionmode"):
        validate(job, VERSIONS[-1])


def test_each_pod_does_its_part(job):
    (container,) = job["spec"]["template"]["spec"]["containers"]
    options = build_parser().parse_args(container["args"])
    parts = [
        choose_part(None, options.num_parts, {"JOB_COMPLETION_INDEX": str(index)})
        for index in range(job["spec"]["completions"])
    ]
    assert parts == [(index, job["spec"]["completions"]) for index in range(job["spec"]["completions"])]


def test_it_asks_for_no_right_that_it_does_not_need(job):
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # Only what is mounted can be written to, and the input cannot.
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/data/out", "/data/report", "/tmp"}
