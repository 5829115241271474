"""A dry run from config to verdict, as numbers for programs and as text for people."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from repgls_jax import methods
from repgls_jax.dryrun import flops, measure, program, roofline
from repgls_jax.dryrun.target import Target


def run(
    config: ml_collections.ConfigDict,
    target: Target,
    batch: int,
    find_batch: bool = False,
    evaluate: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compiles the train and the evaluation step of ``config`` for ``target``.

    Args:
      config: of configs/luvit.py.
      target: the devices.
      batch: films of a training step; 0 takes the config's, or the largest found.
      find_batch: looks for the largest batch that fits.
      evaluate: whether the evaluation step is compiled too.
      say: told of each compilation, which may take minutes.

    Returns:
      JSON-able: what was asked for, "train" and "evaluate" (see :func:`_step`), "largest" and "faults". A step that
      does not fit has only "refused", the compiler's words.

    Raises:
      ValueError: the config does not fit the devices, or ``find_batch`` is asked for without a chip's memory.
    """
    made = program.build(config, target)
    done: dict[int, measure.Measured] = {}

    def train(size: int) -> measure.Measured:
        if size not in done:
            say(f"compiling the train step of {size:,} films for {target.name} ...")
            arguments = (made.state, made.batch(size))
            done[size] = measure.compile_step("train step", made.step, arguments, made.mesh, target.chip)
        return done[size]

    result = _asked(config, target, made)
    if find_batch:
        if target.chip is None:
            raise ValueError(f"the memory of {target.name} is not known; the largest batch is found for a topology")
        largest = measure.largest_batch(lambda n: train(n).memory.peak, made.unit, target.chip.hbm_bytes)
        result["largest"] = dataclasses.asdict(largest)
        batch = batch or largest.size
    result["batch"] = batch = batch or config.train.batch_size
    result["faults"] = []
    try:
        _add(result, "train", train(batch), target, made, batch)
        if evaluate:
            images = made.images(config.evaluate.batch_size)
            weights = made.state.weights
            step = measure.compile_step("evaluation step", made.forward, (weights, images), made.mesh, target.chip)
            _add(result, "evaluate", step, target, made, images.shape[0])
    except measure.DoesNotFitError as error:
        result["refused"] = str(error)
        result["faults"].append(f"a batch of {batch:,} does not fit on {target.name}: {error}")
    return result


def _asked(config: ml_collections.ConfigDict, target: Target, made: program.Program) -> dict[str, Any]:
    settings = {name: config.model[name] for name in ("dtype", "scan", "remat", "attention", "dropout", "drop_path")}
    return {
        "target": target.name,
        "chips": made.mesh.size,
        "chip": target.chip.name if target.chip else None,
        "preset": config.train.mesh,
        "mesh": dict(made.mesh.shape),
        "model": config.model.name,
        "side": made.side,
        "findings": made.findings,
        "parameters": made.parameters,
        "compiler_arguments": os.environ.get("LIBTPU_INIT_ARGS", "") if target.chip and target.chip.ring else "",
        "settings": settings | {name: config.train[name] for name in ("accumulate", "ema")},
    }


def _add(
    result: dict[str, Any], name: str, step: measure.Measured, target: Target, made: program.Program, images: int
) -> None:
    """Puts a compiled step into the result, with its faults."""
    chips, chip = made.mesh.size, target.chip
    if name == "train":
        executed = flops.traced(made.step, made.state, made.batch(images)) / chips
        useful = flops.training(made.model, made.side) * images / chips
    else:
        executed = useful = flops.forward(made.model, made.side) * images / chips
    result[name] = {
        "images": images,
        "compile_seconds": round(step.seconds, 1),
        "compile_cpu_seconds": round(step.cpu_seconds, 1),
        "memory": dataclasses.asdict(step.memory) | {"peak": step.memory.peak},
        "flops": {"model": useful, "executed": executed, "counted": step.counted_flops},
        "bytes": {"moved": step.moved, "counted": step.counted_bytes},
        "collectives": _summed(step),
        "loops_unknown": list(step.unknown),
    }
    if chip is not None:
        result[name]["memory"] |= {"available": chip.hbm_bytes, "share": step.memory.peak / chip.hbm_bytes}
        times = roofline.estimate(chip, executed, useful, step.moved, step.collectives, images)
        result[name]["estimate"] = _estimate(times, step.cycles / chip.clock if chip.clock else 0.0)
    gathers = name == "train" and methods.METHODS[made.config.policy.name].gathers
    result["faults"] += measure.faults(step, result["preset"], chip.hbm_bytes if chip else None, gathers)


def _estimate(times: roofline.Roofline, scheduled: float) -> dict[str, Any]:
    bounds = {"best": times.shortest, "worst": times.longest}
    if scheduled:
        # The compiler's estimate of its own instructions knows of layouts, vector units and waste; not of waiting.
        bounds["compiler"] = max(scheduled, times.shortest)
    return {
        "compute_seconds": times.compute,
        "memory_seconds": times.memory,
        "link_seconds": times.links,
        "bound": times.bound,
        "step_seconds": bounds,
        "images_per_second": {name: times.images / seconds for name, seconds in bounds.items()},
        "mfu": {name: times.mfu(seconds) for name, seconds in bounds.items()},
    }


def _summed(step: measure.Measured) -> list[dict[str, Any]]:
    """Collectives by kind and axes: times, bytes that a chip puts in, bytes that it sends."""
    sums: dict[tuple[str, str, int], list[float]] = {}
    for one in step.collectives:
        kind = f"{one.kind} in a product" if one.in_product and one.kind == "collective-permute" else one.kind
        entry = sums.setdefault((kind, "+".join(one.axes) or "nothing", one.group), [0, 0, 0.0])
        entry[0] += one.count
        entry[1] += one.count * one.operand
        entry[2] += one.sent
    return [
        {"kind": kind, "axes": axes, "group": group, "times": times, "bytes": put, "sent": round(sent)}
        for (kind, axes, group), (times, put, sent) in sorted(sums.items())
    ]


def text(result: dict[str, Any]) -> str:
    """The result for people."""
    mesh = " ".join(f"{name}={size}" for name, size in result["mesh"].items())
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    lines = [
        f"LU-ViT {result['model']}: {result['parameters']:,} parameters, {result['findings']} findings, films of "
        f"{result['side']} pixels; {settings}",
        f"{result['target']}: {result['chips']} x {result['chip'] or 'a chip of unknown speed'}; preset "
        f"{result['preset']}, mesh {mesh}; batch {result['batch']:,}, {result['batch'] / result['chips']:g} a chip",
    ]
    if result["compiler_arguments"]:
        lines.append(f"LIBTPU_INIT_ARGS: {result['compiler_arguments']}")
    if "train" in result and room(result):
        lines.append(f"room for about {room(result)} films a chip, if temporaries grow in proportion to the batch")
    if "largest" in result:
        tried = ", ".join(
            f"{n:,} {_bytes(b) if b else 'refused'}" for n, b in sorted(result["largest"]["tried"].items())
        )
        lines.append(f"largest batch that fits: {result['largest']['size']:,} (tried: {tried})")
    for name, title in (("train", "train step"), ("evaluate", "evaluation step")):
        if name in result:
            lines += [
                "",
                f"{title} of {result[name]['images']:,} films, compiled in {result[name]['compile_seconds']} s "
                f"({result[name]['compile_cpu_seconds']} s of processors)",
            ]
            lines += [f"  {line}" for line in _lines(result[name])]
    if result["faults"]:
        lines += ["", *(f"FAULT: {fault}" for fault in result["faults"])]
    return "\n".join(lines)


def _lines(step: dict[str, Any]) -> list[str]:
    share = f" of {_bytes(step['memory']['available'])} ({step['memory']['share']:.0%})" if "estimate" in step else ""
    memory = {name: _bytes(count) for name, count in step["memory"].items()}
    work = {name: _count(count, "FLOP") for name, count in step["flops"].items()}
    moved = {name: _bytes(count) for name, count in step["bytes"].items()}
    lines = [
        f"memory of a chip  peak {memory['peak']}{share}: arguments {memory['arguments']}, outputs {memory['outputs']} "
        f"({memory['aliased']} in place), temporaries {memory['temporaries']}, program {memory['code']}",
        f"arithmetic        {work['model']} a chip for the model, {work['executed']} with recomputation "
        f"(the compiler counts {work['counted']}, bodies of loops once)",
        f"memory traffic    {moved['moved']} a chip (the compiler counts {moved['counted']}, bodies of loops once, "
        "on-chip memory included)",
    ]
    if step["loops_unknown"]:
        lines.append(f"loops counted once, their turns being unknown: {', '.join(step['loops_unknown'])}")
    for one in step["collectives"]:
        lines.append(
            f"{one['kind']:<17} over {one['axes']} ({one['group']} chips), {one['times']:,} times: "
            f"{_bytes(one['bytes'])} put in, {_bytes(one['sent'])} sent by a chip"
        )
    if "estimate" in step:
        guess = step["estimate"]
        times = {name: guess[f"{name}_seconds"] * 1e3 for name in ("compute", "memory", "link")}
        best, worst = (guess["step_seconds"][name] * 1e3 for name in ("best", "worst"))
        lines.append(
            f"roofline          compute {times['compute']:.1f} ms, memory {times['memory']:.1f} ms, links "
            f"{times['link']:.1f} ms: bound by {guess['bound']}; step {best:.1f} ms if all overlap, {worst:.1f} ms if "
            f"nothing does; {guess['images_per_second']['worst']:,.0f} to {guess['images_per_second']['best']:,.0f} "
            f"images/s, MFU {guess['mfu']['worst']:.0%} to {guess['mfu']['best']:.0%}"
        )
        if "compiler" in guess["step_seconds"]:
            lines.append(
                f"compiler's cycles {guess['step_seconds']['compiler'] * 1e3:.1f} ms a step without waiting for links: "
                f"{guess['images_per_second']['compiler']:,.0f} images/s, MFU {guess['mfu']['compiler']:.0%}"
            )
    return lines


def table(results: Sequence[dict[str, Any]]) -> str:
    """Train steps as a Markdown table, a line each; of a step that the compiler refused, that."""
    head = "model, px, slice, preset, remat, films a chip, memory, largest, sent by a chip, bound by"
    names = [*head.split(", "), "ms a step", "films a second", "MFU", "compiled in"]
    rows = [names, ["---"] * len(names), *(_row(result) for result in results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def room(result: dict[str, Any]) -> int:
    """Films a chip that fit if temporaries grow in proportion to the batch: an estimate from one compilation.

    A part of them does not grow (gathered weights, gradients), so that it is on the low side, unless the batch is so
    small that much of it stays on the chip (some 100 MiB). 0 where the chip's memory is not known.
    """
    memory, films = result["train"]["memory"], result["batch"] / result["chips"]
    if "available" not in memory:
        return 0
    free = memory["available"] - (memory["peak"] - memory["temporaries"])
    return max(int(films * free / max(memory["temporaries"], 1)), 0)


def _row(result: dict[str, Any]) -> list[str]:
    asked = [result["model"], str(result["side"]), result["target"], result["preset"], result["settings"]["remat"]]
    asked.append(f"{result['batch'] / result['chips']:g}")
    if "train" not in result:
        return [*asked, "does not fit", *[""] * 7]
    step, found = result["train"], result.get("largest")
    largest = f"{found['size'] / result['chips']:g}" if found else f"about {room(result)}" if room(result) else ""
    memory = _bytes(step["memory"]["peak"])
    large = [one for one in step["collectives"] if one["sent"] > 1e6]
    sent = ", ".join(f"{one['kind']} over {one['axes']} {_bytes(one['sent'])}" for one in large)
    took = f"{step['compile_seconds']:.0f} s, {step['compile_cpu_seconds']:.0f} s of processors"
    if "estimate" not in step:
        return [*asked, memory, largest, sent, "", "", "", "", took]
    guess = step["estimate"]
    names = [name for name in ("best", "compiler") if name in guess["step_seconds"]]

    def shown(values: dict[str, float], form: str, factor: float = 1.0) -> str:
        return " / ".join(f"{values[name] * factor:{form}}" for name in names)

    return [
        *asked,
        f"{memory} ({step['memory']['share']:.0%})",
        largest,
        sent,
        guess["bound"],
        shown(guess["step_seconds"], ".0f", 1e3),
        shown(guess["images_per_second"], ",.0f"),
        shown(guess["mfu"], ".0%"),
        took,
    ]


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g} B"


def _count(number: float, unit: str) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}"
