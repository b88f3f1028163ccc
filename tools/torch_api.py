"""Which names of torch the package uses, and a release of torch that has each.

Parameters of functions and methods of tensors are not looked at: without types, `x.sum` may be anyone's.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

# The first release whose documents or sources are known to have the name; 1.0 stands for all before it.
APPEARED = {
    "torch.OutOfMemoryError": "2.5",
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": "1.13",
    "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": "1.10",
    "torch.backends.mkl.is_available": "1.0",
    "torch.backends.mkldnn.is_available": "1.2",
    "torch.bfloat16": "1.3",
    "torch.bool": "1.2",
    "torch.contiguous_format": "1.5",
    "torch.cuda.CUDAGraph": "1.10",
    "torch.cuda.can_device_access_peer": "1.10",
    "torch.cuda.get_device_properties": "1.0",
    "torch.cuda.graph": "1.10",
    "torch.cuda.graph_pool_handle": "1.10",
    "torch.cuda.is_current_stream_capturing": "1.10",
    "torch.cuda.mem_get_info": "1.11",
    "torch.cuda.reset_peak_memory_stats": "1.4",
    "torch.distributed.PrefixStore": "1.8",
    "torch.distributed.ProcessGroup": "1.8",
    "torch.distributed.ProcessGroup.BackendType": "2.0",
    "torch.distributed.ProcessGroup.BackendType.CUSTOM": "2.0",
    "torch.distributed.ProcessGroupGloo": "1.8",
    "torch.distributed.ProcessGroupGloo.Device": "1.8",
    "torch.distributed.ProcessGroupGloo._Options": "1.10",
    "torch.distributed.ProcessGroupGloo.create_default_device": "1.8",
    "torch.distributed.ProcessGroupGloo.create_device": "1.8",
    "torch.distributed.ProcessGroupNCCL": "1.8",
    "torch.distributed.ProcessGroupNCCL.Options": "1.8",
    "torch.distributed.ReduceOp.MIN": "1.0",
    "torch.distributed.Store": "1.8",
    "torch.distributed.TCPStore": "1.8",
    "torch.distributed.Work": "2.1",
    "torch.distributed.is_gloo_available": "2.1",
    "torch.distributed.is_nccl_available": "1.5",
    "torch.float8_e4m3fn": "2.1",
    "torch.float8_e5m2": "2.1",
    "torch.frombuffer": "1.10",
    "torch.inference_mode": "1.9",
    "torch.linalg.cholesky": "1.8",
    "torch.linalg.solve_triangular": "1.11",
    "torch.minimum": "1.7",
    "torch.multiprocessing.spawn.ProcessContext": "1.4",
    "torch.multiprocessing.start_processes": "1.4",
    "torch.nan": "1.8",
    "torch.nn.functional.scaled_dot_product_attention": "2.0",
    "torch.nn.functional.silu": "1.7",
    "torch.ops.symm_mem": "2.5",
    "torch.ops.symm_mem.one_shot_all_reduce_out": "2.6",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "2.1",
    "torch.ops.mkldnn._is_mkldnn_fp16_supported": "2.4",
    "torch.promote_types": "1.5",
    "torch.searchsorted": "1.6",
    "torch.version.hip": "1.5",
}
OTHERS = ("torch.ops.npu.",)  # operators that another package adds
APPEARED |= dict.fromkeys(
    """
    torch.Generator torch.Size torch.Tensor torch.__version__ torch.add torch.arange torch.cat
    torch.device torch.dtype torch.empty torch.erf torch.linspace torch.tanh
    torch.empty_like torch.equal torch.eye torch.float16 torch.float32 torch.float64 torch.from_numpy
    torch.full torch.get_num_threads torch.int16 torch.int32 torch.int64 torch.int8 torch.load torch.mm
    torch.ones torch.randn torch.set_num_threads torch.stack torch.strided torch.tensor torch.uint8
    torch.full_like torch.where torch.zeros torch.zeros_like
    torch.cuda.Event torch.cuda.Stream torch.cuda.current_stream torch.cuda.device_count
    torch.cuda.get_device_capability torch.cuda.get_device_name torch.cuda.is_available
    torch.cuda.max_memory_allocated
    torch.cuda.set_device torch.cuda.stream torch.cuda.synchronize torch.version.cuda
    torch.nn.functional.cosine_similarity torch.nn.functional.gelu torch.nn.functional.layer_norm
    torch.nn.functional.linear torch.nn.functional.pad torch.nn.functional.relu
    """.split(),
    "1.0",
)


def names_in(source: str) -> set[str]:
    """The names of torch in a file, written out (`torch.cuda.Event`), however they were imported."""
    tree = ast.parse(source)
    meaning = dict(_imported(tree))
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.expr) and node not in inner]
    return {name for node in whole if (name := _dotted(node, meaning))}


def used(folder: Path) -> dict[str, list[Path]]:
    """Every name of torch in the Python files of a folder, with the files that have it, but for OTHERS."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.py")):
        for name in names_in(path.read_text("utf-8")):
            if name.startswith(OTHERS):
                continue
            if name.startswith("torch.__version__."):
                name = "torch.__version__"  # a text, with methods of its own
            found.setdefault(name, []).append(path)
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Names of the file and what they stand for in torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            yield from ((one.asname or one.name, f"{node.module}.{one.name}") for one in node.names)
        elif isinstance(node, ast.Import):
            for one in node.names:
                if one.name.partition(".")[0] == "torch":
                    yield one.asname or "torch", one.name if one.asname else "torch"


def _dotted(node: ast.expr, meaning: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return meaning.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    start = _dotted(node.value, meaning)
    return start and f"{start}.{node.attr}"
