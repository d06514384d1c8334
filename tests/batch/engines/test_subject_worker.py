from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import __version__
from app.batch.engines import subject_worker
from app.batch.engines.placement import Place
from app.batch.engines.subject_worker import SubjectWorker, depth_of, most_calls
from app.batch.prefetch import MAX_READERS, WRITE_BEHIND
from app.core.errors import DeviceError, WeightsError
from app.data.discovery import scan
from tests.batch.helpers import config_of, names_in


@pytest.fixture
def worker_of(three, weights_dir, monkeypatch):
    """Makes a worker on the three subjects, with its model loaded; its log does not outlive the test."""
    own = logging.getLogger("app")
    monkeypatch.setattr(own, "handlers", [])
    monkeypatch.setattr(own, "level", logging.INFO)
    (three / "out").mkdir()

    def make(**options):
        worker = SubjectWorker(config_of(three, weights_dir, **options), Place("cpu", 1), logging.INFO)
        return worker, worker.load()

    return make


def test_several_subjects_at_once(three, worker_of):
    worker, description = worker_of(profile_file=three / "trace.json")
    assert (description.version, description.model["name"]) == (__version__, "regression")
    assert description.depth == 2 + 1 + WRITE_BEHIND
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(worker.complete, scan(three / "in").cases))
    assert [r.outcome.status for r in reports] == ["made"] * 3
    assert names_in(three / "out") == ["a-t2f.nii.gz", "b-t2f.nii.gz", "c-t2f.nii.gz"]
    assert len([event for report in reports for event in report.events]) == 9


def test_after_its_end_nothing_is_begun(three, worker_of):
    worker, _ = worker_of()
    worker.end()
    assert worker.complete(scan(three / "in").cases[0]).outcome is None
    assert names_in(three / "out") == []


def test_its_log_travels_with_the_next_report(three, worker_of):
    worker, _ = worker_of()
    logging.getLogger("app.batch.output_files").warning("%s is odd", "x")
    messages = worker.complete(scan(three / "in").cases[0]).messages
    assert ("app.batch.output_files", logging.WARNING, "x is odd") in [(m.name, m.level, m.text) for m in messages]
    assert worker.complete(scan(three / "in").cases[2]).messages == ()


def test_a_model_that_cannot_be_loaded_is_told(worker_of, monkeypatch):
    assert isinstance(worker_of(model="none")[1], WeightsError)

    def broken(_):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(subject_worker, "open_processor", broken)
    fault = worker_of()[1]
    assert isinstance(fault, DeviceError)
    assert "could not be loaded on cpu (ZeroDivisionError: odd)" in str(fault)


def test_where_a_failure_ends_the_run_one_subject_at_a_time(three, weights_dir):
    config = config_of(three, weights_dir, on_error="stop")
    assert depth_of(config, 1) == 1
    assert most_calls(config_of(three, weights_dir)) > depth_of(config_of(three, weights_dir), MAX_READERS)
