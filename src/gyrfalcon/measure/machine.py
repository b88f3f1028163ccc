"""This machine: versions, CPU, memory, disk, devices, operators."""

import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from gyrfalcon import __version__
from gyrfalcon.console.format import shown_bytes
from gyrfalcon.device import KINDS
from gyrfalcon.device.host import installed_version
from gyrfalcon.device.lookup import all_devices, kind_of
from gyrfalcon.device.protocol import Device
from gyrfalcon.errors import UsageError
from gyrfalcon.native.library import available, instructions, why_not_native
from gyrfalcon.ops import OWN, VARIABLE, chosen_name

PACKAGES = (
    "torch",
    "safetensors",
    "tokenizers",
    "numpy",
    "huggingface_hub",
    "transformers",
    "triton",
)

# What fast CPU kernels can be built on, by the kernel's names for it.
FEATURES: Mapping[str, tuple[str, ...]] = {
    "x86_64": tuple(
        "avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16"
        " amx_tile amx_int8 amx_bf16".split()
    ),
    "aarch64": tuple("asimd asimddp bf16 i8mm sve sve2 svebf16".split()),  # asimd is NEON
}


@dataclass(frozen=True, slots=True)
class Processor:
    """The CPU of a machine; `features` has every name of FEATURES for its architecture."""

    name: str
    kind: str  # as uname says: x86_64, aarch64
    physical_cores: int | None  # None: the system does not say
    logical_cores: int
    usable_cores: int  # those this process may run on
    features: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that can run a model, and the operators it would use."""

    name: str  # as --device takes it, with its number
    model: str
    total_bytes: int
    free_bytes: int
    operators: str
    why: str


@dataclass(frozen=True, slots=True)
class MachineReport:
    """Everything that `gyrfalcon doctor` reports."""

    gyrfalcon: str
    python: str
    system: str
    packages: Mapping[str, str | None]  # None: not installed
    torch_built_for: str
    torch_libraries: Mapping[str, bool]
    torch_threads: int
    processor: Processor
    memory_total_bytes: int
    memory_available_bytes: int
    disk_folder: str
    disk_free_bytes: int
    devices: tuple[DeviceInfo, ...]


def examine(folder: Path) -> MachineReport:
    """Examines the machine; `folder` selects the disk."""
    memory = psutil.virtual_memory()
    return MachineReport(
        gyrfalcon=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {'-'.join(platform.libc_ver())}",
        packages={name: installed_version(name) for name in PACKAGES},
        torch_built_for=_torch_built_for(),
        torch_libraries={
            "oneDNN": torch.backends.mkldnn.is_available(),
            "MKL": torch.backends.mkl.is_available(),
            **{kind.collectives: kind.has_collectives() for kind in map(kind_of, KINDS)},
        },
        torch_threads=torch.get_num_threads(),
        processor=processor(_cpuinfo(), platform.machine()),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_folder=str(folder),
        disk_free_bytes=shutil.disk_usage(folder).free,
        devices=tuple(map(_info, all_devices())),
    )


def processor(cpuinfo: str, kind: str) -> Processor:
    """Parses the text of /proc/cpuinfo, of an x86 or Arm CPU."""
    flags = set(_field(cpuinfo, "flags", "Features").split())
    return Processor(
        name=_field(cpuinfo, "model name", "Model")
        or _arm_part(cpuinfo)
        or platform.processor()
        or "unknown",
        kind=kind,
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)),
        features={name: name in flags for name in FEATURES.get(kind, ())},
    )


def describe(report: MachineReport) -> list[tuple[str, str]]:
    """The report for people: one name and fact per line."""
    cpu = report.processor
    cores = (cpu.physical_cores or "unknown", cpu.logical_cores, cpu.usable_cores)
    present = " ".join(name for name, held in cpu.features.items() if held)
    absent = " ".join(name for name, held in cpu.features.items() if not held)
    rows = [
        ("gyrfalcon", report.gyrfalcon),
        ("python", f"{report.python} on {report.system}"),
        *((name, found or "not installed") for name, found in report.packages.items()),
        ("torch has", _torch_facts(report)),
        ("processor", f"{cpu.name} ({cpu.kind})"),
        ("cores", "{} physical, {} logical, {} usable here".format(*cores)),
        ("features", f"{present or 'none'}; not there: {absent or 'none'}"),
        ("memory", _free(report.memory_available_bytes, report.memory_total_bytes)),
        ("disk", f"{shown_bytes(report.disk_free_bytes)} free in {report.disk_folder}"),
    ]
    for device in report.devices:
        rows.append(
            (device.name, f"{device.model}, {_free(device.free_bytes, device.total_bytes)}")
        )
        rows.append(("", f"operators: {device.operators} ({device.why})"))
    return rows


def _torch_facts(report: MachineReport) -> str:
    libraries = ", ".join(
        f"{name} {'yes' if has else 'no'}" for name, has in report.torch_libraries.items()
    )
    return f"built for {report.torch_built_for}, {report.torch_threads} threads, {libraries}"


def _torch_built_for() -> str:
    found = [toolkit for kind in map(kind_of, KINDS) if (toolkit := kind.toolkit())]
    return ", ".join(found) or "CPU only"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return ""


def _field(cpuinfo: str, *names: str) -> str:
    match = re.search(rf"^(?:{'|'.join(names)})[ \t]*:[ \t]*(.+)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else ""


def _arm_part(cpuinfo: str) -> str:
    """Arm CPUs are identified by numbers, not names."""
    implementer, part = _field(cpuinfo, "CPU implementer"), _field(cpuinfo, "CPU part")
    return f"Arm implementer {implementer} part {part}" if implementer else ""


def _info(device: Device) -> DeviceInfo:
    free, total = device.memory()
    model = device.model or "the processor above"
    return DeviceInfo(str(device), model, total, free, *_operators(device))


def _operators(device: Device) -> tuple[str, str]:
    """The operator set and the reason."""
    try:
        name = chosen_name(device)
    except UsageError as error:
        return "none", str(error)
    if os.environ.get(VARIABLE):
        return name, f"{VARIABLE} says so"
    if name == "native":
        return name, f"{instructions()} kernels; this processor runs {', '.join(available())}"
    if device.on_host:
        return name, f"plain torch: {why_not_native()}"
    if name == "triton":
        return name, "Triton's kernels"
    if name in OWN:
        return name, f"{device.toolkit()}'s operators"
    return name, "Triton is not installed" if "triton" in device.operator_sets else "plain torch"


def _free(free: int, total: int) -> str:
    return f"{shown_bytes(free)} of {shown_bytes(total)} free"
