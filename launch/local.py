"""Runs a command in several processes of this machine that make up one job.

    python launch/local.py --processes=2 --devices=2 -- python launch/train.py --config=configs/luvit.py:size=test
    python launch/local.py --processes=4 --gpus=0,1,2,3 -- python launch/train.py --config=configs/luvit.py

With --devices each process simulates that many devices on the CPU, to try what a cluster would do; with --gpus the
GPUs are dealt out evenly. Lines of output begin with the number of their process. When one process fails the others
end too, and the exit code is its own; SIGINT and SIGTERM are passed on to all.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

LEFT = 15.0  # seconds that the others have to end by themselves, and to say why, when one has failed
KILLED = 10.0  # seconds from SIGTERM to SIGKILL


def environments(processes: int, devices: int, gpus: Sequence[str], port: int) -> list[dict[str, str]]:
    """What each process's environment says besides the launcher's own.

    Raises:
      ValueError: the GPUs cannot be dealt out evenly.
    """
    if gpus and len(gpus) % processes:
        raise ValueError(f"{len(gpus)} GPUs do not divide over {processes} processes")
    made = []
    for process in range(processes):
        own = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(process),
            "PYTHONUNBUFFERED": "1",
        }
        if gpus:
            each = len(gpus) // processes
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[process * each : (process + 1) * each])
        else:
            kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
            own["XLA_FLAGS"] = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
            own["JAX_PLATFORMS"] = "cpu"
            # Simulated devices share few cores: programs in flight at once could wait for each other for ever.
            own["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"
        made.append(own)
    return made


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(command: Sequence[str], environments: Sequence[dict[str, str]]) -> int:
    """Runs the command once for each environment; returns the exit code of the first that failed, or 0."""
    started: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        _send(started, number)

    # Before the first process: a signal must not end the launcher and leave processes behind.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    for own in environments:
        started.append(
            subprocess.Popen(
                command, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        )
        if asked:
            _send(started, asked[-1])
    tellers = [threading.Thread(target=_tell, args=(i, p.stdout), daemon=True) for i, p in enumerate(started)]
    for teller in tellers:
        teller.start()
    try:
        code = _wait(started)
    finally:
        _send(started, signal.SIGKILL)
    for teller in tellers:
        teller.join(5)
    return code


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    code, term, kill = 0, float("inf"), float("inf")
    while [p for p in started if p.poll() is None]:
        now = time.monotonic()
        failed = [p.returncode for p in started if p.returncode]
        if failed and not code:
            code, term = failed[0], now + LEFT
        if now > term:
            _send(started, signal.SIGTERM)
            term, kill = float("inf"), now + KILLED
        if now > kill:
            _send(started, signal.SIGKILL)
        time.sleep(0.1)
    code = code or next((p.returncode for p in started if p.returncode), 0)
    return 128 - code if code < 0 else code  # ended by a signal, as shells say it


def _send(started: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for p in started:
        if p.poll() is None:
            os.killpg(p.pid, number)


def _tell(process: int, output: IO[bytes] | None) -> None:
    assert output is not None
    for line in output:
        sys.stdout.buffer.write(b"[%d] %s\n" % (process, line.rstrip(b"\n")))
        sys.stdout.buffer.flush()


def main(argv: Sequence[str]) -> int:
    """Parses the arguments and runs."""
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--devices", type=int, default=1, help="simulated CPU devices of each (1)")
    parser.add_argument("--gpus", default="", help="numbers of the GPUs to deal out, separated by commas")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    given = parser.parse_args(argv)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("which command? Give it after --")
    if given.processes < 1 or given.devices < 1:
        parser.error("--processes and --devices are 1 or more")
    gpus = [g for g in given.gpus.split(",") if g]
    try:
        return run(command, environments(given.processes, given.devices, gpus, free_port()))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
