"""Builds that were interrupted, and builds by several processes: always the same files."""

import contextlib
import fcntl
import importlib.metadata
import os
import pathlib
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import types
import weakref

import pytest
from test_data_build import Stub

from repgls_jax import data
from repgls_jax.data import beam, builder, parallel

COUNTS = {"train": 11, "valid": 3, "test": 4}
SECRET = "Invented findings."


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(builder, "SHARD_EXAMPLES", 4)  # six shards: three, one, one and so on


def tree(folder):
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD_EXAMPLES", 4)
        out = tmp_path_factory.mktemp("undisturbed") / "out"
        data.build_source(Stub(COUNTS, bad=[("train", 2)]), out, workers=1)
        return tree(out)


class Counting(Stub):
    """Says which records it was asked for."""

    def __init__(self, counts=COUNTS, fail_at=None):
        super().__init__(counts, bad=[("train", 2)], fail_at=fail_at)
        self.asked = []

    def record(self, split, i):
        self.asked.append((split, i))
        return super().record(split, i)


def test_what_is_finished_is_not_done_again(tmp_path, undisturbed, capsys):
    out, first, second = tmp_path / "out", Counting(fail_at=9), Counting()
    with pytest.raises(KeyboardInterrupt):
        data.build_source(first, out, workers=1)
    with pytest.raises(FileNotFoundError, match="no complete build"):
        data.read_manifest(out)
    with pytest.raises(FileNotFoundError, match="holds no image shards"):
        data.shards.Records(out / "shards", "train")
    data.build_source(second, out, workers=1, progress=True)
    assert set(second.asked) == {("train", i) for i in range(7, 11)} | {
        (split, i) for split in ("valid", "test") for i in range(COUNTS[split])
    }
    assert tree(out) == undisturbed
    told = capsys.readouterr()
    assert "| 7/18 [" in told.err  # the first that the bar shows
    assert "17 images, " in told.err and " a second and core" in told.err and SECRET not in told.err + told.out


def test_a_build_that_dies_at_any_step_ends_in_the_same_files(tmp_path, monkeypatch):
    """Every change of the disk in turn is the first that does not happen; nor does any after it, tidying included."""

    class Dead(BaseException):
        pass

    left = [0]

    def mortal(function):
        def called(*args, **kwargs):
            if left[0] <= 0:
                raise Dead
            left[0] -= 1
            return function(*args, **kwargs)

        return called

    counts = {"train": 5, "valid": 1, "test": 1}
    data.build_source(Counting(counts), tmp_path / "undisturbed", workers=1)
    expected = tree(tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        for owner, names in ((pathlib.Path, ("replace", "unlink", "mkdir", "write_text")), (os, ("fsync",))):
            for name in names:
                patch.setattr(owner, name, mortal(getattr(owner, name)))
        patch.setattr(shutil, "rmtree", mortal(shutil.rmtree))
        for step in range(1000):
            left[0] = step
            out = tmp_path / str(step)
            with contextlib.suppress(Dead):
                data.build_source(Counting(counts), out, workers=1)
                break
            left[0] = 10**9
            data.build_source(Counting(counts), out, workers=1)
            assert tree(out) == expected, step
    assert 60 < step < 300


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _flip, pathlib.Path.unlink])
@pytest.mark.parametrize("which", ["shards/*.array_record-", "shards/*.pixels-", ".partial/*.array_record-"])
def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path, undisturbed, damage, which):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        data.build_source(Counting(fail_at=9), out, workers=1)
    [path] = [path for path in out.glob(f"{which}*00001-of-00003*") if "train" in path.name]
    damage(path)
    (out / "shards" / "leftover").write_text("")
    source = Counting()
    data.build_source(source, out, workers=1)
    assert tree(out) == undisturbed
    assert ("train", 4) in source.asked and ("train", 0) not in source.asked


def test_an_unfinished_build_of_something_else_is_not_thrown_away_unasked(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        data.build_source(Stub(COUNTS, fail_at=9), out, workers=1)
    before = tree(out / "shards")
    with pytest.raises(ValueError, match=r"holds another build \(source\.seed differ\)"):
        data.build_source(Stub(COUNTS, seed=1), out, workers=1)
    assert tree(out / "shards") == before
    data.build_source(Stub(COUNTS, seed=1), out, workers=1, overwrite=True)
    data.build_source(Stub(COUNTS, seed=1), tmp_path / "clean", workers=1)
    assert tree(out) == tree(tmp_path / "clean")


def test_shards_of_two_versions_of_a_library_are_not_mixed(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        data.build_source(Stub(COUNTS, fail_at=9), out, workers=1)
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "0.1" if package == "pillow" else "1")
    with pytest.raises(ValueError, match=r"versions\.pillow, .* differ"):
        data.build_source(Stub(COUNTS), out, workers=1)


def test_two_builds_do_not_share_a_folder(tmp_path):
    lock = tmp_path / ".out.lock"
    with parallel.locked(lock, fcntl.LOCK_EX), pytest.raises(ValueError, match="another process builds in"):
        data.build_source(Stub(COUNTS), tmp_path / "out")
    data.build_source(Stub(COUNTS), tmp_path / "out")


def test_a_build_waits_for_the_last_process_of_one_that_was_killed(tmp_path, undisturbed):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        data.build_source(Counting(fail_at=9), out, workers=1)
    source = Counting()
    building = threading.Thread(target=data.build_source, args=(source, out), kwargs={"workers": 1})
    with parallel.locked(out / ".partial" / "busy", fcntl.LOCK_SH):
        building.start()
        building.join(0.5)
        assert building.is_alive() and not source.asked
    building.join()
    assert tree(out) == undisturbed


def test_images_are_held_one_at_a_time(tmp_path):
    held, most = [0], []

    def let_go():
        held[0] -= 1

    class Watched(Stub):
        def record(self, split, i):
            record = super().record(split, i)
            held[0] += 1
            weakref.finalize(record["image"], let_go)
            most.append(held[0])
            return record

    data.build_source(Watched({"train": 40, "valid": 1, "test": 1}), tmp_path / "out", workers=1)
    assert len(most) == 42 and max(most) == 2 and held == [0]  # the one before goes when the next has come


class Faulty(Stub):
    def record(self, split, i):
        if split == "valid":
            raise ValueError("no such film")
        return super().record(split, i)


class Deadly(Stub):
    def record(self, split, i):
        if split == "valid" and self.fail_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return Stub(COUNTS, bad=[("train", 2)]).record(split, i)


@pytest.mark.slow
def test_processes_write_the_same_files_and_their_errors_arrive(tmp_path, undisturbed):
    data.build_source(Stub(COUNTS, bad=[("train", 2)]), tmp_path / "out", workers=3)
    assert tree(tmp_path / "out") == undisturbed
    with pytest.raises(ValueError, match="no such film"):
        data.build_source(Faulty(COUNTS), tmp_path / "faulty", workers=2)
    with pytest.raises(ChildProcessError, match=r"a worker process died.*with fewer workers the same command goes on"):
        data.build_source(Deadly(COUNTS, fail_at=1), tmp_path / "deadly", workers=2)
    data.build_source(Deadly(COUNTS), tmp_path / "deadly", workers=1)
    assert tree(tmp_path / "deadly") == undisturbed


BUILD = """
import pathlib, sys
from repgls_jax import data
from repgls_jax.data import builder
if __name__ == "__main__":
    builder.SHARD_EXAMPLES = 8
    print("ready", flush=True)
    data.build("phantom", sys.argv[1], count=int(sys.argv[3]), workers=int(sys.argv[2]))
    print("done", flush=True)
"""


def kill_until_done(folder, kills, workers, count, longest):
    """Builds a phantom, killed ``kills`` times after a random while of up to ``longest`` seconds, and then undisturbed.

    Returns:
      Shards that each killed build left.
    """
    draw, out, script = random.Random(kills), folder / "out", folder / "build.py"
    script.write_text(BUILD)
    left, run = [], [sys.executable, script, out, str(workers), str(count)]
    for _ in range(kills):
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        with process:
            assert process.stdout.readline() == "ready\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, longest))
            process.kill()
        left.append(len(list((out / "shards").glob("*array_record*"))))
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
    return left


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "workers", "longest"), [(3, 1, 0.3), (1, 2, 3)])
def test_killed_builds_end_in_the_same_files(tmp_path, monkeypatch, kills, workers, longest):
    kill_until_done(tmp_path, kills, workers, 160, longest)
    monkeypatch.setattr(builder, "SHARD_EXAMPLES", 8)
    data.build("phantom", tmp_path / "undisturbed", count=160, workers=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def test_beam_makes_the_same_files(tmp_path, undisturbed, monkeypatch):
    """By a stand-in that does what a runner may do: pickles everything, and does some of it twice."""
    if "apache_beam" not in sys.modules:
        with pytest.raises(ValueError, match=r"apache_beam is not installed; pip install 'repgls-jax\[beam\]'"):
            beam.engine("")

    class Pipeline:
        def __init__(self, options):
            assert options == ["--runner=Direct Runner"]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __or__(self, step):
            return step(None)

    class Step:
        def __init__(self, function):
            self.function = function

        def __rrshift__(self, name):
            return self

        def __ror__(self, left):
            return self.function(left)

        __call__ = __ror__

    def do(function, *args):
        return Step(lambda items: [again(function)(again(item), *again(args)) for item in items])

    def again(value):
        return pickle.loads(pickle.dumps(value))  # noqa: S301 - dumped just now

    module, options = types.ModuleType("apache_beam"), types.ModuleType("pipeline_options")
    module.Pipeline, module.Map = Pipeline, do
    module.Create = lambda items: Step(lambda _: [*reversed(items), *items[:2]])
    module.Reshuffle = lambda: Step(lambda items: items)
    options.PipelineOptions = list
    monkeypatch.setitem(sys.modules, "apache_beam", module)
    monkeypatch.setitem(sys.modules, "apache_beam.options", types.ModuleType("options"))
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", options)
    engine = beam.engine("'--runner=Direct Runner'")
    data.build_source(Stub(COUNTS, bad=[("train", 2)]), tmp_path / "out", engine=engine)
    assert tree(tmp_path / "out") == undisturbed
