"""Reading torch.save files without executing them: every layout reads, no attack runs."""

import builtins
import collections
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch

from adjointdeis.faces.torch_file import CheckpointError, read_torch_file, read_without_executing

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path: Path, zipped: bool, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def legacy_stream(body: bytes, keys: tuple = ()) -> bytes:
    """A legacy file around a hand-made pickle."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + body + pickle.dumps(list(keys), 2)


class Reduced:
    """Pickles to a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture
def trainer(monkeypatch):
    """Classes of an old Lightning, present while a file is written and gone when it is read."""
    names = ("pytorch_lightning", "callbacks", "model_checkpoint")
    full = ".".join(names)
    module = types.ModuleType(full)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": full})
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": full})
    hidden = {name: sys.modules.get(name) for name in (names[0], ".".join(names[:2]), full)}
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, full, module)

    def forget() -> None:
        for name in hidden:
            monkeypatch.delitem(sys.modules, name)

    module.forget = forget
    return module


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_kind_of_tensor_reads_as_torch_reads_it(tmp_path, zipped, protocol):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 6, generator=generator)
    value = collections.OrderedDict(
        whole=whole,
        view=whole[1:, ::2].t(),
        scalar=torch.tensor(3),
        empty=torch.empty(0, 5),
        half=whole.half(),
        bfloat=whole.bfloat16(),
        double=whole.double(),
        flags=whole > 0,
        bytes=torch.arange(7, dtype=torch.uint8),
        parameter=torch.nn.Parameter(whole[0].clone()),
        plain={"epoch": 3, "names": ["a", ("b", None)], "shape": torch.Size((2, 3))},
    )
    path = save(value, tmp_path / "file.pt", zipped, protocol)
    got = read_without_executing(path)
    assert list(got) == list(value)
    assert got["plain"] == value["plain"]
    for name in list(value)[:-1]:
        assert got[name].dtype == value[name].dtype
        torch.testing.assert_close(got[name], value[name].detach(), rtol=0, atol=0)
    # The view still lies in the storage of the whole.
    got["whole"].fill_(7)
    assert (got["view"] == 7).all()


@FORMATS
def test_trainer_objects_become_nothing(tmp_path, trainer, zipped):
    callback = trainer.ModelCheckpoint()
    callback.best = torch.ones(2)
    options = trainer.AttributeDict(lr=0.1)
    value = {
        "callbacks": {trainer.ModelCheckpoint: {"best_model_score": torch.ones(1)}},
        "object": callback,
        "options": options,
        "folder": Path("a/b"),
        "members": {1, 2},
        "counts": collections.defaultdict(list, a=[1]),
        "weight": torch.arange(3.0),
    }
    path = save(value, tmp_path / "last.ckpt", zipped)
    trainer.forget()
    got = read_torch_file(path)
    torch.testing.assert_close(got["weight"], torch.arange(3.0), rtol=0, atol=0)
    assert vars(got["object"]) == {}
    assert vars(got["options"]) == {}
    (kept,) = got["callbacks"]
    assert kept.__module__ == "inert.pytorch_lightning.callbacks.model_checkpoint"
    assert got["callbacks"][kept]["best_model_score"].item() == 1


def test_no_name_of_the_file_is_imported(tmp_path, trainer, monkeypatch):
    path = save({"o": trainer.ModelCheckpoint()}, tmp_path / "last.ckpt", zipped=True)
    trainer.forget()
    wanted, original = [], builtins.__import__

    def record(name, *arguments, **keywords):
        wanted.append(name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", record)
    read_without_executing(path)
    assert not [name for name in wanted if name.startswith("pytorch_lightning")]


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_command_is_refused_unexecuted_and_named(tmp_path, zipped, protocol):
    marker = tmp_path / "executed"
    attack = Reduced(os.system, f"touch {marker}")
    value = {"state_dict": {"w": torch.ones(1)}, "callbacks": attack}
    path = save(value, tmp_path / "evil.ckpt", zipped, protocol)
    with pytest.raises(CheckpointError, match=r"evil\.ckpt.*refused.*(posix|nt)\.system"):
        read_torch_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1 + 1",), "builtins.eval|__builtin__.eval"),
        (getattr, ("", "join"), "getattr"),
        (torch.load, ("other.pt",), "torch.serialization.load"),
        (torch.hub.load, ("owner/repo", "model"), "torch.hub.load"),
        (os.remove, ("file",), "(posix|nt).remove"),
        (zipfile.ZipFile, ("file", "w"), "zipfile.ZipFile"),
    ],
)
def test_no_other_function_is_reachable(tmp_path, function, arguments, name):
    path = save({"x": Reduced(function, *arguments)}, tmp_path / "evil.pt", zipped=True)
    with pytest.raises(CheckpointError, match=name):
        read_torch_file(path)


def test_the_oldest_opcode_for_a_call_is_refused_too(tmp_path):
    path = tmp_path / "evil.pt"
    marker = tmp_path / "executed"
    path.write_bytes(legacy_stream(b"(S'touch " + str(marker).encode() + b"'\niposix\nsystem\n."))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_without_executing(path)
    assert not marker.exists()


def test_a_pickle_cannot_alter_the_rebuilding_functions(tmp_path):
    path = tmp_path / "evil.pt"
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__K\x01sb."
    path.write_bytes(legacy_stream(body))
    with pytest.raises(CheckpointError, match="tries to alter a rebuilding function"):
        read_without_executing(path)
    value = {"w": torch.arange(3.0)}
    got = read_without_executing(save(value, tmp_path / "good.pt", zipped=False))
    torch.testing.assert_close(got["w"], value["w"], rtol=0, atol=0)


@FORMATS
@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(0, (1000,), (1,)), (-1, (1,), (1,)), (0, (2, 2), (4, 1))]
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, zipped, offset, size, stride):
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.arange(4.0).untyped_storage(), dtype=torch.float32, _internal=True
    )
    arguments = storage, offset, size, stride, False, collections.OrderedDict()
    attack = Reduced(torch._utils._rebuild_tensor_v2, *arguments)
    path = save({"w": attack}, tmp_path / "evil.pt", zipped)
    with pytest.raises(CheckpointError, match=r"reaches element|invalid offset"):
        read_without_executing(path)


def test_a_storage_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "evil.pt"
    body = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    body += b"X\x03\x00\x00\x00cpuJ\xff\xff\xff\x7fNtQ."
    path.write_bytes(legacy_stream(body, ("0",)))
    with pytest.raises(CheckpointError, match="exceeds the file"):
        read_without_executing(path)


def test_a_name_can_be_declared_inert(tmp_path, monkeypatch):
    module = types.ModuleType("experiment")
    module.Options = type("Options", (), {"__module__": "experiment"})
    monkeypatch.setitem(sys.modules, "experiment", module)
    value = {"options": module.Options(), "w": torch.ones(2)}
    path = save(value, tmp_path / "own.ckpt", zipped=True)
    with pytest.raises(CheckpointError, match=r"experiment\.Options.*--inert experiment"):
        read_torch_file(path)
    for entry in ("experiment", "experiment.Options"):
        assert read_torch_file(path, inert=[entry])["w"].tolist() == [1, 1]
    with pytest.raises(CheckpointError, match="refused"):
        read_torch_file(path, inert=["experi"])


@FORMATS
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_file_cut_short_is_named(tmp_path, zipped, share):
    path = save({"w": torch.arange(5000.0)}, tmp_path / "cut.pt", zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        read_torch_file(path)


def test_what_torch_did_not_write_is_named(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"torch\.save did not write it"):
        read_torch_file(path)
    path.write_bytes(b"<html>Quota exceeded</html>")
    with pytest.raises(CheckpointError, match="not a complete file"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"1234")
    with pytest.raises(CheckpointError, match="zip archive"):
        read_torch_file(path)
    with pytest.raises(CheckpointError, match=r"absent\.pt is missing"):
        read_torch_file(tmp_path / "absent.pt")


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(f"archive/{name}", data)
    return path


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    zeros = bytes(50 << 20)
    path = archive(
        tmp_path / "bomb.pt",
        {"data.pkl": pickle.dumps({}, 2), "data/0": zeros},
        zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 100_000
    for read in (read_torch_file, read_without_executing):
        with pytest.raises(CheckpointError, match=r"bomb\.pt.*compressed.*torch\.save"):
            read(path)


def test_members_that_share_their_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "overlap.pt", {"data.pkl": pickle.dumps({}, 2), "data/0": b"0" * 999})
    with zipfile.ZipFile(path, "a") as file:
        (first,) = [info for info in file.infolist() if info.filename.endswith("/0")]
        for k in range(1, 50):
            again = zipfile.ZipInfo(f"archive/data/{k}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, name, getattr(first, name))
            file.filelist.append(again)
            file.NameToInfo[again.filename] = again
        file._didModify = True
    with pytest.raises(CheckpointError, match="overlap"):
        read_torch_file(path)


def test_an_encrypted_archive_is_named(tmp_path):
    path = archive(tmp_path / "locked.pt", {"data.pkl": pickle.dumps({}, 2)})
    data = path.read_bytes()
    # The flag stands at byte 6 of the local header and at byte 8 of the directory's entry.
    directory = data.index(b"PK\x01\x02")
    for at in (6, directory + 8):
        data = data[:at] + b"\x01" + data[at + 1 :]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"locked\.pt.*encrypted"):
        read_torch_file(path)


def doubled(times: int, end: bytes) -> bytes:
    """A tuple that holds the former one twice, over and over: small, and endless to hash."""
    body = b"\x80\x02)"
    for slot in range(times):
        body += b"q" + bytes([slot]) + b"h" + bytes([slot]) + b"\x86"
    return body + end


@FORMATS
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x80\x02}" + doubled(60, b"K\x01s.")[2:], "nests a tuple"),  # as a dictionary's key
        (doubled(60, b"."), "nests a tuple"),
        (doubled(60, b"Q."), "nests a tuple"),  # as a storage
        (b"\x80\x02}r\xff\xff\xff\x7f.", "memo slot 2147483647"),  # 34 GB of memo
        (b"\x80\x02}h\x05.", "empty stack or memo"),
        (b"\x80\x02s.", "empty stack or memo"),
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", "cannot be followed"),
    ],
)
def test_a_pickle_that_would_not_end_is_refused(tmp_path, zipped, body, message):
    path = tmp_path / "hang.pt"
    if zipped:
        archive(path, {"data.pkl": body})
    else:
        path.write_bytes(legacy_stream(body))
    with pytest.raises(CheckpointError, match=rf"hang\.pt.*{message}"):
        read_torch_file(path)


@FORMATS
def test_the_limits_let_real_checkpoints_through(tmp_path, zipped):
    state = {f"layer.{k}.weight": torch.ones(2, 3) for k in range(2000)}
    optimiser = torch.optim.Adam([torch.ones(3, requires_grad=True)]).state_dict()
    held = {"state_dict": state, "optimizer": optimiser, "shape": torch.Size([1, 2]), "t": ((1,),)}
    path = save(held, tmp_path / "real.pt", zipped)
    assert len(read_torch_file(path)["state_dict"]) == 2000


def test_a_pipe_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_torch_file(tmp_path / "pipe.pt")
