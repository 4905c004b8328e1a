"""Best subset: every peer and ellzero on the same instances, in the same run.

``python -m benchmarks.best_subset.run TABLE --environments DIRECTORY`` measures one table,
``python -m benchmarks.best_subset.table`` prints what was measured. `instances` makes the data, an
adapter of `adapters` proposes features, `objective` judges them, `worker` runs an adapter in the
environment of its package.
"""
