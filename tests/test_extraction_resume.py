"""A run that is killed, interrupted or starved of disk goes on with the same command, to the same bytes."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import pyarrow.parquet as pq
import pytest
from fake_backend import TEXTS, left, only, pids, read_by, run, same, undisturbed, until, write_csv

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.extraction import parts, workers
from repgls_jax.extraction import run as extract_lib

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def reference(tmp_path):
    return undisturbed(tmp_path)


def test_every_report_is_a_row_or_a_fault(reference, tmp_path):
    _, files, counts = reference
    silent = [i for i, text in enumerate(TEXTS) if text == "silence"]
    assert (counts["reports"], counts["quarantined"], counts["empty"]) == (14 - len(silent), len(silent) + 1, 3)
    table = sidecars.read(tmp_path / "whole" / "o", sidecars.EVIDENCE, findings_lib.NIH)
    assert table.column("study_id").to_pylist() == [
        f"s{i}" for i, text in enumerate(TEXTS) if text not in ("", "silence")
    ]
    assert sidecars.unread(table) == {f"s{i}" for i in silent}
    listed = files["o.quarantine.csv"].decode()
    assert all(f"study s{i},no answer" in listed for i in silent)
    assert "line 16,more than" in listed
    assert pq.ParquetFile(tmp_path / "whole" / "o").num_row_groups == 4  # of five chunks, one without a row


def test_chunks_and_workers_change_nothing(reference, tmp_path):
    path, files, counts = reference
    (tmp_path / "a").mkdir()
    assert run(path, tmp_path / "a" / "o", workers=3, log=str(tmp_path / "log")) == counts
    assert same(tmp_path / "a", files)
    assert sorted(read_by(tmp_path / "log")) == sorted(f"s{i}" for i in range(14))
    run(path, tmp_path / "a" / "o", chunk=100)
    assert pq.read_table(tmp_path / "a" / "o").equals(pq.read_table(tmp_path / "whole" / "o"))


def kill_points(path: pathlib.Path, root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Folders in which a run was killed at its first, second, ... touch of the file system, up to the last."""
    kinds = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")
    for point in range(1, 1_000):
        folder = root / f"kill{point}"
        folder.mkdir()
        child = os.fork()
        if not child:
            touched = 0

            def kill(event: str, _: object, last: int = point) -> None:
                nonlocal touched
                touched += event in kinds
                if touched == last:
                    os._exit(9)

            sys.addaudithook(kill)
            run(path, folder / "o")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        yield folder
        if os.waitstatus_to_exitcode(status) == 0:
            return
        assert os.waitstatus_to_exitcode(status) == 9


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # the child runs no JAX
def test_killed_at_any_touch_of_the_disk_and_run_again_the_files_are_the_same(reference, tmp_path):
    path, files, counts = reference
    killed = reused = 0
    for folder in kill_points(path, tmp_path):
        killed += 1
        lines: list[str] = []
        (tmp_path / "log").write_text("")
        assert run(path, folder / "o", lines.append, log=str(tmp_path / "log")) == counts
        assert same(folder, files)
        read = read_by(tmp_path / "log")
        assert len(read) == len(set(read))
        reused += any("earlier run" in line for line in lines)
    assert killed > 30  # five parts, the join, their removal
    assert reused > 15


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_real_process_with_workers_leaves_parts_and_no_process(reference, tmp_path, end):
    path, files, counts = reference
    (tmp_path / "k").mkdir()
    log = tmp_path / "log"
    script = f"""
        import sys; sys.path.insert(0, {str(HERE)!r})
        import pathlib, fake_backend as t
        if __name__ == "__main__":
            try:
                t.run(pathlib.Path({str(path)!r}), pathlib.Path({str(tmp_path / "k" / "o")!r}), workers=2, seconds=0.4,
                      processes=2, log={str(log)!r})
            except KeyboardInterrupt:
                sys.exit(130)
    """
    (tmp_path / "main.py").write_text(textwrap.dedent(script))
    folder = tmp_path / "k" / "o.parts"
    with subprocess.Popen([sys.executable, tmp_path / "main.py"], stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(list(folder.glob("*/*.parquet"))) >= 2)
        process.send_signal(end)
        assert process.wait(60) == (130 if end == signal.SIGINT else -signal.SIGKILL)
        assert process.stderr is not None
        if end == signal.SIGINT:
            assert process.stderr.read() == ""
    started = pids(log)
    assert len(started) == 2
    until(lambda: not any(map(alive, started)))
    done = {path.name for path in folder.glob("*/*.parquet")}
    assert 2 <= len(done) < 5
    log.unlink()
    lines: list[str] = []
    assert run(path, tmp_path / "k" / "o", lines.append, log=str(log)) == counts
    assert same(tmp_path / "k", files)
    again = [f"s{i}" for i in range(14) if f"{i // 3:05d}.parquet" not in done]
    assert read_by(log) == again
    assert f"({14 - len(again)} read by an earlier run)" in lines[-1]


def test_a_full_disk_leaves_the_parts_and_no_half_file(reference, tmp_path, monkeypatch):
    path, files, counts = reference
    (tmp_path / "d").mkdir()
    write, calls = pq.write_table, []

    def full(table, where):
        calls.append(where)
        if len(calls) == 3:
            where.write_bytes(b"PAR1")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, where)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        run(path, tmp_path / "d" / "o")
    assert left(tmp_path / "d") == {"o.parts", ".o.lock"}
    monkeypatch.undo()
    log = tmp_path / "log"
    assert run(path, tmp_path / "d" / "o", log=str(log)) == counts
    assert read_by(log) == [f"s{i}" for i in range(6, 14)]
    assert same(tmp_path / "d", files)


def interrupted(path: pathlib.Path, output: pathlib.Path, **settings) -> None:
    """Leaves all parts, as a run killed before they are joined."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.Folder, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(path, output, **settings)


def test_parts_of_other_runs_are_left_alone_and_it_says_so(reference, tmp_path):
    path, files, _ = reference
    log = tmp_path / "log"
    (tmp_path / "a").mkdir()
    output = tmp_path / "a" / "o"
    interrupted(path, output, version="0")
    interrupted(path, output, chunk=2)
    kept = {file: file.read_bytes() for file in output.with_name("o.parts").glob("*/*")}
    lines: list[str] = []
    run(path, output, lines.append, log=str(log))
    assert "parts of 2 unfinished runs with other settings; left alone" in lines[0]
    assert len(read_by(log)) == 14
    assert {file: file.read_bytes() for file in output.with_name("o.parts").glob("*/*")} == kept
    log.unlink()
    for settings in ({"version": "0"}, {"chunk": 2}):  # each goes on from its own parts, and the last one tidies up
        run(path, output, log=str(log), **settings)
        assert not log.exists()
    assert not output.with_name("o.parts").exists()
    run(path, output)
    assert same(tmp_path / "a", files)


def test_only_parts_whose_reports_changed_or_that_are_damaged_are_read_again(reference, tmp_path):
    path, _, _ = reference
    folder, log = tmp_path / "c", tmp_path / "log"
    folder.mkdir()
    interrupted(path, folder / "o")
    texts = [*TEXTS]
    texts[4] += "y"  # chunk 1
    left_there = only(folder / "o.parts")
    (left_there / "00003.parquet").write_bytes(b"PAR1 cut")
    (left_there / "00004.parquet").rename(left_there / "00000.parquet")
    run(write_csv(path, texts), folder / "o", log=str(log))
    assert read_by(log) == [f"s{i}" for i in (0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13)]
    run(path, tmp_path / "fresh")
    assert (folder / "o").read_bytes() == (tmp_path / "fresh").read_bytes()
    assert left(folder) == {"o", "o.quarantine.csv", ".o.lock"}


def test_a_second_run_on_the_same_output_is_refused(reference, tmp_path):
    path, files, _ = reference
    with parts.alone(tmp_path / "whole" / "o"), pytest.raises(ValueError, match="another process is writing"):
        run(path, tmp_path / "whole" / "o")
    assert same(tmp_path / "whole", files)
    run(path, tmp_path / "whole" / "o")
    assert same(tmp_path / "whole", files)


def test_when_no_report_can_be_read_it_is_an_error_that_lists_them(tmp_path):
    path = write_csv(tmp_path / "r.csv", ["silence"] * 4)
    (tmp_path / "o").write_text("of an earlier run")
    with pytest.raises(ValueError, match=r"no readable report \(4 quarantined\)"):
        run(path, tmp_path / "o")
    assert (tmp_path / "o.quarantine.csv").read_text().count("no answer") == 4
    assert left(tmp_path) == {"r.csv", "o", "o.quarantine.csv", ".o.lock"}


def test_the_rate_and_the_time_left_are_of_what_this_run_reads(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    progress = extract_lib._Progress(lines.append)
    part = parts.Part("", {"reports": 90, "rows": 5}, [("a", "b")] * 10)
    chunk = workers.Chunk(pathlib.Path(), [], [])
    for seconds, work, share in (
        (0, part, 0.25),
        (0, part, 0.5),
        (4, chunk, 0.6),  # the first line: 100 in 4 s, a tenth of all in 4 s
        (8, chunk, 0.7),  # too soon for another
        (16, part, 0.75),
        (20, chunk, 0.8),
        (21, chunk, 1.0),
    ):
        now[0] = seconds
        progress.add(workers.Job(work, share), part)
    counts = progress.end(3)
    assert lines == [
        "extract: going on after 200 reports that an earlier run has read",
        "extract: 300 reports, 60% of the file, 25.0 a second, about 16 s left",
        "extract: 600 reports, 80% of the file, 15.0 a second, about 16 s left",
        "extract: 630 reports (300 read by an earlier run), 35 rows, 73 quarantined, 19.0 reports a second",
    ]
    assert counts["quarantined"] == 73


def test_the_record_says_what_read_the_reports(tmp_path):
    path = write_csv(tmp_path / "r.csv", TEXTS)
    interrupted(path, tmp_path / "o")
    record = json.loads((only(tmp_path / "o.parts") / "run.json").read_text())
    assert (record["labeller"], record["version"], record["prompt_hash"], record["chunk"]) == ("fake", "1", "f00d", 3)
    assert record["vocabulary"]["findings"] == list(findings_lib.NIH.findings)
