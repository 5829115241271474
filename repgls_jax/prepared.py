"""What is prepared for training: the folders of the stages before it, and how training reads them."""

import dataclasses
import pathlib

import pyarrow as pa

from repgls_jax import findings as findings_lib
from repgls_jax import sidecars
from repgls_jax.data import fetch
from repgls_jax.data.build import REPORTS, SHARDS
from repgls_jax.stages import Done
from repgls_jax.train import parts


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What training reads.

    Attributes:
      data: its folder holds ``set/shards``, ``set/reports.parquet`` and ``set/manifest.json``.
      evidence: its folder holds ``evidence.parquet``; None when no study has a report.
      rgn: its folder holds ``rates.parquet``; None when the policy does not read the RGN's rates.
      vocabulary: order of the findings.
      local: a copy of ``set`` without reports on a disk of this machine, or None.
    """

    data: Done
    evidence: Done | None
    rgn: Done | None
    vocabulary: findings_lib.Vocabulary
    local: pathlib.Path | None = None

    @property
    def shards(self) -> pathlib.Path:
        """Folder of the image shards."""
        return (self.local or self.data.folder / "set") / SHARDS

    @property
    def reports(self) -> pathlib.Path:
        """File of the reports' texts."""
        return self.data.folder / "set" / REPORTS

    def evidence_table(self) -> pa.Table | None:
        """The evidence, or None."""
        path = self.evidence and self.evidence.folder / "evidence.parquet"
        return path and sidecars.read(path, sidecars.EVIDENCE, self.vocabulary)

    def rates_table(self) -> pa.Table | None:
        """The RGN's rates, or None."""
        path = self.rgn and self.rgn.folder / "rates.parquet"
        return path and sidecars.read(path, sidecars.RATES, self.vocabulary)

    def stages(self) -> dict[str, Done]:
        """The stages that were done, in order."""
        done = {"data": self.data, "evidence": self.evidence, "rgn": self.rgn}
        return {name: stage for name, stage in done.items() if stage}

    def where(self) -> dict[str, str]:
        """Folders of the stages beside the run's own, for its record; a work directory can be moved as a whole."""
        return {name: stage.folder.name for name, stage in self.stages().items()}

    def keys(self) -> dict[str, str]:
        """Keys of the stages, for the inputs of those that follow."""
        return {name: stage.key for name, stage in self.stages().items()}

    def copied(self, disk: pathlib.Path) -> "Prepared":
        """With the shards on ``disk``, copied if they are not there. Processes of one machine share the copy."""
        copy = fetch.fetch(str(self.data.folder / "set"), disk / self.data.folder.name, reports=False)
        return dataclasses.replace(self, local=copy)

    def part(self) -> parts.Part:
        """The data set as training reads it."""
        return parts.Part(self.shards, self.vocabulary, self.evidence_table(), self.rates_table())
