"""What NVIDIA's and AMD's cards need of their machine: a driver that is new enough for the toolkit torch was
built with. Imports no torch.
"""

import re
from collections.abc import Iterator, Sequence

from gyrfalcon.device.host import Host, numbers
from gyrfalcon.device.setup import Finding, Setup, Variable, fault

NVIDIA_DRIVER = "/proc/driver/nvidia/version"
AMD_DRIVER, AMD_VERSION = "/dev/kfd", "/sys/module/amdgpu/version"
NVIDIA, AMD = "0x10de", "0x1002"  # vendors on the PCI bus
DISPLAY, ACCELERATOR = "0x03", "0x12"  # classes of devices on it
# The first driver that runs programs built with a CUDA of this major version
# (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
FIRST_DRIVER = {13: 580, 12: 525, 11: 450}
INSTALL = "https://pytorch.org/get-started/locally"


def _built_for(host: Host) -> tuple[str, str]:
    """The CUDA and the ROCm that torch was built with; nothing for one that it was not."""
    text = host.package_file("torch", "version.py")
    found = [re.search(rf"^{name}\b.*= *'([^']+)'", text, re.M) for name in ("cuda", "hip")]
    cuda, hip = (match[1] if match else "" for match in found)
    return cuda, hip


def _nvidia_driver(host: Host) -> str:
    match = re.search(r"Kernel Module(?: for \S+)?\s+([\d.]+)", host.read(NVIDIA_DRIVER))
    return match[1] if match else ""


def _on_bus(host: Host, vendor: str) -> int:
    """Cards of a maker that the PCI bus has, whoever may use them."""
    folders = [path.rpartition("/")[0] for path in host.find("/sys/bus/pci/devices/*/vendor")]
    return sum(
        host.read(f"{folder}/vendor").strip() == vendor
        and host.read(f"{folder}/class").startswith((DISPLAY, ACCELERATOR))
        for folder in folders
    )


def _num_cards(host: Host) -> int:
    nodes = [
        path for path in host.find("/dev/nvidia[0-9]*") if path[len("/dev/nvidia") :].isdecimal()
    ]
    return len(nodes) if _nvidia_driver(host) else 0


def _present(host: Host) -> bool:
    built = any(_built_for(host))
    cards = _nvidia_driver(host) or host.find(AMD_DRIVER)
    return built or bool(cards) or _on_bus(host, NVIDIA) > 0


def _check(host: Host) -> Iterator[Finding]:
    cuda, hip = _built_for(host)
    yield from _check_nvidia(host, cuda, hip)
    yield from _check_amd(host, cuda, hip)


def _check_nvidia(host: Host, cuda: str, hip: str) -> Iterator[Finding]:
    name, driver = "NVIDIA driver", _nvidia_driver(host)
    if not driver:
        cards = _on_bus(host, NVIDIA)
        if cards:
            do = "install NVIDIA's driver, or start the container with --gpus all"
            yield Finding(name, f"none, but {cards} of its cards on the PCI bus", do)
        elif cuda:
            yield Finding(name, f"none: torch is built for CUDA {cuda}, and only the CPU is used")
        return
    if not cuda:
        built = f"ROCm {hip}" if hip else "the CPU alone"
        do = f"install a torch for CUDA (which the driver can run: see {INSTALL})"
        yield fault(name, f"{driver}, but torch is built for {built}", do)
        return
    first = FIRST_DRIVER.get(numbers(cuda)[0])
    if first is None:
        yield Finding(name, f"{driver}, torch built for CUDA {cuda}: not in the table of drivers")
    elif numbers(driver)[0] < first:
        older = [major for major, least in FIRST_DRIVER.items() if least <= numbers(driver)[0]]
        do = f"update the driver to {first} or newer" + (
            f", or install a torch for CUDA {older[0]} ({INSTALL})" if older else ""
        )
        yield fault(name, f"{driver}, too old for a torch built for CUDA {cuda}", do)
    else:
        yield Finding(name, f"{driver}, enough for a torch built for CUDA {cuda}")


def _check_amd(host: Host, cuda: str, hip: str) -> Iterator[Finding]:
    name, there = "AMD driver", bool(host.find(AMD_DRIVER))
    version = host.read(AMD_VERSION).strip() or "of the kernel"
    if not there:
        if hip:
            do = f"load amdgpu, or start the container with --device={AMD_DRIVER} --device=/dev/dri"
            yield fault(name, f"none, but torch is built for ROCm {hip}", do)
    elif not hip:
        built = f"CUDA {cuda}" if cuda else "the CPU alone"
        do = f"install a torch for ROCm to use AMD's card (see {INSTALL})"
        yield Finding(name, f"{version}, but torch is built for {built}", do)
    elif not host.may_use(AMD_DRIVER):
        do = "add yourself to the group render (or video) and log in again"
        yield fault(name, f"{version}, but {AMD_DRIVER} may not be opened", do)
    else:
        yield Finding(name, f"{version}, torch built for ROCm {hip}")


def _variables(host: Host) -> Sequence[Variable]:
    if not _built_for(host)[0]:  # ROCm has no expandable segments
        return ()
    name, aliases = "PYTORCH_CUDA_ALLOC_CONF", ("PYTORCH_ALLOC_CONF",)
    why = "loading leaves no holes that the cache cannot use"
    return (Variable(name, "expandable_segments:True", why, aliases),)


SETUP = Setup(
    present=_present,
    check=_check,
    num_cards=_num_cards,
    variables=_variables,
    visible=Variable(
        "CUDA_VISIBLE_DEVICES",
        "",
        "cards that a rank may use: the first ones, as many as ranks",
        ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    ),
    bandwidths={
        "H200": 4.8e12,
        "H100 PCIe": 2.0e12,
        "H100": 3.35e12,
        "A100-PCIE-40GB": 1.555e12,
        "A100-SXM4-40GB": 1.555e12,
        "A100": 1.935e12,
        "MI300X": 5.3e12,
        "MI250": 1.6e12,
    },
    packages=("triton", "pytorch-triton", "pytorch-triton-rocm", "nvidia-*", "cuda-*"),
    noted=(
        "CUDA_HOME",
        "CUDA_LAUNCH_BLOCKING",
        "CUDA_DEVICE_ORDER",
        "CUDA_MODULE_LOADING",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NCCL_DEBUG",
        "NCCL_P2P_DISABLE",
        "NCCL_P2P_LEVEL",
        "NCCL_SHM_DISABLE",
        "NCCL_IB_DISABLE",
        "NCCL_ALGO",
        "NCCL_PROTO",
        "ROCM_PATH",
        "HSA_OVERRIDE_GFX_VERSION",
        "GPU_MAX_HW_QUEUES",
        "TRITON_CACHE_DIR",
        "GYRFALCON_SYMMETRIC_SUMS",
        "GYRFALCON_GPU_PDL",
    ),
    queries=(
        ("nvidia-smi",),
        ("nvidia-smi", "topo", "-m"),
        ("rocm-smi", "--showdriverversion", "--showmeminfo", "vram", "--showtopo"),
    ),
)
