"""Checkpoints: what is kept, what damage does, other meshes, other networks, a full disk."""

import errno
import io
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import training

from repgls_jax.train import checkpoint, manifest, optimizer, sharding, state
from repgls_jax.train.journal import Journal

SCORES = {1: 0.1, 2: 0.9, 3: 0.2, 4: float("nan"), 5: 0.4}


def value(step: int) -> dict[str, dict[str, jax.Array]]:
    return {"params": {"x": jax.random.normal(jax.random.key(step), (100, 30))}}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), value(0))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
    """Checkpoints 2 (the best), 4 and 5 of five."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    kept = checkpoint.Checkpoints(folder, best="score")
    for step, score in SCORES.items():
        kept.save(step, value(step), {"step": step}, {"score": score})
    kept.close()
    return folder


@pytest.fixture
def folder(written, tmp_path) -> pathlib.Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


def steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def test_the_newest_two_and_the_best_are_kept_and_usable(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4", "5"]
    kept = checkpoint.Checkpoints(folder)
    assert (kept.latest(), kept.best()) == (5, 2)
    assert kept.metrics(2) == {"score": 0.9} and kept.metrics(4) == {"score": None}
    mesh = sharding.make_mesh("dp", jax.devices()[:2])
    for which, step in (("latest", 5), ("best", 2), (4, 4)):
        training.same(kept.restore_params(mesh, which), value(step)["params"])
        assert kept.meta(which) == {"step": step}


def test_the_best_is_remembered_when_the_run_goes_on(folder):
    kept = checkpoint.Checkpoints(folder, best="score")
    kept.save(6, value(6), {}, {"score": 0.5})
    kept.save(7, value(7), {}, {"score": 0.9})
    kept.save(8, value(8), {})  # saved on a signal: nothing was measured
    kept.close()
    assert steps(folder) == [7, 8]  # of two equal, the newer


def test_nothing_is_left_out_silently(folder):
    with pytest.raises(ValueError, match="open for reading"):
        checkpoint.Checkpoints(folder).save(6, value(6), {})
    kept = checkpoint.Checkpoints(folder, best="score")
    with pytest.raises(ValueError, match="5 already exists"):
        kept.save(5, value(5), {})
    with pytest.raises(ValueError, match="which='newest'"):
        kept.choose("newest")
    with pytest.raises(FileNotFoundError, match=r"of step 3.*found steps \[2, 4, 5\]"):
        kept.restore(ABSTRACT, 3)


def test_missing_checkpoint_says_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*none.*Train first"):
        checkpoint.Checkpoints(tmp_path / "none").meta()
    assert not (tmp_path / "none").exists()


def largest(step: pathlib.Path) -> pathlib.Path:
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "flipped bit": lambda step: flip(largest(step)),
    "truncated array": lambda step: largest(step).write_bytes(largest(step).read_bytes()[:-1]),
    "missing array": lambda step: largest(step).unlink(),
    "missing index": lambda step: (step / "state" / "manifest.ocdbt").unlink(),
    "missing meta": lambda step: shutil.rmtree(step / "meta"),
    "emptied metadata": lambda step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "emptied tree": lambda step: (step / "state" / "_METADATA").write_bytes(b""),
    "flipped manifest": lambda step: flip(step / manifest.NAME),
    "emptied manifest": lambda step: (step / manifest.NAME).write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_one_is_moved_aside_and_the_one_before_used(folder, tmp_path, damage):
    DAMAGE[damage](folder / "5")
    said = io.StringIO()
    journal = Journal(tmp_path / "journal.jsonl", said)
    kept = checkpoint.Checkpoints(folder, best="score", journal=journal)
    training.same(kept.restore(ABSTRACT), value(4))
    assert kept.meta() == {"step": 4} and kept.latest() == 4
    kept.close()
    assert steps(folder) == [2, 4] and (folder / "damaged-5").is_dir()
    assert "checkpoint of step 5 is damaged" in said.getvalue()
    (entry,) = journal.read("damaged")
    assert (entry["checkpoint"], entry["used"]) == (5, 4) and entry["why"]
    again = checkpoint.Checkpoints(folder, best="score")
    again.save(5, value(5), {"step": 5}, {"score": 0.0})
    again.close()
    DAMAGE[damage](folder / "5")
    assert checkpoint.Checkpoints(folder, best="score").choose() == 4
    assert (folder / "damaged-5-2").is_dir()  # neither overwrites the other


def test_reading_falls_back_too_but_changes_nothing(folder):
    flip(largest(folder / "5"))
    (folder / "6.orbax-checkpoint-tmp").mkdir()  # a save under way
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    reader = checkpoint.Checkpoints(folder)
    training.same(reader.restore_params(sharding.make_mesh("dp", jax.devices()[:1])), value(4)["params"])
    with pytest.raises(manifest.DamagedError, match=r"step 5: .*has other content"):
        reader.restore(ABSTRACT, 5)
    flip(largest(folder / "2"))
    assert checkpoint.Checkpoints(folder).choose("best") == 4
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before


def test_where_all_are_damaged_nothing_starts_over(folder, tmp_path):
    for step in (2, 4, 5):
        flip(largest(folder / str(step)))
    for _ in range(2):  # the second time as the first
        with pytest.raises(manifest.DamagedError, match=r"(?s)step 5: .*step 2: .*bring the files back"):
            training.run(tmp_path, 8)
    assert steps(folder) == [2, 4, 5] and not (tmp_path / "journal.jsonl").exists()
    for step in (2, 4, 5):
        (folder / str(step)).rename(folder / f"damaged-{step}")
    with pytest.raises(manifest.DamagedError, match="delete this one to begin anew"):
        training.run(tmp_path, 8)


def test_checkpoints_from_before_manifests_load_and_stay(folder):
    said = io.StringIO()
    for step in (2, 5):
        (folder / str(step) / manifest.NAME).unlink()
    kept = checkpoint.Checkpoints(folder, best="score", journal=Journal(None, said))
    training.same(kept.restore(ABSTRACT), value(5))
    assert "step 5 has no manifest" in said.getvalue()
    kept.save(6, value(6), {}, {"score": 0.0})
    kept.save(7, value(7), {}, {"score": 0.1})
    kept.close()
    assert steps(folder) == [2, 5, 6, 7]  # one of the two may be the best
    largest(folder / "7").unlink()
    (folder / "7" / manifest.NAME).unlink()
    assert checkpoint.Checkpoints(folder, best="score").choose() == 6  # what can be noticed is


def test_every_file_is_checked_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(manifest, "_PIECE", 1000)
    monkeypatch.setattr(manifest, "_BLOCK", 300)
    step = checkpoint.located(folder / "5")
    manifest.write(step, {"step": 5, "best": "score", "metrics": {}})
    told = manifest.read(step)
    assert told is not None
    for name, entry in told["files"].items():
        size = (folder / "5" / name).stat().st_size
        assert entry["size"] == size and len(entry["crc32"]) == -(-size // 1000)
    manifest.check(step, told)
    for name in told["files"]:
        path = folder / "5" / name
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(manifest.DamagedError, match="other content"):
                manifest.check(step, told)
        path.write_bytes(whole)
    manifest.check(step, told)


def test_remote_addresses_stay_as_they_are():
    assert str(checkpoint.located("gs://bucket/run/checkpoints")) == "gs://bucket/run/checkpoints"
    assert checkpoint.located("here").is_absolute()
    assert manifest.remote(checkpoint.located("gs://bucket/run")) and not manifest.remote(checkpoint.located("here"))


def made(ema: float, hidden: int = training.HIDDEN, **changes) -> state.TrainState:
    tx = optimizer.optimizer(training.config(10, **changes), 10)
    return state.create(training.init(jax.random.key(3), hidden), tx, 0, ema)


def placed(shapes: state.TrainState, preset: str, devices: int) -> state.TrainState:
    mesh = sharding.make_mesh(preset, jax.devices()[:devices])
    shardings = sharding.shard_state(shapes, mesh, preset)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def test_saved_on_eight_devices_and_restored_on_fewer(tmp_path):
    whole = made(0.9)
    split = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), whole, placed(whole, "fsdp_tp", 8))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(split))
    kept = checkpoint.Checkpoints(tmp_path, best="score")
    kept.save(1, split, {}, {"score": 0.0})
    kept.close()
    for devices, preset in ((1, "dp"), (2, "tp"), (4, "fsdp"), (4, "hybrid"), (8, "fsdp")):
        restored = checkpoint.Checkpoints(tmp_path).restore(placed(jax.eval_shape(lambda: made(0.9)), preset, devices))
        training.same(restored, whole)
        where = {device for x in jax.tree.leaves(restored) for device in x.sharding.device_set}
        assert where == set(jax.devices()[:devices])


def test_the_average_is_what_is_used_and_must_be_asked_for(tmp_path):
    mesh = sharding.make_mesh("dp", jax.devices()[:1])
    averaged = made(0.9)
    averaged = averaged.replace(ema=jax.tree.map(lambda x: x + 1, averaged.params))
    for name, saved, other, said in (
        ("with", averaged, made(0.0), "keeps a moving average of the weights; set train.ema"),
        ("without", made(0.0), averaged, "keeps no moving average of the weights; set train.ema=0"),
    ):
        kept = checkpoint.Checkpoints(tmp_path / name, best="score")
        kept.save(1, saved, {}, {"score": 0.0})
        kept.wait()
        training.same(kept.restore(placed(saved, "dp", 1)), saved)
        training.same(kept.restore_params(mesh), saved.weights)
        with pytest.raises(ValueError, match=said):
            kept.restore(placed(other, "dp", 1))
        kept.close()


def test_another_network_is_named_parameter_by_parameter(tmp_path):
    kept = checkpoint.Checkpoints(tmp_path, best="score")
    kept.save(1, made(0.0), {}, {"score": 0.0})
    wider = made(0.0, hidden=256)
    with pytest.raises(ValueError) as caught:
        kept.restore(placed(wider.replace(params=wider.params | {"queries": jnp.zeros(2)}), "dp", 1))
    said = str(caught.value)
    assert "params/queries is not in the checkpoint" in said and "another network or optimizer" in said
    assert "params/mlp/up/kernel is float32[64, 256] here and float32[64, 128] in the checkpoint" in said
    with pytest.raises(ValueError, match="is only in the checkpoint"):
        kept.restore(placed(made(0.0, freeze=("mlp",)), "dp", 1))  # frozen parameters have no moments
    kept.close()


def test_a_full_disk_says_what_to_do_and_leaves_the_one_before_whole(tmp_path, monkeypatch):
    """The error of the system comes from the thread that writes. A real full disk: see tests/crashes.py."""
    write = manifest.write

    def full(folder, content) -> None:
        if content["step"] == 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, content)

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(checkpoint.DiskFullError, match=r"make room.*then give the same command again"):
        training.run(tmp_path, 16)
    assert checkpoint.Checkpoints(tmp_path / "checkpoints").choose() == 4
    monkeypatch.setattr(manifest, "write", write)
    resumed, losses = training.run(tmp_path, 16)
    whole, told = training.run(tmp_path / "whole", 16)
    training.same(resumed, whole)
    assert losses == told
    meta = json.loads((tmp_path / "checkpoints" / "16" / manifest.NAME).read_text())
    assert meta["metrics"] == pytest.approx({"score": training.told(tmp_path, "valid")[-1]["score"]})


def test_arrays_are_restored_bit_by_bit(tmp_path):
    odd = {"params": {"x": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)}}
    kept = checkpoint.Checkpoints(tmp_path, best="score")
    kept.save(1, jax.tree.map(jnp.asarray, odd), {}, {"score": 0.0})
    shape = jax.ShapeDtypeStruct((4,), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    read = np.asarray(kept.restore({"params": {"x": shape}})["params"]["x"])
    kept.close()
    assert read.tobytes() == odd["params"]["x"].tobytes()
