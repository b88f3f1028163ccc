"""A fine-tune as people publish it goes through every command and is at each step what transformers makes
of it: ChatML, its own end of a turn, tokens that only tokenizer_config.json adds, a LoRA adapter beside
the weights.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from adapters import SMALL, changes, fresh, layers_of, make_pairs, merge_by_hand, save_adapter
from chat_templates import CHATML
from exams import Data, write_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconForCausalLM

from gyrfalcon.checkpoint.source import open_checkpoint
from gyrfalcon.cli.main import main
from gyrfalcon.measure.mmlu.exam import LETTERS, read_exam
from gyrfalcon.measure.mmlu.prompts import HENDRYCKS, prompt_text
from gyrfalcon.measure.precision.reference_file import Reference

Captured = pytest.CaptureFixture[str]
START, END = 65024, 65025
LETTER_IDS = [317, 341, 319, 361]
PROMPTS = ("Name a bird.", "What does <|im_end|> mean, and why\n\ndoes it?")
NEW_TOKENS = 24


@dataclass(frozen=True)
class FineTune:
    """The folder as published, its cut, and transformers on weights that were merged by hand."""

    folder: Path
    cut: Path
    merged: FalconForCausalLM

    def chat_ids(self, prompt: str) -> list[int]:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        turn = [{"role": "user", "content": prompt}]
        ids: list[int] = tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_dict=False
        )
        return ids

    def generated(self, ids: list[int]) -> list[int]:
        """What transformers goes on with, ended as its generation_config.json says."""
        with torch.no_grad():
            out = self.merged.generate(
                torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False
            )
        found: list[int] = out[0, len(ids) :].tolist()
        return found

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.merged(torch.tensor([ids])).logits[0]
        return found


@pytest.fixture(scope="module")
def tuned(data: Data, tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    home = tmp_path_factory.mktemp("tuned")
    folder = home / "model"
    fresh("40b", vocab_size=END + 1, tie_word_embeddings=False, **SMALL).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((data("falcon-tokenizer") / name).read_bytes())
    _add_marks(folder)
    base = FalconForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    layers = layers_of(base, "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
    pairs = make_pairs(base, layers)
    save_adapter(folder, pairs)
    merged = merge_by_hand(base, changes(pairs))
    cut = home / "cut"
    _end_a_turn_early(FineTune(folder, cut, merged))
    assert main(["cut", str(folder), str(cut), "-w", "2", "--adapter", "."]) == 0
    return FineTune(folder, cut, merged)


def _add_marks(folder: Path) -> None:
    """ChatML's marks in tokenizer_config.json alone; the second ends a turn, here and in
    generation_config.json.
    """
    path = folder / "tokenizer_config.json"
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    marks = {START: "<|im_start|>", END: "<|im_end|>"}
    added = {str(i): {"content": text, "special": True, **flags} for i, text in marks.items()}
    settings = json.loads(path.read_text()) | {
        "added_tokens_decoder": added,
        "eos_token": marks[END],
        "chat_template": CHATML,
    }
    path.write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [11, END]}))


def _end_a_turn_early(tuned: FineTune) -> None:
    """Swaps the head's rows of the end mark and of what the model writes in its sixth place or later."""
    ids = tuned.chat_ids(PROMPTS[0])
    written = tuned.generated(ids)
    token = next(one for one in written[5:] if one not in written[:5])
    path = tuned.folder / "model.safetensors"
    state = load_file(path)
    with torch.no_grad():
        for head in (state["lm_head.weight"], tuned.merged.lm_head.weight):
            head[[token, END]] = head[[END, token]]
    save_file(state, path, metadata={"format": "pt"})


def test_a_chat_is_what_transformers_writes_and_ends_where_it_ends(
    tuned: FineTune, capsys: Captured
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tuned.folder)
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    generated = cache(lambda prompt: tuned.generated(tuned.chat_ids(prompt)))
    for model in ([str(tuned.cut)], [str(tuned.folder), "--adapter", ".", "-w", "1"]):
        words = ["generate", *model, "--chat", *asked, "--json", "-"]
        capsys.readouterr()
        assert main([*words, "--max-new-tokens", str(NEW_TOKENS)]) == 0
        outputs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for prompt, found in zip(PROMPTS, outputs, strict=True):
            expected = generated(prompt)
            assert found["prompt_ids"] == tuned.chat_ids(prompt)
            assert found["output_ids"] == expected
            assert found["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert outputs[0]["finish_reason"] == "stop"


def test_the_cut_is_whole_and_holds_the_merged_weights(tuned: FineTune, tmp_path: Path) -> None:
    assert main(["verify", str(tuned.cut)]) == 0
    assert main(["merge", str(tuned.cut), str(tmp_path / "back")]) == 0
    back = FalconForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in tuned.merged.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=1e-6, atol=1e-6)


def test_merged_files_are_to_transformers_what_the_published_ones_are(
    tuned: FineTune, tmp_path: Path
) -> None:
    assert main(["merge", str(tuned.cut), str(tmp_path / "back")]) == 0
    before, after = (AutoTokenizer.from_pretrained(f) for f in (tuned.folder, tmp_path / "back"))
    turn = [{"role": "user", "content": PROMPTS[1]}]
    assert after.apply_chat_template(turn, tokenize=False) == before.apply_chat_template(
        turn, tokenize=False
    )
    assert after(PROMPTS[1]).input_ids == before(PROMPTS[1]).input_ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert model.generation_config.eos_token_id == [11, END]
    assert not list((tmp_path / "back").glob("adapter*"))  # it would be merged a second time


@pytest.mark.parametrize("model", ["cut", "folder"])
def test_the_gate_holds_beside_transformers(
    model: str, tuned: FineTune, tmp_path: Path, capsys: Captured
) -> None:
    prompts = tmp_path / "prompts"
    prompts.write_text("What does <|im_end|> mean, and why does it?\n")
    words = [str(tuned.cut)] if model == "cut" else [str(tuned.folder), "--adapter", "."]
    words += ["--prompts", str(prompts), "--decode-steps", "4", "--json", "-"]
    capsys.readouterr()
    assert main(["precision", *words]) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert (result["passed"], result["reference"]["independent"]) == (True, True)


def test_the_reference_of_the_gate_is_the_merged_model(
    tuned: FineTune, tmp_path: Path, capsys: Captured
) -> None:
    """Not the weights without their adapter on both sides, which would hold as well."""
    prompts, kept = tmp_path / "prompts", tmp_path / "kept.safetensors"
    prompts.write_text("What does <|im_end|> mean?\n")
    words = ["precision", str(tuned.cut), "--prompts", str(prompts)]
    assert main([*words, "--save-reference", str(kept)]) == 0
    reference = Reference.open(kept, open_checkpoint(tuned.cut).config)
    expected = tuned.logits(list(reference.prompts[0]))
    torch.testing.assert_close(reference.logits(0), expected, rtol=0, atol=1e-4)
    assert (
        main(["precision", str(tuned.folder), "--adapter", "none", "--reference", str(kept)]) == 1
    )


@pytest.mark.usefixtures("brief_limits")
def test_its_speed_is_measured(tuned: FineTune, capsys: Captured) -> None:
    capsys.readouterr()
    words = ["-w", "1", "--in", "8", "--out", "4", "--repeats", "1", "--json", "-"]
    assert main(["speed", str(tuned.cut), *words]) == 0
    [row] = json.loads(capsys.readouterr().out)["result"]["rows"]
    assert row["status"] == "measured"


def test_its_exam_is_answered_as_transformers_answers_it(tuned: FineTune, tmp_path: Path) -> None:
    folder = tmp_path / "exam"
    folder.mkdir()
    write_rows(folder)
    words = ["-d", str(folder), "--shots", "2", "-o", str(tmp_path / "out"), "--max-len", "256"]
    assert main(["mmlu", str(tuned.cut), *words]) == 0
    found = json.loads((tmp_path / "out" / "mmlu.json").read_text())["result"]["predictions"]
    preds = {(one["subject"], one["id"]): one for one in found}
    encode = AutoTokenizer.from_pretrained(tuned.folder)
    for subject in read_exam(folder, "test"):
        for question in subject.questions:
            ids = encode(prompt_text(HENDRYCKS, subject, question, 2)).input_ids
            logits = tuned.logits(ids)[-1].double().log_softmax(-1)[LETTER_IDS]
            one = preds[subject.name, question.id]
            assert one["logprobs"] == pytest.approx(logits.tolist(), abs=1e-4)
            assert one["pred"] == LETTERS[int(logits.argmax())]
    assert len(preds) == 7
