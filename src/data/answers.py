"""Answers to questions about images: which are the same, what each is worth, the list that a classifier chooses from.

What an answer is worth is the accuracy of VQA v2 (Antol et al. 2015, Goyal et al. 2017): min(n / 3, 1), where n of the
people who were asked said the same, averaged over the ten subsets that leave one of ten people out.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from src.data.errors import DataError
from src.files import write_text

PEOPLE = 10  # who answer a question of VQA v2
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: number for number, word in enumerate(WORDS)} | {"none": 0}
ARTICLES = {"a", "an", "the"}
MARKS = set(';/[]"{}()=+\\_-><@`,?!')  # of ASCII; an apostrophe and a colon stay
# Written without apostrophes in some answers. Left out are those that would then be another word: we'd, she'll, it's.
CONTRACTIONS = """\
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't
not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'd've y'all'll you'd you'd've you'll you're you've
"""
APOSTROPHES = {word.replace("'", ""): word for word in CONTRACTIONS.split()}
DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
MEASURES = "个只条张把辆座棵朵头匹件块片颗根支枝架艘台位名顶盏面份部道枚团副串杯瓶本口"  # 双 and 对 are two
TYPOGRAPHIC = dict.fromkeys(map(ord, "‘’ʼ"), "'")  # apostrophes of phones and word processors
_JOINED_DIGITS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_BESIDE_HAN = re.compile(r"(?<=[\u3400-\u9fff]) | (?=[\u3400-\u9fff])")
_COUNT = re.compile(rf"(?:([{''.join(DIGITS)}])?(十)?([{''.join(DIGITS)}])?|(\d+))[{MEASURES}]?")


def normalise(answer: str) -> str:
    """The form in which answers are compared, after the evaluation of VQA v2.

    Lower case, no articles, no punctuation but apostrophes, colons and decimal points, number words as digits, missing
    apostrophes of contractions. In Chinese also: full-width forms as narrow ones, no spaces beside characters, and a
    number with or without a measure word as its digits.

    >>> normalise("The two Dogs."), normalise("dont know"), normalise("1,000"), normalise(" 两只 "), normalise("红色。")
    ('2 dogs', "don't know", '1000', '2', '红色')
    """
    text = unicodedata.normalize("NFKC", answer).lower().translate(TYPOGRAPHIC)
    marks = {char for char in text if char in MARKS or (not char.isascii() and unicodedata.category(char)[0] == "P")}
    joined = _JOINED_DIGITS.search(text) is not None
    unmarked = text
    for mark in marks:
        apart = joined or f"{mark} " in text or f" {mark}" in text  # it parts no words that a space does not part
        unmarked = unmarked.replace(mark, "" if apart else " ")
    words = [str(NUMBERS.get(word, word)) for word in _FULL_STOP.sub("", unmarked).split()]
    found = " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)
    return _count(_BESIDE_HAN.sub("", found))


def _count(text: str) -> str:
    """The digits of a text that is a number of Chinese, 0 to 99, or digits with a measure word; any other as it is."""
    match = _COUNT.fullmatch(text)
    if match is None or not any(match.groups()):
        return text
    first, ten, last, digits = match.groups()
    if digits:
        return digits
    if ten:
        return str(10 * DIGITS.get(first, 1) + DIGITS.get(last, 0))
    return text if first and last else str(DIGITS[first or last])


def worth(count: float, people: int) -> float:
    """The accuracy of an answer that ``count`` of ``people`` gave.

    Of ten people the n who said the same leave n − 1 where one of them is left out, n otherwise. Of another number of
    people each stands for 10 / people of them, so that what a single one says is worth 1.
    """
    same = PEOPLE * count / people
    return (same * min(max(same - 1, 0) / 3, 1) + (PEOPLE - same) * min(same / 3, 1)) / PEOPLE


def scores(answers: Sequence[str]) -> dict[str, float]:
    """Each different answer, normalised, and what it is worth: the most frequent one first."""
    counts = Counter(map(normalise, answers))
    return {answer: worth(count, len(answers)) for answer, count in counts.most_common()}


class AnswerList:
    """The answers that a classifier chooses from: a file, one a line, whose line is the class.

    Args:
        path: of model.answers.

    Raises:
        DataError: there is no such file, it is not UTF-8, or two of its lines are one answer.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except OSError:
            hint = "make one by python tools/build_answers.py"
            raise DataError(f"{path}: no such file of answers (model.answers); {hint}") from None
        except UnicodeDecodeError:
            raise DataError(f"{path}: the answers are not UTF-8 text (model.answers)") from None
        self.answers: list[str] = lines
        self.classes: dict[str, int] = {}
        for number, line in enumerate(lines):
            answer = normalise(line)
            if not answer or answer in self.classes:
                what = f"is the same answer as line {self.classes[answer] + 1}" if answer else "holds no answer"
                raise DataError(f"{path}: line {number + 1} {what}: remove it")
            self.classes[answer] = number
        if not lines:
            raise DataError(f"{path} holds no answer (model.answers)")

    def __len__(self) -> int:
        return len(self.answers)

    def targets(self, answers: Sequence[str], slots: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes int32 [slots] of what was answered, and what each is worth, float32 [slots]; unused slots are 0.

        Answers that the list lacks have no slot; of more than there are slots those that are worth most have one.
        """
        known = [(self.classes[name], value) for name, value in scores(answers).items() if name in self.classes]
        classes, values = np.zeros(slots, np.int32), np.zeros(slots, np.float32)
        for slot, (place, value) in enumerate(known[:slots]):
            classes[slot], values[slot] = place, value
        return classes, values


def frequent_answers(questions: Iterable[Sequence[str]], size: int) -> list[str]:
    """The answers that are worth most in all, the first first; of equal ones the first in the alphabet.

    Args:
        questions: the answers to each.
        size: at most so many.
    """
    sums: Counter[str] = Counter()
    for answers in questions:
        sums.update({answer: value for answer, value in scores(answers).items() if answer})
    return sorted(sums, key=lambda answer: (-sums[answer], answer))[:size]


def write_answers(output: Path, folders: Iterable[Path], size: int) -> None:
    """Writes the most frequent answers of the training questions of dataset folders, and prints how many they are.

    Raises:
        DataError: the folders hold no question with an answer.
    """
    from src.data.store import Dataset

    def all_answers() -> Iterable[tuple[str, ...]]:
        for folder in folders:
            dataset = Dataset(folder, "train")
            for record in dataset.read(np.unique(dataset.samples[:, 0])):
                yield from (question.answers for question in record.questions)

    found = frequent_answers(all_answers(), size)
    if not found:
        raise DataError(f"{', '.join(map(str, folders))}: no question with an answer")
    write_text(output, "\n".join(found) + "\n")
    print(f"{output}: {len(found)} answers")
