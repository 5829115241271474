"""What a run costs: step times, throughput, arithmetic, memory, and how long the loop waited for data."""

import resource
import sys
import time
from typing import Any

import jax
import numpy as np

from repgls_jax import chips
from repgls_jax.data.meter import Meter


class Telemetry:
    """Collects times of steps and tells them interval by interval.

    A step's time is that between the arrival of its scalars and of those of the step before, since the host runs ahead
    of the devices. Validation and checkpoints lie outside.

    Args:
      batch_size: of all processes.
      devices: of all processes.
      flops: that a step needs on all devices, without recomputation, a multiply-add counting two.
      meter: of the input.
    """

    def __init__(self, batch_size: int, devices: list[Any], flops: int, meter: Meter):
        self._batch_size, self._flops, self._meter = batch_size, flops, meter
        chip = chips.of(devices[0].device_kind)
        self._peak = chip.flops * len(devices) if chip else None
        self._steps: list[float] = []
        self._lost = 0.0
        self.resume()

    def resume(self) -> None:
        """The next step's time starts now."""
        self._last, self._waited = time.perf_counter(), self._meter.waited()

    def arrived(self) -> None:
        """The scalars of a step are here."""
        now, waited = time.perf_counter(), self._meter.waited()
        self._steps.append(now - self._last)
        self._lost += waited - self._waited
        self._last, self._waited = now, waited

    def interval(self) -> dict[str, Any]:
        """What the steps since the last call took, and forgets them; {} without any.

        Returns:
          steps; step_ms and step_ms_p95 (median and 95th percentile, milliseconds); images_per_second; data_wait_share
          (of the time, in [0, 1]); flops (of a step); mfu (model FLOPs utilisation against the chips' bfloat16 peak, in
          [0, 1]; None where the chip is not known); device_bytes and device_bytes_peak (of the first local device; None
          where it does not say); host_bytes_peak (resident memory of this process).
        """
        if not self._steps:
            return {}
        times, total = np.array(self._steps), sum(self._steps)
        median = float(np.median(times))
        memory = jax.local_devices()[0].memory_stats() or {}
        made = {
            "steps": len(times),
            "step_ms": 1e3 * median,
            "step_ms_p95": 1e3 * float(np.percentile(times, 95)),
            "images_per_second": self._batch_size * len(times) / total,
            "data_wait_share": self._lost / total,
            "flops": self._flops,
            "mfu": self._flops / median / self._peak if self._peak else None,
            "device_bytes": memory.get("bytes_in_use"),
            "device_bytes_peak": memory.get("peak_bytes_in_use"),
            "host_bytes_peak": host_bytes_peak(),
        }
        self._steps, self._lost = [], 0.0
        return made


def host_bytes_peak() -> int:
    """The most resident memory that this process has had, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def words(interval: dict[str, Any]) -> str:
    """An interval for people, in one line."""
    if not interval:
        return ""
    mfu = "n/a" if interval["mfu"] is None else f"{interval['mfu']:.0%}"
    device = interval["device_bytes_peak"]
    on_device = f"device memory {device / 1e9:.1f} GB, " if device else ""
    return (
        f"{interval['images_per_second']:,.0f} images/s, step {interval['step_ms']:.0f} ms, "
        f"p95 {interval['step_ms_p95']:.0f} ms, waiting for data {interval['data_wait_share']:.0%}, MFU {mfu}, "
        f"{on_device}host memory {interval['host_bytes_peak'] / 1e9:.1f} GB"
    )


def flops_in_words(flops: float) -> str:
    """3.2e9 as "3.2 GFLOP"."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}FLOP"
    return f"{flops / 1e6:.3g} MFLOP"
