"""OpenVINO in benchmarks/cpu_peers.py: exported and quantised by optimum-intel, run by OpenVINO
itself, with its KV cache as the model's state.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino
from cpu_engine import Generate, Generation, Prompts, Setup
from openvino import opset13
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

ROUNDING = {
    "bf16": None,
    "int8": OVWeightQuantizationConfig(bits=8),
    "int4": OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0),
}


def versions() -> dict[str, str]:
    """OpenVINO and the packages that export and quantise for it."""
    names = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    return {name: version(name) for name in names}


def prepare(checkpoint: Path, target: Path, precision: str) -> None:
    """OpenVINO's format; int4: all matrices but embedding and head, which get 8 bits."""
    OVModelForCausalLM.from_pretrained(
        checkpoint,
        export=True,
        compile=False,
        load_in_8bit=False,
        quantization_config=ROUNDING[precision],
    ).save_pretrained(target)


def load(setup: Setup) -> Generate:
    """The model compiled for latency."""
    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": setup.threads}
    model = last_logits_only(core.read_model(Path(setup.path) / "openvino_model.xml"))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    names = {name for each in model.inputs for name in each.names}

    def generate(prompts: Prompts, steps: int) -> Generation:
        request.reset_state()
        ids = np.array(prompts, np.int64)
        batch, past = len(prompts), 0
        found = Generation()
        for _ in range(steps + 1):
            new = ids.shape[1]
            inputs = {
                "input_ids": ids,
                "attention_mask": np.ones((batch, past + new), np.int64),
                "position_ids": np.tile(np.arange(past, past + new), (batch, 1)),
                "beam_idx": np.arange(batch, dtype=np.int32),
            }
            request.infer({name: inputs[name] for name in names}, share_inputs=True)
            ids = request.get_tensor("logits").data[:, -1].argmax(-1)[:, None]
            past += new
            found.step_ended(ids.flatten().tolist())
        return found

    return generate


def last_logits_only(model: openvino.Model) -> openvino.Model:
    """The model with its head computed for the last token alone, as OpenVINO GenAI runs it."""
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":
        head = head.input_value(0).get_node()
    ends = [opset13.constant([end], np.int64) for end in (-1, np.iinfo(np.int64).max, 1, 1)]
    last = opset13.slice(head.input_value(0), *ends)
    head.input(0).replace_source_output(last.output(0))
    model.validate_nodes_and_infer_types()
    return model
