"""
Two of four
===========

Hardware for sparse networks wants at most two nonzeros in every four consecutive weights. The
pattern is a set like any other: the same solver, the same certificates. It costs more than
a free choice of as many weights, and less than a choice by magnitude.
"""

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from ellzero import L0Ball, NMPattern
from ellzero.language import prune_layer

# %%
# A layer, and the second moments of its inputs. The task: change the outputs least.
generator = torch.Generator().manual_seed(0)
weight = torch.randn(32, 64, generator=generator)
mixing = torch.randn(64, 64, generator=generator)
inputs = torch.randn(512, 24, generator=generator) @ mixing[:24] / 5
inputs += 0.5 * torch.randn(512, 64, generator=generator)
gram = inputs.T @ inputs

pattern = prune_layer(weight, gram, NMPattern(2, 4))
free = prune_layer(weight, gram, L0Ball(weight.numel() // 2))
kept = NMPattern(2, 4).project({"w": weight})["w"]
change = (weight - kept) @ inputs.T
outputs = weight @ inputs.T
errors = {
    "by magnitude, 2:4": float(change.square().sum() / outputs.square().sum()),
    "ours, 2:4": float(
        ((weight - pattern.weight) @ inputs.T).square().sum() / outputs.square().sum()
    ),
    "ours, any half": float(
        ((weight - free.weight) @ inputs.T).square().sum() / outputs.square().sum()
    ),
}

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), width_ratios=(1.3, 1))
left.imshow(pattern.weight[:16, :32] != 0, cmap=ListedColormap(["#eef1f5", "#1f5fa8"]))
for edge in range(4, 32, 4):
    left.axvline(edge - 0.5, color="w", lw=2)
left.set(title="Nonzeros of 16 rows, 32 columns", xticks=[], yticks=[])
left.grid(False)
right.barh(list(errors), list(errors.values()), color=["C5", "C0", "C2"])
right.set(title="Relative change of the outputs")

# %%
# At most two of every four, in every row; and a bound below which no 2:4 weight can get.
counts = (pattern.weight.reshape(32, 16, 4) != 0).sum(-1)
print("most nonzeros in four:", int(counts.max()))
print(f"value {pattern.value:.4f}, no 2:4 weight below {pattern.lower_bound:.4f}")
