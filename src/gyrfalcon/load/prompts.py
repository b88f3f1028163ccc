"""Prompts of about a given number of tokens, without a tokenizer: common short words, of which most
tokenizers make one token each. How many the server makes is measured before the run.
"""

from dataclasses import dataclass
from random import Random

WORDS = tuple(
    "the of and to in a is that for it as was with be by on not he his but at are this have from or"
    " had an they which one you were all her she there would their we him been has when who will no"
    " more if out so up what can about into some could them other time than now then only its also"
    " new two first any man like our over such way well even most made after many must through back"
    " years where much your down should because each just those people how too little state good very"
    " make world still see own work long here get both between life being under never day same another"
    " know while last might us great old year off come since against go came right used take three".split()
)


@dataclass(frozen=True, slots=True)
class TokensOfText:
    """How many tokens a server counts: those of each word, and those around them (a chat template)."""

    per_word: float = 1.0
    around: float = 0.0

    def num_words(self, input_len: int) -> int:
        """How many words make a prompt of about that many tokens; at least one."""
        return max(1, round((input_len - self.around) / self.per_word))


def words(number: int, random: Random) -> str:
    """That many words, drawn at random."""
    return " ".join(random.choices(WORDS, k=number))
