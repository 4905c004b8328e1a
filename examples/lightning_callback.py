"""Train a classifier at 5 % of its weights in Lightning, with one callback.

    pip install "ellzero[lightning]"
    python examples/lightning_callback.py

The callback wraps the optimizer of the module, lets the budget fall over the first half of the
training and fixes the support at its end. The last checkpoint of the trainer is a plain model
with the exact count. Runs on the CPU in a few seconds once Lightning is imported.
"""

import tempfile

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from ellzero.nn.callbacks import LightningSparsity


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        hits = self.net(batch[0]).argmax(1) == batch[1]
        self.log("accuracy", hits.float().mean(), batch_size=len(hits))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)]


def main():
    from sklearn.datasets import load_digits

    pl.seed_everything(0)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    train, held_out = random_split(data, [1400, len(data) - 1400])

    model, sparsity = Digits(), LightningSparsity(0.05)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=12,
            accelerator="auto",
            callbacks=[sparsity],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
        )
        trainer.fit(
            model, DataLoader(train, batch_size=64, shuffle=True), DataLoader(held_out, 512)
        )
        path = trainer.checkpoint_callback.best_model_path
        saved = torch.load(path, weights_only=True)["state_dict"]

    count = sum(int((saved[name] != 0).sum()) for name in ("net.0.weight", "net.2.weight"))
    print(f"accuracy on held-out digits {trainer.callback_metrics['accuracy']:.3f}")
    print(f"{count} nonzeros in the last checkpoint, {sparsity.optimizers[0].target} asked for")


if __name__ == "__main__":
    main()
