"""One split of a model over cards, at one batch and context: what fits, how fast it is, what limits it."""

from dataclasses import dataclass

from gyrfalcon.console.format import counted, shown_bytes
from gyrfalcon.engine_config import QUANTS
from gyrfalcon.errors import UsageError, WorldSizeError
from gyrfalcon.plan.efficiencies import efficiency_for, precision_of
from gyrfalcon.plan.hardware import Hardware
from gyrfalcon.plan.memory import RankMemory, rank_memory
from gyrfalcon.plan.models import PlannedModel
from gyrfalcon.plan.prediction import Efficiency, Parts, Predicted
from gyrfalcon.plan.step_load import decoding_load, load_of
from gyrfalcon.plan.work import work_of

HOUR = 3600
SMALLER = ("int8", "int4")  # what a model that does not fit may be quantised to
MORE_RANKS = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True)
class Split:
    """How a model runs: `ranks` share it, and this many `replicas` of that run side by side."""

    ranks: int
    replicas: int = 1
    idle: int = 0  # cards that are left over

    @property
    def cards(self) -> int:
        return self.ranks * self.replicas + self.idle


def split_of(hardware: Hardware, ranks: int, cards: int | None) -> Split:
    """Replicas of this many ranks on all cards, or one where their number is open: a replica has ranks in one
    machine or has whole machines. UsageError for ranks that no machine has.
    """
    if not hardware.on_cards:
        return Split(ranks)
    each = hardware.cards_per_machine
    if not is_whole(hardware, ranks):
        cards_of_one = counted(each, f"{hardware.name} card")
        wanted = f"ranks of one machine, which has {cards_of_one}, or of whole machines"
        do = f"choose -w {each} or less, or {2 * each}; --target says how many cards users need"
        raise UsageError(wanted, f"{ranks} ranks", do)
    if cards is None:
        return Split(ranks)
    machines, rest = divmod(cards, max(each, ranks))
    replicas = machines * max(each // ranks, 1) + rest // ranks
    return Split(ranks, replicas, cards - ranks * replicas)


def is_whole(hardware: Hardware, ranks: int) -> bool:
    """Whether this many ranks are in one machine or have whole machines."""
    return ranks <= hardware.cards_per_machine or ranks % hardware.cards_per_machine == 0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is planned: a model in a precision on some hardware."""

    model: PlannedModel
    hardware: Hardware
    dtype: str
    quant: str
    max_batch_tokens: int
    max_sequences: int
    efficiency: Efficiency | None = None  # instead of the table's

    @property
    def shares(self) -> Efficiency:
        """The shares of the peaks that it is predicted to reach."""
        precision = precision_of(self.dtype, self.quant)
        return self.efficiency or efficiency_for(self.hardware.name, precision)

    def predicted(self, ranks: int) -> Predicted:
        """What predicts the steps of a replica of this many ranks."""
        on_cards = self.hardware.on_cards
        work = work_of(self.model.config, ranks, self.dtype, self.quant, on_cards)
        return Predicted(work, self.hardware, self.shares, self.dtype)

    def memory(self, ranks: int, quant: str | None = None) -> RankMemory:
        """The memory of a rank, quantised otherwise if need be."""
        config, quant = self.model.config, self.quant if quant is None else quant
        sizes = self.max_batch_tokens, self.max_sequences
        return rank_memory(config, ranks, self.dtype, quant, self.hardware, *sizes)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times are in seconds; `fits` is whether the cache holds the batch at its context."""

    split: Split
    memory: RankMemory
    fits: bool
    remedies: tuple[str, ...]
    concurrent: int  # sequences of that context that a replica's cache holds
    first_token: float  # of one prompt as long as the context, alone
    last_first_token: float  # until each of the batch's prompts has one
    step: Parts  # of decoding the batch
    prefill: Parts  # of a step full of prompt tokens
    tokens_per_second: float  # of all replicas
    cost_per_million: float | None  # output tokens, where a price is known
    basis: str  # of the shares of the peaks


def estimate(
    setting: Setting, split: Split, context: int, batch: int, price: float | None = None
) -> Estimate:
    """The estimate for `batch` sequences a replica, each with `context` tokens. WorldSizeError or UsageError
    where the model cannot be split so.
    """
    memory, predicted = setting.memory(split.ranks), setting.predicted(split.ranks)
    concurrent = memory.sequences(context)
    step = predicted.parts(decoding_load(batch, batch * context))
    chunks = _chunks(context, setting.max_batch_tokens)
    first = sum(predicted.seconds(load_of([chunk])) for chunk in chunks)
    rate = batch * split.replicas / step.seconds
    hourly = setting.hardware.price_per_hour if price is None else price
    fits = concurrent >= batch
    return Estimate(
        split=split,
        memory=memory,
        fits=fits,
        remedies=() if fits else tuple(_remedies(setting, split.ranks, context, batch)),
        concurrent=concurrent,
        first_token=first,
        last_first_token=first * batch,
        step=step,
        prefill=predicted.parts(load_of(chunks[:1])),
        tokens_per_second=rate,
        cost_per_million=None if hourly is None else hourly * split.cards / HOUR / rate * 1e6,
        basis=predicted.efficiency.basis,
    )


def _chunks(prompt_len: int, max_batch_tokens: int) -> list[range]:
    """A prompt's positions, step by step."""
    starts = range(0, prompt_len, max_batch_tokens)
    return [range(start, min(start + max_batch_tokens, prompt_len)) for start in starts]


def _remedies(setting: Setting, ranks: int, context: int, batch: int) -> list[str]:
    """What would make the batch fit, each alone: more ranks, fewer bits, shorter or fewer sequences."""
    found = []
    size = setting.hardware.block_size
    needed = batch * -(-context // size)
    for more in MORE_RANKS if setting.hardware.on_cards else ():
        possible = more > ranks and is_whole(setting.hardware, more)
        if possible and _holds(setting, more, setting.quant, needed):
            found.append(f"{more} ranks")
            break
    for quant in SMALLER:
        narrower = QUANTS.index(quant) > QUANTS.index(setting.quant)
        if narrower and setting.model.quant == "none" and _holds(setting, ranks, quant, needed):
            found.append(f"--quant {quant}")
            break
    memory = setting.memory(ranks)
    held = memory.cache // memory.block
    if held >= batch:
        found.append(f"contexts of {held // batch * size} tokens")
    if held >= needed // batch:
        found.append(f"{held // (needed // batch)} sequences at a time")
    return found or [f"cards with more than {shown_bytes(memory.total)}"]


def _holds(setting: Setting, ranks: int, quant: str, needed_blocks: int) -> bool:
    try:
        memory = setting.memory(ranks, quant)
    except (WorldSizeError, UsageError):  # too many ranks, or not cut so
        return False
    return memory.cache // memory.block >= needed_blocks
