"""benchmarks/gpu_early.py on a stand-in for a card: what it would see."""

from collections.abc import Callable, Sequence

import gpu_early
import pytest
import torch
from gpu_worker import Skipped
from torch import Tensor

from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.protocol import Replay

pytest.importorskip("triton", reason="Triton is not installed (the extra gpu-check)")


class Card(Cpu):
    """Graphs keep how their kernels were launched; those that begin early may read too early."""

    reads_too_early = False

    def capture(self, work: Callable[[], Tensor]) -> Replay:
        early, left = self.launches_early, [torch.zeros(3)]

        def replay(contexts: Sequence[int] = ()) -> Tensor:
            out = left[-1] if early and self.reads_too_early and len(left) % 50 == 0 else work()
            left.append(work())
            return out

        return replay


@pytest.mark.parametrize("too_early", [False, True])
def test_a_kernel_that_reads_before_its_input_is_there_gives_other_bits(too_early: bool) -> None:
    card, read = Card(torch.device("cpu")), torch.zeros(3)
    card.reads_too_early = too_early
    inputs = [torch.full((3,), float(value)) for value in (1, 2)]
    found = gpu_early.beside_usual(card, lambda: 2 * read, read, inputs)
    assert found["passed"] is not too_early
    assert found["different"] == (gpu_early.REPLAYS // 50 if too_early else 0)
    assert card.launches_early is False  # as before


def test_a_device_that_cannot_is_skipped() -> None:
    class Plan:
        device, shapes, dtype, precisions = torch.device("cpu"), ("tiny",), torch.float32, ("bf16",)

    rows = gpu_early.early_launches(Plan())  # type: ignore[arg-type]
    with pytest.raises(Skipped, match="sm_90"):
        rows["bf16"]()
