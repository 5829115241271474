"""Every test runs on the CPU, on eight simulated devices, and treats warnings of this project as errors."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from absl import flags

# Grain's worker processes read absl flags, which only absl.app.run parses.
flags.FLAGS.mark_as_parsed()
