"""What a method remembers from step to step: arrays with a row for each training example, and arrays without.

Part of the train state, so that checkpoints hold it; read and written inside the pure step.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array


class Memory(struct.PyTreeNode):
    """A method's memory.

    Attributes:
      rows: name -> [n, ...], one row for each training example in the order of the column "index".
      shared: name -> [...], such as one number for each finding.
    """

    rows: dict[str, Array]
    shared: dict[str, Array]

    def take(self, index: Array) -> "Memory":
        """The same with the rows of some examples, [b] int, alone."""
        return self.replace(rows=jax.tree.map(lambda values: values[index], self.rows))

    def put(self, index: Array, rows: Mapping[str, Array]) -> "Memory":
        """The same with new ``rows`` [b, ...] of the examples ``index`` [b] int; names without new rows keep theirs.

        Of an example that is in the batch twice, the last row counts: whatever the number of devices.
        """
        count = len(next(iter(self.rows.values()), index))
        later = jnp.triu(index[:, None] == index[None], 1).any(1)
        at = jnp.where(later, count, index)  # outside: dropped
        written = {name: self.rows[name].at[at].set(values, mode="drop") for name, values in rows.items()}
        return self.replace(rows=self.rows | written)
