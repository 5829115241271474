"""Reading of optimized HLO text: computations, their instructions, and how often each runs.

A loop's body runs as often as the loop turns. The CPU and GPU compilers write that down; for TPUs it is worked out from
the loop's condition (a counter against a constant), as ``jax.lax.scan`` makes it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits / 8 for kind in "suf" for bits in (2, 4, 8, 16, 32, 64)
}
_BYTES |= {"bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ASSIGNED = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|body|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|\S+)"
)
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
# Their computations are applied to single elements; what they cost is the instruction's own.
_ELEMENTWISE = (
    "all-reduce",
    "reduce",
    "reduce-window",
    "reduce-scatter",
    "scatter",
    "select-and-scatter",
    "sort",
    "map",
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; ``shape`` and ``attributes`` are its text."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool

    def attribute(self, name: str) -> str:
        """The word after ``name=``, or ""."""
        found = re.search(rf"\b{name}=([^\s,]+)", self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the program it comes from, as JAX noted it; "" if it did not."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that run as part of it."""
        if self.opcode.removesuffix("-start") in _ELEMENTWISE:
            return []
        return [name for group in _CALLED.findall(self.attributes) for name in _NAME.findall(group)]


@dataclasses.dataclass
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(i for i in self.instructions.values() if i.root)

    def parameter(self, index: int) -> Instruction:
        """Its argument at ``index``."""
        return next(i for i in self.instructions.values() if i.opcode == "parameter" and i.arguments == str(index))


@dataclasses.dataclass
class Module:
    """A program.

    Attributes:
      computations: by name.
      entry: name of the one that starts.
      fused: names of those that are parts of a fusion, whose inner values never reach memory.
      unknown: loops whose turns :meth:`runs` could not tell; they count as one.
    """

    computations: dict[str, Computation]
    entry: str
    fused: set[str]
    unknown: set[str]

    def runs(self) -> dict[str, int]:
        """How often each computation runs in one call of the program."""
        counts = dict.fromkeys(self.computations, 0)

        def visit(name: str, times: int) -> None:
            counts[name] += times
            for instruction in self.computations[name].instructions.values():
                turns = self.turns(self.computations[name], instruction) if instruction.opcode == "while" else 1
                for called in instruction.called:
                    visit(called, times * turns)

        visit(self.entry, 1)
        return counts

    def turns(self, computation: Computation, loop: Instruction) -> int:
        """How often the body of a ``while`` runs."""
        known = _TRIPS.search(loop.attributes)
        turns = int(known[1]) if known else self._counted(computation, loop)
        if turns is None:
            self.unknown.add(loop.name)
            return 1
        return turns

    def _counted(self, computation: Computation, loop: Instruction) -> int | None:
        """Turns of a loop ``while i < n: i += step``; None if it is another kind."""
        condition = self.computations[loop.attribute("condition").removeprefix("%")]
        body = self.computations[loop.attribute("body").removeprefix("%")]
        start = computation.instructions[loop.operands[0]]
        test = condition.root
        if test.opcode != "compare" or "direction=LT" not in test.attributes or start.opcode != "tuple":
            return None

        def carried(name: str) -> int | None:
            inside = condition.instructions[name]
            return int(inside.attribute("index")) if inside.opcode == "get-tuple-element" else None

        counter, bound = carried(test.operands[0]), scalar(condition, test.operands[1])
        if bound is None and (place := carried(test.operands[1])) is not None:
            bound = scalar(computation, start.operands[place])
        if counter is None or bound is None or (first := scalar(computation, start.operands[counter])) is None:
            return None
        update = body.instructions[body.root.operands[counter]] if body.root.opcode == "tuple" else body.root
        steps = [scalar(body, name) for name in update.operands] if update.opcode == "add" else [1]
        step = next((s for s in steps if s), 1)
        return max(0, math.ceil((bound - first) / step))


def cycles(module: Module) -> int:
    """Cycles by the TPU compiler's own estimates of its instructions, waiting for transfers excluded; 0 without any."""
    runs = module.runs()
    total = 0
    for computation in module.computations.values():
        if computation.name in module.fused or not runs[computation.name]:
            continue
        for instruction in computation.instructions.values():
            estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
            if estimate and not instruction.opcode.endswith(("-start", "-done")):
                total += int(estimate[1]) * runs[computation.name]
    return total


def scalar(computation: Computation, name: str) -> int | None:
    """The integer that a value is known to be; None if it is not a constant."""
    instruction = computation.instructions[name]
    if instruction.opcode in ("copy", "bitcast", "convert", "reshape"):
        return scalar(computation, instruction.operands[0])
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    return None


def arrays(shape: str) -> Iterator[tuple[int, str]]:
    """(bytes, memory space) of each array in the text of a shape; the space is "" for the chip's main memory."""
    for dtype, dims, layout in _ARRAY.findall(shape):
        count = math.prod(int(d) for d in dims.split(",")) if dims else 1
        size = _BYTES.get(dtype, 1)  # eight-bit floats have many names
        space = re.search(r"S\((\d+)\)", layout)
        yield math.ceil(count * size), space[1] if space else ""


def size(shape: str) -> int:
    """Bytes of a shape, tuples summed."""
    return sum(count for count, _ in arrays(shape))


def parse(text: str) -> Module:
    """The module that ``Compiled.as_text()`` prints.

    Raises:
      ValueError: there is no entry computation in the text.
    """
    module = Module({}, "", set(), set())
    current: Computation | None = None
    for line in text.splitlines():
        header = _HEADER.match(line) if not line.startswith(" ") else None
        if header:
            current = Computation(header[2], {})
            module.computations[current.name] = current
            module.entry = current.name if header[1] else module.entry
        elif current is not None and (assigned := _ASSIGNED.match(line)):
            instruction = _instruction(assigned, line[assigned.end() :])
            current.instructions[instruction.name] = instruction
    if not module.entry:
        raise ValueError("no ENTRY computation in the compiler's text; expected the output of Compiled.as_text()")
    for computation in module.computations.values():
        for instruction in computation.instructions.values():
            if instruction.opcode == "fusion":
                module.fused.update(instruction.called)
    return module


def _instruction(assigned: re.Match[str], rest: str) -> Instruction:
    cut = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:cut], rest[cut:].lstrip()
    opening = rest.index("(")
    end = _closing(rest, opening)
    arguments = rest[opening + 1 : end - 1]
    return Instruction(
        name=assigned[2],
        shape=shape,
        opcode=rest[:opening],
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[end:],
        root=bool(assigned[1]),
    )


def _closing(text: str, opening: int) -> int:
    """The place after the parenthesis that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)
