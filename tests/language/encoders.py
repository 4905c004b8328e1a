"""A small encoder on disk."""

from pathlib import Path

import pytest
import torch

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "the", "cat", "sat", "on", "mat", "dog", "ran"]


def bert_folder(tmp_path: Path) -> Path:
    """Write a small BERT, its tokenizer and a text beside it; return the model's folder."""
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
