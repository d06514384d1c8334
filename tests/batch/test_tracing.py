from __future__ import annotations

import json

import pytest

from app.batch.run import run
from tests.batch.helpers import config_of, write_copies


def test_exams_of_one_name_have_times_of_their_own(two_of_one, weights_dir):
    for _ in range(2):
        summary = run(config_of(two_of_one, weights_dir, profile_file=two_of_one / "trace.json"))
        events = json.loads((two_of_one / "trace.json").read_text())["traceEvents"]
        for stage in ("read", "network", "write"):
            spans = sorted(e["dur"] / 1e6 for e in events if e["name"] == stage)
            assert sorted(o.stages[stage] for o in summary.outcomes if stage in o.stages) == pytest.approx(
                spans, abs=1e-3
            )
        # One that is kept is soon ready, and takes nothing of the other's.
        (two_of_one / "out" / "s-t1c.nii.gz").unlink()


def test_a_place_for_the_trace_is_made_before_the_work(three, weights_dir):
    run(config_of(three, weights_dir, profile_file=three / "new" / "trace.json"))
    assert (three / "new" / "trace.json").stat().st_size > 0


def test_a_trace_tells_where_time_went(tmp_path, write_subject, weights_dir, no_page):
    write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(6)])
    summary = run(
        config_of(tmp_path, weights_dir, profile_file=tmp_path / "trace.json", report_dir=tmp_path / "report")
    )
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {(e["args"]["subject"], e["name"]) for e in events} == {
        (f"s{i}", stage) for i in range(6) for stage in ("read", "network", "write")
    }
    assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
    threads = {stage: {e["tid"] for e in events if e["name"] == stage} for stage in ("read", "network", "write")}
    assert len(threads["network"]) == 1
    assert not threads["network"] & (threads["read"] | threads["write"])
    for outcome in summary.outcomes:
        assert set(outcome.stages) == {"read", "network", "write"}
        assert outcome.seconds == pytest.approx(sum(outcome.stages.values()), abs=1e-3)
