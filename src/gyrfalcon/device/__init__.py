"""Devices that a model can run on. A new kind is a file here, named as --device takes it, and a line
in KINDS.

Imports no torch: the command line's help reads these words.
"""

# The kinds → what people call them, best last: auto takes the last that this machine has. Each has its
# module here, whose KIND is a class of Device (protocol.py).
KINDS = {
    "cpu": "CPU",
    "cuda": "CUDA or ROCm",
    "npu": "Huawei Ascend",
}
OTHER_NAMES = {"gpu": "cuda"}  # what people type for them

HOST = "cpu"
CHOICES = ("auto", *KINDS)
ACCELERATORS = tuple(title for name, title in KINDS.items() if name != HOST)
