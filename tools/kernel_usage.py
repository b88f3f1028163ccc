"""What a compiled kernel takes of a GPU, and what is wrong with that."""

from dataclasses import dataclass, replace

from kernel_cases import Case
from kernel_limits import CARDS, FEW_TOKENS, SOME_TOKENS
from kernel_loops import Loop


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to compile for, as Triton names it."""

    backend: str  # "cuda" | "hip"
    architecture: int | str
    warp_size: int  # threads
    shared_bytes: int  # the most shared memory that a block may have
    matrix: str  # regular expression of its matrix instructions
    remark: str


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 * 1024, r"\bmma\.sync", "A100"),
    "sm_90": Target("cuda", 90, 32, 227 * 1024, r"\bwgmma\.mma_async|\bmma\.sync", "H100, H200"),
    "gfx942": Target("hip", "gfx942", 64, 64 * 1024, r"\bv_mfma_", "MI300"),
    "gfx90a": Target("hip", "gfx90a", 64, 64 * 1024, r"\bv_mfma_", "MI210, MI250"),
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a linear reads its weights."""

    instructions_per_weight: float  # of a lane, in the main loop
    weights_per_clock: (
        float  # that a multiprocessor can widen and multiply, by its issue slots alone
    )
    slow_conversions: int  # in the main loop
    bytes_in_flight: int  # on the whole card
    keeps_up: bool  # with the card's memory


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that one compiled kernel uses."""

    registers: int  # of each thread
    shared_bytes: int  # of each block
    stack_bytes: int  # of each thread, spilled registers
    matrix_instructions: int  # in the assembly, not those executed
    streaming: Streaming | None = None  # of a linear with matrix instructions


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a job: its usage, or None; and what is wrong with it."""

    name: str
    target: str
    usage: Usage | None
    faults: tuple[str, ...]


def streaming_of(case: Case, name: str, usage: Usage, loop: Loop) -> Streaming:
    """What its resources and main loop mean for the weights it reads on a target."""
    assert case.stream is not None
    card, threads = CARDS[name], case.warps * TARGETS[name].warp_size
    taken = (usage.registers, usage.shared_bytes, threads, case.stages)
    found = Streaming(
        instructions_per_weight=round(loop.instructions_per_weight, 2),
        weights_per_clock=round(card.lanes / loop.instructions_per_weight, 1),
        slow_conversions=loop.slow_conversions,
        bytes_in_flight=case.stream.bytes_in_flight(card, *taken),
        keeps_up=True,
    )
    return replace(found, keeps_up=not too_slow(case, name, found))


def judge(case: Case, name: str, usage: Usage) -> tuple[str, ...]:
    """The faults of a compiled kernel. Without NVIDIA's assembly a kernel may be too slow for its memory,
    which the page says.
    """
    target = TARGETS[name]
    streaming = None if case.is_twin else usage.streaming
    faults = [] if streaming is None else too_slow(case, name, streaming)
    if usage.stack_bytes:
        faults.append(f"{usage.stack_bytes} bytes of stack: its registers do not suffice")
    if usage.shared_bytes > target.shared_bytes:
        faults.append(f"{usage.shared_bytes} bytes of shared memory, {target.shared_bytes} fit")
    if "mma" in case.expects and not usage.matrix_instructions:
        faults.append(f"no matrix instruction ({target.matrix}) in its assembly")
    return tuple(faults)


def too_slow(case: Case, name: str, found: Streaming) -> list[str]:
    """What keeps a linear of a few tokens in 16-bit numbers from reading as fast as the memory."""
    stream, card = case.stream, CARDS[name]
    assert stream is not None
    faults = []
    least = card.least_weights(stream.kind, stream.dtype)
    if stream.tokens <= FEW_TOKENS and found.weights_per_clock < least:
        got = f"{found.weights_per_clock:g} weights a clock"
        faults.append(f"{got}, {least:.1f} are needed to read as fast as the memory")
    if found.slow_conversions:
        faults.append(f"{found.slow_conversions} slow conversions in its main loop")
    if stream.tokens <= SOME_TOKENS and found.bytes_in_flight < card.least_bytes:
        got = f"{found.bytes_in_flight / 1e6:.1f} MB in flight"
        faults.append(f"{got}, {card.least_bytes / 1e6:.1f} are needed")
    return faults
