"""What a step may take on: tokens of prompts by the time it may last, drafts by what they yield. Rank 0 alone
decides it, from the times of the steps before.
"""

from gyrfalcon.engine.draft_target import DraftTarget
from gyrfalcon.engine.drafts import NEVER
from gyrfalcon.engine.scheduler import Scheduler
from gyrfalcon.engine.step_target import StepTarget
from gyrfalcon.engine_config import EngineConfig


class StepBudget:
    """What a scheduler's steps may take on, so that none takes longer than `step_target` seconds, if given;
    `drafts`: whether tokens may be drafted.
    """

    def __init__(self, scheduler: Scheduler, step_target: float | None, drafts: bool) -> None:
        self._scheduler = scheduler
        self._step_target = None if step_target is None else _target(scheduler, step_target)
        self._draft_target = DraftTarget() if drafts else None

    def prompt_tokens(self) -> int:
        """How many tokens of prompts the next step may read."""
        if self._step_target is None or not self._scheduler.has_prompts:
            return self._scheduler.limits.max_batch_tokens
        return self._step_target.prompt_tokens(self._scheduler.num_decoding)

    def least_acceptance(self) -> float:
        """How probable the acceptance of a token must be for the next step to draft it."""
        if self._draft_target is None:
            return NEVER
        scheduler = self._scheduler
        return self._draft_target.least_acceptance(scheduler.num_decoding, scheduler.acceptance())

    def record(self, seconds: float) -> None:
        """Takes in how long the scheduler's last step took."""
        self.record_step(*self._scheduler.committed_sizes(), seconds)

    def record_step(self, num_prompt_tokens: int, num_decoding: int, seconds: float) -> None:
        """The same of a step with so many tokens of prompts and decoding sequences."""
        if self._step_target is not None:
            self._step_target.record(num_prompt_tokens, num_decoding, seconds)
        if self._draft_target is not None and num_decoding and not num_prompt_tokens:
            self._draft_target.record(num_decoding, self._scheduler.num_drafted, seconds)

    @classmethod
    def of(cls, config: EngineConfig, scheduler: Scheduler) -> "StepBudget | None":
        """None where every step takes what fits into it."""
        drafts = bool(config.num_speculative_tokens)
        if config.step_target is None and not drafts:
            return None
        return cls(scheduler, config.step_target, drafts)


def _target(scheduler: Scheduler, seconds: float) -> StepTarget:
    most = scheduler.limits.max_batch_tokens
    return StepTarget(seconds, most, min(scheduler.allocator.block_size, most))
