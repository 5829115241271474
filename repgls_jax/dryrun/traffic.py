"""Bytes that a compiled program moves between a chip and its main memory, loops counted as often as they turn.

``cost_analysis()`` of JAX counts the body of a loop once. Here each instruction outside fusions reads its operands and
writes its result; what stays inside a fusion, or in on-chip memory (spaces other than 0 in the text), is free. Where
only a slice of an operand is read, or of a result written, as a scan does with its stacked arrays, the slice counts.
"""

import re

from repgls_jax.dryrun import hlo

# Names for values that exist already, or work that their own instructions are charged for.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "domain", "send", "recv", "iota"),
}
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{[^}]*\}")


def bytes_moved(module: hlo.Module) -> int:
    """Bytes read and written by one chip in one call of the program."""
    runs = module.runs()
    return sum(
        runs[computation.name] * _moved(module, computation, instruction)
        for computation in module.computations.values()
        if computation.name not in module.fused and runs[computation.name]
        for instruction in computation.instructions.values()
    )


def _moved(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done") or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0
    shapes = [computation.instructions[name].shape for name in instruction.operands]
    if opcode.endswith("-start") and instruction.shape.startswith("("):
        # (operand, result, signals): what is read is the operand, what is written the other array.
        sizes = [_main(shape) for shape in shapes]
        return sum(sizes) + max(0, _main(instruction.shape) - sum(sizes))
    if opcode == "fusion":
        return _fusion(module, instruction, shapes)
    return sum(_read(module, computation, instruction, i, shape) for i, shape in enumerate(shapes)) + _written(
        computation, instruction
    )


def _fusion(module: hlo.Module, instruction: hlo.Instruction, shapes: list[str]) -> int:
    (inner,) = (module.computations[name] for name in instruction.called)
    passed = {int(i) for _, i in _ALIAS.findall(_aliasing(instruction))}  # handed through, as by steps of a collective
    outputs = {int(o or 0) for o, _ in _ALIAS.findall(_aliasing(instruction))}
    read = sum(
        min(_main(shape), _read_inside(module, inner, inner.parameter(i)))
        for i, shape in enumerate(shapes)
        if i not in passed
    )
    roots = [inner.instructions[n] for n in inner.root.operands] if inner.root.opcode == "tuple" else [inner.root]
    return read + sum(_written(inner, root) for i, root in enumerate(roots) if i not in outputs)


def _aliasing(instruction: hlo.Instruction) -> str:
    found = re.search(r"output_to_operand_aliasing=(\{.*?\}\)\})", instruction.attributes)
    return found[1] if found else ""


def _read_inside(module: hlo.Module, computation: hlo.Computation, value: hlo.Instruction) -> int:
    """Bytes that a computation reads of one of its values."""
    total = 0
    for user in computation.instructions.values():
        for place in (i for i, name in enumerate(user.operands) if name == value.name):
            total += _read(module, computation, user, place, value.shape)
    return total


def _read(module: hlo.Module, computation: hlo.Computation, user: hlo.Instruction, place: int, shape: str) -> int:
    """Bytes that ``user`` reads of its operand at ``place``, which has ``shape``."""
    if user.opcode == "bitcast":
        return _read_inside(module, computation, user)
    if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
        return min(_main(shape), hlo.size(user.shape))
    if user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0  # overwritten in place
    if user.opcode == "fusion":
        (inner,) = (module.computations[name] for name in user.called)
        return min(_main(shape), _read_inside(module, inner, inner.parameter(place)))
    if user.opcode in ("tuple", "get-tuple-element"):
        return 0
    return _main(shape)


def _written(computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Bytes that an instruction writes; of an update in place, the update's."""
    result = instruction
    while result.opcode == "bitcast":
        result = computation.instructions[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        update = hlo.size(computation.instructions[result.operands[1]].shape)
        return min(_main(instruction.shape), update)
    return 0 if result.opcode == "parameter" else _main(instruction.shape)


def _main(shape: str) -> int:
    """Bytes of the arrays that live in main memory."""
    return sum(count for count, space in hlo.arrays(shape) if space in ("", "0"))
