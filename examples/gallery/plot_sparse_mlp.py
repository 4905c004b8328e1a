"""
A network at five percent of its weights
========================================

One wrapper around the optimizer, one line at the end. The network on handwritten digits keeps
five percent of its weights, chosen while it trains, and loses about two percent of accuracy.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from ellzero.nn import HardThresholding, certify, schedules

X, y = load_digits(return_X_y=True)
X = torch.tensor(X, dtype=torch.float32) / 16
y = torch.tensor(y)
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]
EPOCHS, BATCH = 25, 100


def trained(density):
    """Return a network and its accuracy on the test samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    if density < 1:
        ramp = schedules.ramp(0.0, 0.75, total_steps=EPOCHS * 14)
        optimizer = HardThresholding(optimizer, model, n_nonzero=density, schedule=ramp)
    for epoch in range(EPOCHS):
        shuffled = train[torch.randperm(1400, generator=torch.Generator().manual_seed(epoch))]
        for batch in shuffled.split(BATCH):
            functional.cross_entropy(model(X[batch]), y[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
    if density < 1:
        optimizer.finalize()
    with torch.no_grad():
        right = (model(X[test]).argmax(1) == y[test]).float().mean()
    return model, float(right)


densities = (1.0, 0.2, 0.05, 0.02, 0.01)
runs = {density: trained(density) for density in densities}

# %%
# Left: what is left of the first layer, for each pixel the number of units that see it.
model = runs[0.05][0]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
seen = (model[0].weight != 0).sum(0).reshape(8, 8)
image = left.imshow(seen, cmap="Blues")
left.set(title="Units that read each pixel, of 200", xticks=[], yticks=[])
left.grid(False)
figure.colorbar(image)
right.plot([100 * d for d in densities], [100 * runs[d][1] for d in densities], "o-")
right.set(xscale="log", title="Test accuracy, %", xlabel="weights kept, %")
right.invert_xaxis()

# %%
# The count is exact after training. That is all that is certified of a network that was trained
# for a while; `ellzero.nn.polish` goes on to a stationary point, of which more can be proved.
loader = [(X[train], y[train])]
certificate = certify(model, functional.cross_entropy, loader, n_nonzero=0.05)
print(certificate.measures["n_nonzero"], "nonzeros;", certificate.claim.sentence)
