"""Model files, damaged or made to do harm: one sentence and a hint, whatever they hold."""

import contextlib
import hashlib
import json

import pytest
import torch

from ellzero import models
from ellzero.errors import EllzeroError
from ellzero.fitting import FitSettings, fit_table, predict_file, saved_model
from ellzero.models import load_model, predict, predict_proba, save_model
from ellzero.nn import export
from ellzero.nn.export import files
from ellzero.storage import from_json, to_json
from ellzero.training import TrainSettings, recertify, train
from tests.hardening.fuzz import attempt, damage, disturb, fuzz, seal

_made = {}


def _fitted(folder):
    """Return the bytes of a model of `ellzero fit`, with a proof, and one of a network."""
    if not _made:
        rows = "\n".join(
            f"{i % 7},{'ab'[i % 2]},{(3 * i) % 11},{i % 7 + 0.1 * (i % 3)}" for i in range(40)
        )
        (folder / "t.csv").write_text(f"x,c,z,y\n{rows}\n")
        settings = FitSettings(
            str(folder / "t.csv"), target="y", n_nonzero=(1,), cv=0, ridge=(0.1,), exact=True
        )
        run = fit_table(settings)
        save_model(folder / "m.safetensors", saved_model(run, run.chosen))
        small = train(TrainSettings(n_nonzero=(2,), starts=2, data="iris"))
        from ellzero.training import saved_model as trained_model

        save_model(folder / "n.safetensors", trained_model(small.experiment, small.chosen))
        _made["table"] = (folder / "t.csv").read_text()
        _made["fit"] = (folder / "m.safetensors").read_bytes()
        _made["train"] = (folder / "n.safetensors").read_bytes()
    (folder / "t.csv").write_text(_made["table"])
    return _made


def _resealed(rng):
    """Return a change of the description that keeps its checksum right."""

    def change(text, header, data):
        metadata = disturb(rng, json.loads(text))
        if not isinstance(metadata, dict):
            return json.dumps(metadata)
        try:
            plain = from_json(json.dumps(metadata))
            metadata["checksum"] = models._checksum(plain, from_json(json.dumps(header)), data)
        except (EllzeroError, ValueError, KeyError, TypeError):
            pass
        return json.dumps(metadata)

    return change


def _use(path, folder):
    model = attempt(lambda: load_model(path))
    if model is None:
        return
    X = torch.zeros(2, len(model.feature_names), dtype=torch.float64)
    attempt(lambda: predict(model, X))
    attempt(lambda: predict_proba(model, X))
    attempt(lambda: predict_file(path, folder / "t.csv"))


@fuzz(60, 3000)
def test_damaged_model_files(rng, folder):
    made = _fitted(folder)
    path = folder / "bad.safetensors"
    path.write_bytes(damage(rng, made[rng.choice(["fit", "train"])]))
    _use(path, folder)


@fuzz(100, 3000)
def test_model_files_with_a_hostile_description(rng, folder):
    made = _fitted(folder)
    path = folder / "bad.safetensors"
    path.write_bytes(seal(made[rng.choice(["fit", "train"])], _resealed(rng)))
    _use(path, folder)


@fuzz(15, 300)
def test_claims_of_hostile_model_files(rng, folder):
    from ellzero.cli.certify import _recertify_fit

    made = _fitted(folder)
    kind, data = rng.choice([("fit", str(folder / "t.csv")), ("train", "iris")])
    path = folder / "bad.safetensors"
    path.write_bytes(seal(made[kind], _resealed(rng)))
    if attempt(lambda: _recertify_fit(str(path), data, None, None)) is None:
        attempt(lambda: recertify(str(path), data))


def _network(folder):
    if "network" not in _made:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 3))
        with torch.no_grad():
            model[0].weight *= torch.rand(20, 30) < 0.1
            model[1].weight *= torch.rand(3, 20) < 0.5
        export.save(model, folder / "net.safetensors")
        _made["network"] = (folder / "net.safetensors").read_bytes()
        export.save(model, folder / "net.safetensors", values="int8")
        _made["int8"] = (folder / "net.safetensors").read_bytes()


@fuzz(60, 3000)
def test_damaged_network_files(rng, folder):
    _network(folder)
    path = folder / "bad.safetensors"
    path.write_bytes(damage(rng, _made[rng.choice(["network", "int8"])]))
    attempt(lambda: export.load(path))


@fuzz(100, 3000)
def test_network_files_with_a_hostile_description(rng, folder):
    def change(text, header, data):
        metadata = disturb(rng, json.loads(text))
        if isinstance(metadata, dict):
            with contextlib.suppress(EllzeroError, ValueError):
                metadata["checksum"] = files._checksum(from_json(json.dumps(metadata)))
        return json.dumps(metadata)

    _network(folder)
    path = folder / "bad.safetensors"
    path.write_bytes(seal(_made[rng.choice(["network", "int8"])], change))
    state = attempt(lambda: export.load(path))
    if state is not None:
        attempt(lambda: export.load(path, torch.nn.Linear(30, 20)))


@fuzz(60, 2000)
def test_hostile_claims_beside_a_network(rng, folder):
    from ellzero.training.claims import read_claims

    _network(folder)
    path = folder / "net.safetensors"
    path.write_bytes(_made["network"])
    content = {
        "format": "ellzero-claims", "schema_version": 1, "ellzero_version": "0",
        "model_sha256": hashlib.sha256(_made["network"]).hexdigest(),
        "settings": TrainSettings(hidden=(4,), n_nonzero=(5,)).to_dict(),
        "data": {"name": "iris", "fingerprint": "0", "n_samples": 150},
        "inputs": {}, "n_nonzero": 5, "claims": {"value": 0.5, "claim": "stationary"},
    }  # fmt: skip
    text = to_json(content) if rng.random() < 0.02 else json.dumps(disturb(rng, content))
    blob = text.encode("utf-8", "surrogatepass")
    path.with_suffix(".json").write_bytes(damage(rng, blob) if rng.random() < 0.3 else blob)
    if attempt(lambda: read_claims(path)) is not None:
        attempt(lambda: recertify(str(path), "iris"))


@pytest.mark.parametrize("text", ["[" * 90_000, '{"a":' * 90_000, "[" * 300 + "]" * 300])
def test_deeply_nested_descriptions_are_refused(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(text)
