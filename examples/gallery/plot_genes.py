"""
Far more features than samples
==============================

A hundred tissues, 2000 genes, two classes: EBIC, which counts how many subsets there were to
choose from, finds the number of genes that matter; cross-validation, which fits on fewer tissues,
does not. The certificate says what is known of the choice and what is not.

The data are made as gene expressions are: correlated in blocks, five genes matter.
"""

import matplotlib.pyplot as plt
import numpy as np

from ellzero import L0Classifier, L0ClassifierCV

N, P, BLOCK, GENES = 100, 2000, 10, (15, 404, 811, 1290, 1777)
rng = np.random.default_rng(1)


def tissues(n):
    """Return expressions and classes."""
    common = np.repeat(rng.standard_normal((n, P // BLOCK)), BLOCK, axis=1)
    X = 0.7 * common + np.sqrt(1 - 0.49) * rng.standard_normal((n, P))
    score = X[:, list(GENES)] @ np.array([2.0, -2.0, 2.0, 1.5, -1.5])
    return X, (score + 0.1 * rng.standard_normal(n) > 0).astype(int)


X, y = tissues(N)
X_new, y_new = tissues(2000)
sizes = range(1, 9)
model = L0Classifier(sizes, ridge=0.01).fit(X, y)
path = model.path_
accuracy = [
    np.mean((X_new @ coef + intercept > 0) == y_new)
    for coef, intercept in zip(
        path.coef.reshape(len(sizes), -1), np.ravel(path.intercept), strict=True
    )
]
crossed = L0ClassifierCV(sizes, ridge=0.01).fit(X, y)

# %%
figure, axes = plt.subplots()
axes.plot(sizes, accuracy, "o-", label="2000 new tissues")
axes.axvline(model.support_.size, color="C2", ls="--", label="chosen by EBIC")
axes.axvline(crossed.n_nonzero_, color="C1", ls=":", label="chosen by cross-validation")
axes.set(title="Accuracy of the best genes", xlabel="genes", ylabel="share right")
axes.legend()

# %%
print(
    "chosen genes:",
    model.support_.tolist(),
    "of which matter:",
    sorted(set(model.support_.tolist()) & set(GENES)),
)
print("accuracy on new tissues:", round(model.score(X_new, y_new), 3))
print(model.certificate_)
