"""What `gyrfalcon plan` does: reads the model and the hardware, estimates or sizes, shows and writes it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from gyrfalcon.cli.plan import DEFAULT_TTFT
from gyrfalcon.cli.plan_trace_run import simulate
from gyrfalcon.config import ModelConfig
from gyrfalcon.console.format import counted, show_result
from gyrfalcon.console.progress import bar
from gyrfalcon.engine_config import EngineConfig
from gyrfalcon.errors import UsageError
from gyrfalcon.files.foreign import read_json
from gyrfalcon.files.output import OutputFile, open_output, replace_file
from gyrfalcon.measure import result
from gyrfalcon.plan.curves import card_curves, rate_curve, step_curves
from gyrfalcon.plan.document import document, plain_estimate, plain_sizing
from gyrfalcon.plan.estimate import Setting, Split, estimate, split_of
from gyrfalcon.plan.hardware import THIS, Hardware, hardware_of
from gyrfalcon.plan.lengths import Streams, default_lengths
from gyrfalcon.plan.measured import this_machine, timed
from gyrfalcon.plan.models import PlannedModel, planned_model
from gyrfalcon.plan.prediction import Efficiency
from gyrfalcon.plan.sizing import Demand, Sized, size
from gyrfalcon.plan.table import describe_estimate, describe_sizing, title
from gyrfalcon.plan.verify import Verified, verify

LONGEST = 2048  # of the default context
DOES_NOT_FIT = DOES_NOT_HOLD = 1


def run(args: argparse.Namespace) -> int:
    """Prints the plan; 1 when the batch does not fit, or no simulated split meets the target."""
    if args.plot is not None:
        args.plot = open_output(args.plot, "--plot", regular=True)
    model = planned_model(args.model)
    setting, cards = _setting(args, model)
    if args.trace is not None:
        return _simulate(args, setting, cards)
    if args.target is None:
        return _estimate(args, setting, cards)
    return _size(args, setting, cards)


def _estimate(args: argparse.Namespace, setting: Setting, cards: int | None) -> int:
    context, split = _context(args, setting), _split(args, setting, cards)
    batch = args.batch or 1
    found = estimate(setting, split, context, batch, args.price)
    _draw(args, setting, split.ranks, context)
    plain = document(setting, args.words, {"estimate": plain_estimate(found, context, batch)})
    show_result(plain, describe_estimate(setting, found, context, batch), args.json)
    return 0 if found.fits else DOES_NOT_FIT


def _simulate(args: argparse.Namespace, setting: Setting, cards: int | None) -> int:
    split = _split(args, setting, cards)
    if args.replicas is not None:
        split = Split(split.ranks, args.replicas)
    return simulate(args, setting, split, _context(args, setting), args.ttft or DEFAULT_TTFT)


def _context(args: argparse.Namespace, setting: Setting) -> int:
    """The tokens of the longest sequence."""
    config = setting.model.config
    context: int = args.context or min(config.max_positions, LONGEST)
    _check_context(config, context, "--context")
    return context


def _split(args: argparse.Namespace, setting: Setting, cards: int | None) -> Split:
    """Ranks as asked for, and replicas on the other cards of --hardware."""
    ranks, hardware = args.world_size, setting.hardware
    if cards is not None and ranks is not None and ranks > cards:
        raise UsageError(f"-w of at most {cards}, the cards of --hardware", str(ranks), "lower it")
    most = hardware.cards_per_machine
    if hardware.on_cards and ranks is None and cards is not None and cards > most:
        wanted = f"-w beside more than the {counted(most, 'card')} of one {hardware.name} machine"
        do = f"add -w {most} for replicas of a machine each, or leave x{cards} out and add --target"
        raise UsageError(wanted, f"{cards} cards without it", do)
    return split_of(hardware, ranks or (cards if hardware.on_cards else None) or 1, cards)


def _size(args: argparse.Namespace, setting: Setting, cards: int | None) -> int:
    target, most = args.target, setting.hardware.cards_per_machine
    if cards is not None and cards > most:
        wanted = f"machines of at most {most} cards in --hardware, beside --target"
        raise UsageError(wanted, str(cards), "leave xN out: the plan says how many cards")
    _check_context(setting.model.config, target.context, "--target")
    prompts, outputs = default_lengths(target.context)
    streams = Streams.of(args.input_lens or prompts, args.output_lens or outputs, target.context)
    demand = Demand(
        target=target,
        first_token=args.ttft or DEFAULT_TTFT,
        streams=streams,
        think_seconds=args.think or 0.0,
        requests_per_second=args.rate,
        spare=args.spare or 0,
    )
    found, verified = size(setting, demand), list[Verified]()
    if args.verify:
        with bar(0, "simulations", "verifying") as progress:
            verified = verify(setting, demand, found, progress.update)
        rest = [one for one in found if all(one is not other.planned for other in verified)]
        found = [*(one.sized for one in verified), *rest]
    price = setting.hardware.price_per_hour if args.price is None else args.price
    _draw(args, setting, found[0].split.ranks, round(streams.context[0]), (demand, found))
    sizing = plain_sizing(demand, found, price, verified)
    lines = describe_sizing(setting, demand, found, price, verified)
    show_result(document(setting, args.words, {"sizing": sizing}), lines, args.json)
    return 0 if all(one.holds for one in verified[:1]) else DOES_NOT_HOLD


def _draw(
    args: argparse.Namespace,
    setting: Setting,
    ranks: int,
    context: int,
    sized: tuple[Demand, Sequence[Sized]] | None = None,
) -> None:
    """The picture of --plot: memory, steps over load, and tokens a second or the cards of a target."""
    picture: OutputFile | None = args.plot
    if picture is None:
        return
    from gyrfalcon.plan.plot import Panel, draw

    curves = step_curves(setting, ranks, context)
    sequences = f"sequences of a replica, {context} tokens each"
    panels = [Panel("A step", sequences, "ms", curves)]
    if sized is None:
        panels.append(Panel("Tokens a second", sequences, "tokens/s", [rate_curve(curves[0])]))
    else:
        panels.append(Panel("Cards", "streams", "cards", card_curves(*sized), steps=True))
    heading = f"{title(setting)}: {counted(ranks, 'rank')}"
    assert picture.file is not None
    content = draw(heading, setting.memory(ranks), panels, Path(picture.path).suffix.lower())
    replace_file(picture.file, content)


def _setting(args: argparse.Namespace, model: PlannedModel) -> tuple[Setting, int | None]:
    """What is planned, and the number of cards where --hardware says so."""
    if model.quant != "none" and args.quant not in ("none", model.quant):
        wanted = f"--quant {model.quant} for {model.name}, whose matrices are quantised to that"
        raise UsageError(wanted, args.quant, "leave --quant out")
    dtype = model.dtype if args.dtype == "auto" else args.dtype
    quant = args.quant if model.quant == "none" else model.quant
    hardware, efficiency, cards = _hardware(args.hardware, model, dtype, quant)
    hardware.peak(dtype)
    if quant == "fp8":
        hardware.require_fp8()
    tokens = EngineConfig(model.name).max_batch_tokens
    setting = Setting(model, hardware, dtype, quant, tokens, args.max_sequences, efficiency)
    return setting, cards


def _hardware(
    word: str, model: PlannedModel, dtype: str, quant: str
) -> tuple[Hardware, Efficiency | None, int | None]:
    if word == THIS:
        return this_machine(dtype, quant), None, None
    path = Path(word)
    if not (path.is_file() and read_json(path).get("format") == result.FORMAT):
        return hardware_of(word)[0], None, hardware_of(word)[1]
    found = timed(result.read(path, "speed"), path, model)
    if (found.dtype, found.quant) != (dtype, quant):
        wanted = f"--dtype {found.dtype} --quant {found.quant}, as in {path}"
        raise UsageError(wanted, f"{dtype} and {quant}", "name these, or another file")
    return found.hardware, found.efficiency, None


def _check_context(config: ModelConfig, context: int, option: str) -> None:
    """As the engine does: rotary positions end, ALiBi goes on."""
    if config.rope is not None and context > config.max_positions:
        wanted = f"a context of at most {config.max_positions} tokens, the model's positions"
        raise UsageError(f"{wanted}, in {option}", str(context), "lower it")
