"""RULER's aggregation: the most common words of a list (cwe), the most frequent ones of a coded text (fwe).

Source: PUBLISHED["source"], common_words_extraction.py, freq_words_extraction.py.
Deviates: words are the haystack's, not the wonderwords package's; each sample has as many as fit it, and another order.
"""

from __future__ import annotations

import string
from bisect import bisect_right
from collections.abc import Sequence

from kvbench.workloads.asked import Conversation
from kvbench.workloads.ruler.desk import PUBLISHED, Desk

CWE, FWE = PUBLISHED["cwe"], PUBLISHED["fwe"]


def common_words(desk: Desk) -> Conversation:
    """Return a sample of cwe: which ten words are in the list most often?"""
    kind = CWE["below" if desk.tokens < CWE["below_tokens"] else "from"]
    solved, answer = word_list(desk, desk.some_words(kind["example"]["words"]), kind["example"])
    numbered = " ".join(f"{at}. {word}" for at, word in enumerate(answer, 1))
    example = f"{desk.text('common', ' '.join(solved))} {numbered}\n"
    prompt = desk.prompt("common", "", example=example)
    words, count = desk.some_words(max(len(desk.words), CWE["num_common"])), CWE["num_common"]
    used, numbers = cost(desk, words[:count], kind["common"], 0)
    while used <= prompt.room:
        others = words[count : count + 1] or desk.some_words(count + 1)  # which says that there are too few
        more, numbers = cost(desk, others, kind["others"], numbers)
        used, count = used + more, count + 1
    count, asked = count - 1, words[: CWE["num_common"]]
    if count <= len(asked):
        raise desk.short("the list")
    items, _ = word_list(desk, words[:count], kind)
    body = [token for item in items for part in pieces(item) for token in desk.ids(part)]
    return desk.conversation(prompt, body, asked, told=asked, depth=None)


def word_list(desk: Desk, words: Sequence[str], repeats: dict[str, int]) -> tuple[list[str], Sequence[str]]:
    """Return a shuffled and numbered list in which the first words are repeated most, and these words."""
    asked = words[: CWE["num_common"]]
    listed = [*asked] * repeats["common"] + [*words[len(asked) :]] * repeats["others"]
    desk.rng.shuffle(listed)
    return [f"{at}. {word}" for at, word in enumerate(listed, 1)], asked


def pieces(item: str) -> tuple[str, str]:
    """Return the number and the word of an item, as they stand behind what comes before them."""
    number, word = item.split()
    return number if number == "1." else f" {number}", f" {word}"


def cost(desk: Desk, words: Sequence[str], repeats: int, numbers: int) -> tuple[int, int]:
    """Return the tokens of words and of their numbers in a list, in whatever order, and the last number."""
    last = numbers + len(words) * repeats
    spent = sum(len(desk.ids(pieces(f"{number}. -")[0])) for number in range(numbers + 1, last + 1))
    return spent + repeats * sum(len(desk.ids(f" {word}")) for word in words), last


def frequent_words(desk: Desk) -> Conversation:
    """Return a sample of fwe: which three words are in the text most often?"""
    prompt = desk.prompt("frequent", " ")
    kinds: dict[str, None] = {FWE["noise"]: None}
    while len(kinds) < (desk.tokens - prompt.new_tokens) // FWE["tokens_per_word"]:
        kinds[desk.name(FWE["letters"], string.ascii_lowercase)] = None
    written = [desk.ids(f" {word}") for word in kinds]

    def spent(words: int) -> int:
        return sum(count * len(ids) for count, ids in zip(zipf(words, len(written)), written, strict=True))

    most = range(4 * max(0, prompt.room) + 100)
    counts = zipf(bisect_right(most, prompt.room, key=spent) - 1, len(written))
    asked = list(kinds)[1 : 1 + FWE["num_asked"]]
    if len(counts) <= len(asked) + 1 or counts[len(asked)] <= counts[len(asked) + 1]:
        raise desk.short("words of which three are the most frequent ones")
    text = [ids for count, ids in zip(counts, written, strict=True) for _ in range(count)]
    desk.rng.shuffle(text)
    return desk.conversation(prompt, [token for ids in text for token in ids], asked, told=asked, depth=None)


def zipf(words: int, kinds: int) -> list[int]:
    """Return how often each kind of word is in a text of about so many, by Zipf's law."""
    alpha, terms = FWE["alpha"], 1000
    zeta = sum(rank**-alpha for rank in range(1, terms)) + terms ** (1 - alpha) / (alpha - 1) + terms**-alpha / 2
    return [int(words * rank**-alpha / zeta) for rank in range(1, kinds + 1)]
