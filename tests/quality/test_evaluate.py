"""Quality is measured through the cache, and equals what a plain forward says where nothing left."""

from __future__ import annotations

import pytest
import torch

from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.load import Loaded, load
from kvbench.quality import Quality
from kvbench.quality.evaluate import Likelihood, bits_per_byte, likelihood, recall
from kvbench.strategies.base import CacheStrategy
from kvbench.types import Sample, Span
from tests.mutants import quality as mutants
from tests.support.small import spec

CONTEXT, SCORED = 40, 12


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Three windows of random ids."""
    return torch.randint(5, 200, (3, CONTEXT + 1 + SCORED), generator=torch.Generator().manual_seed(1))


def scaled(attention: str) -> Loaded:
    """Return a small model whose attention is far from uniform."""
    loaded = load(spec(), seed=0, attention=attention)
    for name, parameter in loaded.model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.mul_(8)
    return loaded


def arm(built: CacheStrategy) -> Arm:
    """Return a strategy on that model."""
    loaded = scaled(ATTENTION)
    return Arm(name="arm", model=loaded.model, view=loaded.view, strategy=built, engine=Eager(prefill_chunk=0))


def judged(built: CacheStrategy, windows: torch.Tensor) -> Likelihood:
    """Judge a strategy beside the full cache."""
    with torch.no_grad():
        arms = (arm(built), arm(strategy("baseline")))
        return likelihood(arms, windows, context=CONTEXT, batch_size=2, progress=lambda share: None)


def plain_nll(windows: torch.Tensor) -> float:
    """Return the same sum from one stock forward per window."""
    model = scaled("sdpa").model
    with torch.no_grad():
        logits = model(windows, use_cache=False).logits[:, CONTEXT:-1].double().log_softmax(-1)
    return -float(logits.gather(2, windows[:, CONTEXT + 1 :, None]).sum())


def plain_rank(windows: torch.Tensor) -> int:
    """Return the sum of the true tokens' places among all tokens, the most likely first."""
    with torch.no_grad():
        logits = scaled("sdpa").model(windows, use_cache=False).logits[:, CONTEXT:-1]
    places = logits.argsort(dim=-1, descending=True) == windows[:, CONTEXT + 1 :, None]
    return int((places.int().argmax(dim=-1) + 1).sum())


def check_full(found: Likelihood, windows: torch.Tensor) -> None:
    """Fail unless this is what the full cache must say."""
    assert found.tokens == 3 * SCORED
    assert found.rank == [plain_rank(windows)] * 2
    assert found.nll[0] == pytest.approx(plain_nll(windows), rel=1e-5)
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.agree == found.tokens
    assert found.difference == 0


def test_full_cache_equals_one_stock_forward_and_itself(windows: torch.Tensor) -> None:
    check_full(judged(strategy("baseline"), windows), windows)


def test_full_cache_check_catches_tokens_off_by_one(windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Likelihood, "add", mutants.off_by_one(Likelihood.add))
    with pytest.raises(AssertionError):
        check_full(judged(strategy("baseline"), windows), windows)


def test_a_small_cache_costs_likelihood_and_diverges(windows: torch.Tensor) -> None:
    found = judged(strategy("sliding_window", budget={"amount": 4, "unit": "tokens"}), windows)
    assert found.nll[1] == pytest.approx(plain_nll(windows), rel=1e-5)
    assert found.kl > 0.01
    assert found.agree < found.tokens
    assert found.difference > 0.01


def test_recall_counts_only_whole_answers_asked_after_compression() -> None:
    ids = torch.randint(5, 200, (CONTEXT,), generator=torch.Generator().manual_seed(2)).tolist()
    mine, stock = arm(strategy("baseline")), scaled("sdpa").model
    prompt, question = ids[:-2], ids[-2:]
    with torch.no_grad():
        first = stock(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item()
        second = stock(torch.tensor([[*ids, first]]), use_cache=False).logits[0, -1].argmax().item()

    def sample(*answer: int) -> Sample:
        stops = [0, len(prompt), len(ids), len(ids) + len(answer)]
        kinds = ("context", "question", "answer")
        spans = [Span(kind=k, start=a, stop=b) for k, a, b in zip(kinds, stops, stops[1:], strict=False)]  # type: ignore[arg-type]
        return Sample(ids=(*prompt, *question, *answer), spans=tuple(spans))

    samples = [sample(first, second), sample(first, second + 1), sample(first + 1, second), sample(first, second)]
    with torch.no_grad():
        share = recall(mine, samples, question_in_cache=False, batch_size=3, progress=lambda share: None)
    assert share == 0.5


def test_bits_per_byte_of_one_nat_per_two_bytes() -> None:
    assert bits_per_byte(1.0, 2) == pytest.approx(0.7213475)


@pytest.mark.parametrize(
    ("key", "number", "message"),
    [
        ("text_windows", -1, r"quality\.text_windows and quality\.recall_samples"),
        ("recall_samples", -1, r"quality\.text_windows and quality\.recall_samples"),
        ("attention_tokens", 16, r"quality\.attention_tokens must be 0 \(none\) or more than the 16 .* got 16"),
    ],
)
def test_numbers_that_mean_nothing_name_the_key(key: str, number: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quality(**{key: number})


def test_the_longest_window_is_that_of_what_is_asked() -> None:
    assert quality(text_windows=1, context_tokens=40, scored_tokens=8, attention_tokens=30).longest_window == 49
    assert quality(text_windows=1, context_tokens=40, scored_tokens=8, attention_tokens=50).longest_window == 50
    assert quality(text_windows=0, context_tokens=40, scored_tokens=8, attention_tokens=0).longest_window == 0


def quality(**changes: int) -> Quality:
    """Return what is asked, little of it."""
    least = {"context_tokens": 1, "scored_tokens": 1, "recall_tokens": 1, "pairs": 1, "batch_size": 1}
    return Quality(**{"text_windows": 0, "recall_samples": 0, "attention_tokens": 0, **least, **changes})
