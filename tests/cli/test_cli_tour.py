"""The tour: what it shows is what it runs."""

import json
import sys
import webbrowser
from pathlib import Path

import pytest

from ellzero import cli
from ellzero.cli.tour import STEPS


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["ellzero", "tour", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_it_ends_with_a_certified_network_and_the_report_in_the_browser(monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    code, out, _ = call(monkeypatch, capsys, "--browser")
    assert code == 0
    for i, step in enumerate(STEPS, start=1):
        assert f"{i} of 5: {step.title}" in out
        # Every line of code that runs is shown.
        assert all(line.strip() in out for line in step.code.splitlines())
    assert "15 parameters, loss 0.2631, test accuracy 96.7%" in out
    assert "None of 3003 supports is better" in out
    assert "0 steps that raised a loss" in out
    assert out.count("proven globally optimal") >= 3
    assert "Every claim holds." in out
    summary = json.loads(Path("ellzero-out/tour/summary.json").read_text())
    assert summary["certificate"]["claim"] == "optimal"
    assert opened == [Path("ellzero-out/tour/report.html").resolve().as_uri()]


def test_q_ends_it_between_two_steps(monkeypatch, capsys):
    answers = iter(["", "q"])
    monkeypatch.setattr("builtins.input", lambda *_: next(answers))
    code, out, _ = call(monkeypatch, capsys, "--pause", "--no-browser")
    assert code == 0
    assert "2 of 5: " in out
    assert "3 of 5: " not in out
    assert not Path("ellzero-out").exists()


def test_a_folder_of_someone_else_is_not_touched(monkeypatch, capsys):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    code, out, err = call(monkeypatch, capsys, "--out", "mine")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert Path("mine/thesis.txt").read_text() == "x"
