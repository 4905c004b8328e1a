import subprocess
import sys

import pytest

from ellzero.errors import InvalidParameterError
from ellzero.papers import EXPERIMENTS, find_experiment


def test_names_are_distinct_and_found():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    for experiment in EXPERIMENTS:
        assert find_experiment(experiment.name) is experiment


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InvalidParameterError) as caught:
        find_experiment("ith-iris")
    assert str(caught.value) == (
        "Unknown experiment 'ith-iris'. Did you mean 'iht-iris'?\n"
        "hint: Known experiments: iht-iris, ht-escape, rvsm, rvscgd, sparse-smooth, adagrad, "
        "backprop, convex-geometry, mlp-iht, tickets."
    )


def test_listing_loads_no_torch():
    code = "import sys, ellzero.papers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
