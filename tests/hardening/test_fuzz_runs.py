"""What runs leave on disk to go on from: checkpoints, tickets, layers, folders of transformers."""

import json
import shutil

import pytest
import torch

from ellzero.language import compress
from ellzero.language.folders import check_room, load_folder, text_batches
from ellzero.nn import HardThresholding, checkpoints
from ellzero.nn.tickets.storage import Folder
from ellzero.storage import Checkpoint
from tests.hardening.fuzz import attempt, damage, disturb, fuzz

SETTINGS = {"seed": 0, "data": "iris", "budgets": [1, 2], "deep": {"a": [1.5, None]}}


def _some_file(rng, folder):
    return rng.choice(sorted(p for p in folder.rglob("*") if p.is_file()))


def _spoil(rng, path):
    """Damage a file, or put a folder or nothing in its place."""
    kind = rng.randrange(12)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif path.suffix == ".json" and kind < 6:
        try:
            value = json.loads(path.read_text().split("\n", 1)[-1] or path.read_text())
        except ValueError:
            value = {}
        path.write_text(json.dumps(disturb(rng, value)))
    else:
        path.write_bytes(damage(rng, path.read_bytes()))


def _fresh(folder, name):
    """Return a copy of a folder that was made before."""
    place = folder / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder / name, place)
    return place


@fuzz(60, 2000)
def test_damaged_checkpoints(rng, folder):
    if not (folder / "good").exists():
        good = Checkpoint(folder / "good", SETTINGS)
        good.save("s=1", {"value": 0.5}, {"w": torch.ones(3)})
        good.save("s=2", {"value": [1, 2, float("inf")]})
    place = _fresh(folder, "good")
    _spoil(rng, _some_file(rng, place))
    again = Checkpoint(place, SETTINGS)
    steps = attempt(again.load)
    if steps is not None:
        # A step is as it was saved, or left out.
        good = Checkpoint(folder / "good", SETTINGS).load()
        assert all(steps[n].data == good[n].data for n in steps)
    attempt(lambda: again.save("s=3", {"value": 1.0}, {"w": torch.zeros(2)}))


@fuzz(60, 2000)
def test_hostile_settings_of_a_run_that_goes_on(rng, folder):
    """`train --resume` reads the settings of a run cut short."""
    from typer.testing import CliRunner

    from ellzero.cli import app
    from ellzero.training import TrainSettings

    place = folder / "run.partial" / "checkpoint"
    place.mkdir(parents=True, exist_ok=True)
    (folder / "run.partial" / ".unfinished").touch()
    settings = TrainSettings(n_nonzero=(2,), starts=1, time_limit=1.0, data="no.csv").to_dict()
    value = disturb(rng, {**settings, "fingerprint": "x"})
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    (place / "settings.json").write_bytes(damage(rng, text) if rng.random() < 0.3 else text)

    def run():
        result = CliRunner().invoke(app, ["train", "--resume", str(folder / "run")])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception

    attempt(run)


@fuzz(60, 1000)
def test_damaged_parts_of_an_experiment(rng, folder):
    from ellzero.nn.tickets.results import Run
    from ellzero.nn.tickets.storage import Part

    fields = dict.fromkeys(Run.__dataclass_fields__)
    if not (folder / "good").exists():
        good = Folder(folder / "good", SETTINGS)
        good.write("dense", 0, Part((), {"a/w": torch.ones(3)}))
    place = _fresh(folder, "good")
    if rng.random() < 0.3:
        from safetensors.torch import save

        blob = save({"a": torch.ones(1)}, {"runs": json.dumps(disturb(rng, [fields]))})
        (place / "dense-0.safetensors").write_bytes(blob)
    else:
        _spoil(rng, _some_file(rng, place))
    attempt(lambda: Folder(place, SETTINGS).read("dense", 0))


def _training():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    return model, HardThresholding(torch.optim.AdamW(model.parameters()), model, n_nonzero=3)


@fuzz(25, 1500)
def test_damaged_sharded_checkpoints(rng, folder):
    if not (folder / "good").exists():
        checkpoints.save(folder / "good", *_training())
    place = _fresh(folder, "good")
    _spoil(rng, _some_file(rng, place))
    attempt(lambda: checkpoints.load(place, *_training()))


@fuzz(15, 600)
def test_damaged_layers_of_a_compression(rng, folder):
    def run(place):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        return compress(model, [torch.randn(16, 4)], density=0.5, checkpoint=place, max_iter=2)

    if not (folder / "good").exists():
        run(folder / "good")
    place = _fresh(folder, "good")
    _spoil(rng, _some_file(rng, place))
    attempt(lambda: run(place))


@fuzz(12, 600)
def test_damaged_folders_of_transformers(rng, folder):
    transformers = pytest.importorskip("transformers")
    if not (folder / "good").exists():
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]
        (folder / "vocab.txt").write_text("\n".join(words))
        config = transformers.BertConfig(
            vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=4, max_position_embeddings=8,
        )  # fmt: skip
        transformers.BertModel(config).save_pretrained(folder / "good")
        tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), model_max_length=8)
        tokenizer.save_pretrained(folder / "good")
        (folder / "text.txt").write_text("the cat\nsat\n")
    place = _fresh(folder, "good")
    _spoil(rng, _some_file(rng, place))

    def run():
        check_room(place, folder / "out")
        model, tokenizer = load_folder(place)
        batches = text_batches(tokenizer, folder / "text.txt", 10)
        compress(model, batches, density=0.5, max_iter=1)

    attempt(run)


def test_json_of_a_checkpoint_with_doubled_keys_is_left_out(tmp_path):
    store = Checkpoint(tmp_path, {})
    store.save("a", {"value": 1})
    (path,) = tmp_path.glob("step-*.json")
    path.write_text(path.read_text().replace('"value":1', '"value":1,"value":2'))
    assert Checkpoint(tmp_path, {}).load() == {}
