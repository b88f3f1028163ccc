"""What Ascend NPUs need of their machine: driver, CANN, torch and torch_npu that fit each other, and the
environment of ranks. Imports neither torch nor torch_npu.
"""

import re
import sys
from collections.abc import Iterator, Sequence

from gyrfalcon.device.host import Host, numbers
from gyrfalcon.device.setup import Finding, Setup, Variable, fault, first_letters

IMPORT_SECONDS, QUERY_SECONDS = 60.0, 10.0
TORCH_IS_THERE = "torch is there"
TRY_IMPORT = f"""\
import os
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
import torch
print("{TORCH_IS_THERE}", flush=True)
import torch_npu
"""
HUAWEI = "0x19e5"  # on the PCI bus
DRIVER = "/usr/local/Ascend/driver/version.info"
TOOLKITS = ("/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest")
NNAL = "/usr/local/Ascend/nnal/atb"
NEEDS_NNAL = (2, 7)  # up to this torch_npu the cache is written by NNAL's operator
FIT = "see docs/ascend.md for versions that fit each other"

VISIBLE = Variable(
    "ASCEND_RT_VISIBLE_DEVICES", "", "cards that a rank may use: the first ones, as many as ranks"
)

# torch_npu → the first and last CANN that it is made for (Ascend/pytorch, COMPATIBILITY.en.md).
COMPATIBLE: dict[tuple[int, ...], tuple[tuple[int, int], tuple[int, int]]] = {
    (2, 1): ((7, 0), (8, 3)),
    (2, 5): ((8, 1), (8, 2)),
    (2, 6): ((8, 2), (8, 5)),
    (2, 7): ((8, 3), (9, 1)),
    (2, 8): ((8, 3), (9, 0)),
    (2, 9): ((8, 5), (9, 1)),
    (2, 10): ((9, 1), (9, 1)),
    (2, 11): ((9, 1), (9, 1)),
    (2, 12): ((9, 1), (9, 1)),
}

# CANN → the driver that was released with it (25.3 is that of Ascend HDK 25.3.RC1 and later ones), and the
# oldest that its release notes name (hiascend.com, CANN version mapping); None where they name none.
DRIVERS: dict[tuple[int, ...], tuple[tuple[int, int], tuple[int, int] | None]] = {
    (8, 1): ((25, 0), None),
    (8, 2): ((25, 2), None),
    (8, 3): ((25, 3), None),
    (8, 5): ((25, 5), (25, 0)),
}


def _cards(host: Host) -> list[str]:
    nodes = host.find("/dev/davinci[0-9]*")
    return [path for path in nodes if path.removeprefix("/dev/davinci").isdecimal()]


def _cann(host: Host) -> tuple[str, str]:
    """The folder and version of CANN: the one that is set up here, else where it is installed by default.
    Nothing where there is none.
    """
    names = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
    set_up = [host.environment[name].rstrip("/") for name in names if host.environment.get(name)]
    for folder in (*set_up, *TOOLKITS):
        for file in host.find(f"{folder}/*-linux/ascend_toolkit_install.info", f"{folder}/*.info"):
            match = re.search(r"^version=(\S+)", host.read(file), re.M | re.I)
            if match:
                return folder, match[1]
    return "", ""


def _present(host: Host) -> bool:
    parts = (_cards(host), host.read(DRIVER), _cann(host)[0], host.version("torch_npu"))
    return any(parts) or _on_bus(host)


def _on_bus(host: Host) -> bool:
    return any(
        host.read(file).strip() == HUAWEI
        and host.read(f"{file.rpartition('/')[0]}/class").startswith("0x1200")
        for file in host.find("/sys/bus/pci/devices/*/vendor")
    )


def _check(host: Host) -> Iterator[Finding]:
    yield _check_driver(host)
    yield _check_cann(host)
    yield from _check_driver_for_cann(_driver(host), _cann(host)[1])
    torch_npu = host.version("torch_npu")
    if torch_npu is None:
        yield _without_torch_npu(host)
        return
    yield _check_torch(torch_npu, host.version("torch") or "none")
    yield _check_table(torch_npu, _cann(host)[1])
    if numbers(torch_npu)[:2] <= NEEDS_NNAL and _cards(host):
        yield _check_nnal(host)
    yield _check_import(host)


def _driver(host: Host) -> str:
    match = re.search(r"^Version=(\S+)", host.read(DRIVER), re.M)
    return match[1] if match else ""


def _check_driver_for_cann(driver: str, cann: str) -> Iterator[Finding]:
    """A driver runs programs of older CANNs, and of a few newer ones."""
    if not driver or numbers(cann)[:2] not in DRIVERS:
        return
    beside, oldest = DRIVERS[numbers(cann)[:2]]
    name, own = "driver for CANN", ".".join(map(str, beside))
    do = f"update the driver and firmware (Ascend HDK) to {own} or newer"
    if oldest is not None and numbers(driver)[:2] < oldest:
        least = ".".join(map(str, oldest))
        yield fault(name, f"{driver}, but CANN {cann} wants {least} or newer", do)
    elif numbers(driver)[:2] < beside:
        said = f"{driver}, older than {own}, which CANN {cann} was released with"
        yield Finding(name, said, f"if something fails, {do}")
    else:
        yield Finding(name, f"{driver}, no older than CANN {cann} itself")


def _check_driver(host: Host) -> Finding:
    name, cards, version = "Ascend driver", _cards(host), _driver(host)
    if not cards:
        found = f"version {version}, but no /dev/davinci*" if version else "none"
        do = "load it, or start the container with --device=/dev/davinci0 --device=/dev/davinci_manager"
        if not version and not _on_bus(host):
            return Finding(name, "none, and no card")
        return fault(name, found, do if version else "install Ascend's driver and firmware")
    closed = [
        path for path in (*cards, *host.find("/dev/davinci_manager")) if not host.may_use(path)
    ]
    if closed:
        do = "add yourself to the group HwHiAiUser and log in again"
        return fault(name, f"{', '.join(closed)} may not be opened", do)
    count = f"{len(cards)} {'card' if len(cards) == 1 else 'cards'}"
    return Finding(name, f"version {version or 'unknown'}, {count}")


def _check_cann(host: Host) -> Finding:
    folder, version = _cann(host)
    if not folder:
        if _cards(host):
            return fault("CANN", "none", f"install the CANN toolkit and kernels; {FIT}")
        return Finding("CANN", "none")
    libraries = host.environment.get("LD_LIBRARY_PATH", "")
    if folder.removesuffix("/latest") not in libraries:
        do = f"source {_set_env(host, folder)} before gyrfalcon"
        return fault("CANN", f"{version} in {folder}, not set up in this shell", do)
    return Finding("CANN", f"{version} in {folder}")


def _set_env(host: Host, folder: str) -> str:
    """The script that sets CANN up; it lies beside the folder of the latest version, or in it."""
    places = (folder, folder.removesuffix("/latest"))
    found = host.find(*(f"{place}/set_env.sh" for place in places))
    return found[0] if found else f"{folder}/set_env.sh"


def _without_torch_npu(host: Host) -> Finding:
    if not _cards(host):
        return Finding("torch_npu", "not installed")
    torch = ".".join(map(str, numbers(host.version("torch") or "")))
    do = f"pip install torch_npu=={torch}, or another torch with its torch_npu; {FIT}"
    return fault("torch_npu", "not installed", do)


def _check_torch(torch_npu: str, torch: str) -> Finding:
    """One torch_npu is made for one torch."""
    found = f"{torch_npu} with torch {torch}"
    if numbers(torch_npu)[:3] != numbers(torch)[:3]:
        wanted = ".".join(map(str, numbers(torch_npu)[:3]))
        return fault(
            "torch_npu", f"{found}, which do not fit", f"pip install torch=={wanted}; {FIT}"
        )
    return Finding("torch_npu", found)


def _check_table(torch_npu: str, cann: str) -> Finding:
    name = "compatibility"
    if numbers(torch_npu)[:2] not in COMPATIBLE:
        do = f"if something fails, use a torch_npu that is in it; {FIT}"
        return Finding(name, f"torch_npu {torch_npu} is not in the compatibility table", do)
    first, last = COMPATIBLE[numbers(torch_npu)[:2]]
    span = " to ".join(".".join(map(str, version)) for version in dict.fromkeys((first, last)))
    found = f"torch_npu {torch_npu} is made for CANN {span}"
    if not cann:
        return Finding(name, found)
    if not first <= numbers(cann)[:2] <= last:
        return fault(name, f"{found}, not {cann}", f"install one that fits; {FIT}")
    return Finding(name, f"{found}, here {cann}")


def _check_nnal(host: Host) -> Finding:
    """The library of _npu_reshape_and_cache; without it torch's own operators write the KV cache."""
    places = host.environment.get("LD_LIBRARY_PATH", "").split(":")
    if home := host.environment.get("ATB_HOME_PATH"):
        places.insert(0, f"{home.rstrip('/')}/lib")
    found = host.find(*(f"{place}/libatb.so" for place in places if place.startswith("/")))
    if found:
        return Finding("NNAL", found[0])
    installed = host.find(f"{NNAL}/set_env.sh")
    do = f"source {NNAL}/set_env.sh before gyrfalcon"
    if not installed:
        do = f"install Ascend-cann-nnal of the same version as CANN, then {do}"
    said = "not set up in this shell" if installed else "none"
    return Finding("NNAL", f"{said}: torch's own operators write the KV cache", do)


def _check_import(host: Host) -> Finding:
    """In a process of its own, which may crash or hang."""
    name = "torch_npu import"
    answer = host.run((sys.executable, "-c", TRY_IMPORT), IMPORT_SECONDS)
    if answer is not None and answer.code == 0:
        return Finding(name, "works")
    if answer is not None and answer.code is not None and TORCH_IS_THERE not in answer.text:
        return Finding(name, "not tried: torch itself cannot be imported")
    lines = (answer.text if answer is not None else "").strip().splitlines()
    said = lines[-1] if lines[1:] else "nothing said"
    if answer is not None and answer.code is None:
        said = f"no end within {IMPORT_SECONDS:g} s"
    return fault(name, f"fails: {first_letters(said)}", _cure_of(host, said))


def _cure_of(host: Host, said: str) -> str:
    """What to do about a failed import, by what it said."""
    folder, _ = _cann(host)
    remove = "pip uninstall torch_npu to use the CPU (it breaks import torch as well)"
    if "cannot open shared object" not in said:
        return f"install the torch_npu for this torch again; {FIT}; or {remove}"
    if "driver" in said or "libascend_hal" in said:
        return "install Ascend's driver, or mount /usr/local/Ascend/driver into the container"
    if folder:
        return f"source {_set_env(host, folder)} before gyrfalcon"
    return f"install CANN and source its set_env.sh ({FIT}), or {remove}"


def pci_address(host: Host, index: int) -> str | None:
    """Where the bus has a card, as npu-smi tells; None where it does not. `index` counts the cards that this
    process may use.
    """
    visible = [card.strip() for card in host.environment.get(VISIBLE.name, "").split(",")]
    card = visible[index] if index < len(visible) and visible[0] else str(index)
    answer = host.run(("npu-smi", "info", "-t", "board", "-i", card, "-c", "0"), QUERY_SECONDS)
    text = answer.text if answer is not None and answer.code == 0 else ""
    match = re.search(r"PCIe\s*Bus\s*Info\s*:\s*([0-9a-f:.]+)", text, re.I)
    return match[1] if match else None


def _variables(host: Host) -> Sequence[Variable]:
    """Most are read once, when CANN or torch_npu starts (CANN's and torch_npu's variable references)."""
    return (
        Variable(
            "PYTORCH_NPU_ALLOC_CONF",
            "expandable_segments:True",
            "loading leaves no holes that the cache cannot use",
        ),
        Variable("TASK_QUEUE_ENABLE", "1", "operators are queued while the card works"),
        Variable(
            "HCCL_BUFFSIZE", "200", "MB for all-reduces, twice on each card: 12,800 tokens of 40B"
        ),
        Variable("HCCL_CONNECT_TIMEOUT", "1200", "seconds for ranks that load at different speeds"),
        Variable("HCCL_EXEC_TIMEOUT", "600", "seconds for a rank in a collective, then an error"),
        Variable("HCCL_OP_EXPANSION_MODE", "AIV", "small all-reduces run on the card's own cores"),
        Variable("HCCL_IF_IP", "", "the address of this machine, where ranks are on several"),
        Variable("HCCL_SOCKET_IFNAME", "", "the network interface, where ranks are on several"),
    )


SETUP = Setup(
    present=_present,
    check=_check,
    num_cards=lambda host: len(_cards(host)),
    variables=_variables,
    visible=VISIBLE,
    bandwidths={"910B3": 1.6e12},
    packages=("torch_npu", "triton-ascend", "ascendnpu-ir"),
    queries=(
        ("npu-smi", "info"),
        ("npu-smi", "info", "-t", "topo"),
        ("npu-smi", "info", "-t", "health", "-i", "0"),
    ),
    noted=(
        "ASCEND_TOOLKIT_HOME",
        "ASCEND_HOME_PATH",
        "ASCEND_OPP_PATH",
        "ASCEND_LAUNCH_BLOCKING",
        "ASCEND_GLOBAL_LOG_LEVEL",
        "ASCEND_PROCESS_LOG_PATH",
        "ATB_HOME_PATH",
        "CPU_AFFINITY_CONF",
        "HCCL_DETERMINISTIC",
        "TORCH_NPU_USE_COMPATIBLE_IMPL",
        "GYRFALCON_NPU_ATTENTION",
        "GYRFALCON_NPU_ALIBI",
        "GYRFALCON_NPU_GRAPHS",
    ),
    logs=("~/ascend/log/*/plog/*.log", "$ASCEND_PROCESS_LOG_PATH/*/plog/*.log"),
)
