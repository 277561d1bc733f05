"""Oracles of what is hidden: texts read again and solved, lengths counted, laws of what just fits."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from kvbench.workloads.composing import written
from kvbench.workloads.recall import Recall, draw
from kvbench.workloads.ruler.desk import PUBLISHED
from tests.support.hiding import (
    IN_TEXT,
    NEEDLE,
    PASSKEY,
    TOKENS,
    asked,
    files,
    held,
    marks,
    niah,
    plain,
    question,
    ruler,
    said,
    source,
    tokenizer,
)


def lengths_are_those_of_the_grid() -> None:
    """Of contexts, and of contexts with their question where it is in the cache, with every tokenizer and wording."""
    for name in TOKENS:
        for wording in ({}, PASSKEY):
            for aware in (False, True):
                grid = niah(**wording, question_in_cache=aware, lengths=(0.5, 0.7, 1.0))
                made = grid.conversations(held(name))
                sizes = [len(one.context) + aware * len(one.turns[0].question) for one in made]
                assert sizes == [size for size in (350, 490, 700) for _ in range(4 * 2)], name
                assert [one.task for one in made] == [f"{grid.task}_{size}" for size in sizes]


def needles_stand_at_their_depth() -> None:
    """Counted by brute force: as many tokens of the haystack before the needle as its share says."""
    for name in TOKENS:
        for wording in ({}, PASSKEY):
            grid = niah(**wording, lengths=(1.0,))
            cells = [depth for depth in grid.depths for _ in range(grid.samples)]
            for depth, one in zip(cells, grid.conversations(held(name)), strict=True):
                needle = grid.needle.replace("{key}", one.turns[0].references[0])
                around = said(one, name).split(needle)
                assert len(around) == 2, "the needle stands in its context once"
                before, after = (plain(name, each) for each in around)
                before -= plain(name, grid.intro) if grid.intro else 0
                if name == "bytes":  # where text and tokens are the same
                    assert before + after + plain(name, needle) + plain(name, grid.intro) == len(one.context)
                    assert before == round(depth * (before + after))
                near = 0.01 + 2 / (before + after)  # elsewhere an end of the text may be written in other tokens
                assert abs(before / (before + after) - depth) < near
                assert one.depth == depth


def the_default_needle_is_what_the_embedded_models_were_trained_on() -> None:
    """The tokens of its sentence are those that the recall task hides, and of its question those that it asks."""
    tasks, made = held().tasks, tokenizer("embedded")
    assert tasks is not None
    for one in niah(depths=(0.5,)).conversations(held()):
        digits = [int(digit) for digit in one.turns[0].references[0].split()]
        needle = (*tasks.passkey_lead, *(token for digit in digits for token in tasks.digits[digit]))
        needle += tasks.passkey_tail
        assert any(one.context[at : at + len(needle)] == needle for at in range(len(one.context)))
        assert one.turns[0].question == tasks.passkey_lead
        assert len(set(digits)) == 5
        assert made.decode(list(needle)).strip().endswith(".")


def keys_are_none_of_the_haystack() -> None:
    """Of ten keys nine stand in the text, so that it is always the tenth."""
    running = "0 1 2 3 4 5 6 7 8 and so on. " * 100
    made = niah(key="#", samples=8).conversations(source("bytes", running=running))
    assert {one.turns[0].references for one in made} == {("9",)}
    assert all(said(one, "bytes").count("9") == 1 for one in made)


def other_seeds_hide_other_things() -> None:
    """The same seed gives the same samples, another one others of every task, and no two of a task are alike."""
    for make in (niah().conversations, ruler().conversations):
        first, again, other = (make(held("embedded", seed)) for seed in (3, 3, 4))
        assert first == again
        assert len(set(first)) == len(first)
        assert not set(first) & set(other)


def text_fills_the_prompt_to_the_last_token() -> None:
    """Context, questions and room for the answers are together as many tokens as asked for."""
    for name in TOKENS:
        assert {one.longest for one in asked(*IN_TEXT, name=name)} == {TOKENS[name]}
    assert {one.longest for one in marks() if one.task != "niah_multikey_2"} == {300}


def one_more_item_would_not_fit() -> None:
    """What is left of the prompt is less than one more line, needle, word, or document takes, at every length."""
    noise, word = len(f"\n{PUBLISHED['noise']}"), 2 + len(" 1000. ") + 10
    needle = len(f"\n{PUBLISHED['needle']}") - len("{kind}{key}{value}") + len("numbers")
    most = {"niah_single_1": noise, "vt": noise, "niah_multikey_2": needle + 21 + 7, "cwe": word, "fwe": 4 * 7 + 1}
    most |= {"niah_multikey_3": needle - 2 + 36 + 36, "qa_1": 87 + 14, "qa_2": 98 + 14}
    for tokens in range(TOKENS["bytes"], TOKENS["bytes"] + 60, 7):
        for one in asked(*most, name="bytes", prompt_tokens=tokens, samples=2):
            assert 0 <= tokens - one.longest < most[one.task], one.task
    for name in ("embedded", "words"):
        for one in asked(name=name, samples=2):
            assert 0 <= TOKENS[name] - one.longest < 140, one.task


def prompts_are_as_published() -> None:
    """The template of each task, filled in as text with what is read in a context, is the whole prompt again."""
    opened = {"needle": r"afterwards\.\n", "chain": r"\n\n", "common": r"often\.\n", "frequent": r"coded words\. "}
    opened |= {"documents": r"are given documents\.\n\n", "needles": opened["needle"]}
    asks = {
        "chain": r"the value (\d+)",
        "documents": "Question: (.*) Answer:",
        "needle": r"magic \w+ for (.*?) mentioned",
    }
    for one in asked():
        whole = said(one) + question(one)
        kind = {"vt": "chain", "cwe": "common", "fwe": "frequent"}.get(one.task, one.task[:2])
        kind = {"qa": "documents", "ni": "needle"}.get(kind, kind)
        query, body = re.search(asks.get(kind, "()"), question(one)), re.split(opened[kind], said(one))[-1]
        assert query
        assert one.task in IN_TEXT or body == body.strip()
        values = {
            "context": body,
            "count": 5,
            "kind": "uuid" if one.task.endswith("_3") else "number",
            "query": query[1],
        }
        if len(one.turns[0].references) > 1 and kind == "needle":
            kind, values["kind"] = "needles", f"{values['kind']}s"
        prompt = PUBLISHED["prompts"][kind]
        filled = str(prompt["template"] + prompt["answer_prefix"]).format(**values)
        assert whole.endswith(filled), one.task
        solved = whole.removesuffix(filled)
        assert solved.count(prompt["template"].split("{context}")[0]) == (kind in ("chain", "common")), one.task
        assert bool(solved) == (kind in ("chain", "common"))
        assert one.turns[0].new_tokens == prompt["new_tokens"]


def keys_have_the_values_that_are_the_answers() -> None:
    """Read again, the sentences of a context say each key's values, and no value is said twice."""
    for name in TOKENS:
        for one in asked(*PUBLISHED["needles"], name=name):
            told: dict[str, set[str]] = {}
            found = NEEDLE.findall(said(one, name))
            for _, key, value in found:
                told.setdefault(key, set()).add(value)
            kind = PUBLISHED["needles"][one.task]
            keys = re.findall(r"[a-z0-9-]+-[a-z0-9-]+", question(one, name).split(" mentioned")[0])
            assert len(set(keys)) == kind["num_asked"]
            assert set(one.turns[0].references) == set().union(*(told[key] for key in keys))
            assert len(one.turns[0].references) == kind["num_asked"] * kind["num_values"]
            assert len({value for _, _, value in found}) == len(found)
            assert all(said(one, name).count(value) == 1 for value in one.turns[0].references)
            if kind["haystack"] != "needles":
                assert len(found) == kind["num_keys"] * kind["num_values"]


def needles_stand_where_their_depth_says() -> None:
    """The sentence that begins at a sample's depth has the answer."""
    made = tokenizer("embedded")
    for one in asked(*PUBLISHED["needles"], samples=6):
        if len(one.turns[0].references) > 1:
            assert one.depth is None
            continue
        assert one.depth is not None
        start = round(one.depth * len(one.context))
        sentence = made.decode(list(one.context[start : start + 160])).strip().split("\n")[0]
        assert NEEDLE.match(sentence)
        assert one.turns[0].references[0] in sentence


def chains_lead_to_the_value() -> None:
    """Following all assignments from the value that is asked for leads to the variables of the answer and no others."""
    for name in TOKENS:
        for one in asked("vt", name=name):
            value = re.search(r"assigned the value (\d+) in", question(one, name))
            assert value
            reached: list[str] = []
            pairs = re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", said(one, name))
            while more := [left for left, right in pairs if right in {value[1], *reached} and left not in reached]:
                reached += more
            assert tuple(reached) == one.turns[0].references
            assert len(reached) == 5
            assert "they are:" in said(one, name), "a solved one comes first"


def words_that_are_asked_for_are_the_most_common() -> None:
    """Counted in the list and in the coded text; the list is numbered from 1 on, the others are all less common."""
    for name, tokens in {**TOKENS, "embedded": 5000}.items():
        for one in asked("cwe", "fwe", name=name, prompt_tokens=tokens):
            body = said(one, name).split("often.\n")[-1] if one.task == "cwe" else said(one, name).split("words. ")[1]
            words = body.split()
            if one.task == "cwe":
                assert words[::2] == [f"{number}." for number in range(1, len(words) // 2 + 1)]
                counts = Counter(words[1::2])
                usual = PUBLISHED["cwe"]["below" if tokens < 4096 else "from"]
                assert set(counts.values()) == {usual["common"], usual["others"]}
            else:
                counts = Counter(word for word in words if word != "...")
                share = Counter(words)["..."] / len(words)
                assert abs(share - 6 / math.pi**2) < 0.1, "the most frequent kind is noise"
            answer = one.turns[0].references
            assert {word for word, _ in counts.most_common(len(answer))} == set(answer)
            assert min(counts[word] for word in answer) > max(counts[word] for word in set(counts) - set(answer))


def documents_are_numbered_and_hold_what_is_asked_for() -> None:
    """Every question's own documents are there, each document once, in the numbers' order."""
    stories = {one["question"]: one for one in json.loads(Path(files()["hotpotqa"]).read_text())}
    for one in asked("qa_1", "qa_2"):
        parts = re.split(r"\n\nDocument (\d+):\n", said(one))
        assert parts[1::2] == [str(number) for number in range(1, len(parts) // 2 + 1)]
        assert len(set(parts[2::2])) == len(parts[2::2])
        what = question(one).split("Question: ")[1].removesuffix(" Answer:")
        assert one.metric == "contains_any"
        if one.task == "qa_2":
            assert one.turns[0].references == (stories[what]["answer"],)
            assert {f"{title}\n{''.join(said)}" for title, said in stories[what]["context"]} <= set(parts)
        else:
            thing = what.removeprefix("Which number has thing ").removesuffix("?")
            assert f"Thing {thing} has the number {one.turns[0].references[0]}." in said(one)
            assert one.depth is not None
            place = said(one).index(f"Thing {thing}") / len(said(one))
            assert abs(place - one.depth) < 0.05


def marked_keys_have_the_values_that_are_the_answers() -> None:
    """In the notation of the embedded models: each key that is asked for stands once, its value behind it."""
    tasks, made = held().tasks, tokenizer("embedded")
    assert tasks is not None
    for one in marks(samples=5):
        assert len(one.turns) == PUBLISHED["needles"][one.task]["num_asked"]
        for turn in one.turns:
            *mark, key = turn.question
            assert tuple(mark) == tasks.question_mark
            lead = (*tasks.pair_mark, key)
            places = [at for at in range(len(one.context)) if one.context[at : at + len(lead)] == lead]
            assert len(places) == 1
            assert turn.references == (made.decode([one.context[places[0] + len(lead)]]),)
            if len(one.turns) == 1:
                assert one.depth == places[0] / len(one.context)
        pairs = said(one).count("\n@ ")
        if one.task == "niah_multikey_2":
            assert len(one.context) == 1 + pairs * (len(tasks.pair_mark) + 2)
            assert 0 <= 300 - one.longest < len(tasks.pair_mark) + 2
        else:
            assert pairs >= PUBLISHED["needles"][one.task]["num_keys"]
        assert (PUBLISHED["noise"] in said(one)) == (one.task == "niah_single_1")


def a_piece_of_text_has_no_space_before_it() -> None:
    """A tokenizer that begins each text with a space writes pieces that are put together without one."""
    made = tokenizer("spaced")
    assert made.decode(made.encode("a", add_special_tokens=False) * 2) == "a a"
    for left, right in (("The pass", " key"), ("pa", "ss"), ("key\n", "\nis"), ("is", "."), ("", "\n\n")):
        assert made.decode([*written(made, f"-{left}"), *written(made, right)]) == f"-{left}{right}"


def recall_asks_what_its_samples_do() -> None:
    """A conversation of the recall workload has its sample's context, question and answer, and says where it lies."""
    tasks, made = held().tasks, tokenizer("embedded")
    assert tasks is not None
    settings: dict[str, Any] = {"prompt_tokens": 200, "pairs": 4, "samples": 6, "batch_size": 2, "reference": "none"}
    for task in ("key_value", "passkey"):
        for aware in (False, True):
            recall = Recall(task=task, question_in_cache=aware, **settings)
            both = zip(recall.conversations(held()), draw(tasks, task, 6, 200, 4, held().seed, aware), strict=True)
            for one, sample in both:
                turn, answer = one.turns[0], sample.ids[sample.spans[-1].start :]
                assert (*one.context, *turn.question, *answer) == sample.ids
                assert turn.references == (made.decode(list(answer)),)
                assert turn.new_tokens == len(answer)
                assert one.score_of(made.decode(list(answer)), turn) == 1.0
                assert one.depth is not None
                start = round(one.depth * len(one.context))
                assert f"{turn.references[0]}" in made.decode(list(one.context[start : start + 16]))
                assert one.context[start : start + 2] in (tasks.pair_mark[:2], tasks.passkey_lead[:2])
