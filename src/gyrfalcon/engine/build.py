"""Builds what one rank needs: opens the checkpoint, loads its share, sizes the cache. The same on
every rank.
"""

import logging
from functools import partial

import torch

from gyrfalcon import ops
from gyrfalcon.checkpoint.load import effective_dtype, effective_quant, load_model
from gyrfalcon.checkpoint.source import Checkpoint
from gyrfalcon.device.dtypes import WORD_OF_DTYPE
from gyrfalcon.device.environment import THREADS, set_by_user
from gyrfalcon.device.lookup import kind_for
from gyrfalcon.device.protocol import Device
from gyrfalcon.device.threads import home_processors, kept_to, own_processors, use_threads
from gyrfalcon.engine import sampler
from gyrfalcon.engine.core import EngineCore, ModelRunner
from gyrfalcon.engine.drafts import Drafts
from gyrfalcon.engine.graphs import Graphs
from gyrfalcon.engine.sampler import ChooseTokens
from gyrfalcon.engine.scheduler import Scheduler, StepLimits
from gyrfalcon.engine.scores import PromptScores
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import CacheTooSmall, UsageError
from gyrfalcon.kv.blocks import BlockAllocator
from gyrfalcon.kv.pool import CacheShape, KVPool
from gyrfalcon.model.builder import Model
from gyrfalcon.ops import Ops
from gyrfalcon.parallel.group import Vocabulary
from gyrfalcon.parallel.heartbeat import STEP
from gyrfalcon.parallel.ranks import RankInfo
from gyrfalcon.parallel.shards import largest_matrix, share_of

log = logging.getLogger(__name__)


def build_core(
    config: EngineConfig,
    checkpoint: Checkpoint,
    rank_info: RankInfo,
    retain_prompt_logits: bool = True,
) -> EngineCore:
    """One rank's core; raises what is wrong with the checkpoint, the device or the cache size."""
    heartbeat = rank_info.group.heartbeat
    heartbeat.doing, heartbeat.exempt = "loading weights", True  # from a slow disk, maybe
    device = kind_for(config.device).of_rank(rank_info.local_rank)
    alone = not device.on_host and rank_info.ranks_here == 1  # then torch's own number will do
    if not set_by_user(THREADS) and (config.threads or not alone):
        use_threads(config.threads, rank_info.ranks_here)
    with kept_to(home_processors(device, rank_info.local_rank, rank_info.ranks_here)):
        return _core(config, checkpoint, rank_info, device, retain_prompt_logits)


def _core(
    config: EngineConfig,
    checkpoint: Checkpoint,
    rank_info: RankInfo,
    device: Device,
    retain_prompt_logits: bool,
) -> EngineCore:
    """On its device, by a thread that keeps to the NUMA node where the memory shall be."""
    heartbeat = rank_info.group.heartbeat
    dtype = effective_dtype(checkpoint, config.dtype)
    if rank_info.group.rank == 0:
        log.info(
            "running on %s in %s, world size %d",
            device,
            WORD_OF_DTYPE[dtype],
            rank_info.group.size,
        )
    processors = own_processors(rank_info.local_rank, rank_info.ranks_here)
    operations = ops.choose(device, config.quant, processors)
    model = load_model(
        checkpoint, rank_info.group, operations, device.torch_device, dtype, config.quant
    )
    scratch = 0
    if effective_quant(checkpoint, config.quant) != "none":
        share = share_of(checkpoint.config, rank_info.group.size, rank_info.group.rank)
        scratch = ops.scratch_bytes(device, largest_matrix(checkpoint.config, share), dtype)
    pool, max_len = _cache(config, checkpoint, rank_info, device, dtype, scratch)
    rope = checkpoint.config.rope  # with dynamic scaling a token's key depends on what follows it
    reuse = config.reuse_prefixes and not (rope is not None and rope.kind == "dynamic")
    allocator = BlockAllocator(pool.num_blocks, config.block_size, reuse)
    limits = StepLimits(max_len, config.max_batch_tokens, config.max_sequences)
    vocabulary = Vocabulary.shared(checkpoint.config.vocab_size, rank_info.group)
    runner = model_runner(model, operations, vocabulary, max_len, device)
    if isinstance(runner, Graphs):
        heartbeat.doing = "capturing graphs"
        with torch.inference_mode():
            runner.warm(pool, config.max_sequences, shown=rank_info.group.rank == 0)
    scores = None
    if retain_prompt_logits:
        scores = PromptScores(allocator.num_blocks, config.block_size, vocabulary.size, reuse)
    drafts = Drafts(config.num_speculative_tokens)
    scheduler = Scheduler(allocator, limits, scores, pool.copy, drafts)
    own_threads = operations.own_threads(config.quant)
    heartbeat.doing = STEP
    heartbeat.on_host = device.on_host
    heartbeat.exempt = not device.on_host  # the first step compiles kernels
    choose = _choose_tokens(device)
    return EngineCore(runner, pool, scheduler, vocabulary, device, scores, own_threads, choose)


def _choose_tokens(device: Device) -> ChooseTokens:
    if ops.chosen_name(device) != "native":
        return sampler.choose
    from gyrfalcon.engine import native_sampler

    return native_sampler.choose


def model_runner(
    model: Model, operations: Ops, vocabulary: Vocabulary, max_len: int, device: Device
) -> ModelRunner:
    """What runs the model's steps: itself on the CPU, elsewhere graphs where all of a step allows it."""
    if device.on_host:
        return model
    group = vocabulary.group
    capturable = operations.CAPTURABLE and group.capturable
    choose = partial(sampler.greedy, vocabulary=vocabulary)
    agree = group.all_reduce_min
    graphs = Graphs(model, choose, max_len, device, capturable, group.heartbeat, agree)
    group.before_close.append(graphs.drop)
    return graphs


def longest_sequence(config: EngineConfig, checkpoint: Checkpoint) -> int:
    """Tokens a sequence may have; rotary ones end with the model's positions, ALiBi goes on."""
    positions = checkpoint.config.max_positions
    wanted = config.max_len or positions
    if wanted > positions and checkpoint.config.rope is not None:
        raise UsageError(
            f"a `max_len` of at most {positions}, the model's positions",
            str(wanted),
            "lower `max_len`",
        )
    return wanted


def _cache(
    config: EngineConfig,
    checkpoint: Checkpoint,
    rank_info: RankInfo,
    device: Device,
    dtype: torch.dtype,
    scratch: int,
) -> tuple[KVPool, int]:
    """The cache, which leaves `scratch` bytes, and the longest sequence it can hold; all ranks agree on the
    number of blocks.
    """
    max_len = longest_sequence(config, checkpoint)
    share = share_of(checkpoint.config, rank_info.group.size, rank_info.group.rank)
    model = checkpoint.config
    shape = CacheShape(
        model.num_layers, len(share.kv_heads), model.head_dim, config.block_size, dtype
    )
    useful = config.max_sequences * -(-max_len // config.block_size)
    num_bytes = _cache_bytes(config, rank_info, device, scratch)
    affordable = num_bytes // shape.block_bytes - device.spare_blocks
    num_blocks = rank_info.group.all_reduce_min(min(useful, affordable))
    held = num_blocks * config.block_size
    wanted = -(-max_len // config.block_size) * shape.block_bytes
    if held < max_len and (config.max_len is not None or held < min(max_len, 128)):
        raise CacheTooSmall(
            f"a KV cache for {max_len} tokens, {wanted:,} bytes a rank",
            f"one for {held} tokens",
            "raise `cache_memory` or lower `max_len`",
        )
    return KVPool(shape, num_blocks, device.torch_device, device.spare_blocks), min(max_len, held)


def _cache_bytes(config: EngineConfig, rank_info: RankInfo, device: Device, scratch: int) -> int:
    asked = config.cache_memory
    if isinstance(asked, int):
        return asked
    free, _ = device.memory()
    ranks = rank_info.ranks_here if device.on_host else 1  # that share it
    return int(max(free - scratch, 0) * (asked or device.cache_share) / ranks)
