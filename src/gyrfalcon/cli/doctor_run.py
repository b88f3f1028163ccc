"""Examines the machine for `gyrfalcon doctor`, and packs what helps others."""

import os
from pathlib import Path

from gyrfalcon.device import KINDS
from gyrfalcon.device.host import Host
from gyrfalcon.device.setup import setup_of
from gyrfalcon.doctor.bundle import make_bundle
from gyrfalcon.doctor.examination import Examination, examine_all
from gyrfalcon.doctor.redact import Redaction
from gyrfalcon.files.output import OutputFile, replace_file


def examine(ranks: int | None, *, measure: bool) -> Examination:
    """This machine, and the disk of the current folder."""
    return examine_all(Host(), Path.cwd(), ranks, measure=measure)


def write_bundle(examination: Examination, target: OutputFile, *, quiet: bool) -> None:
    """Replaces the file as a whole."""
    setups = [setup_of(name) for name in KINDS]
    redact = Redaction.of_this_machine(os.environ)
    content = make_bundle(examination, Host(), setups, Path.home(), redact)
    assert target.file is not None
    replace_file(target.file, content)
    if not quiet:
        print(f"wrote {target.path}: look into it before you send it")
