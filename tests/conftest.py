"""Every test runs on the CPU, on eight simulated devices, and treats warnings of this project as errors."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Eight devices share few cores: programs in flight at once could wait for each other in their collectives for ever.
os.environ["JAX_CPU_ENABLE_ASYNC_DISPATCH"] = "false"

# The same small programs are compiled by many tests and by the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="repgls-jax-cache-"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from absl import flags

# Grain's worker processes read absl flags, which only absl.app.run parses.
flags.FLAGS.mark_as_parsed()


def pytest_configure(config):
    # Workers are otherwise given the files with the most tests first, and wait for a few long ones at the end.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files with slow tests come first."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
