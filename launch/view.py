"""Serves one page on this machine: drop a film, see what networks say and where they look; browse a set's reports.

    python launch/view.py --model=runs/luvit-0123456789ab
    python launch/view.py --model=RUN --compare=EXPORT --data=BUILD --evidence=evidence.parquet

A model is a run, its checkpoints or an export. The page listens on 127.0.0.1 alone, and needs the extra "view".
"""

import pathlib

from absl import app, flags, logging

_MODEL = flags.DEFINE_string("model", None, "folder of a run, of its checkpoints or of an export", required=True)
_COMPARE = flags.DEFINE_string("compare", None, "a second model, shown beside the first")
_DATA = flags.DEFINE_string("data", None, "folder of a build to browse")
_EVIDENCE = flags.DEFINE_string("evidence", None, "evidence file to mark reports by; without it they are read anew")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on: this machine's own only")
_PORT = flags.DEFINE_integer("port", 8000, "port to listen on", lower_bound=1, upper_bound=65535)
_LIMIT = flags.DEFINE_integer("max_upload", 64, "MB that a film may have", lower_bound=1, upper_bound=256)


def main(argv: list[str]) -> None:
    """Serves until interrupted; faults of the input end the program with their message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
        import uvicorn

        from repgls_jax.view import guard, server
        from repgls_jax.view.desk import Desk, Reader
    except ImportError as error:
        raise SystemExit(f"error: {error}; the page needs the extra: pip install -e '.[view]'") from None
    try:
        host = guard.require_loopback(_HOST.value)
        readers = [Reader.of(path) for path in (_MODEL.value, _COMPARE.value) if path]
        build = pathlib.Path(_DATA.value) if _DATA.value else None
        evidence = pathlib.Path(_EVIDENCE.value) if _EVIDENCE.value else None
        if evidence is not None and not evidence.is_file():
            raise FileNotFoundError(f"--evidence={evidence} does not exist")
        desk = Desk(readers, build, evidence)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{_PORT.value}  (Ctrl-C ends it)", flush=True)
    # No access log: what is looked at is nobody's business.
    uvicorn.run(
        server.make(desk, _LIMIT.value * 2**20), host=host, port=_PORT.value, log_level="warning", access_log=False
    )


if __name__ == "__main__":
    app.run(main)
