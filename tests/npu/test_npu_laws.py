"""The laws on the operators of Ascend cards: emulated by CPU kernels that refuse what the operators'
documents refuse, every Falcon variant gives the logits and tokens of transformers.
"""

from functools import cache
from pathlib import Path

import npu_kernels as kernels
import pytest
import torch
from checkpoints import VARIANTS
from npu_emulation import admit_float32
from torch import Tensor
from transformers import FalconForCausalLM
from worlds import on_engines

from gyrfalcon import Engine, SamplingParams
from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.measure.precision.reference_file import Origin, Reference, write_reference
from gyrfalcon.measure.precision.reference_transformers import reference_logits
from gyrfalcon.measure.precision.run import judge
from gyrfalcon.ops import reference
from gyrfalcon.ops.npu.choice import ALIBI_VARIABLE, VARIABLE

pytest_plugins = ["npu_fixtures"]

TOLERANCE = 1e-4  # of logits, float32
SINGLE_STEPS = 3
PROMPTS = (3, 131, 17)  # tokens: the second ends on a page of its own
NEW_TOKENS = 4
CHUNK = 96  # tokens a step: prompts come in chunks, beside sequences that decode
TINY_DIMS = (8, 16, *kernels.Machine().packed_dims)

Results = tuple[Tensor, list[tuple[int, ...]]]


def tokens(batch: int, length: int) -> Tensor:
    draw = torch.Generator().manual_seed(length)
    return torch.randint(20, 509, (batch, length), generator=draw)


@cache
@torch.no_grad()
def of_transformers(folder: Path) -> Results:
    """Logits of two prompts, and what follows each of three."""
    model = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    made = [
        model.generate(
            tokens(1, length), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
        )
        for length in PROMPTS
    ]
    new = [tuple(one[0, length:].tolist()) for one, length in zip(made, PROMPTS, strict=True)]
    return model(tokens(2, 140)).logits, new


def ours(engine: Engine) -> Results:
    """The same of an engine: prefilled in chunks, decoded in single steps, and both in one batch."""
    logits = engine.logits(tokens(2, 140), single_steps=SINGLE_STEPS)
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    outputs = engine.generate([tokens(1, length)[0].tolist() for length in PROMPTS], params)
    return logits, [output.output_ids for output in outputs]


def equal_transformers(folder: Path, world_size: int) -> None:
    """Raises where an engine on the emulated device gives other logits or tokens."""
    found = on_engines(world_size, folder, ours, device="npu", max_batch_tokens=CHUNK, max_len=160)
    logits, new = of_transformers(folder)
    torch.testing.assert_close(found[0], logits, atol=TOLERANCE, rtol=0)
    assert found[1] == new


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("world_size", "layout"), [(1, "bsh"), (4, "tnd")])
def test_logits_and_tokens_equal_those_of_transformers(
    folder: Path, world_size: int, layout: str, emulated: pytest.MonkeyPatch
) -> None:
    admit_float32()
    kernels.MACHINE.packed_dims = TINY_DIMS
    emulated.setenv(VARIABLE, layout)
    equal_transformers(folder, world_size)


@pytest.mark.parametrize("variant", ["7b"])
def test_more_heads_than_one_call_takes_equal_transformers_in_one_call_too(
    folder: Path, emulated: pytest.MonkeyPatch
) -> None:
    admit_float32()
    kernels.MACHINE.packed_dims = TINY_DIMS
    emulated.setenv(VARIABLE, "tnd")
    equal_transformers(folder, 1)


@pytest.mark.parametrize("variant", ["7b"])
@pytest.mark.parametrize("layout", ["bsh", "tnd"])
def test_drafts_verified_in_one_step_give_the_tokens_of_transformers(
    folder: Path, layout: str, emulated: pytest.MonkeyPatch
) -> None:
    admit_float32()
    kernels.MACHINE.packed_dims = TINY_DIMS
    emulated.setenv(VARIABLE, layout)
    prompt, num_new = tokens(1, 9).repeat(1, 5), 8
    params = SamplingParams(max_new_tokens=num_new, ignore_eos=True)

    def drafted(engine: Engine) -> tuple[tuple[int, ...], int]:
        [output] = engine.generate(prompt[0].tolist(), params)
        return output.output_ids, engine.stats().num_draft_tokens

    new, num_drafted = on_engines(
        1, folder, drafted, device="npu", num_speculative_tokens=3, max_len=64
    )
    assert num_drafted > 0
    model = FalconForCausalLM.from_pretrained(folder).eval()
    wanted = model.generate(prompt, max_new_tokens=num_new, do_sample=False, eos_token_id=None)
    assert new == tuple(wanted[0, prompt.shape[1] :].tolist())


@pytest.mark.parametrize("variant", ["rw-1b", "rw-7b"])
def test_alibi_as_the_operator_s_bias_equals_transformers_where_pages_allow_it(
    folder: Path, emulated: pytest.MonkeyPatch
) -> None:
    admit_float32()
    kernels.MACHINE.bias_on_pages = True
    emulated.setenv(ALIBI_VARIABLE, "pse")
    equal_transformers(folder, 1)


@pytest.mark.parametrize("variant", ["rw-7b", "7b", "40b"])
def test_bf16_holds_the_gate(folder: Path, emulated: pytest.MonkeyPatch) -> None:
    emulated.setenv(VARIABLE, "bsh")
    checkpoint, prompts = open_checkpoint(folder), [tokens(1, 40)[0].tolist()]
    path = folder / "reference"
    if not path.exists():
        logits = reference_logits(checkpoint, torch.float32, prompts)
        origin = Origin("transformers", "fp32", independent=True)
        write_reference(path, checkpoint.config, origin, prompts, logits)
    reference = Reference.open(path, checkpoint.config)
    outcome = on_engines(
        1, folder, lambda engine: judge(engine, reference, 8), device="npu", dtype="bf16"
    )
    assert outcome.precision == "bf16"
    assert outcome.failures == []


@pytest.mark.parametrize("variant", ["40b"])
@pytest.mark.parametrize(("world_size", "quant"), [(1, "int8"), (1, "int4"), (4, "int4")])
def test_quantised_logits_equal_those_of_the_definitions(
    folder: Path, world_size: int, quant: str, emulated: pytest.MonkeyPatch
) -> None:
    admit_float32()
    emulated.setenv(VARIABLE, "bsh")
    kernels.CALLS.clear()
    found, _ = on_engines(world_size, folder, ours, device="npu", quant=quant, max_len=160)
    assert "npu_weight_quant_batchmatmul" in kernels.CALLS
    emulated.setenv("GYRFALCON_OPS", "reference")
    emulated.setitem(reference.ACTIVATIONS, "gelu", torch.nn.functional.gelu)  # the host's
    plain, _ = on_engines(1, folder, ours, device="cpu", quant=quant, max_len=160)
    torch.testing.assert_close(found, plain, atol=TOLERANCE, rtol=0)
