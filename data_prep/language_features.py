"""Computes a frozen language model's features of the words that the RGN reads, once, for later trainings.

  python data_prep/language_features.py --reports=runs/data-KEY/set/reports.parquet \
      --evidence=runs/evidence-KEY/evidence.parquet --model=FOLDER --output=features.parquet
  python launch/train.py --config=configs/rgn.py --config.rgn.features=features.parquet --config.rgn.made=0

The model is a folder of Hugging Face's transformers (Qwen3, a BERT) with safetensors weights; needs the extra
``labels``. The file holds no text, but words can be guessed from it: keep it where the reports are kept.
"""

import pathlib
import sys

import pyarrow.parquet as pq
from absl import app, flags

from repgls_jax.data import language

_REPORTS = flags.DEFINE_string("reports", None, "reports.parquet of the data set.", required=True)
_EVIDENCE = flags.DEFINE_string("evidence", None, "evidence.parquet made from it.", required=True)
_MODEL = flags.DEFINE_string("model", None, "Folder of the language model.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Parquet file to write.", required=True)
_DIMS = flags.DEFINE_integer("dims", 96, "Numbers kept of a word.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the projection.")


def main(argv: list[str]) -> None:
    """Writes the features and says how many there are."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    output = pathlib.Path(_OUTPUT.value)
    try:
        reports, evidence = pq.read_table(_REPORTS.value), pq.read_table(_EVIDENCE.value)
        encode, identity = language.load(pathlib.Path(_MODEL.value))
        table = language.compute(reports, evidence, encode, identity, _DIMS.value, _SEED.value)
        partial = output.with_name(output.name + ".partial")
        pq.write_table(table, partial)
        partial.replace(output)
    except ImportError as error:
        sys.exit(f'language_features: {error}; install the extra: pip install -e ".[labels]"')
    except (ValueError, OSError) as error:
        sys.exit(f"language_features: {error}")
    print(f"{table.num_rows:,} sentences, {_DIMS.value} numbers a word: {output}")


if __name__ == "__main__":
    app.run(main)
