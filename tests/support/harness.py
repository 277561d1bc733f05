"""Oracles of the harness' tasks, on a task that stands in for one: what is asked, and who scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any
from unittest.mock import patch

from kvbench.models.spec import TINY
from kvbench.workloads import harness, lm_eval
from kvbench.workloads.asked import Conversation
from kvbench.workloads.lm_eval import LmEval
from kvbench.workloads.source import TokenSource

DOCS = [{"q": f"Is it {word}?", "a": word} for word in ("warm", "cold", "dry", "wet")]
SETTINGS: dict[str, Any] = {
    "tasks": ("weather",),
    "path": "",
    "num_fewshot": -1,
    "metric": "",
    "prompt_tokens": 64,
    "samples": 3,
    "new_tokens": 16,
    "chat": "auto",
    "batch_size": 1,
    "reference": "none",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last or add_generation_prompt %}"
    "<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% if enable_thinking is not defined %}"
    "<think>{% endif %}{% endif %}"
)


@dataclass
class Request:
    """What the harness keeps of one request."""

    doc: dict[str, str]
    args: tuple[Any, ...]
    doc_id: int
    repeats: int = 1
    request_type: str = "generate_until"
    resps: list[str] = field(default_factory=list)
    filtered_resps: dict[str, Any] = field(default_factory=dict)


@dataclass
class Filter:
    """One way from answers to what is scored."""

    name: str
    made: Callable[[list[str]], Any]

    def apply(self, requests: Sequence[Request]) -> None:
        for request in requests:
            request.filtered_resps[self.name] = self.made(request.resps)


def first_word(answers: list[str]) -> str:
    """Return the first word of the first answer."""
    return (answers[0].split() or [""])[0]


def counted(answers: list[str]) -> str:
    """Return how many answers there are, and the first one."""
    return f"{len(answers)} {answers[0]}"


class Weather:
    """A task of questions about the weather.

    Args:
        config: what differs from one that is asked without examples.
        settings: of its generation.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None, **config: Any) -> None:
        self.config = {"num_fewshot": None, "output_type": "generate_until", "prefix": "", "repeats": 1} | config
        self.OUTPUT_TYPE = self.config["output_type"]
        self.settings = {"until": ["\n"], "do_sample": False} if settings is None else settings
        self._filters = [
            Filter("word", first_word),
            Filter("whole", lambda answers: answers[0]),
            Filter("all", counted),
        ]
        self.instances: list[Request] = []
        self.drawn = random.Random()

    def get_config(self, key: str) -> Any:
        return self.config[key]

    def set_config(self, *, key: str, value: Any) -> None:
        self.config[key] = value

    def set_fewshot_seed(self, *, seed: int) -> None:
        self.drawn = random.Random(seed)

    def examples(self, count: int) -> list[dict[str, str]]:
        return [DOCS[self.drawn.randrange(len(DOCS))] for _ in range(count)]

    def build_all_requests(
        self, *, limit: int, apply_chat_template: bool, fewshot_as_multiturn: bool, chat_template: Any
    ) -> None:
        assert apply_chat_template == fewshot_as_multiturn == (chat_template is not None)
        self.instances = []
        for number, doc in enumerate(DOCS[:limit]):
            shown = [(each["q"], each["a"]) for each in self.examples(self.config["num_fewshot"])]
            if chat_template is None:
                text = "".join(f"{q} {a}\n\n" for q, a in shown) + doc["q"] + self.config["prefix"]
            else:
                told = [
                    {"role": role, "content": said} for pair in shown for role, said in zip(ROLES, pair, strict=True)
                ]
                told.append({"role": "user", "content": doc["q"]})
                told += [{"role": "assistant", "content": self.config["prefix"]}] if self.config["prefix"] else []
                text = chat_template(told, add_generation_prompt=not self.config["prefix"])
            self.instances.append(Request(dict(doc), (text, self.settings), number, self.config["repeats"]))

    def doc_to_target(self, doc: Mapping[str, str]) -> str | list[str]:
        return doc["a"]

    def process_results(self, doc: dict[str, str], results: list[str]) -> dict[str, Any]:
        (said,), right = results, doc.pop("a")  # a task may write into what it scores
        return {
            "same": said == right,
            "begins": sum(one == other for one, other in zip(said, right, strict=False)) / len(right),
            "said": float(said == f"{self.config['repeats']} {right}"),
            "wrong": float(said != right),
            "percent": 100.0 * (said == right),
            "bleu": (right, said),
            "scaled": float(said == right),
        }

    def aggregation(self) -> dict[str, Callable[[Any], float]]:
        return {
            "same": fmean,
            "begins": fmean,
            "wrong": fmean,
            "bleu": len,
            "scaled": lambda values: 100 * fmean(values),
        }

    def higher_is_better(self) -> dict[str, bool]:
        return {"same": True, "wrong": False}


ROLES = ("user", "assistant")


def source(template: str | None = None) -> TokenSource:
    """Return the embedded model's tokenizer as a source, with a chat template or without."""
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(TINY)
    made.chat_template = template
    prefix = tuple(made("").input_ids)
    return TokenSource(prefix=prefix, text=(), vocabulary=len(made), seed=0, name="", tasks=None, tokenizer=made)


@contextmanager
def standing_in(**tasks: Any) -> Iterator[None]:
    """Have tasks in place of the harness' own."""
    lm_eval._prompts.cache_clear()
    with patch.object(harness, "_loaded", lambda path, names: tasks), patch.object(harness, "missing", lambda: None):
        yield
    lm_eval._prompts.cache_clear()


def asked(task: Any, template: str | None = None, **settings: Any) -> list[Conversation]:
    """Return what is asked of a task."""
    with standing_in(weather=task):
        return LmEval(**SETTINGS | settings).conversations(source(template))


def texts(made: Sequence[Conversation]) -> list[str]:
    """Return the prompts of conversations, context and question together."""
    read = source().tokenizer
    return [read.decode([*one.context, *one.turns[0].question]) for one in made]


def all_of_a_prompt_but_its_last_token_is_compressed() -> None:
    made, read = asked(Weather()), source()
    assert [one.task for one in made] == ["weather"] * 3
    for one, doc in zip(made, DOCS, strict=False):
        (turn,) = one.turns
        assert (*one.context, *turn.question) == (
            *read.prefix,
            *read.tokenizer.encode(doc["q"], add_special_tokens=False),
        )
        assert len(turn.question) == 1
        assert turn.references == (doc["a"],)
    assert texts(made)[0] == "<s>Is it warm?"


def answers_end_where_the_task_says() -> None:
    for settings, until, most in (
        ({"until": ["\n", "", "Q:"], "max_gen_toks": 9}, ("\n", "Q:"), 9),
        ({"until": "\n\n", "max_new_tokens": "40", "temperature": 0, "do_sample": True}, ("\n\n",), 16),
        ({"max_tokens": 5, "max_gen_toks": None, "top_p": 0.9, "num_beams": 1}, (), 5),
        ({}, (), 16),
    ):
        (turn,) = asked(Weather(settings))[0].turns
        assert (turn.until, turn.new_tokens) == (until, most)
    assert asked(Weather({}), new_tokens=1000)[0].turns[0].new_tokens == 256


def answers_are_scored_by_the_tasks_filter_and_metric() -> None:
    for metric, answer, score in (
        ("", "warm and dry", 1.0),
        ("", "so warm", 0.0),
        ("same,whole", "warm and dry", 0.0),
        ("same,whole", "warm", 1.0),
        ("begins", "wary", 0.75),
        ("begins,whole", " warm", 0.0),
        ("said,all", "warm", 1.0),
    ):
        (one, *_) = asked(Weather(repeats=3), metric=metric)
        for _ in range(2):  # the same when asked again
            found = one.score_of(answer, one.turns[0])
            assert (found, type(found)) == (score, float), (metric, answer)


def conversations_are_equal_where_they_ask_and_score_the_same() -> None:
    assert asked(Weather()) == asked(Weather())
    first, *rest = asked(Weather())
    assert first.metric not in [one.metric for one in (*rest, *asked(Weather(), metric="begins"))]
    assert first.metric != asked(Weather(), metric="same,whole")[0].metric


def examples_are_as_many_as_are_said() -> None:
    for said, wanted, found in ((None, -1, 0), (2, -1, 2), (2, 1, 1), (2, 0, 0), (None, 3, 3), (0, 0, 0), (0, -1, 0)):
        made = asked(Weather(num_fewshot=said), num_fewshot=wanted)
        assert {text.count("\n\n") for text in texts(made)} == {found}, (said, wanted)


def examples_are_the_harness_own_draw() -> None:
    drawn = random.Random(1234)
    shown = [[DOCS[drawn.randrange(4)] for _ in range(2)] for _ in range(3)]
    made = texts(asked(Weather(num_fewshot=2)))
    assert made == texts(asked(Weather(num_fewshot=2)))
    for text, doc, examples in zip(made, DOCS, shown, strict=False):
        assert text == "<s>" + "".join(f"{each['q']} {each['a']}\n\n" for each in examples) + doc["q"]


def chats_are_written_by_the_template() -> None:
    (first, *_) = texts(asked(Weather(num_fewshot=1), TEMPLATE, samples=1))
    shown = DOCS[random.Random(1234).randrange(4)]
    assert first == (f"<s><user>{shown['q']}<end><assistant>{shown['a']}<end><user>Is it warm?<end><assistant>")
    begun = Weather(prefix="It is")
    assert texts(asked(begun, TEMPLATE))[0] == "<s><user>Is it warm?<end><assistant>It is"
    assert texts(asked(begun, TEMPLATE, chat="never"))[0] == "<s>Is it warm?It is"
    assert texts(asked(begun))[0] == "<s>Is it warm?It is"
