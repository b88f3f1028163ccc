"""The least work of Falcon's models, counted by hand from their shapes, and the percentages of it."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from gyrfalcon.config import ModelConfig
from gyrfalcon.device import rates
from gyrfalcon.device.cpu import Cpu
from gyrfalcon.device.lookup import is_out_of_memory
from gyrfalcon.measure import limits
from gyrfalcon.measure.limits import instruction_peaks, machine_limits, prompt_instruction
from gyrfalcon.measure.roofline import (
    Deployment,
    MachineLimits,
    decode_bytes,
    percent_of_limit,
    prefill_flops,
)
from gyrfalcon.model.architectures import config_from_json

CPU = Cpu.at(0)

FALCON_40B = config_from_json(
    {
        "model_type": "falcon",
        "hidden_size": 8192,
        "num_hidden_layers": 60,
        "num_attention_heads": 128,
        "num_kv_heads": 8,
        "vocab_size": 65024,
        "new_decoder_architecture": True,
    }
)
FALCON_7B = config_from_json(
    {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "multi_query": True,
        "vocab_size": 65024,
    }
)
FALCON_11B = config_from_json(
    {
        "model_type": "falcon",
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_kv_heads": 8,
        "ffn_hidden_size": 16384,
        "vocab_size": 65024,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
    }
)

# Of one layer of 40b: fused qkv, dense, the two of the MLP; and the head.
MATRICES_40B = 9216 * 8192 + 8192 * 8192 + 2 * 32768 * 8192
HEAD_40B = 65024 * 8192
NORMS_40B = 60 * 4 * 8192 + 2 * 8192


def bf16(config: ModelConfig, world_size: int = 1, on_cards: bool = True) -> Deployment:
    return Deployment(config, world_size, number_bytes=2, quant="none", on_cards=on_cards)


def test_a_token_of_40b_reads_every_weight_once() -> None:
    weights = 60 * MATRICES_40B + NORMS_40B + HEAD_40B
    assert decode_bytes(bf16(FALCON_40B), batch=1, context=0) == 2 * (weights + 8192)
    assert 2 * weights == 82_606_587_904


@pytest.mark.parametrize(
    ("config", "bandwidth", "ms"),
    [
        (FALCON_40B, 4.8e12, 17.2),
        (FALCON_40B, 3.35e12, 24.7),
        (FALCON_7B, 4.8e12, 2.9),
        (FALCON_7B, 2.04e12, 6.8),
    ],
)
def test_the_floor_is_that_of_the_published_bandwidths(
    config: ModelConfig, bandwidth: float, ms: float
) -> None:
    needed = decode_bytes(bf16(config), batch=1, context=0)
    assert 1000 * needed / bandwidth == pytest.approx(ms, abs=0.05)


@pytest.mark.parametrize(("config", "kv_bytes"), [(FALCON_40B, 122_880), (FALCON_7B, 8_192)])
def test_every_token_of_the_context_costs_its_keys_and_values(
    config: ModelConfig, kv_bytes: int
) -> None:
    deployment = bf16(config)
    empty, full = (decode_bytes(deployment, batch=3, context=context) for context in (0, 100))
    assert full - empty == 3 * 100 * kv_bytes


def test_a_batch_reads_the_weights_once() -> None:
    deployment = bf16(FALCON_40B)
    one, eight = (decode_bytes(deployment, batch=batch, context=0) for batch in (1, 8))
    assert eight - one == 2 * 7 * 8192  # seven more rows of the embedding


def test_an_untied_head_is_read_and_its_embedding_is_not() -> None:
    parameters = 11_102_822_400
    needed = decode_bytes(bf16(FALCON_11B), batch=1, context=0)
    assert needed == 2 * (parameters - 65024 * 4096 + 4096)


def test_each_of_four_cards_reads_a_quarter_and_the_norms() -> None:
    needed = decode_bytes(bf16(FALCON_40B, world_size=4), batch=1, context=100)
    quarter = 60 * MATRICES_40B // 4 + HEAD_40B // 4 + 100 * 2 * 2 * 64 * 60
    assert needed == 2 * (quarter + NORMS_40B + 8192)


def test_ranks_on_one_processor_read_together() -> None:
    needed = decode_bytes(bf16(FALCON_40B, world_size=4, on_cards=False), batch=1, context=0)
    assert needed == 2 * (60 * MATRICES_40B + HEAD_40B + 4 * (NORMS_40B + 8192))


@pytest.mark.parametrize(
    ("quant", "bits", "scale_bytes"),
    [
        ("int8", 8, 4 * (9216 + 8192 + 32768 + 8192)),
        ("fp8", 8, 4 * (9216 + 8192 + 32768 + 8192)),
        ("int4", 4, 2 * MATRICES_40B // 64),
        ("int4-32", 4, 2 * MATRICES_40B // 32),
        ("int4-128", 4, 2 * MATRICES_40B // 128),
    ],
)
def test_rounded_weights_are_read_as_they_are_stored(
    quant: str, bits: int, scale_bytes: int
) -> None:
    needed = decode_bytes(replace(bf16(FALCON_40B), quant=quant), batch=1, context=0)
    matrices = 60 * (MATRICES_40B * bits // 8 + scale_bytes)
    head, looked_up = HEAD_40B + 4 * 65024, 8192 + 4  # 8 bits in every kind
    assert needed == matrices + 2 * NORMS_40B + head + looked_up


def test_the_uneven_cut_counts_its_busiest_card() -> None:
    seven = decode_bytes(bf16(FALCON_7B, world_size=2), batch=1, context=0)
    whole = decode_bytes(bf16(FALCON_7B), batch=1, context=0)
    qkv = (36 + 2) * 64 * 4544  # 71 heads: 35 and 36; both ranks hold the one k and v
    rest = 36 * 64 * 4544 + 18176 * 4544  # dense, half of up and down
    norms = 32 * 2 * 4544 + 2 * 4544
    assert seven == 2 * (32 * (qkv + rest) + 65024 // 2 * 4544 + norms + 4544)
    assert seven > whole / 2


def test_the_guides_910b3_reaches_48_percent() -> None:
    needed = decode_bytes(bf16(FALCON_40B, world_size=4), batch=1, context=0)
    assert percent_of_limit(needed, 1.6e12, ms=27.03) == pytest.approx(48, abs=0.5)


def test_a_prefill_multiplies_matrices_for_every_token_but_in_the_last_layer_keys_and_values_alone() -> (
    None
):
    flops = prefill_flops(bf16(FALCON_40B), batch=1, input_len=3)
    keys_and_values = 2 * 8 * 64 * 8192
    products = 2 * 3 * 59 * MATRICES_40B + 2 * (MATRICES_40B + 2 * keys_and_values) + 2 * HEAD_40B
    pairs = 59 * (1 + 2 + 3) + 3
    attention = pairs * 128 * 2 * 2 * 64  # scores and sums, causal pairs
    assert flops == products + attention


def test_a_batch_of_prompts_is_that_much_more() -> None:
    one, eight = (prefill_flops(bf16(FALCON_7B), batch, input_len=32) for batch in (1, 8))
    assert eight == 8 * one


def test_four_cards_share_the_multiplications() -> None:
    whole = prefill_flops(bf16(FALCON_40B), batch=2, input_len=64)
    assert prefill_flops(bf16(FALCON_40B, world_size=4), batch=2, input_len=64) == whole // 4
    processor = bf16(FALCON_40B, world_size=4, on_cards=False)
    assert prefill_flops(processor, batch=2, input_len=64) == whole


def test_twice_the_time_is_half_the_percentage() -> None:
    assert percent_of_limit(work=5e9, limit_per_second=10e9, ms=500) == pytest.approx(100)
    assert percent_of_limit(work=5e9, limit_per_second=10e9, ms=1000) == pytest.approx(50)


def test_the_measured_limits_are_those_of_some_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks and matrices of the usual sizes, in few rounds."""
    monkeypatch.setattr(rates, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(rates, "ROUNDS_SECONDS", 0.01)
    threads = torch.get_num_threads()
    assert 1e8 < CPU.measure_bandwidth() < 1e13
    monkeypatch.setattr(rates, "COPY_BYTES", 1 << 22)
    assert 1e8 < rates.copy_rate(CPU) < 1e13
    assert 1e8 < rates.read_rate(CPU) < 1e13
    assert 1e7 < CPU.measure_matrix_peak(torch.float32) < 1e16
    found = machine_limits(CPU, torch.float32)
    assert 1e8 < found.bandwidth_bytes_per_second < 1e13
    assert 1e7 < found.matrix_flops_per_second < 1e16
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("brief_limits")
def test_the_matrix_peak_is_that_of_the_instruction_which_multiplies_a_prompt() -> None:
    names = list(instruction_peaks(CPU))
    if not names:
        pytest.skip("needs the native kernels")
    for quant in ("none", "int8", "int4", "int4-32"):
        found = machine_limits(CPU, torch.bfloat16, quant)
        assert found.instruction == prompt_instruction(CPU, torch.bfloat16, quant)
        assert found.instruction in names
        assert found.float32_flops_per_second is not None
    assert prompt_instruction(CPU, torch.float32) == names[0]
    assert list(instruction_peaks(CPU, {names[-1]})) == [names[-1]]
    assert prompt_instruction(CPU, torch.bfloat16, "fp8") is None


def test_without_native_kernels_the_matrix_peak_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "library", lambda: None)
    monkeypatch.setattr(Cpu, "measure_bandwidth", lambda _: 1e10)
    monkeypatch.setattr(Cpu, "measure_matrix_peak", lambda *_: 1e11)
    found = machine_limits(CPU, torch.bfloat16, "int8")
    assert found == MachineLimits(1e10, 1e11)
    assert found.of_float32 is None
    assert instruction_peaks(CPU) == {}


def test_the_peak_of_memory_is_seen_and_forgotten() -> None:
    pids = [os.getpid()]
    CPU.forget_peak_memory(pids)
    before = CPU.peak_memory(pids)[0]
    block = np.ones(200_000_000, np.uint8)
    assert CPU.peak_memory(pids)[0] - before > 150_000_000
    del block
    assert CPU.peak_memory(pids)[0] - before > 150_000_000
    CPU.forget_peak_memory(pids)
    assert CPU.peak_memory(pids)[0] - before < 150_000_000


def test_running_out_of_memory_is_known_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)
