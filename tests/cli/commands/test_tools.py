from __future__ import annotations

from app.cli import main
from app.core.constants import MODALITIES
from app.data.discovery import scan


def test_phantoms_are_complete_and_count_from_their_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("app.cli.commands.tools.PHANTOM_SHAPE", (32, 32, 32))
    assert main(["phantom", "--output", str(tmp_path), "--count", "2", "--seed", "5"]) == 0
    cases = scan(tmp_path).cases
    assert [c.subject for c in cases] == ["phantom-5", "phantom-6"]
    assert all(c.usable == MODALITIES for c in cases)


def test_info_and_demo_are_handed_their_options(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("app.cli.commands.info.describe", lambda *a: calls.append(a) or "described")
    monkeypatch.setattr("app.cli.commands.demo.run_demo", lambda *a: calls.append(a) or "demonstrated")
    assert main(["info", "--weights", str(tmp_path)]) == 0
    assert main(["demo", "--output", str(tmp_path), "--drop", "t1c", "--device", "cpu", "--seed", "3"]) == 0
    assert calls == [(tmp_path,), (tmp_path, "t1c", 3, "cpu", None)]
    assert capsys.readouterr().out == "described\ndemonstrated\n"
