"""The shards of a build on Apache Beam: on any runner, by any number of machines that see the output folder.

Needs the extra ``beam``. Beam may do a shard twice; both leave the same file.
"""

import shlex
from collections.abc import Sequence

from repgls_jax.data import parallel
from repgls_jax.data.build import Engine
from repgls_jax.data.builder import Job
from repgls_jax.data.ledger import Shard


def engine(options: str) -> Engine:
    """Makes shards by a pipeline, for :func:`repgls_jax.data.build.build`.

    Args:
      options: of the pipeline, as on a command line: "--runner=FlinkRunner --flink_master=host:8081". The source and
        this package must be there on every worker, and the output folder under the same path.

    Raises:
      ValueError: Apache Beam is not installed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'repgls-jax[beam]'") from None
    parsed = PipelineOptions(shlex.split(options))

    def run(job: Job, shards: Sequence[Shard], tick: parallel.Tick) -> None:
        with beam.Pipeline(options=parsed) as pipeline:
            # Reshuffle: a runner would otherwise do all shards in the one worker that listed them.
            _ = pipeline | "Shards" >> beam.Create(list(shards)) | beam.Reshuffle() | "Write" >> beam.Map(_do, job)
        tick(sum(shard.stop - shard.start for shard in shards))

    return run


def _do(shard: Shard, job: Job) -> None:
    job(shard, lambda _: None)
