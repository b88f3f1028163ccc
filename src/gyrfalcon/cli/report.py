"""`gyrfalcon report`: result files → the guide's tables as Markdown, and with plots as one page."""

import argparse
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from gyrfalcon.console.format import show_result
from gyrfalcon.errors import PIP_INSTALL, UsageError
from gyrfalcon.files.output import check_folder
from gyrfalcon.parallel.interrupts import ending_interrupts

SUMMARY = "turn result files into tables and plots"

MARKDOWN, PAGE = "report.md", "report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Turn result files (the JSON of speed, mmlu, precision and perplexity) into the guide's tables.

    Writes report.md and report.html, one page with plots that loads nothing from the network. Several
    results of a kind are shown side by side.

    examples:
      gyrfalcon report speed.json test_result/mmlu.json -o report
      gyrfalcon report new.json --baseline old.json guide --no-plots
    """
    parser.add_argument("files", metavar="RESULT", nargs="+", help="a result file, in any order")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        default="report",
        help="where the report goes (default report)",
    )
    parser.add_argument(
        "--baseline",
        metavar="guide|FILE",
        nargs="+",
        default=[],
        help="compare with the guide's own figures, or with other result files (default: neither)",
    )
    parser.add_argument(
        "--no-plots",
        dest="plots",
        action="store_false",
        help="tables only; plots need matplotlib",
    )


def run(args: argparse.Namespace) -> int:
    """Writes both files and says where they are."""
    folder = check_folder(args.output, "-o")
    if args.plots and find_spec("matplotlib") is None:
        do = f"{PIP_INSTALL} matplotlib, or add --no-plots"
        raise UsageError("matplotlib for the plots", "none installed", do)
    with ending_interrupts():
        from gyrfalcon.measure.result import write_atomically
        from gyrfalcon.measure.speed.baseline import GUIDE
        from gyrfalcon.report.document import make_report, markdown
        from gyrfalcon.report.files import read_results
        from gyrfalcon.report.page import page
    results = read_results(args.files, [word for word in args.baseline if word != GUIDE])
    report = make_report(results, beside_guide=GUIDE in args.baseline)
    plots = {}
    if args.plots:
        from gyrfalcon.report.plots import plots as draw

        plots = draw(results)
    texts = {PAGE: page(report, plots), MARKDOWN: markdown(report)}
    for name, text in texts.items():
        write_atomically(folder / name, text)
    files = [str(Path(args.output, name)) for name in texts]
    show_result({"files": files, **asdict(report)}, files, args.json)
    return 0
