"""
A network at its global optimum
===============================

Gradient descent on a small ReLU network stops where it happens to stop. The convex program finds
the best network of every width, and its dual bound says how far any other network is from it.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from ellzero import ConvexReLURegressor, certify_network

PENALTY = 0.003
rng = np.random.default_rng(0)
X = np.sort(rng.uniform(-2, 2, (60, 1)), axis=0)
y = np.abs(X[:, 0]) - 0.8 * np.maximum(X[:, 0] - 1, 0) * 2 + 0.1 * rng.standard_normal(60)
best = ConvexReLURegressor(penalty=PENALTY, random_state=0).fit(X, y)

# %%
# The same objective by gradient descent: weight decay on all weights of a network of 8 units,
# from several starts. (Weight decay at its balanced minimum is the penalty.)


def descend(seed):
    """Return a trained network."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    inputs, targets = torch.tensor(X), torch.tensor(y)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        weights = net[0].weight.square().sum() + net[2].weight.square().sum()
        (0.5 * (net(inputs)[:, 0] - targets).square().mean() + PENALTY / 2 * weights).backward()
        optimizer.step()
    return net


networks = [descend(seed) for seed in range(6)]
values = []
for net in networks:
    measures = certify_network(net, X, y, penalty=PENALTY).measures
    values.append(measures["loss"] + PENALTY * measures["norm"])
above = [100 * (value / best.lower_bound_ - 1) for value in values]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
grid = np.linspace(-2.1, 2.1, 300)[:, None]
left.plot(X[:, 0], y, ".", color="0.6")
with torch.no_grad():
    for net in networks:
        left.plot(grid[:, 0], net(torch.tensor(grid))[:, 0], color="C1", lw=0.9, alpha=0.7)
left.plot(grid[:, 0], best.predict(grid), color="C0", lw=2.2, label="global optimum")
left.plot([], [], color="C1", label="six descents")
left.set(title="Fits")
left.legend()
right.bar(range(1, 7), above, color="C1")
right.set(title="Above the proven optimum, %", xlabel="descent")

# %%
# Back in torch, and certified again from the module alone.
module = best.to_module()
print(certify_network(module, X, y, penalty=PENALTY))
