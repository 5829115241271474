"""Worker processes of the extraction: chunks in order, a GPU each, and one that dies."""

import concurrent.futures
import pathlib

import pytest
from fake_backend import FakeSettings, only, run, same, undisturbed

from repgls_jax.extraction import parts, workers


@pytest.fixture
def reference(tmp_path):
    return undisturbed(tmp_path)


def test_a_worker_that_dies_is_an_error_that_leaves_the_parts(reference, tmp_path):
    path, files, counts = reference
    (tmp_path / "w").mkdir()
    with pytest.raises(ChildProcessError, match="same command goes on"):
        run(path, tmp_path / "w" / "o", workers=2, dies_at="s13")
    assert (only(tmp_path / "w" / "o.parts") / "run.json").exists()
    assert run(path, tmp_path / "w" / "o") == counts
    assert same(tmp_path / "w", files)


def test_workers_are_given_a_few_chunks_at_a_time_and_answer_in_order():
    chunks = [workers.Chunk(pathlib.Path(str(i)), [], []) for i in range(20)]
    part = parts.Part("earlier", {}, [])
    taken = []

    class Pool:
        """Answers each chunk with its path, once asked."""

        def submit(self, function, *arguments):
            future: concurrent.futures.Future = concurrent.futures.Future()
            future.set_result(arguments[0].path if arguments else {})
            return future

    def jobs():
        for chunk in chunks:
            taken.append(chunk)
            yield workers.Job(part if int(str(chunk.path)) % 5 == 3 else chunk, 0.0)

    answers = []
    for _, answer in workers._Several(Pool(), 2).read(jobs()):  # type: ignore[arg-type]
        answers.append(answer)
        assert len(taken) <= len(answers) + 4
    assert answers == [part if i % 5 == 3 else pathlib.Path(str(i)) for i in range(20)]


def test_each_worker_has_a_gpu_of_its_own(reference, tmp_path, monkeypatch):
    path, _, counts = reference
    log = tmp_path / "log"
    monkeypatch.setattr(FakeSettings, "needs_device", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(ValueError, match="workers is 2 but there are 1 GPUs"):
        run(path, tmp_path / "o", workers=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-3,5")
    assert run(path, tmp_path / "o", workers=2, log=str(log), processes=2) == counts
    by_process = {line.split()[1]: line.split()[2] for line in log.read_text().splitlines()}
    assert sorted(by_process.values()) == ["7", "GPU-3"]
    monkeypatch.setattr(FakeSettings, "needs_device", False)
    log.unlink()
    run(path, tmp_path / "o", workers=2, log=str(log))
    assert {line.split()[2] for line in log.read_text().splitlines()} == {"7,GPU-3,5"}
