from __future__ import annotations

from app.batch.outcomes import OutputRecord
from app.batch.stages import CaseLog, FailedCase, WrittenCase


def test_a_log_is_closed_with_all_that_it_has():
    log = CaseLog("s", inputs={"t2w": "f"}, lacked=("t2f",), warnings=["careful"])
    log.stages |= {"read": 0.12345, "network": 1.00049}
    log.outputs.append(OutputRecord("t2f", "p", "ab"))
    outcome = WrittenCase(log, "made").outcome()
    assert (outcome.status, outcome.lacked, outcome.warnings) == ("made", ("t2f",), ("careful",))
    assert [o.path for o in outcome.outputs] == ["p"]
    assert outcome.stages == {"read": 0.123, "network": 1.0}
    assert outcome.seconds == 1.123


def test_a_failure_keeps_what_was_written_before_it():
    log = CaseLog("s")
    log.outputs.append(OutputRecord("t1c", "p", "ab"))
    outcome = FailedCase(log, "no space").outcome()
    assert (outcome.status, outcome.error) == ("failed", "no space")
    assert [o.path for o in outcome.outputs] == ["p"]
