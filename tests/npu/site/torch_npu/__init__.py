"""Stands in for torch_npu in processes that tests start with this folder's parent in PYTHONPATH."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from npu_emulation import emulate_for_good

emulate_for_good()
