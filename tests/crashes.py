"""Kills, stops and damage against real trainings, which must all end with the bits of one that was left alone.

    python tests/crashes.py                                    # 100 kills, 20 damaged checkpoints, 10 SIGTERMs
    python tests/crashes.py --kills=10 --corruptions=8 --stops=2
    mount -t tmpfs -o size=8m tmpfs DIR; python tests/crashes.py --small_disk=DIR   # and a disk that is really full

Each training is what launch/train.py does for LU-ViT, on a small phantom, in a process of its own. Prints progress and
a table; the exit code is 1 if anything was not as it should be.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="repgls-jax-cache-"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from absl import flags
from crash_runs import NETWORKS, Trial, pair, start, wait

from repgls_jax.train import manifest

UNFINISHED = "*.orbax-checkpoint-tmp"


class Bench:
    """Makes trials that share data and evidence, and knows the undisturbed end."""

    def __init__(self, folder: pathlib.Path, seed: int, network: str):
        self.folder, self.random, self.network = folder, random.Random(seed), network
        self.outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.failures: list[str] = []
        self._count = 0
        self._shared: list[pathlib.Path] = []
        first = self.trial("whole")
        first.finish()  # builds the data and fills the compilation cache
        self._shared = [*first.root.glob("data-*"), *first.root.glob("evidence-*")]
        whole = self.trial("whole")
        began = time.monotonic()
        whole.finish()
        self.seconds = time.monotonic() - began
        self.whole = whole.digest()
        assert self.whole == first.digest(), "two undisturbed runs differ"

    def trial(self, name: str, of: Trial | None = None) -> Trial:
        """A new trial; with ``of``, a copy of one as it stands."""
        self._count += 1
        root = self.folder / f"{name}-{self._count}"
        root.mkdir(parents=True)
        for stage in self._shared:
            (root / stage.name).symlink_to(stage.resolve())
        if of is not None and of.run is not None:
            shutil.copytree(of.run, root / of.run.name)
        return Trial(root, self.network)

    def check(self, kind: str, trial: Trial, outcome: Callable[[], str], whole: str = "") -> None:
        """Counts the outcome, or the failure; ``whole`` is the undisturbed end, if not the bench's."""
        try:
            told = outcome()
            if trial.digest() != (whole or self.whole):
                raise AssertionError("ended with other bits than the undisturbed run")
        except (AssertionError, TimeoutError) as error:
            self.outcomes[kind]["FAILED"] += 1
            self.failures.append(f"{kind} in {trial.root}: {error}")
            return
        self.outcomes[kind][told] += 1
        shutil.rmtree(trial.root)


def moment(bench: Bench, trial: Trial, process: int) -> None:
    """Returns at a random moment of a training, often one that is delicate."""
    draw, began = bench.random, time.monotonic()
    if draw.random() < 0.4:
        time.sleep(draw.uniform(0, bench.seconds))
        return
    # From the time that a save begins, or that a finished checkpoint appears: deletions and journal follow.
    saving, skip, late = draw.random() < 0.7, draw.randint(0, 5), draw.uniform(0, 0.15)
    seen: set[str] = set()
    while time.monotonic() - began < bench.seconds * 3:
        if trial.checkpoints.exists():
            names = {p.name for p in trial.checkpoints.iterdir()}
            seen |= {name for name in names if name.isdigit() != saving and name != "removed"}
        if len(seen) > skip:
            time.sleep(late)
            return
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def where(trial: Trial) -> str:
    """What a killed training was doing, from what it left."""
    if trial.run is None or not (trial.run / "journal.jsonl").exists():
        return "before the first step"
    if [*trial.checkpoints.glob(UNFINISHED)]:
        return "during a save"
    if (trial.checkpoints / "removed").exists():
        return "during a deletion"
    if not (trial.run / "journal.jsonl").read_text().endswith("\n"):
        return "during a line of the journal"
    return "between saves"


def kills(bench: Bench, count: int) -> None:
    """SIGKILL at random moments, one to four in the life of a run."""
    left = count
    while left:
        trial, places = bench.trial("kill"), []
        for _ in range(min(left, bench.random.randint(1, 4))):
            process = trial.begin()
            moment(bench, trial, process)
            os.kill(process, signal.SIGKILL)
            if wait(process) == 0:  # it was faster
                break
            places.append(where(trial))
        left -= len(places)
        for place in places:
            bench.outcomes["kills landed"][place] += 1

        def outcome(trial: Trial = trial, places: list[str] = places) -> str:
            trial.finish()
            return f"same bits after {len(places)} kill(s)"

        bench.check("killed runs", trial, outcome)
        say(bench, f"kills: {count - left}/{count}")


def stops(bench: Bench, count: int) -> None:
    """SIGTERM at random moments: the run saves its step and ends. Every third is asked twice, and ends at once."""
    for i in range(count):
        trial, twice = bench.trial("stop"), i % 3 == 2
        process = trial.begin()
        time.sleep(bench.random.uniform(0, bench.seconds))
        os.kill(process, signal.SIGTERM)
        if twice:
            time.sleep(0.001)  # two at once would be one
            os.kill(process, signal.SIGTERM)
        code = wait(process)

        def outcome(trial: Trial = trial, code: int = code) -> str:
            said = trial.log.read_text()
            assert code in (0, 143, -signal.SIGTERM), f"exit code {code}: {said[-500:]}"
            if "SIGTERM again" in said:
                trial.finish()
                return "same bits; left at once with 143"
            if code == 143:
                assert f"after step {trial.steps()[-1]} of" in said, said[-500:]
            trial.finish()
            ended = {143: "saved and left with 143", 0: "was faster", -signal.SIGTERM: "before training"}
            return f"same bits; {ended[code]}"

        bench.check("stopped runs", trial, outcome)
        say(bench, f"stops: {i + 1}/{count}")


def corruptions(bench: Bench, count: int) -> None:
    """Damage to the newest checkpoint of a run that was killed half-way."""
    half = bench.trial("half")
    process = half.begin()
    while len(half.steps()) < 2 or half.steps()[-1] < 9:
        assert os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "too fast to be damaged"
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    wait(process)
    newest = half.steps()[-1]
    for i in range(count):
        trial = bench.trial("damage", of=half)
        how = list(DAMAGE)[i % len(DAMAGE)]
        step = trial.checkpoints / str(newest)
        files = [step / name for name in json.loads((step / manifest.NAME).read_text())["files"]]
        DAMAGE[how](bench.random, bench.random.choice(files), step)

        def outcome(trial: Trial = trial, how: str = how) -> str:
            said = trial.finish()
            assert f"checkpoint of step {newest} is damaged" in said, f"damage was not noticed: {said[-500:]}"
            assert "resumed at step" in said, f"began anew: {said[-500:]}"
            assert (trial.checkpoints / f"damaged-{newest}").is_dir(), "the damaged one is gone"
            return "fell back, same bits"

        bench.check(f"damage: {how}", trial, outcome)
        say(bench, f"damage: {i + 1}/{count}")


def together(trial: Trial, stop: int | None = None) -> tuple[list[int], str]:
    """Two processes train in a trial's folder, of which ``stop`` is sent SIGTERM after the first save; their exit
    codes, and what they said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    before = trial.log.read_text() if trial.log.exists() else ""
    processes = [start(trial.log, pair, trial.root, port, k) for k in range(2)]
    if stop is not None:
        while not trial.steps() and os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.002)
        os.kill(processes[stop], signal.SIGTERM)
    codes = [wait(process) for process in processes]
    return codes, trial.log.read_text()[len(before) :]


def pairs(bench: Bench, count: int) -> None:
    """SIGTERM to one of two processes, damage to what they saved, and on to the end."""
    if not count:
        return
    whole = bench.trial("pair")
    codes, said = together(whole)
    assert codes == [0, 0], said
    digest = whole.digest()
    for i in range(count):
        trial = bench.trial("pair")

        def outcome(trial: Trial = trial, which: int = i % 2) -> str:
            codes, said = together(trial, stop=which)
            newest = trial.steps()[-1]
            assert codes == [143, 143] and f"after step {newest} of" in said, f"exit codes {codes}: {said[-800:]}"
            flip(bench.random, largest(trial.checkpoints / str(newest)), trial.checkpoints)
            codes, said = together(trial)
            assert codes == [0, 0] and f"checkpoint of step {newest} is damaged" in said, f"{codes}: {said[-800:]}"
            assert "resumed at step" in said, f"began anew: {said[-500:]}"
            return "both left with 143, fell back, same bits"

        bench.check("two processes", trial, outcome, digest)
        say(bench, f"pairs: {i + 1}/{count}")


def flip(draw: random.Random, path: pathlib.Path, step: pathlib.Path) -> None:
    """One bit of a file."""
    del step
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def largest(step: pathlib.Path) -> pathlib.Path:
    """The file with most of the arrays."""
    return max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(draw: random.Random, path: pathlib.Path, step: pathlib.Path) -> None:
    """A file without its end."""
    del step
    os.truncate(path, draw.randrange(path.stat().st_size))


DAMAGE: dict[str, Callable[[random.Random, pathlib.Path, pathlib.Path], object]] = {
    "a bit of an array flipped": lambda draw, path, step: flip(draw, largest(step), step),
    "a bit of any file flipped": flip,
    "a file cut": truncate,
    "arrays cut": lambda draw, path, step: truncate(draw, largest(step), step),
    "a file missing": lambda draw, path, step: path.unlink(),
    "a file emptied": lambda draw, path, step: path.write_bytes(b""),
    "metadata emptied": lambda draw, path, step: (step / "_CHECKPOINT_METADATA").write_bytes(b""),
    "manifest cut": lambda draw, path, step: truncate(draw, step / manifest.NAME, step),
}


def full_disk(bench: Bench, folder: pathlib.Path) -> None:
    """A disk that is full at a save, and has room again."""
    assert shutil.disk_usage(folder).total < 1 << 26, f"{folder} is not on a small disk; this would fill it"
    trial = bench.trial("disk")
    small = folder / "luvit"
    filler = folder / "filler"
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir()
    process = trial.begin()
    while trial.run is None:
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    wait(process)
    name = trial.run.name
    shutil.rmtree(trial.root / name)
    (trial.root / name).symlink_to(small)
    process = trial.begin()
    while not trial.steps():
        time.sleep(0.001)
    with filler.open("wb") as f:
        left = shutil.disk_usage(folder).free
        f.write(b"0" * max(0, left - 20_000))
    code = wait(process)
    said, kept = trial.log.read_text(), trial.steps()
    filler.unlink()

    def outcome() -> str:
        assert code == 1 and "DiskFullError" in said and "make room" in said, f"exit code {code}: {said[-800:]}"
        assert kept, "no checkpoint is left"
        trial.finish()
        return "told, older checkpoint whole, same bits"

    bench.check("disk full", trial, outcome)


def say(bench: Bench, text: str) -> None:
    """A line of progress."""
    failed = f", {len(bench.failures)} FAILED" if bench.failures else ""
    print(f"  {text}{failed}", flush=True)


def table(bench: Bench) -> str:
    """What happened, and how often."""
    rows = [(kind, told, n) for kind, counted in bench.outcomes.items() for told, n in sorted(counted.items())]
    wide = [max(len(str(row[i])) for row in rows) for i in range(2)]
    return "\n".join(f"{kind:<{wide[0]}}  {told:<{wide[1]}}  {n:>4}" for kind, told, n in rows)


def main() -> int:
    """Runs what the arguments ask for; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs that have to land")
    parser.add_argument("--corruptions", type=int, default=20, help="damaged checkpoints")
    parser.add_argument("--stops", type=int, default=10, help="SIGTERMs")
    parser.add_argument("--pairs", type=int, default=4, help="trainings of two processes")
    parser.add_argument("--small_disk", type=pathlib.Path, help="folder on a file system of less than 64 MB, to fill")
    parser.add_argument("--network", choices=NETWORKS, default="luvit", help="the perceptron is quicker")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the damage")
    parser.add_argument("--folder", type=pathlib.Path, help="to work in; a temporary one by default")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    folder = args.folder or pathlib.Path(tempfile.mkdtemp(prefix="repgls-jax-crashes-"))
    began = time.monotonic()
    bench = Bench(folder, args.seed, args.network)
    print(f"undisturbed: {bench.seconds:.1f} s a run; in {folder}", flush=True)
    kills(bench, args.kills)
    stops(bench, args.stops)
    corruptions(bench, args.corruptions)
    pairs(bench, args.pairs)
    if args.small_disk:
        full_disk(bench, args.small_disk)
    print(f"\n{table(bench)}\n\n{time.monotonic() - began:.0f} s")
    for failure in bench.failures:
        print(f"FAILED {failure}")
    if not bench.failures and args.folder is None:
        shutil.rmtree(folder)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
