"""Which replica is likely to have the beginning of a prompt in its cache, by what was sent where. Knows
neither ray nor what the caches really hold.
"""

import random
from collections import Counter, OrderedDict
from collections.abc import Sequence

PAGE_BYTES = 256  # of a prompt, as it stands in the body: some 64 tokens
MOST_PAGES = 256  # of one prompt that are looked at
MOST_BEGINNINGS = 1 << 16  # that are remembered; those that were not asked for longest go first
MOST_AHEAD = 8  # unfinished requests more than the least loaded has; with more, one is spared
MOST_SENT = 4096  # requests that are counted; then older ones count half as much, and so on
PROMPTS = {"/v1/completions": b'"prompt"', "/v1/chat/completions": b'"messages"'}


def beginnings(path: str, body: bytes) -> list[int]:
    """A number for each beginning of a request's prompt, a page longer each, the shortest first; none
    where there is no prompt, or one shorter than a page.

    The prompt is not parsed: its text in the body is the same where the same client sends the same.
    """
    name = PROMPTS.get(path)
    begin = -1 if name is None else body.find(name)
    if begin < 0:
        return []
    prompt = body[begin : begin + MOST_PAGES * PAGE_BYTES]
    found, numbers = 0, []
    for end in range(PAGE_BYTES, len(prompt) + 1, PAGE_BYTES):
        found = hash((found, prompt[end - PAGE_BYTES : end]))
        numbers.append(found)
    return numbers


class PrefixAffinity:
    """Sends a prompt where the longest known beginning of it was sent last, unless that replica is well
    ahead of another in unfinished requests. A beginning that is not known stays where it is sent first, so
    of two replicas the one that was sent less gets it; a prompt without one goes to the less loaded.
    """

    def __init__(self, most_beginnings: int = MOST_BEGINNINGS, seed: int | None = None) -> None:
        self._most_beginnings, self._random = most_beginnings, random.Random(seed)
        self._sent_to: OrderedDict[int, str] = OrderedDict()  # beginning → replica, newest last
        self._num_unfinished: Counter[str] = Counter()
        self._num_sent: Counter[str] = Counter()

    def ranked(self, numbers: Sequence[int], replicas: Sequence[str]) -> list[str]:
        """Replicas to try, the best first, of those there are; at most three."""
        two = self._two(numbers, replicas)
        known = (self._sent_to.get(number) for number in reversed(numbers))
        chosen = next((one for one in known if one in replicas), None)
        if chosen is None or self._lead(chosen, replicas) > MOST_AHEAD:
            return two
        return [chosen, *(one for one in two if one != chosen)]

    def routed(self, replica: str, numbers: Sequence[int]) -> None:
        """A replica has taken a prompt with these beginnings."""
        self._num_unfinished[replica] += 1
        self._num_sent[replica] += 1
        if self._num_sent.total() > MOST_SENT:
            self._num_sent = Counter({one: count // 2 for one, count in self._num_sent.items()})
        for number in numbers:
            self._sent_to[number] = replica
            self._sent_to.move_to_end(number)
        while len(self._sent_to) > self._most_beginnings:
            self._sent_to.popitem(last=False)

    def completed(self, replica: str) -> None:
        """A replica has answered, or failed to."""
        self._num_unfinished[replica] = max(0, self._num_unfinished[replica] - 1)

    def keep(self, replicas: Sequence[str]) -> None:
        """Forgets the counts of replicas that are no more."""
        for counts in (self._num_unfinished, self._num_sent):
            for gone in set(counts) - set(replicas):
                del counts[gone]
        least = min((self._num_sent[one] for one in replicas if one in self._num_sent), default=0)
        for one in replicas:  # a new one does not get all until it has caught up
            self._num_sent.setdefault(one, least)

    def _two(self, numbers: Sequence[int], replicas: Sequence[str]) -> list[str]:
        """The power of two choices: two at random, the better first."""
        two = self._random.sample(list(replicas), min(2, len(replicas)))

        def cost(replica: str) -> tuple[bool, int, int]:
            unfinished, sent = self._num_unfinished[replica], self._num_sent[replica]
            if numbers:
                return self._lead(replica, two) > MOST_AHEAD // 2, sent, unfinished
            return False, unfinished, sent

        return sorted(two, key=cost)

    def _lead(self, replica: str, replicas: Sequence[str]) -> int:
        """How many more unfinished requests it has than the least loaded one."""
        return self._num_unfinished[replica] - min(self._num_unfinished[one] for one in replicas)
