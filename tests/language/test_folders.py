"""`ellzero compress` on a tiny folder of transformers with random weights."""

import json
import os
import shutil
import types
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ellzero.language
from ellzero.cli import app
from ellzero.cli.compress import check_separate
from ellzero.errors import DataError, EllzeroError, InvalidParameterError
from ellzero.language.folders import check_room, load_folder, text_batches
from tests.language.encoders import bert_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bert_folder(tmp_path)


def test_a_folder_becomes_a_sparse_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = tmp_path / "text.txt"
    command = ["compress", str(folder), "--calibration", str(text), "--out", str(out)]
    result = CliRunner().invoke(app, [*command, "--density", "0.25"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    model, _ = load_folder(out)
    table = json.loads((out / "summary.json").read_text())
    assert len(table["layers"]) == 12
    for line in table["layers"]:
        weight = model.get_parameter(f"{line['name']}.weight")
        assert int((weight != 0).sum()) == line["n_nonzero"] == weight.numel() // 4
    assert "'pooler.dense' was left dense: outside the repeated blocks" in result.output
    page = (out / "report.html").read_text()
    assert "encoder.layer.1.output.dense" in page
    assert "1,024 of 4,096 weights in 12 layers; mean relative error of a layer" in page
    assert "&#39;pooler.dense&#39; was left dense" in page
    assert not (tmp_path / "out.layers").exists()


def test_bad_folders_are_named_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no model of transformers: it has no config\.json"):
        check_room(tmp_path, tmp_path / "out")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(DataError, match="has no weights"):
        check_room(folder, tmp_path / "out")
    with pytest.raises(DataError, match="transformers cannot read the folder"):
        load_folder(folder)


def test_a_full_disk_is_named_before_any_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1, 1, 5 << 20))
    with pytest.raises(InvalidParameterError, match="out' needs 64 MB, and its disk has 5 MB"):
        check_room(folder, tmp_path / "deep" / "out")


def test_each_disk_is_asked_for_what_it_gets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = next(folder.glob("*.safetensors")).stat().st_size
    (tmp_path / "kept").mkdir()
    disks = {tmp_path: 1, tmp_path / "kept": 2}
    usage = namedtuple("usage", "total used free")
    real = os.stat

    def stat(path: Path, *args: object, **kwargs: object) -> object:
        found = real(path, *args, **kwargs)  # type: ignore[arg-type]
        device = disks.get(Path(path), found.st_dev)
        return types.SimpleNamespace(st_dev=device, st_mode=found.st_mode, st_size=found.st_size)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        patch.setattr(
            shutil, "disk_usage", lambda p: usage(1, 1, (65 << 20) if p == tmp_path else 2 * size)
        )
        check_room(folder, tmp_path / "out", tmp_path / "kept")
        # The state of a training is four times the model.
        with pytest.raises(InvalidParameterError, match="kept' needs 0 MB"):
            check_room(folder, tmp_path / "out", tmp_path / "kept", distill=True)


def run(folder: Path, tmp_path: Path, *extra: str) -> Any:
    command = ["compress", str(folder), "--calibration", str(tmp_path / "text.txt")]
    command += ["--out", str(tmp_path / "out"), "--density", "0.25", "--no-bounds", *extra]
    return CliRunner().invoke(app, command)


@pytest.mark.parametrize(
    ("failure", "code", "said"),
    [
        (KeyboardInterrupt, 130, "Interrupted: 4 finished layers are kept in"),
        (MemoryError, 1, "Stopped by an error: 4 finished layers are kept in"),
    ],
)
def test_a_run_that_was_cut_short_says_how_to_go_on_and_does(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
    code: int,
    said: str,
) -> None:
    whole = ellzero.language.compress
    seen: list[str] = []

    def cut(*args: object, callback: object = None, **kwargs: object) -> object:
        def stop(layer: ellzero.language.CompressedLayer) -> None:
            seen.append(layer.name)
            if len(seen) == 4:
                raise failure

        return whole(*args, callback=stop, **kwargs)  # type: ignore[arg-type]

    kept = tmp_path / "elsewhere"
    with monkeypatch.context() as patch:
        patch.setattr(ellzero.language, "compress", cut)
        result = run(folder, tmp_path, "--checkpoint", str(kept), "--distill", "3")
    assert result.exit_code == code
    assert said in result.output
    assert "hint: The same command goes on" in result.output
    assert not (tmp_path / "out").exists()
    assert len(list(kept.glob("*.safetensors"))) == 4
    result = run(folder, tmp_path, "--checkpoint", str(kept), "--distill", "3")
    assert result.exit_code == 0, result.output
    assert "Going on after 4 finished layers" in result.output
    table = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert table["distillation"]["n_steps"] == 3
    assert "Trained towards the dense model" in (tmp_path / "out" / "report.html").read_text()
    assert not kept.exists()
    (tmp_path / "out").rename(tmp_path / "resumed")
    run(folder, tmp_path, "--distill", "3")
    one, other = (load_folder(tmp_path / name)[0] for name in ("out", "resumed"))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name))


def test_folders_must_be_apart(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((folder, out, out / "kept"), "folders of --out and --checkpoint must be apart"),
        ((folder, out, out), "folders of --out and --checkpoint must be apart"),
        ((folder, tmp_path, tmp_path.parent / "kept"), "folders of --out and the model must be"),
        ((folder, out, tmp_path), "must be apart"),
        ((folder, out, tmp_path / "file"), "file' is a file"),
    ):
        with pytest.raises(InvalidParameterError, match=message):
            check_separate(*arguments)


def test_texts_are_read_or_refused(folder: Path, tmp_path: Path) -> None:
    _, tokenizer = load_folder(folder)
    batches = text_batches(tokenizer, tmp_path / "text.txt", 3)
    assert batches[0]["input_ids"].shape == (3, 8)
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, reason in (("empty.txt", "has no text"), ("none.txt", "cannot be read")):
        with pytest.raises(EllzeroError, match=reason):
            text_batches(tokenizer, tmp_path / name, 3)
