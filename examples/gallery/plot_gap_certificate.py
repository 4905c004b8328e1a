"""
A gap that closes
=================

Branch and bound finds the best subset early; most of its work is the proof. Stopped at any time
it states a lower bound, and how far the answer can be from the optimum.
"""

import matplotlib.pyplot as plt

import ellzero
from ellzero.datasets import make_sparse_regression
from ellzero.solvers import ExactSubset

data = make_sparse_regression(120, 100, 10, noise=2.0, correlation=0.8, seed=3)
objective = ellzero.LeastSquares(data.X, data.y, ridge=0.01)
problem = ellzero.Problem(objective, ellzero.L0Ball(10))
limits = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000]
results = []
for limit in limits:
    results.append(ellzero.solve(problem, ExactSubset(max_nodes=limit)))
    if results[-1].certificate.claim is ellzero.Claim.OPTIMAL:
        break
limits = limits[: len(results)]

# %%
figure, axes = plt.subplots()
axes.plot(limits, [r.value for r in results], "o-", color="C0", label="value found")
bounds = [r.lower_bound for r in results]
axes.plot(limits, bounds, "s-", color="C1", label="proven lower bound")
axes.fill_between(limits, bounds, [r.value for r in results], color="C1", alpha=0.15)
axes.set(xscale="log", title="Value and bound meet", xlabel="boxes of supports looked at")
axes.legend()

# %%
# The proof is data: `verify` checks it again without the solver.
result = results[-1]
again = ellzero.verify(problem, result.params, proof=result.proof)
print(len(result.proof), "steps of proof;", again.claim.sentence)
print(again)
