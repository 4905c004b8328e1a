"""`ellzero compress` on a tiny folder of transformers with random weights."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ellzero.cli import app
from ellzero.errors import DataError, EllzeroError, InvalidParameterError
from ellzero.language.folders import check_room, load_folder, text_batches

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "the", "cat", "sat", "on", "mat", "dog", "ran"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    path = tmp_path / "model"
    transformers.BertModel(config).save_pretrained(path)
    transformers.BertTokenizer(str(vocabulary), model_max_length=32).save_pretrained(path)
    (tmp_path / "text.txt").write_text("\n".join(["the cat sat on the mat", "a dog ran"] * 10))
    return path


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
    with pytest.raises(InvalidParameterError, match="needs 64 MB, and its disk has 5 MB"):
        check_room(folder, tmp_path / "deep" / "out")


def test_texts_are_read_or_refused(folder: Path, tmp_path: Path) -> None:
    _, tokenizer = load_folder(folder)
    batches = text_batches(tokenizer, tmp_path / "text.txt", 3)
    assert batches[0]["input_ids"].shape == (3, 8)
    (tmp_path / "empty.txt").write_text("\n \n")
    for name, reason in (("empty.txt", "has no text"), ("none.txt", "cannot be read")):
        with pytest.raises(EllzeroError, match=reason):
            text_batches(tokenizer, tmp_path / name, 3)
