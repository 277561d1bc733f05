"""Tokenizers, texts, small files and settings to hide things with."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvbench.models.spec import TINY
from kvbench.workloads.asked import Conversation
from kvbench.workloads.niah import Niah
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.ruler.desk import PUBLISHED
from kvbench.workloads.ruler.marks import MARKED
from kvbench.workloads.ruler.workload import TASKS, Ruler
from kvbench.workloads.source import TokenSource

NIAH: dict[str, Any] = {
    "task": "niah",
    "path": "",
    "filler": "",
    "intro": "",
    "needle": "\nThe pass key is {key}.\n",
    "question": "\nThe pass key is",
    "key": "# # # # #",
    "lengths": (0.25, 0.6, 1.0),
    "depths": (0.0, 0.3, 0.5, 1.0),
    "prompt_tokens": 700,
    "new_tokens": 16,
    "chat": "auto",
    "samples": 2,
    "batch_size": 4,
    "question_in_cache": False,
    "reference": "none",
}
PASSKEY: dict[str, Any] = {
    "task": "passkey",
    "filler": PUBLISHED["noise"],
    "intro": "There is an important info hidden inside a lot of irrelevant text.",
    "needle": "\nThe pass key is {key}. Remember it. {key} is the pass key.\n",
    "question": "\nWhat is the pass key? The pass key is",
    "key": "#####",
}
TOKENS = {"embedded": 1536, "bytes": 4000, "words": 2500}  # in which every task fits, with each tokenizer
IN_TEXT = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")


def text() -> str:
    """Return the held-out text."""
    return (TINY / "held_out.txt").read_text(encoding="utf-8")


@cache
def tokenizer(name: str) -> Any:
    """Return the embedded tokenizer, one of bytes, of the text's words, or of letters with a space before each text."""
    if name == "embedded":
        return AutoTokenizer.from_pretrained(TINY)
    letters = sorted({chr(code) for code in range(32, 127)} | set("\n\t\u2581") | set(text()))
    if name == "bytes":
        alphabet = {letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    elif name == "words":
        known = ["<s>", *dict.fromkeys([*letters, *re.findall(r"[A-Za-z]+", text())])]
        vocabulary = {word: at for at, word in enumerate(known)}
        made = Tokenizer(models.WordPiece(vocabulary, unk_token="<s>", continuing_subword_prefix=""))
        made.pre_tokenizer = pre_tokenizers.Split(Regex("[A-Za-z]+|[^A-Za-z]"), behavior="isolated")
        made.decoder = decoders.Fuse()
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    else:
        made = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        made.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=made)


def source(name: str = "embedded", seed: int = 0, running: str = "") -> TokenSource:
    """Return a source of running text, which is the held-out one where none is given."""
    made = tokenizer(name)
    ids = tuple(made.encode(running or text(), add_special_tokens=False))
    prefix = tuple(made("").input_ids)
    tasks = RecallTasks.build(made, ids) if name == "embedded" and not running else None
    return TokenSource(
        prefix=prefix, text=ids, vocabulary=len(made), seed=seed, name="a text", tasks=tasks, tokenizer=made
    )


held = cache(source)


def niah(**changed: Any) -> Niah:
    """Return a grid with some settings changed."""
    return Niah(**NIAH | changed)


@cache
def files() -> dict[str, str]:
    """Return small files of SQuAD's form and of HotpotQA's, whose documents are as long as each other."""
    folder, rng = Path(mkdtemp()), random.Random(0)

    def document(subject: str) -> str:
        return f"{subject} has the number {rng.randrange(10**9, 10**10)}." + " It is so." * 4

    articles = [
        {
            "paragraphs": [
                {
                    "context": (said := document(f"Thing {article}{paragraph:02}")),
                    "qas": [
                        {
                            "question": f"Which number has thing {article}{paragraph:02}?",
                            "answers": [{"text": said.split("number ")[1][:10]}],
                            "is_impossible": False,
                        },
                        {"question": "Which letter?", "answers": [], "is_impossible": True},
                    ],
                }
                for paragraph in range(30)
            ]
        }
        for article in range(3)
    ]
    stories = [
        {
            "question": f"Which number has thing {at:02}?",
            "answer": "no",
            "context": [[f"Title {at:02}{other}", [document(f"Thing {at:02}{other}"), " Yes."]] for other in range(3)],
        }
        for at in range(30)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    (folder / "hotpotqa.json").write_text(json.dumps(stories))
    return {"squad": str(folder / "squad.json"), "hotpotqa": str(folder / "hotpotqa.json")}


def ruler(**changed: Any) -> Ruler:
    """Return all tasks of RULER as published, with some settings changed."""
    settings: dict[str, Any] = {
        "tasks": TASKS,
        "wording": "published",
        "path": "",
        **files(),
        "prompt_tokens": TOKENS["embedded"],
        "samples": 3,
        "batch_size": 1,
        "chat": "auto",
        "question_in_cache": False,
        "reference": "none",
    }
    return Ruler(**settings | changed)


def asked(*tasks: str, name: str = "embedded", seed: int = 0, **changed: Any) -> list[Conversation]:
    """Return samples of some tasks with a tokenizer, in which they all fit."""
    settings = {"prompt_tokens": TOKENS[name], **({"tasks": tasks} if tasks else {}), **changed}
    return ruler(**settings).conversations(held(name, seed))


def marks(**changed: Any) -> list[Conversation]:
    """Return samples in the marks of the embedded models."""
    return asked(*MARKED, **{"wording": "marks", "prompt_tokens": 300, **changed})


def said(one: Conversation, name: str = "embedded") -> str:
    """Return a context as text, without what its tokenizer puts before every text."""
    return str(tokenizer(name).decode(list(one.context[len(held(name).prefix) :])))


def question(one: Conversation, name: str = "embedded") -> str:
    """Return the first question as text."""
    return str(tokenizer(name).decode(list(one.turns[0].question)))


def plain(name: str, words: str) -> int:
    """Return the tokens of a piece of text."""
    return len(tokenizer(name).encode(words, add_special_tokens=False))


def tables(folder: Path) -> dict[str, Path]:
    """Return the same files as the hub has them, by data set."""
    squad, stories = (json.loads(Path(files()[name]).read_text()) for name in ("squad", "hotpotqa"))
    rows = {
        "rajpurkar/squad_v2": [
            {
                "id": "0",
                "title": f"Article {at}",
                "context": paragraph["context"],
                "question": one["question"],
                "answers": {"text": [said["text"] for said in one["answers"]], "answer_start": []},
            }
            for at, article in enumerate(squad["data"])
            for paragraph in article["paragraphs"]
            for one in paragraph["qas"]
        ],
        "hotpotqa/hotpot_qa": [
            {
                **one,
                "context": {
                    "title": [title for title, _ in one["context"]],
                    "sentences": [said for _, said in one["context"]],
                },
            }
            for one in stories
        ],
    }
    for dataset, said in rows.items():
        pq.write_table(pa.Table.from_pylist(said), folder / f"{dataset.split('/')[1]}.parquet")
    return {dataset: folder / f"{dataset.split('/')[1]}.parquet" for dataset in rows}
