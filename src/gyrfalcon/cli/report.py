"""`gyrfalcon report`: result files → the guide's tables as Markdown, and with plots as one page."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from gyrfalcon.console.format import goes_to_stdout, write_json
from gyrfalcon.errors import PIP_INSTALL, UsageError
from gyrfalcon.files.output import check_folder
from gyrfalcon.measure.result import write_atomically
from gyrfalcon.measure.speed.baseline import GUIDE
from gyrfalcon.report.document import make_report, markdown
from gyrfalcon.report.files import read_results
from gyrfalcon.report.page import Plot, page
from gyrfalcon.report.runs import Results

MARKDOWN, PAGE = "report.md", "report.html"


def run(args: argparse.Namespace) -> int:
    """Writes both files and says where they are."""
    folder = check_folder(args.output, "-o")
    if args.plots and find_spec("matplotlib") is None:
        do = f"{PIP_INSTALL} matplotlib, or add --no-plots"
        raise UsageError("matplotlib for the plots", "none installed", do)
    results = read_results(args.files, [word for word in args.baseline if word != GUIDE])
    report = make_report(results, beside_guide=GUIDE in args.baseline)
    texts = {PAGE: page(report, _plots(results) if args.plots else {}), MARKDOWN: markdown(report)}
    for name, text in texts.items():
        write_atomically(folder / name, text)
    files = [str(Path(args.output, name)) for name in texts]
    if args.json is not None:
        write_json({"files": files, **asdict(report)}, args.json)
    if not goes_to_stdout(args.json):
        print("\n".join(files))
    return 0


def _plots(results: Results) -> Mapping[str, Sequence[Plot]]:
    from gyrfalcon.report.plots import plots

    return plots(results)
