"""A user's script runs, and the strict type check of `.ci/run` understands every line of it."""

from tests.user import script


def test_a_users_script_runs(tmp_path):
    assert script.linear_model() != 0
    assert script.best_subset() == [0, 3]
    assert script.signal() == 10
    assert 0 < script.network(tmp_path) == (tmp_path / "model.safetensors").stat().st_size
