"""A backend that notes what it reads, and runs with it, for the tests of interrupted runs and of workers."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from repgls_jax import findings as findings_lib
from repgls_jax.extraction import run as extract_lib
from repgls_jax.extraction.backends import Fault
from repgls_jax.reports.resolve import Evidence

FAKE = "fake_backend:FakeSettings:Fake"


@dataclasses.dataclass(frozen=True)
class FakeSettings:
    """Of a backend that notes what it reads in ``log``, one line a study with the process's id."""

    log: str = os.devnull
    chunk: int = 3
    version: str = "1"
    seconds: float = 0.0  # for each chunk
    dies_at: str = ""  # study
    processes: int = 0  # each waits, after its first chunk, until so many have read one
    needs_device: bool = False


class Fake:
    labeller = "fake"
    prompt_hash = "f00d"

    def __init__(self, vocabulary: findings_lib.Vocabulary, settings: FakeSettings) -> None:
        self.settings, self.chunk, self.version = settings, settings.chunk, settings.version

    def read(self, reports: Sequence[Mapping[str, str]]) -> list[list[Evidence] | Fault]:
        time.sleep(self.settings.seconds)
        answers: list[list[Evidence] | Fault] = []
        with pathlib.Path(self.settings.log).open("a") as log:
            for report in reports:
                if report["study_id"] == self.settings.dies_at:
                    os._exit(9)
                print(report["study_id"], os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), file=log)
                text = report["report"]
                p = len(text) % 10 / 10
                found = Evidence("Mass", p, "", "other", "report", 0, len(text), 0, 1, -1, -1)
                answers.append(Fault("no answer") if "silence" in text else [found] if text else [])
        until(lambda: len(pids(pathlib.Path(self.settings.log))) >= self.settings.processes)
        return answers

    def cuts(self, report: Mapping[str, str]) -> bool:
        return False


def pids(log: pathlib.Path) -> set[int]:
    return {int(line.split()[1]) for line in log.read_text().splitlines()}


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1_200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited a minute in vain")


def write_csv(path: pathlib.Path, texts: Sequence[str]) -> pathlib.Path:
    path.write_text("study_id,report\n" + "".join(f"s{i},{text}\n" for i, text in enumerate(texts)))
    return path


TEXTS = [("x" * i if i % 4 else "silence") if not 6 <= i < 9 else "" for i in range(14)]  # one chunk without a row


def run(path: pathlib.Path, output: pathlib.Path, say: Callable[[str], None] | None = None, **settings) -> dict:
    count = settings.pop("workers", 1)
    return extract_lib.extract(path, output, findings_lib.NIH, FAKE, say, count, FakeSettings(**settings))


def read_by(log: pathlib.Path) -> list[str]:
    return [line.split()[0] for line in log.read_text().splitlines()]


def left(folder: pathlib.Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def undisturbed(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, bytes], dict]:
    """Reports, the files of a run that nothing disturbed, and its counts."""
    path = write_csv(folder / "r.csv", [*TEXTS, f"a bare, comma {'x' * 9}"])
    (folder / "whole").mkdir()
    counts = run(path, folder / "whole" / "o")
    return path, {name: (folder / "whole" / name).read_bytes() for name in ("o", "o.quarantine.csv")}, counts


def same(folder: pathlib.Path, reference: dict[str, bytes]) -> bool:
    assert left(folder) == {*reference, ".o.lock"}
    return all((folder / name).read_bytes() == data for name, data in reference.items())


def only(folder: pathlib.Path) -> pathlib.Path:
    """The folder of the one run that has left parts."""
    (path,) = folder.iterdir()
    return path
