"""What is read is data: files made to run something are refused, and nothing is run."""

import pickle
import re
from pathlib import Path

import pytest
import torch

from ellzero.errors import InvalidParameterError
from ellzero.nn import HardThresholding, checkpoints


class Bomb:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def _training():
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 10)
    return model, HardThresholding(torch.optim.AdamW(model.parameters()), model, n_nonzero=7)


@pytest.fixture
def checkpoint(tmp_path):
    """Return the folder of a checkpoint."""
    model, optimizer = _training()
    checkpoints.save(tmp_path / "c", model, optimizer)
    return tmp_path / "c"


def _refuse(folder, reason):
    model, optimizer = _training()
    before = model.weight.clone()
    with pytest.raises(InvalidParameterError) as caught:
        checkpoints.load(folder, model, optimizer)
    assert re.fullmatch(
        f"'{re.escape(str(folder))}' must hold a checkpoint of this run, got: {reason}.",
        caught.value.message,
    )
    assert caught.value.hint.startswith("Give a folder that `checkpoints.save` wrote")
    assert torch.equal(model.weight, before)


def test_the_index_of_a_checkpoint_runs_nothing(checkpoint, tmp_path):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    _refuse(checkpoint, "its index names 'io.open', which is no data")
    assert not (tmp_path / "ran").exists()


def test_the_index_of_a_checkpoint_changes_no_class(checkpoint):
    # Opcodes that set Metadata.planner_data = 1 on the class itself.
    blob = (
        b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\n"
        b"(}X\x04\x00\x00\x00evilK\x01stb."
    )
    (checkpoint / ".metadata").write_bytes(blob)
    _refuse(checkpoint, "its index changes a class, which is no data")
    from torch.distributed.checkpoint.metadata import Metadata

    assert not hasattr(Metadata, "evil")


@pytest.mark.parametrize("blob", [b"", b"\x80", b"not a pickle", pickle.dumps({"a": 1})])
def test_a_damaged_index_is_one_sentence(checkpoint, blob, capfd):
    (checkpoint / ".metadata").write_bytes(blob)
    _refuse(checkpoint, "its index is damaged")
    assert capfd.readouterr().err == ""


def test_a_missing_index_is_one_sentence(tmp_path, capfd):
    _refuse(tmp_path, "there is none")
    assert capfd.readouterr().err == ""


def test_plain_values_of_a_checkpoint_run_nothing(checkpoint, tmp_path):
    """The plain values lie in the data file, each a file of torch of its own."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    index = FileSystemReader(checkpoint).read_metadata()
    keys = [k for k, v in index.state_dict_metadata.items() if isinstance(v, BytesStorageMetadata)]
    assert keys
    path = checkpoint / "__0_0.distcp"
    blob = path.read_bytes()
    hostile = tmp_path / "hostile.pt"
    torch.save(Bomb(tmp_path / "ran"), hostile)
    extra = hostile.read_bytes()
    for place, info in index.storage_data.items():
        if place.fqn in keys:
            info.offset, info.length = len(blob), len(extra)
    path.write_bytes(blob + extra)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))
    _refuse(checkpoint, r"its value of 'optimizer[^']*' is damaged, or no plain data")
    assert not (tmp_path / "ran").exists()


def test_no_reader_unpickles():
    """Every line of the package that could run what a file holds, by name."""
    home = Path(checkpoints.__file__).parents[1]
    runs = re.compile(
        r"pickle\.|import pickle|joblib\.load|allow_pickle=True|weights_only=False|"
        r"\btorch\.load\(|(?<!\.)\beval\(|\bexec\(|read_pickle|shelve|marshal|yaml\.load"
    )
    found = {
        path.relative_to(home).as_posix()
        for path in home.rglob("*.py")
        if any(map(runs.search, path.read_text().splitlines()))
    }
    # The tour runs the lines that it shows, which are its own.
    assert found == {"nn/data_only.py", "cli/tour.py"}
