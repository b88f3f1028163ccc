"""Known ways to get Falcon wrong, each as a patch of one place. As a pytest plugin (-p sabotages)
this module applies those of the suite, each to the test that has to see it.
"""

import inspect
import operator
import random
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest
from torch import Tensor

from gyrfalcon import Engine, EngineConfig, SamplingParams
from gyrfalcon.batch import Batch
from gyrfalcon.checkpoint import manifest, pickle_file
from gyrfalcon.checkpoint.manifest import Manifest
from gyrfalcon.cli import precision_run
from gyrfalcon.config import ModelConfig, RopeConfig
from gyrfalcon.cut import staged_folder as weights_build
from gyrfalcon.cut.hashed_file import HashedFile
from gyrfalcon.device import environment, npu_setup, topology
from gyrfalcon.device.cuda import Cuda
from gyrfalcon.doctor import redact
from gyrfalcon.engine import build, drafts, sampler
from gyrfalcon.engine.prefix_cache import PrefixCache
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.kv.pool import KVPool, LayerCache
from gyrfalcon.load import figures as load_figures
from gyrfalcon.load import plan as load_plan
from gyrfalcon.load import run as load_run
from gyrfalcon.measure.mmlu.files import Recorder
from gyrfalcon.measure.mmlu.score import Score
from gyrfalcon.measure.precision import gate
from gyrfalcon.measure.speed import bench as speed
from gyrfalcon.measure.speed import table as speed_table
from gyrfalcon.model import falcon_layout
from gyrfalcon.model.builder import LayerBuilder
from gyrfalcon.model.falcon import Falcon, SequentialBlock
from gyrfalcon.model.linear import Norms, RowLinear
from gyrfalcon.model.positions import rotary_frequencies
from gyrfalcon.ops import reference
from gyrfalcon.parallel.ranks import Ranks
from gyrfalcon.parallel.shards import Share
from gyrfalcon.report import speed as report_speed
from gyrfalcon.text.detokenizer import Detokenizer, TextStream

Patch = pytest.MonkeyPatch
STALE_PLACE = 5  # of a cache block


def _patch_reference(patch: Patch, name: str, value: object) -> None:
    """A fault in the definitions, which are then what runs."""
    patch.setenv("GYRFALCON_OPS", "reference")
    patch.setattr(reference, name, value)


def swap_the_queries_of_two_heads(patch: Patch) -> None:
    """Their outputs stay where they were."""
    split = reference.split_qkv

    def swapped(qkv: Tensor, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = split(qkv, kv_heads, head_dim)
        return q[:, [1, 0, *range(2, q.shape[1])]], k, v

    _patch_reference(patch, "split_qkv", swapped)


def cut_the_fused_qkv_in_equal_slices(patch: Patch) -> None:
    """As if it were stored as all queries, then all keys, then all values."""

    def ranges(config: ModelConfig, share: Share) -> Iterable[range]:
        start = 0
        for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads):
            rows = heads * config.head_dim // share.ranks
            yield range(start + share.rank * rows, start + (share.rank + 1) * rows)
            start += heads * config.head_dim

    patch.setattr(falcon_layout, "_qkv_ranges", ranges)


def take_the_tanh_form_of_gelu(patch: Patch) -> None:
    activate = reference.activate
    _patch_reference(patch, "activate", lambda x, name: activate(x, "gelu_tanh"))


def add_alibi_after_the_scale(patch: Patch) -> None:
    attention = reference.attention

    def unscaled(q: Tensor, cache: LayerCache, batch: Batch, slopes: Tensor | None) -> Tensor:
        assert slopes is not None
        return attention(q, cache, batch, slopes * q.shape[-1] ** 0.5)

    _patch_reference(patch, "attention", unscaled)


def turn_decoded_queries_one_position_on(patch: Patch) -> None:
    """The cached keys stay where they are: off by one everywhere would be no error at all."""
    attention = reference.attention

    def further(q: Tensor, cache: LayerCache, batch: Batch, slopes: Tensor | None) -> Tensor:
        if set(batch.query_lens) == {1}:
            turn = rotary_frequencies(RopeConfig(10000.0, "default"), q.shape[-1])[None]
            q = reference.rotate(q, turn.cos(), turn.sin())
        return attention(q, cache, batch, slopes)

    _patch_reference(patch, "attention", further)


def add_the_row_bias_on_every_rank(patch: Patch) -> None:
    def summed(self: SequentialBlock, part: Tensor, layer: RowLinear) -> Tensor:
        assert layer.bias is not None
        return self.group.all_reduce(part + layer.bias)

    patch.setattr(SequentialBlock, "_reduce", summed)


def use_the_attention_norm_for_the_mlp_too(patch: Patch) -> None:
    norms = LayerBuilder.norms

    def same(self: LayerBuilder, *names: str) -> Norms:
        return norms(self, *(name.replace("ln_mlp", "ln_attn") for name in names))

    patch.setattr(LayerBuilder, "norms", same)


def leave_a_kv_slot_stale(patch: Patch) -> None:
    """One slot of each cache block is never written: it is as empty as at the start."""
    write = reference.write_kv

    def forgetful(k: Tensor, v: Tensor, cache: LayerCache, slots: Tensor) -> None:
        stale = (slots % cache.k.shape[1] == STALE_PLACE)[:, None, None]
        write(k.masked_fill(stale, 0), v.masked_fill(stale, 0), cache, slots)

    _patch_reference(patch, "write_kv", forgetful)


def drop_a_prefill_chunk(patch: Patch) -> None:
    """Later chunks of a prompt are computed, but their cache slots stay empty."""
    compute = Falcon.__call__

    def lost(self: Falcon, batch: Batch, pool: KVPool) -> Tensor:
        logits = compute(self, batch, pool)
        if 1 < batch.query_lens[0] < batch.context_lens[0]:
            for tensor in (tensor for layer in pool.layers for tensor in (layer.k, layer.v)):
                tensor.view(-1, *tensor.shape[2:])[batch.slots] = 0
        return logits

    patch.setattr(Falcon, "__call__", lost)


def ignore_top_p(patch: Patch) -> None:
    draw = sampler._draw

    def careless(scores: Tensor, params: list[SamplingParams], chances: list[float]) -> Tensor:
        return draw(scores, [replace(one, top_p=1.0) for one in params], chances)

    patch.setattr(sampler, "_draw", careless)


def give_every_rank_its_own_seed(patch: Patch) -> None:
    start = Engine.__init__

    def separate(self: Engine, config: EngineConfig, joined: Ranks | None = None) -> None:
        start(self, config, joined)
        self._seeds = random.Random(self._ranks.rank_info.group.rank)

    patch.setattr(Engine, "__init__", separate)


def decode_tokens_one_by_one(patch: Patch) -> None:
    """A character whose bytes are split between tokens is shown as its parts."""

    def hasty(self: Detokenizer, token_id: int) -> str:
        return self._text_bytes.get(token_id, b"").decode("utf-8", "replace")

    patch.setattr(Detokenizer, "push", hasty)


def exclude_the_limits_of_the_gate(patch: Patch) -> None:
    patch.setattr(gate, "HOLDS", {**gate.HOLDS, "<=": operator.lt})


# Each with a variant and a number of ranks on which it matters.
OF_THE_MODEL: list[tuple[Callable[[Patch], None], str, int]] = [
    (swap_the_queries_of_two_heads, "40b", 1),
    (cut_the_fused_qkv_in_equal_slices, "40b", 2),
    (take_the_tanh_form_of_gelu, "7b", 1),
    (add_alibi_after_the_scale, "rw-1b", 1),
    (turn_decoded_queries_one_position_on, "40b", 1),
    (add_the_row_bias_on_every_rank, "rw-1b", 2),
    (use_the_attention_norm_for_the_mlp_too, "40b", 1),
    (leave_a_kv_slot_stale, "11B", 1),
    (drop_a_prefill_chunk, "40b", 1),
]


def edited(owner: object, name: str, old: str, new: str) -> Callable[[Patch], None]:
    """A fault of one line: the source of `owner.name` with `old`, which stands there once, replaced."""

    def sabotage(patch: Patch) -> None:
        found = inspect.getattr_static(owner, name)
        function = getattr(found, "fget", None) or getattr(found, "__func__", found)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(old) == 1, f"{name} has changed: {old!r} is not there once"
        made: dict[str, object] = {}
        exec(source.replace(old, new), function.__globals__, made)
        patch.setattr(owner, name, made[name])

    return sabotage


# By the test that sees it.
OF_THE_SUITE: dict[str, Callable[[Patch], None]] = {
    "tests/engine/test_sampler.py::test_top_p_never_draws_a_token_outside_of_the_nucleus": ignore_top_p,
    "tests/engine/test_laws.py::test_any_number_of_ranks_gives_the_logits_and_texts_of_one[40b-2]": (
        give_every_rank_its_own_seed
    ),
    "tests/text/test_tokenizer.py::test_a_character_split_between_tokens_is_never_half_shown": (
        decode_tokens_one_by_one
    ),
    "tests/engine/test_scheduler.py::test_tokens_that_spell_the_same_digits_are_different_blocks": (
        edited(BlockAllocator, "digests", '",".join', '"".join')
    ),
    "tests/engine/test_scheduler.py::test_of_a_released_text_the_end_is_forgotten_first": (
        edited(BlockAllocator, "release", "reversed(table)", "table")
    ),
    "tests/engine/test_scores.py::test_scores_are_forgotten_with_the_content_of_their_block": (
        edited(BlockAllocator, "_forget", "self._scored.pop(block,", "self._scored.get(block,")
    ),
    "tests/engine/test_scores.py::test_scores_are_those_of_an_engine_that_reuses_nothing[1-16]": (
        edited(KVPool, "copy", "layer.v[target] = layer.v[source]", "pass")
    ),
    "tests/engine/test_scheduler.py::test_a_prompt_whose_logits_are_wanted_ends_well_and_serves_nobody": (
        edited(PrefixCache, "withdraw", "sequence.is_finite = False", "")
    ),
    "tests/engine/test_scheduler.py::test_no_block_of_a_failed_sample_is_found_nor_one_that_it_had_found": (
        edited(
            PrefixCache,
            "withdraw",
            "self._allocator.forget(sequence.blocks[sequence.num_shared :])",
            "",
        )
    ),
    "tests/engine/test_sampler.py::test_a_chunk_that_samples_nothing_is_looked_at_all_the_same[nan]": (
        edited(sampler, "read", "if state else Token", "if chunk.samples and state else Token")
    ),
    "tests/engine/test_engine.py::test_with_dynamic_scaling_a_prompt_takes_no_keys_over_from_a_shorter_one": (
        edited(build, "_core", '.kind == "dynamic"', '.kind == "never"')
    ),
    "tests/engine/test_sampler.py::test_top_p_keeps_no_token_beyond_the_one_that_reaches_it": (
        edited(sampler, "_draw", "< top_p", "<= top_p")
    ),
    "tests/engine/test_sampler.py::test_min_p_keeps_a_token_that_is_just_as_likely_as_it_asks": (
        edited(sampler, "_draw", ">= min_p", "> min_p")
    ),
    "tests/text/test_text.py::test_a_held_beginning_of_a_stop_string_comes_before_half_a_character[ab]": (
        edited(
            TextStream,
            "_rest",
            "self._before_stop(self._detokenizer.flush(), None)",
            "self._detokenizer.flush(), None",
        )
    ),
    "tests/measure/test_gate.py::test_a_figure_exactly_at_its_limit_holds_unless_it_has_to_be_above[bf16]": (
        exclude_the_limits_of_the_gate
    ),
    "tests/measure/test_gate.py::test_a_figure_that_is_not_finite_never_holds": (
        edited(gate.Figure, "of", "held=number is not None and", "held=number is None or")
    ),
    "tests/measure/test_gate.py::test_a_favourite_is_clear_from_the_margin_itself_on[0.1-True]": (
        edited(gate, "_compare_rows", ">= CLEAR_MARGIN", "> CLEAR_MARGIN")
    ),
    "tests/measure/test_precision.py::test_decode_steps_alone_that_are_wrong_fail": (
        edited(
            precision_run.Findings,
            "failures",
            "failures(self.columns)",
            "failures(dict([*self.columns.items()][:1]))",
        )
    ),
    "tests/cut/test_cut.py::test_a_manifest_whose_values_are_possible_but_not_those_written_is_a_fault[config]": (
        edited(Manifest, "read", 'manifest.text() != path.read_text("utf-8")', "False")
    ),
    "tests/cut/test_durability.py::test_a_folder_that_has_its_name_is_whole_after_a_loss_of_power[cut]": (
        edited(weights_build.Build, "publish", "sync_tree(self.folder)", "")
    ),
    "tests/cut/test_durability.py::test_a_folder_that_has_its_name_is_whole_after_a_loss_of_power[merged]": (
        edited(weights_build.Build, "publish", "sync_folder(self.target.parent)", "")
    ),
    "tests/cut/test_durability.py::test_progress_never_tells_of_a_file_whose_bytes_could_still_be_lost": (
        edited(HashedFile, "finish", "os.fsync(self._descriptor)", "")
    ),
    "tests/cut/test_durability.py::test_an_answer_is_in_the_journal_before_the_next_is_computed": (
        edited(Recorder, "write", "self._journal.flush()", "")
    ),
    "tests/measure/test_mmlu_score.py::test_a_subject_without_an_answer_does_not_count_in_the_macro_average": (
        edited(
            Score,
            "macro",
            "count.accuracy for count in self.subjects.values() if count.accuracy is not None",
            "count.accuracy or 0.0 for count in self.subjects.values()",
        )
    ),
    "tests/engine/test_speculation.py::test_every_kind_of_request_gets_the_same[greedy-]": (
        edited(drafts, "accepted", "result.id == token_id", "result.id >= 0")
    ),
    "tests/engine/test_speculation.py::test_every_kind_of_request_gets_the_same[frequency-]": (
        edited(
            sampler, "_penalised", "chunk.sequence.tokens + chunk.draft", "chunk.sequence.tokens"
        )
    ),
    "tests/report/test_report.py::test_the_speed_tables_hold_every_case_and_the_means": (
        edited(report_speed, "_case_row", "inter_token_p90_ms", "inter_token_p99_ms")
    ),
    "tests/measure/test_speed.py::test_each_percentile_of_the_gaps_is_shown_in_its_own_column": (
        edited(speed_table, "_cells", "inter_token_p90_ms", "inter_token_p99_ms")
    ),
    "tests/measure/test_speed.py::test_what_the_first_generation_alone_takes_is_not_timed": (
        edited(
            speed,
            "time_case",
            "generate(engine, prompts, min(WARM_UP_TOKENS, case.output_len))",
            "",
        )
    ),
    "tests/load/test_run.py::test_a_slow_server_does_not_slow_the_arrivals[30.0]": (
        edited(
            load_run.Runner,
            "_open_loop",
            "group.create_task(self._ask(planned, body, planned.arrival))",
            "await self._ask(planned, body, planned.arrival)",
        )
    ),
    "tests/load/test_run.py::test_times_count_from_when_a_request_was_due_though_it_was_sent_late": (
        edited(load_figures, "latencies_of", "first - outcome.due", "first - outcome.sent")
    ),
    "tests/load/test_plan.py::test_poisson_gaps_are_exponential": (
        edited(load_plan, "_poisson", "random.expovariate(rate)", "random.uniform(0, 2 / rate)")
    ),
    "tests/doctor/test_doctor_npu.py::test_a_torch_npu_that_the_table_lacks_is_said_not_to_be_in_it[2.13.0]": (
        lambda patch: patch.setitem(npu_setup.COMPATIBLE, (2, 13), ((9, 1), (9, 1)))
    ),
    "tests/doctor/test_environment.py::test_what_the_user_has_set_stays_under_any_of_its_names": (
        edited(environment, "_setting", "(variable.name, *variable.aliases)", "(variable.name,)")
    ),
    "tests/doctor/test_topology.py::test_nodes_whose_processors_alternate_are_put_in_order": (
        edited(topology, "_nodes", 'int(node.name.removeprefix("node"))', "0")
    ),
    "tests/checkpoint/test_lying_files.py::test_a_signed_manifest_that_lies_is_refused[more rows than can be counted]": (
        edited(manifest, "_parsed_tensor", "> MOST_ELEMENTS", "> 10**40")
    ),
    "tests/checkpoint/test_lying_files.py::test_a_tensor_of_more_numbers_than_the_file_has_is_not_computed_with": (
        edited(pickle_file, "_odd", "value.numel() > stored", "False")
    ),
    "tests/checkpoint/test_lying_files.py::test_a_pickle_that_unpacks_to_more_than_its_size_is_refused": (
        edited(
            pickle_file,
            "_refuse_compressed",
            "entry.compress_type != zipfile.ZIP_STORED or",
            "False and",
        )
    ),
    "tests/doctor/test_bundle.py::test_no_secret_of_the_environment_gets_in[PGPASSWORD]": (
        edited(redact.Redaction, "__call__", "text.replace(secret, GONE)", "text")
    ),
    "tests/ops/test_side_by_side.py::test_no_kernel_races_another_in_a_forked_step[40b-bf16]": (
        edited(Cuda, "side_by_side", "main.wait_stream(side)", "pass")
    ),
    "tests/ops/test_side_by_side.py::test_no_kernel_races_another_in_a_forked_step[7b-int4]": (
        edited(Cuda, "side_by_side", "side.wait_stream(main)", "pass")
    ),
}


@pytest.fixture(autouse=True)
def sabotaged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Found by pytest where this module is a plugin."""
    with pytest.MonkeyPatch.context() as patch:
        OF_THE_SUITE[request.node.nodeid](patch)
        yield
