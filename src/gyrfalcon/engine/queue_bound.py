"""How much may wait: refuses a request that finds the queue full."""

from gyrfalcon.console.format import counted
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import QueueFull
from gyrfalcon.request import EngineStats


def refuse_if_full(config: EngineConfig, stats: EngineStats, num_tokens: int) -> None:
    """QueueFull when a request of this many tokens, all of its samples together, is one too many. What
    finds nothing waiting is always taken, and so is what may run in the next step with all that waits.
    """
    free_tokens = (stats.num_blocks - stats.num_used_blocks) * config.block_size
    has_slot = stats.num_running + stats.num_waiting < config.max_sequences
    if not stats.num_waiting or (has_slot and stats.num_waiting_tokens + num_tokens <= free_tokens):
        return
    requests, tokens = config.max_queued_requests, config.max_queued_tokens
    if requests is not None and stats.num_waiting_requests >= requests:
        name, most = "max_queued_requests", counted(requests, "request")
    elif tokens is not None and stats.num_waiting_tokens + num_tokens > tokens:
        name, most = "max_queued_tokens", counted(tokens, "token")
    else:
        return
    waiting = counted(stats.num_waiting_requests, "request")
    raise QueueFull(
        f"at most {most} queued",
        f"{waiting} of {stats.num_waiting_tokens:,} tokens queued, and one of {num_tokens:,} more",
        f"ask again later or raise `{name}`",
    )
