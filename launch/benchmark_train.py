"""Times a training step of LU-ViT against the same step in PyTorch, eager and compiled, in one process by turns.

    python launch/benchmark_train.py                                     # CPU, float32, the demo's size and S/16
    python launch/benchmark_train.py --cases=S/16@224x16 --rounds=20
    python launch/benchmark_train.py --dtype=bfloat16 --attention=auto \
        --cases=S/16@224x256,B/16@224x256,L/16@224x128 --steps=10        # a GPU, where both frameworks see one

Needs the extra "labels" (torch), and a C++ compiler for torch.compile. A case is MODEL@PIXELSxBATCH. Before anything is
timed, the twin of launch/torch_twin.py gets the weights, and its loss must agree to 1e-5 in float32. In each round
every contestant takes --steps steps, in turn, first forwards, then backwards; ratios are taken within a round, and
their median is given with a 95 % bootstrap interval. Besides wall time there is processor time, which other programs on
the machine disturb less. On a chip that repgls_jax/chips.py lists, the share of its peak is told (MFU): what the model
needs (matrix products, no recomputation, the backward pass twice the forward pass) over time and peak.
"""

import dataclasses
import json
import os
import pathlib
import re
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or PyTorch would have a quarter of a GPU's memory

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import torch
import torch_twin
from absl import app, flags
from jax import Array

from repgls_jax import chips, losses, policies, rates
from repgls_jax.models import luvit, vit
from repgls_jax.train import luvit as training
from repgls_jax.train import state as state_lib
from repgls_jax.train.optimizer import optimizer
from repgls_jax.train.step import LossFn, make_train_step

_CASES = flags.DEFINE_list("cases", ["demo/16@64x32", "S/16@224x16"], "MODEL@PIXELSxBATCH, one or more")
_PEERS = flags.DEFINE_list("peers", ["eager", "compile"], "eager, compile, both or none")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the computation")
_ATTENTION = flags.DEFINE_string("attention", "xla", "implementation, see repgls_jax/models/attention.py")
_DROPOUT = flags.DEFINE_float("dropout", 0.0, "on the residual branches; the demo trains with 0.1")
_ROUNDS = flags.DEFINE_integer("rounds", 11, "how often all take their turns", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 0, "steps a turn; 0 takes a second's worth of the slowest", lower_bound=0)
_THREADS = flags.DEFINE_integer("threads", 0, "of PyTorch on the CPU; 0 takes as many as XLA, one a core")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file of every turn; empty writes none")

FINDINGS = 14
RUN = 1000  # steps of the pretended run, for schedule and ramp
SETTINGS: dict[str, Any] = {  # of the optimizer
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup": 0.1,
    "clip": 1.0,
    "layer_decay": 1.0,
    "freeze": (),
}
WEIGHT = 0.1  # of the second head
TOLERANCE = 1e-5  # between the losses of the two frameworks, relative

Turn = Callable[[int], float]  # takes so many steps, waits for the last, returns its loss


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed: model, picture side in pixels, films a step."""

    model: str
    side: int
    batch: int

    @classmethod
    def of(cls, text: str) -> "Case":
        """The case called ``text``, such as "S/16@224x16"; raises ValueError."""
        match = re.fullmatch(r"(\S+)@(\d+)x(\d+)", text)
        if not match:
            raise ValueError(f"case {text!r}; expected MODEL@PIXELSxBATCH such as S/16@224x16")
        vit.parse_model(match[1])
        return cls(match[1], int(match[2]), int(match[3]))

    def data(self) -> dict[str, np.ndarray]:
        """A random batch: noise for films, every label state, rates of both signs."""
        rng = np.random.default_rng(0)
        shape = (self.batch, FINDINGS)
        state = rng.integers(-2, 2, shape).astype(np.int8)
        certainty = np.select([state == 1, state == 0, state == -1], [0.9, 0.1, 0.5], np.nan)
        return {
            "image": rng.integers(0, 256, (self.batch, self.side, self.side, 1), dtype=np.uint8),
            "state": state,
            "p": certainty.astype(np.float32),
            "observed": np.ones(shape, bool),
            "rate": rng.uniform(-0.5, 0.9, shape).astype(np.float32),
        }

    def flops(self) -> float:
        """Operations that a step's matrix products need, a multiply-add counting two; stems by convolution left out."""
        arch, _ = vit.parse_model(self.model)
        tokens, d = (self.side // arch.patch) ** 2, arch.width
        block = tokens * (4 * d * d + 2 * d * arch.mlp) + 2 * tokens**2 * d
        read = FINDINGS * (2 * d * d + 2 * d * arch.mlp) + tokens * 2 * d * d + 2 * FINDINGS * tokens * d
        embedding = tokens * arch.patch**2 * d if arch.stem == "patch" else 0
        return 3.0 * 2.0 * self.batch * (arch.depth * block + read + embedding)


def gls(model: luvit.LUViT) -> LossFn:
    """The loss of the project, on rates that are given."""
    return training.make_loss(model, policies.PolicyConfig(name="expert"), RUN, WEIGHT)


def bce(model: luvit.LUViT) -> LossFn:
    """Binary cross entropy alone: no rates, no second head. What GLS and all that goes with it is compared to."""

    def loss(params: Any, batch: dict[str, Array], key: Array, step: Array) -> dict[str, losses.Term]:
        del step
        out: Any = model.apply({"params": params}, batch["image"], train=True, rngs={"dropout": key})
        y = (batch["p"] >= 0.5).astype(jnp.float32)
        return {"presence": losses.Term(optax.sigmoid_binary_cross_entropy(out["logits"], y), batch["observed"])}

    return loss


def jax_turn(case: Case, make_loss: Callable[[luvit.LUViT], LossFn], params: Any) -> Turn:
    """Steps as repgls_jax/train/loop.py takes them."""
    model = luvit.build(case.model, FINDINGS, _DROPOUT.value, dtype=_DTYPE.value, attention=_ATTENTION.value)
    tx = optimizer(ml_collections.ConfigDict(SETTINGS), RUN)
    state = state_lib.create(jax.tree.map(jnp.array, params), tx, 0)
    step = jax.jit(make_train_step(make_loss(model), tx), donate_argnums=0)
    batch = jax.device_put(case.data())

    def turn(steps: int) -> float:
        nonlocal state
        for _ in range(steps):
            state, scalars = step(state, batch)
        jax.block_until_ready(state)
        return float(scalars["loss"])

    return turn


def torch_inputs(case: Case, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The batch of the case, labels already read as the policy reads them."""
    data = case.data()
    p, mentioned = data["p"], data["observed"] & (data["state"] != -2)
    labels = {
        "y": (p >= 0.5).astype(np.float32),
        "rate": data["rate"],
        "mask": data["observed"],
        "wording": np.where(mentioned, rates.hedge_rate(p, np), 0.0).astype(np.float32),
        "mentioned": mentioned,
    }
    images = torch.from_numpy(data["image"]).permute(0, 3, 1, 2).contiguous()
    return images.to(device), {name: torch.from_numpy(value).to(device) for name, value in labels.items()}


def torch_model(case: Case, params: Any, dropout: float) -> torch_twin.LUViT:
    """The twin with the given weights."""
    arch, _ = vit.parse_model(case.model)
    model = torch_twin.LUViT(arch, FINDINGS, case.side, dropout)
    torch_twin.load(model, params)
    return model


def torch_turn(case: Case, peer: str, params: Any, device: str) -> Turn:
    """Steps of the twin, ``peer`` one of eager and compile."""
    model = torch_model(case, params, _DROPOUT.value).to(device)
    if device == "cuda":
        model = model.to(memory_format=torch.channels_last)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, round(SETTINGS["warmup"] * RUN), RUN)
    factors = np.asarray(schedule(np.arange(RUN)), np.float64)
    policy = policies.PolicyConfig()
    warmup, ramp = round(policy.warmup * RUN), round(policy.ramp * RUN)
    images, labels = torch_inputs(case, device)
    step = torch_twin.make_step(
        model,
        images,
        labels,
        SETTINGS
        | {
            "uncertainty_weight": WEIGHT,
            "schedule": lambda done: factors[min(done, RUN - 1)],
            "ramp": lambda done: min(max((done - warmup + 1) / ramp, 0.0), 1.0),
        },
        compiled=peer == "compile",
        half=_DTYPE.value == "bfloat16",
    )

    def turn(steps: int) -> float:
        for _ in range(steps):
            value = step()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(value)

    return turn


def check_twin(case: Case, params: Any) -> tuple[float, float]:
    """Loss of the first step in both frameworks, on the CPU in float32 without dropout.

    Raises:
      ValueError: they differ by more than :data:`TOLERANCE`.
    """
    case = dataclasses.replace(case, batch=min(case.batch, 16))
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        made = gls(luvit.build(case.model, FINDINGS))
        batch, weights = jax.device_put(case.data(), cpu), jax.device_put(params, cpu)

        @jax.jit
        def total(weights: Any, batch: Any, key: Array) -> Array:
            terms = made(weights, batch, key, jnp.int32(RUN)).values()  # at the end, when negative rates are in force
            return sum((t.weight * losses.masked_mean(t.values, t.mask) for t in terms), start=jnp.float32(0))

        ours = float(total(weights, batch, jax.random.key(0)))
    with torch.no_grad():
        images, labels = torch_inputs(case, "cpu")
        theirs = float(torch_twin.loss(torch_model(case, params, 0.0)(images), labels, torch.tensor(1.0), WEIGHT))
    if not abs(ours - theirs) <= TOLERANCE * abs(ours):
        raise ValueError(f"{case}: the loss is {ours} here and {theirs} in PyTorch; the two are not the same function")
    return ours, theirs


def used() -> float:
    """Processor seconds of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def race(contestants: dict[str, Turn], rounds: int, steps: int) -> dict[str, np.ndarray]:
    """Seconds a step, [rounds, 2]: wall and processor, of each contestant."""
    times = {name: np.zeros((rounds, 2)) for name in contestants}
    for i in range(rounds):
        for name in list(contestants)[:: 1 - 2 * (i % 2)]:
            began, busy = time.perf_counter(), used()
            contestants[name](steps)
            times[name][i] = (time.perf_counter() - began) / steps, (used() - busy) / steps
    return times


def interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median of [rounds] ratios, and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(0, len(ratios), (4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def show(case: Case, times: dict[str, np.ndarray], chip: chips.Chip | None) -> None:
    """Prints what a case gave."""
    print(f"{'':18}{'ms a step':>28}{'processor':>11}{'films/s':>10}{'MFU':>8}")
    for name, t in times.items():
        wall = t[:, 0]
        middle = statistics.median(wall)
        spread = f"{1e3 * middle:.1f} [{1e3 * wall.min():.1f}, {1e3 * wall.max():.1f}]"
        share = f"{100 * case.flops() / middle / chip.flops:.1f} %" if chip else ""
        print(f"{name:18}{spread:>28}{1e3 * np.median(t[:, 1]):11.1f}{case.batch / middle:10.1f}{share:>8}")
    ours, peers = times["jax"], {name: t for name, t in times.items() if name.startswith("torch")}
    for column, kind in enumerate(("wall", "processor")):
        if peers:
            best = min(peers, key=lambda name: float(np.median(peers[name][:, column])))
            middle, low, high = interval(peers[best][:, column] / ours[:, column])
            print(f"{kind}: JAX is {middle:.2f} [{low:.2f}, {high:.2f}] times as fast as {best}")
        middle, low, high = interval(100 * (ours[:, column] / times["jax, plain BCE"][:, column] - 1))
        print(f"{kind}: GLS costs {middle:+.2f} % [{low:+.2f}, {high:+.2f}] of a step with plain BCE")


def run(case: Case, device: str, chip: chips.Chip | None) -> dict[str, Any]:
    """Checks, warms up and times one case."""
    model = luvit.build(case.model, FINDINGS)
    blank = jnp.zeros((1, case.side, case.side, 1), jnp.uint8)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), blank)["params"])
    ours, theirs = check_twin(case, params)
    print(
        f"\n{case.model} at {case.side} px, {case.batch} films, {_DTYPE.value}: first loss {ours:.6f} and {theirs:.6f}"
    )
    contestants = {"jax": jax_turn(case, gls, params), "jax, plain BCE": jax_turn(case, bce, params)}
    contestants |= {f"torch {peer}": torch_turn(case, peer, params, device) for peer in _PEERS.value}
    slowest = 0.0
    for name, turn in contestants.items():
        began = time.perf_counter()
        turn(1)
        first, last = time.perf_counter() - began, turn(2)
        began = time.perf_counter()
        turn(1)
        slowest = max(slowest, time.perf_counter() - began)
        print(f"  {name}: first step after {first:.1f} s, loss of the third {last:.6f}", flush=True)
    steps = _STEPS.value or max(1, round(1.0 / slowest))
    times = race(contestants, _ROUNDS.value, steps)
    show(case, times, chip)
    return dataclasses.asdict(case) | {"steps": steps, "seconds": {name: t.tolist() for name, t in times.items()}}


def main(argv: list[str]) -> None:
    """Runs the cases one after the other."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    first = jax.devices()[0]
    device = "cuda" if first.platform == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: JAX computes on a GPU that PyTorch does not see; install its build with CUDA")
    torch.set_num_threads(_THREADS.value or len(os.sched_getaffinity(0)))  # as many as XLA takes
    print(f"{first.device_kind}; jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    chip = chips.of(first.device_kind)
    try:
        results = [run(Case.of(text), device, chip) for text in _CASES.value]
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    app.run(main)
