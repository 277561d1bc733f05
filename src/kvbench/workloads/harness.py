"""EleutherAI's lm-evaluation-harness: what its tasks ask, and what they make of an answer.

All that is known of that package is here, and it is imported once its tasks are asked for. Requests are built as its
`simple_evaluate` builds them, with its seeds; answers go through the filters and the metric of their task.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import metadata
from numbers import Real
from typing import Any

import numpy as np

OLDEST = (0, 4, 13)  # release, which is the one that was tested
INSTALL = "pip install 'lm-eval>=0.4.13,<0.5', or kvbench with its extra [lm_eval]"
GENERATES = "generate_until"
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is set counts
_MOST = 256  # tokens of an answer where none is
_UNREAD = {"until", "do_sample", "temperature", "top_p", "top_k", *_LIMITS}  # the others change greedy choices
_SEED, _OTHER_SEED = 0, 1234  # of Python's generator, and of numpy's and of what draws examples
_LEAVE = "leave it out of workload.tasks."

Chat = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class HarnessScore:
    """What a task makes of answers to one of its requests; equal for the same request, metric and filter.

    Args:
        task: its name.
        number: of the document.
        metric: of those that the task gives.
        through: the filter that answers go through.
        maker: the task itself.
        request: the harness' own record of it.
    """

    task: str
    number: int
    metric: str
    through: str
    maker: Any = field(compare=False, repr=False)
    request: Any = field(compare=False, repr=False)

    def __call__(self, answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
        """Return the score of an answer; what is right, the task knows."""
        value = self.results(answer)[self.metric]
        if not (_is_number(value) and 0 <= value <= 1):
            raise ValueError(
                f"{self.metric} of {self.task} is {value!r} for an answer, and scores are from 0 to 1; set "
                f"workload.metric to another of its metrics, or leave the task out of workload.tasks."
            )
        return float(value)

    def results(self, answer: str) -> Mapping[str, Any]:
        """Return all metrics of an answer."""
        request = deepcopy(self.request)  # a task may write into what it scores
        request.resps = [answer] * request.repeats  # whoever is greedy says the same again
        request.filtered_resps = {}
        next(each for each in self.maker._filters if each.name == self.through).apply([request])
        found: Mapping[str, Any] = self.maker.process_results(request.doc, [request.filtered_resps[self.through]])
        return found


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request of a task.

    Args:
        text: all that is read before the answer.
        until: texts that end it.
        new_tokens: most tokens of it.
        targets: what the task calls right, for the record.
        score: of an answer.
    """

    text: str
    until: tuple[str, ...]
    new_tokens: int
    targets: tuple[str, ...]
    score: HarnessScore


def missing() -> str | None:
    """Return what has to be installed first and how, or None."""
    try:
        installed = metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        return f"lm-eval is not installed: {INSTALL}"
    release = tuple(int(part) for part in installed.split(".")[:3] if part.isdecimal())
    return None if release >= OLDEST else f"lm-eval {installed} is older than 0.4.13: {INSTALL}"


def read(
    path: str, names: Sequence[str], *, num_fewshot: int, samples: int, metric: str, chat: Chat | None
) -> tuple[Prompt, ...]:
    """Return the first requests of each task, task by task.

    Args:
        path: folder of task yamls; "" for the harness' own.
        names: of tasks, groups or tags.
        num_fewshot: examples in each prompt; negative for what the tasks say.
        samples: documents of each task.
        metric: "" for a task's first, or a name, or name,filter as the harness writes them.
        chat: writes messages as a chat; None leaves them as text.

    Raises:
        ValueError: that names the key to change, if a task cannot be asked or scored here.
    """
    reason = missing()
    if reason is not None:
        raise ValueError(f"workload=lm_eval needs a package: {reason}.")
    random.seed(_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: NPY002  what tasks may draw from
    with redirect_stderr(io.StringIO()):  # progress of its own
        tasks = _loaded(path, names)
        return tuple(
            prompt
            for name, task in tasks.items()
            for prompt in prompts(name, task, num_fewshot=num_fewshot, samples=samples, metric=metric, chat=chat)
        )


def _loaded(path: str, names: Sequence[str]) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=path or None, include_defaults=not path)
    unknown = [name for name in names if name not in manager.task_index]
    if unknown:
        known = (
            f"{path} has {', '.join(manager.all_tasks) or 'none'}"
            if path
            else "lm-eval ls tasks lists the harness' own"
        )
        raise ValueError(f"workload.tasks has {', '.join(unknown)}, which is no task; {known}.")
    for name in names:  # before its data is fetched
        refuse_likelihood(name, (manager.task_index[name].cfg or {}).get("output_type", GENERATES))
    try:
        found: dict[str, Any] = manager.load(list(names))["tasks"]
    except OSError as error:
        raise ValueError(
            f"data of workload.tasks=[{','.join(names)}] is not in the local cache and cannot be fetched "
            f"({type(error).__name__}: {error}). Run it once where there is a network, or set workload.path=<folder of "
            f"task yamls over data that is here>."
        ) from error
    return found


def refuse_likelihood(name: str, output_type: object) -> None:
    """Refuse a task that never reads a compressed cache."""
    if output_type != GENERATES:
        raise ValueError(
            f"{name} compares likelihoods (output_type: {output_type}). The harness takes them from one pass over "
            f"prompt and answer together, which reads no cache: every strategy would score the same. Set "
            f"workload.tasks to tasks that generate (output_type: {GENERATES}); workload=perplexity reads a text "
            f"through the cache."
        )


def prompts(
    name: str, task: Any, *, num_fewshot: int, samples: int, metric: str, chat: Chat | None
) -> Iterator[Prompt]:
    """Yield the first requests of a task."""
    refuse_likelihood(name, task.OUTPUT_TYPE or task.get_config("output_type"))
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"{name} runs code that a model has written, which is not done here; {_LEAVE}")
    _set_examples(name, task, num_fewshot)
    task.set_fewshot_seed(seed=_OTHER_SEED)
    task.build_all_requests(
        limit=samples, apply_chat_template=chat is not None, fewshot_as_multiturn=chat is not None, chat_template=chat
    )
    requests = task.instances
    if len({request.doc_id for request in requests}) < len(requests):
        raise ValueError(f"{name} asks several requests of one document, which are scored together; {_LEAVE}")
    for index, request in enumerate(requests):
        made = _prompt(name, task, request, metric)
        if index == 0:
            _check_metric(made.score, made.targets[0])
        yield made


def _set_examples(name: str, task: Any, num_fewshot: int) -> None:
    said = task.get_config("num_fewshot")
    if num_fewshot < 0:
        task.set_config(key="num_fewshot", value=said or 0)
    elif said == 0 < num_fewshot:
        raise ValueError(f"{name} is to be asked without examples; set workload.num_fewshot=-1, for what tasks say.")
    else:
        task.set_config(key="num_fewshot", value=num_fewshot)


def _prompt(name: str, task: Any, request: Any, metric: str) -> Prompt:
    refuse_likelihood(name, request.request_type)
    text, settings, *more = request.args
    if more or not isinstance(text, str):
        raise ValueError(f"{name} asks about more than a text; {_LEAVE}")
    _check_greedy(name, settings)
    until = settings.get("until") or []
    target = task.doc_to_target(request.doc)
    return Prompt(
        text=text,
        until=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
        new_tokens=next((int(settings[key]) for key in _LIMITS if settings.get(key) is not None), _MOST),
        targets=tuple(map(str, target if isinstance(target, list | tuple) else [target])) or ("",),
        score=_score(name, task, request, metric),
    )


def _check_greedy(name: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings under which an answer would not be the likeliest token each time."""
    warm = float(settings.get("temperature") or 0) > 0
    samples = settings.get("do_sample")
    changed = {key for key in settings if key not in _UNREAD and (key, settings[key]) != ("num_beams", 1)}
    if samples and settings.get("temperature") != 0:
        changed.add("do_sample")
    if warm and samples is None:
        changed.add("temperature")
    if changed:
        listed = ", ".join(f"{key}={settings[key]}" for key in sorted(changed))
        raise ValueError(
            f"{name} generates with {listed}, but answers here are greedy. To ask it so, copy its yaml without that in "
            f"generation_kwargs and set workload.path=<the copy's folder>; or {_LEAVE}"
        )


def _score(name: str, task: Any, request: Any, metric: str) -> HarnessScore:
    wanted, _, through = metric.partition(",")
    filters = [each.name for each in task._filters]
    if through and through not in filters:
        raise ValueError(f"workload.metric={metric}: {name} has no filter {through}; it has {', '.join(filters)}.")
    return HarnessScore(
        task=name,
        number=request.doc_id,
        metric=wanted or next(iter(task.aggregation()), ""),
        through=through or filters[0],
        maker=task,
        request=request,
    )


def _check_metric(score: HarnessScore, target: str) -> None:
    """Refuse a metric that is not a score of each answer, averaged; seen by what it makes of a right one."""
    found = score.results(target)
    if score.metric not in found:
        raise ValueError(
            f"workload.metric={score.metric or repr('')}: {score.task} has {', '.join(found) or 'no metric'}."
        )
    average = score.maker.aggregation().get(score.metric)
    is_mean = _is_number(found[score.metric]) and (average is None or abs(average([0.0, 0.0, 0.0, 1.0]) - 0.25) < 1e-9)
    if not is_mean or not score.maker.higher_is_better().get(score.metric, True):
        why = "is better the lower it is" if is_mean else "is of all answers together, not the mean of a score of each"
        raise ValueError(
            f"{score.metric} of {score.task} {why}: strategies are compared answer by answer, and more is better. Set "
            f"workload.metric to another of {', '.join(found)}; or {_LEAVE}"
        )
    score(target, (), ())


def _is_number(value: object) -> bool:
    return isinstance(value, Real | np.bool_)
