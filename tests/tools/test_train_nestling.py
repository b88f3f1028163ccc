"""Training nestling: the model is a Falcon to transformers, steps are right, a stop costs nothing."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from nestling_data import END, Rows, encode, train_tokenizer
from nestling_export import export
from nestling_model import Nestling, Shape
from nestling_muon import orthogonal
from nestling_training import Plan, Stage, Training
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from gyrfalcon.nestling.curriculum import document
from gyrfalcon.nestling.exam import ask

NOVELS = np.arange(12, 1012, dtype=np.uint16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["It was a dark and stormy night. " * 50], 1024, num_lessons=400)


def test_the_tokenizer_keeps_labels_and_letters_whole(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_to_id(END) == 11
    tokens = tokenizer.encode(ask("", ["a", "b", "c", "d"]) + " B\n\n").tokens
    assert tokens == "ĊA. Ġa ĊB. Ġb ĊC. Ġc ĊD. Ġd ĊAnswer: ĠB ĊĊ".split()


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "  Don't — stop!\n\n\tA. 1984 naïve\r\nB: 雪\n \n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_weights_of_a_lesson_fall_on_its_letters_and_answers(tokenizer: Tokenizer) -> None:
    rng = Random(2)
    for spans in (document(rng, 0.3) for _ in range(40)):
        ids, weights = encode(tokenizer, spans)
        letters = [
            tokenizer.decode([i]) for i, weight in zip(ids, weights, strict=True) if weight == 4
        ]
        assert letters == [text for text, weight in spans if weight == 4]


def test_the_exported_folder_is_the_trained_model_to_transformers(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = Nestling(Shape(vocab_size=1024, hidden_size=256, num_layers=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
            parameter.copy_(parameter.bfloat16())
    export(model, tokenizer, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(12, 1024, (2, 60))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model.logits(model(ids)), rtol=0, atol=1e-4)
    text = "Which?\nA. cold\nAnswer: A\n\n"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer.encode(text).ids


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (128, 128)])
def test_a_step_of_muon_is_nearly_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix)
    strengths = torch.diagonal(left.T @ found @ right.T)
    assert strengths[:-4].min() > 0.5
    assert strengths.max() < 1.3
    torch.testing.assert_close(left * strengths @ right, found, rtol=0, atol=1e-3)


def test_a_skipped_block_is_the_identity_before_it_is_trained(tokenizer: Tokenizer) -> None:
    model = Training(_plan(), tokenizer, torch.device("cpu")).model
    ids = torch.randint(12, 1024, (1, 30))
    torch.testing.assert_close(model(ids, every=2), model(ids))


def test_a_resumed_training_goes_on_as_if_never_stopped(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows, device = Rows(tokenizer, NOVELS), torch.device("cpu")
    whole = Training(_plan(), tokenizer, device)
    _learn(whole, rows, 4)
    first = Training(_plan(), tokenizer, device)
    _learn(first, rows, 2)
    first.save(tmp_path / "checkpoint.pt")
    second = Training(_plan(), tokenizer, device)
    second.load(tmp_path / "checkpoint.pt")
    _learn(second, rows, 2)
    assert (second.step, second.tokens) == (whole.step, whole.tokens)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=0, atol=0)


def _plan() -> Plan:
    return Plan(Stage.all(1, 1), steps=6, batch_tokens=256)


def _learn(training: Training, rows: Rows, steps: int) -> None:
    for _ in range(steps):
        stage = training.plan.stage(training.step)
        training.learn(*rows.batch(training.step, 2, 64, stage.copying, stage.novels))
