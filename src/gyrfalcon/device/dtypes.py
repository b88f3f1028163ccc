"""The dtypes to compute in, and their names on the command line and in files."""

import torch

DTYPE_OF_WORD = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WORD_OF_DTYPE = {dtype: word for word, dtype in DTYPE_OF_WORD.items()}
