"""MMLU's prompts as written out by hand, real and made-up exams, and exams that are refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from exams import Data, exam_of

from gyrfalcon.errors import CheckpointError, UsageError
from gyrfalcon.measure.mmlu.exam import CATEGORIES, Question, Subject, read_exam
from gyrfalcon.measure.mmlu.prompts import (
    GENERATE,
    HENDRYCKS,
    LM_EVAL,
    Exam,
    Protocol,
    fitted,
    letter_ids,
    prompt_text,
)
from gyrfalcon.text.tokenizer import Tokenizer

# electrical_engineering's worked examples and its test question 68, with a choice that says None.
LATCHES = """\
In an SR latch built from NOR gates, which condition is not allowed
A. S=0, R=0
B. S=0, R=1
C. S=1, R=0
D. S=1, R=1
Answer: D

In a 2 pole lap winding dc machine , the resistance of one conductor is 2Ω and total number of \
conductors is 100. Find the total resistance
A. 200Ω
B. 100Ω
C. 50Ω
D. 10Ω
Answer: C

The coil of a moving coil meter has 100 turns, is 40 mm long and 30 mm wide. The control torque is \
240*10-6 N-m on full scale. If magnetic flux density is 1Wb/m2 range of meter is
A. 1 mA.
B. 2 mA.
C. 3 mA.
D. 4 mA.
Answer: B

Two long parallel conductors carry 100 A. If the conductors are separated by 20 mm, the force per \
meter of length of each conductor will be
A. 100 N.
B. 0.1 N.
C. 1 N.
D. 0.01 N.
Answer: B

A point pole has a strength of 4π * 10^-4 weber. The force in newtons on a point pole of \
4π * 1.5 * 10^-4 weber placed at a distance of 10 cm from it will be
A. 15 N.
B. 20 N.
C. 7.5 N.
D. 3.75 N.
Answer: A

A latch is ________ sensitive
A. both level and edge
B. edge
C. level
D. None
Answer:"""

# formal_logic's worked example about Mars and its test question 117, which begin with a space.
ROBOTS = """\
{gap}Select the best translation into predicate logic: No people drive on Mars.
A. ~Pd
B. (∀x)(Px ∨ ~Dx)
C. (∀x)(Px ⊃ ~Dx)
D. ~Dp
Answer: C

{gap}Select the best translation into predicate logic: All robots are artifacts.
A. (∀x)(Ax ∨ Rx)
B. (∀x)(Ax • Rx)
C. (∀x)(Rx ⊃ Ax)
D. (∀x)(Rx • Ax)
Answer:"""

HEAD = "The following are multiple choice questions (with answers) about"


def subject_of(data: Data, name: str, split: str = "test") -> Subject:
    return read_exam(data("mmlu"), split, [name])[0]


@pytest.mark.parametrize(
    ("protocol", "head"),
    [
        (HENDRYCKS, f"{HEAD}  electrical engineering.\n\n"),
        (LM_EVAL, f"{HEAD} electrical engineering.\n\n"),
        (GENERATE, f"{HEAD}  electrical engineering.\n\n"),
    ],
)
def test_a_prompt_with_a_choice_none_is_as_written_by_hand(
    data: Data, protocol: Protocol, head: str
) -> None:
    subject = subject_of(data, "electrical_engineering")
    assert prompt_text(protocol, subject, subject.questions[68], 5) == head + LATCHES


@pytest.mark.parametrize(
    ("protocol", "spaces", "gap"),
    [(HENDRYCKS, "  ", " "), (LM_EVAL, " ", ""), (GENERATE, "  ", " ")],
)
def test_only_lm_eval_strips_questions(
    data: Data, protocol: Protocol, spaces: str, gap: str
) -> None:
    subject = subject_of(data, "formal_logic")
    one = replace(subject, examples=(example_about_mars(subject),))
    text = prompt_text(protocol, one, subject.questions[117], 5)
    assert text == f"{HEAD}{spaces}formal logic.\n\n" + ROBOTS.format(gap=gap)


def example_about_mars(subject: Subject) -> Question:
    return next(example for example in subject.examples if "Mars" in example.text)


BIRDS_0 = f"""{HEAD}  birds.

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""
BIRDS_1 = f"""{HEAD}  birds.

Which bird is white?
A. raven
B. swan
C. rook
D. crow
Answer: B

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""
BIRDS_2_LM_EVAL = f"""{HEAD} birds.

Which bird is white?
A. raven
B. swan
C. rook
D. crow
Answer: B

Which bird runs?
A. ostrich
B. swift
C. kite
D. tern
Answer: A

Which falcon nests in the north?
A. gyrfalcon
B. None
C. kestrel
D. hobby
Answer:"""


def encode_characters(text: str) -> list[int]:
    return list(map(ord, text))


@pytest.mark.parametrize(
    ("protocol", "max_len", "text"),
    [
        (HENDRYCKS, len(BIRDS_1) + 1, BIRDS_1),
        (HENDRYCKS, len(BIRDS_1), BIRDS_0),
        (HENDRYCKS, len(BIRDS_0) + 1, BIRDS_0),
        (HENDRYCKS, len(BIRDS_0), None),
        (GENERATE, len(BIRDS_1) + 32, BIRDS_1),
        (GENERATE, len(BIRDS_1) + 31, None),
        (LM_EVAL, len(BIRDS_2_LM_EVAL), BIRDS_2_LM_EVAL),
        (LM_EVAL, len(BIRDS_1), BIRDS_2_LM_EVAL[-len(BIRDS_1) :]),
    ],
)
def test_a_long_prompt_gives_up_examples_or_its_beginning_as_the_protocol_says(
    exam_folder: Path, protocol: Protocol, max_len: int, text: str | None
) -> None:
    exam = exam_of(exam_folder, protocol)
    birds = exam.subjects[0]
    prompt = fitted(exam, birds, birds.questions[0], encode_characters, max_len)
    assert prompt.ids == (None if text is None else tuple(map(ord, text)))


def test_real_shots_are_dropped_where_five_do_not_fit(data: Data) -> None:
    encode = Tokenizer.load(data("falcon-tokenizer")).encode
    history = subject_of(data, "high_school_us_history")
    question = history.questions[0]
    exam = Exam([history], "test", HENDRYCKS, 5)
    prompt = fitted(exam, history, question, encode, 2048)
    assert prompt.num_examples == 4
    assert prompt.ids == tuple(encode(prompt_text(HENDRYCKS, history, question, 4)))
    assert (
        len(prompt.ids) + 1 <= 2048 < 1 + len(encode(prompt_text(HENDRYCKS, history, question, 5)))
    )
    cut = fitted(replace(exam, protocol=LM_EVAL), history, question, encode, 2048)
    assert cut.ids == tuple(encode(prompt_text(LM_EVAL, history, question, 5))[-2048:])


def test_the_guide_leaves_out_what_is_over_2000_tokens_with_one_shot(exam_folder: Path) -> None:
    exam = exam_of(exam_folder, GENERATE)
    birds = exam.subjects[0]
    long = replace(birds.questions[0], text="x" * (2000 - len(BIRDS_1) + 32))
    for question, num_examples in ((long, 1), (replace(long, text=long.text + "y"), 0)):
        prompt = fitted(exam, birds, question, encode_characters, 4096)
        assert (prompt.num_examples, prompt.ids is not None) == (num_examples, bool(num_examples))


def test_cells_are_text_whatever_they_look_like(exam_folder: Path) -> None:
    birds, sums = read_exam(exam_folder, "test")
    assert birds.questions[0].choices == ("gyrfalcon", "None", "kestrel", "hobby")
    assert birds.questions[1].text == 'Which bird\nsays "who", at night?'
    assert [question.id for question in sums.questions] == [0, 1, 2, 3]
    assert (birds.category, sums.category, sums.title) == ("other", "STEM", "sums of two")


def test_all_57_subjects_have_their_category_and_questions(data: Data) -> None:
    sizes = {"test": 14042, "val": 1531}
    for split, size in sizes.items():
        exam = read_exam(data("mmlu"), split)
        assert len(exam) == 57
        assert sum(len(subject.questions) for subject in exam) == size
        assert all(len(subject.examples) == 5 for subject in exam)
    totals = {
        name: sum(len(subject.questions) for subject in exam if subject.category == name)
        for name in CATEGORIES
    }
    # The totals of the guide's own table: each subject is in the category it was counted in.
    assert totals == {"STEM": 321, "other": 355, "social sciences": 337, "humanities": 518}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("test/birds_test.csv", "a,b,c,d,e\n", "5 fields"),
        ("test/birds_test.csv", "q,1,2,3,4,E\n", "ending in 'E'"),
        ("test/birds_test.csv", "q,1,2,3,4,A\n\n\nq,1,2,3,4\n", "line 4 of "),
        ("test/birds_test.csv", '"q\nq",1,2,3,4,A\nq,1\n', "line 3 of "),
        ("test/birds_test.csv", "\n \n", "a question or more in "),
        ("test/birds_test.csv", 'q,1,2,3,4,A\n"open,1,2,3,4,B\nq,1,2,3,4,C\n', "row of line 2"),
        ("test/birds_test.csv", '"open,1,2,3,4,B\nq,"1",2,3,4,C\n', "row of line 1"),
        ("test/birds_test.csv", '"open,1,2,3,4,B\nis ",2,3,4,5,C\n', "the end of a row in it"),
        ("dev/birds_dev.csv", '"open,1,2,3,4,B\n', "row of line 1"),
        ("categories.json", '{"birds": "animals"}', '"animals" for birds'),
        ("categories.json", '{"birds": ["other"]}', '["other"] for birds'),
        ("categories.json", '{"birds": "other", "birds": "STEM"}', "twice"),
        ("categories.json", "{", "JSON"),
        ("categories.json", "[" * 100_000 + "]" * 100_000, "JSON"),
        ("categories.json", '{"birds": ' + "[" * 500 + "]" * 500 + "}", "deep"),
    ],
)
def test_a_damaged_exam_is_refused_by_file_and_row(
    exam_folder: Path, tmp_path: Path, name: str, content: str, told: str
) -> None:
    shutil.copytree(exam_folder, tmp_path / "exam")
    (tmp_path / "exam" / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        read_exam(tmp_path / "exam", "test")
    assert told in str(caught.value)
    assert Path(name).name in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\n", b'"an open quote' + b"x" * 200_000])
def test_a_file_of_questions_that_is_no_csv_is_refused(
    content: bytes, exam_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(exam_folder, tmp_path / "exam")
    (tmp_path / "exam/test/birds_test.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"birds_test\.csv"):
        read_exam(tmp_path / "exam", "test")


def test_more_shots_than_there_are_and_unknown_subjects_are_refused(exam_folder: Path) -> None:
    with pytest.raises(UsageError, match="in dev/ of birds, got 2; lower shots"):
        exam_of(exam_folder, num_examples=3)
    with pytest.raises(UsageError, match=r"birds, sums_of_two.*got 'fish'; choose"):
        read_exam(exam_folder, "test", ["birds", "fish"])
    with pytest.raises(UsageError, match=r"val/astronomy_val\.csv"):
        read_exam(exam_folder, "val")


def test_files_as_people_have_them_read_as_those_of_the_authors(
    exam_folder: Path, tmp_path: Path
) -> None:
    """Saved on Windows, zipped on macOS, edited by hand."""
    folder = tmp_path / "exam"
    shutil.copytree(exam_folder, folder)
    (folder / "README.md").write_text("An exam.")
    for path in folder.glob("*/*.csv"):
        text = path.read_text("utf-8").replace(",A\n", ",A \n").replace(",B\n", ", b\n")
        text = text.replace("\n", "\n\n", 1) + "\n , \n\n"
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7Mac OS X")
        (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")

    def plain(subjects: list[Subject]) -> list[Subject]:
        return [
            replace(
                subject,
                questions=tuple(
                    replace(question, text=question.text.replace("\r\n", "\n"))
                    for question in subject.questions
                ),
            )
            for subject in subjects
        ]

    assert plain(read_exam(folder, "test")) == read_exam(exam_folder, "test")


def test_no_worked_examples_are_needed_where_none_are_shown(
    exam_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(exam_folder / "test", tmp_path / "test")
    asked = exam_of(tmp_path, num_examples=0).subjects
    assert [one.questions for one in asked] == [
        one.questions for one in exam_of(exam_folder).subjects
    ]
    with pytest.raises(UsageError, match="in dev/ of birds, got none; lower shots"):
        exam_of(tmp_path, num_examples=1)
    (tmp_path / "dev").mkdir()
    shutil.copy(exam_folder / "dev/birds_dev.csv", tmp_path / "dev")
    with pytest.raises(UsageError, match="in dev/ of sums_of_two, got none"):
        exam_of(tmp_path, num_examples=1)


@pytest.mark.parametrize(
    ("inner", "got", "do"),
    [
        ("exam/test", "exam/test with the files of one split", "give its parent, `data={}/exam`"),
        (
            "exam/test/birds_test.csv",
            "the file ",
            "give the folder that holds dev/, val/ and test/",
        ),
        (".", "which holds it in a folder", "give that one, `data={}/exam`"),
        ("nowhere", "which does not exist", "check `data`"),
        ("exam/test/empty", "without them", "check `data`"),
    ],
)
def test_a_folder_beside_the_right_one_is_told_which_is(
    inner: str, got: str, do: str, exam_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(exam_folder, tmp_path / "exam")
    (tmp_path / "exam/test/empty").mkdir()
    with pytest.raises(UsageError) as caught:
        read_exam(tmp_path / inner, "test")
    assert got in caught.value.got
    assert caught.value.do == do.format(tmp_path)


def test_the_split_that_is_there_is_named(exam_folder: Path) -> None:
    with pytest.raises(UsageError, match="with test/ alone; give split=test"):
        read_exam(exam_folder, "val")


def test_letters_are_the_tokens_after_answer(data: Data) -> None:
    assert letter_ids(Tokenizer.load(data("falcon-tokenizer")).encode) == (317, 341, 319, 361)
    with pytest.raises(CheckpointError, match="use protocol=generate"):
        letter_ids(encode_characters)
