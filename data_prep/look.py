"""Shows what is in a build: counts, films of each finding and state, intensities, odd films, copies across splits.

  python data_prep/look.py --data=runs/data/phantom --evidence=evidence.parquet --output=look

Writes look.html, which holds films and their ids and must stay where the data may be, and look.json with the numbers.
Rows are counted all; pixels are read of at most --pixels films of each split, drawn with --seed.
"""

import pathlib
import sys

from absl import app, flags, logging

from repgls_jax.data import look, look_page

_DATA = flags.DEFINE_string("data", None, "Folder of a complete build.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_EVIDENCE = flags.DEFINE_string("evidence", None, "Evidence file; else the states are those of the data set's labels.")
_PIXELS = flags.DEFINE_integer("pixels", 20_000, "Most films of a split whose pixels are read.", lower_bound=1)
_FILMS = flags.DEFINE_integer("films", 6, "Most films shown of a finding and state.", lower_bound=1, upper_bound=100)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Writes the page and prints the counts and what to be careful about."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every option is a flag")
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file that it opens
    evidence = pathlib.Path(_EVIDENCE.value) if _EVIDENCE.value else None
    try:
        found = look.look(
            pathlib.Path(_DATA.value), evidence, pixels=_PIXELS.value, films=_FILMS.value, seed=_SEED.value
        )
    except (ValueError, OSError) as error:  # a file that is not there, or damaged shards
        sys.exit(f"look: {error}")
    look_page.write(pathlib.Path(_OUTPUT.value), found)
    print(look_page.text(found.numbers))


if __name__ == "__main__":
    app.run(main)
