"""Train a small language model at 20 % of its weights in the Hugging Face Trainer.

    pip install "ellzero[language]"
    python examples/hugging_face_trainer.py

The callback wraps the optimizer of the trainer, lets the budget fall over the first half of the
training and fixes the support at its end. The saved model is a plain one with the exact count,
read by `from_pretrained` without ellzero. Nothing is downloaded: the model is made on the spot
and learns to count in a circle. Runs on the CPU in a few seconds once transformers is imported.
"""

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from ellzero.nn.callbacks import TrainerSparsity

WORDS = 32


class Circles(Dataset):
    """Sequences that go around a circle of words by a fixed step."""

    def __len__(self):
        return 1024

    def __getitem__(self, i):
        tokens = (i + torch.arange(12) * (1 + i // WORDS % 3)) % WORDS
        return {"input_ids": tokens, "labels": tokens}


def main():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            logging_steps=32,
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model, arguments, train_dataset=Circles(), callbacks=[TrainerSparsity(0.2)]
        )
        trainer.train()
        trainer.save_model()
        plain = LlamaForCausalLM.from_pretrained(folder, local_files_only=True)

    weights = [p for p in plain.parameters() if p.ndim >= 2]
    count, total = sum(int((p != 0).sum()) for p in weights), sum(p.numel() for p in weights)
    start = torch.tensor([[0, 2, 4, 6]])
    told = plain.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=6)
    print(f"{count} of {total} weights are not zero, {int(0.2 * total)} asked for")
    print("0 2 4 6 goes on", told[0, 4:].tolist())


if __name__ == "__main__":
    main()
