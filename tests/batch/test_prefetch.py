from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from app.batch.prefetch import PrefetchingRunner, choose_readers
from app.batch.processors import case_processor
from app.batch.processors.case_processor import CaseProcessor
from app.batch.run import run
from app.core.errors import CaseError
from app.data.discovery import scan
from tests.batch.helpers import MOST_HELD, config_of, names_in, write_copies


class TestOverlap:
    @pytest.fixture
    def many(self, tmp_path, write_subject):
        write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(6)])
        return tmp_path

    def test_the_next_is_read_and_the_last_written_while_the_network_runs(self, many, weights_dir, monkeypatch):
        read, written = ({f"s{i}": threading.Event() for i in range(6)} for _ in range(2))
        original = {name: getattr(CaseProcessor, name) for name in ("read", "compute", "write")}

        def reading(self, case):
            loaded = original["read"](self, case)
            read[case.subject].set()
            return loaded

        def computing(self, loaded):
            number = int(loaded.log.subject[1:])
            if number < 5:
                assert read[f"s{number + 1}"].wait(30), "the next subject is not read meanwhile"
            if number > 0:
                assert written[f"s{number - 1}"].wait(30), "the last subject is not written meanwhile"
            return original["compute"](self, loaded)

        def writing(self, predicted):
            outcome = original["write"](self, predicted)
            written[outcome.subject].set()
            return outcome

        for name, replacement in (("read", reading), ("compute", computing), ("write", writing)):
            monkeypatch.setattr(CaseProcessor, name, replacement)
        summary = run(config_of(many, weights_dir, jobs=1))
        assert [(o.subject, o.status) for o in summary.outcomes] == [(f"s{i}", "made") for i in range(6)]

    def test_few_subjects_are_held_at_once(self, many, weights_dir, monkeypatch):
        held, most, lock = set(), [0], threading.Lock()
        read, write = CaseProcessor.read, CaseProcessor.write

        def reading(self, case):
            with lock:
                held.add(case.subject)
                most[0] = max(most[0], len(held))
            return read(self, case)

        def writing(self, predicted):
            time.sleep(0.3)
            with lock:
                held.discard(predicted.log.subject)
            return write(self, predicted)

        monkeypatch.setattr(CaseProcessor, "read", reading)
        monkeypatch.setattr(CaseProcessor, "write", writing)
        run(config_of(many, weights_dir, jobs=1))
        assert most[0] <= MOST_HELD

    def test_stop_leaves_nothing_of_later_subjects(self, many, weights_dir, monkeypatch):
        monkeypatch.setattr(case_processor, "finish", lambda *_: (_ for _ in ()).throw(CaseError("no")))
        summary = run(config_of(many, weights_dir, on_error="stop"))
        assert [o.subject for o in summary.outcomes] == ["s0"]
        assert names_in(many / "out") == []


class TestReaders:
    def test_a_slow_subject_holds_back_nobody(self, tmp_path, write_subject, weights_dir, monkeypatch):
        write_copies(write_subject, tmp_path / "in", "abcd")
        (tmp_path / "out").mkdir()
        others, original = threading.Semaphore(0), CaseProcessor._read

        def read(self, case, case_log):
            if case.subject == "a":
                # The network drive hangs until all the others are finished.
                for _ in range(3):
                    assert others.acquire(timeout=60)
            return original(self, case, case_log)

        monkeypatch.setattr(CaseProcessor, "_read", read)
        outcomes = []
        with PrefetchingRunner(CaseProcessor(config_of(tmp_path, weights_dir)), scan(tmp_path / "in").cases) as runner:
            for outcome in runner:
                outcomes.append(outcome)
                others.release()
        assert [(o.subject, o.status) for o in outcomes] == [(n, "made") for n in "bcda"]
        assert names_in(tmp_path / "out") == [f"{n}-t2f.nii.gz" for n in "abcd"]

    @pytest.mark.parametrize(
        "device,cores,asked,threads",
        [("cpu", 2, None, 2), ("cpu", 64, None, 4), ("cuda:0", 16, None, 8), ("cuda:0", 64, None, 8),
         ("cuda:0", 2, None, 2), ("cpu", 2, 3, 3), ("cpu", 2, 1, 1)],
    )  # fmt: skip
    def test_threads_that_read(self, tmp_path, weights_dir, device, cores, asked, threads):
        (tmp_path / "in").mkdir()
        processor = CaseProcessor(config_of(tmp_path, weights_dir, model="tiny", device="cpu", jobs=asked))
        runtime = replace(processor.synthesizer.model.runtime, device=device)
        processor.synthesizer.model = replace(processor.synthesizer.model, runtime=runtime)
        assert choose_readers(processor, cores) == threads
        processor.config = replace(processor.config, on_error="stop")
        assert choose_readers(processor, cores) == (asked or 1)
