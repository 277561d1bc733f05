"""A recommendation as people read it: one sentence, the candidates, and what nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvbench.results.candidates import Candidate, Recommendation, Wanted
from kvbench.results.cells import NOTHING
from kvbench.results.labels import bytes_text
from kvbench.results.notes import Note

FEW = 12  # names that are worth a line
_SPARE = ("of it KV", "known", "interval")  # columns, those that are missed least first
_WIDE = 10_000
_BEST = {
    "speed": "has the fastest step, and where steps do not differ takes the least memory",
    "memory": "takes the least memory",
    "loss": "loses least",
}
_TIE = "takes the least memory, and no step was shown to be faster or slower than the full cache's"


def sentence(found: Recommendation, wanted: Wanted) -> str:
    """Return which strategy, and why."""
    known = len(found.fitting) + len(found.others)
    if not found.fitting:
        return f"none of the {known} that were measured keeps to the limits" if known else "nothing counts, see below"
    best = found.fitting[0]
    how = "modelled from" if best.is_modelled else "measured at"
    at = f"{best.row['prompt_tokens']:,} tokens, batch {best.row['batch_size']}"
    is_tie = wanted.prefer == "speed" and all(one.time == 1.0 for one in found.fitting)
    others = f"of the {len(found.fitting)} that keep to the limits it {_TIE if is_tie else _BEST[wanted.prefer]}"
    return (
        f"{best.name}: it needs {bytes_text(best.needed_bytes)} of {bytes_text(wanted.memory)} ({how} {at}), "
        f"{_loss_said(best)}, {others if len(found.fitting) > 1 else 'and nothing else keeps to the limits'}"
    )


def _loss_said(one: Candidate) -> str:
    if one.loss == 0 and one.has_interval:
        return "is what losses are measured from"
    most = "at most " if one.has_interval else ""
    return f"loses {most}{_decimals(one.loss, '')} nats per token (contexts of {one.loss_tokens:,} tokens)"


def _decimals(loss: float, sign: str = "+") -> str:
    return format(round(loss, 4) + 0.0, f"{sign}.4f")  # no zero is below zero


def print_recommendation(
    found: Recommendation, wanted: Wanted, console: Console, *, unmeasured: Sequence[str] = ()
) -> None:
    """Show which strategy and why, all candidates, and what was not measured.

    Args:
        found: what is recommended.
        wanted: the limits.
        console: to print on.
        unmeasured: strategies that there are, but not in the tree.
    """
    console.print(Text.assemble(("recommended  ", "bold"), sentence(found, wanted)), soft_wrap=True)
    if found.fitting and found.fitting[0].row["arm"] == "strategy":
        console.print(Text(f"as measured  python run.py {found.fitting[0].row['overrides']}"), soft_wrap=True)
    if found.fitting or found.others:
        console.print(Text(), _table([*found.fitting, *found.others], console), Text(), sep="\n")
    for title, text, style in [*_limits(wanted), *_doubts(found, wanted), *_unknown(found, unmeasured)]:
        console.print(Note(title, text, style))


def _table(candidates: Sequence[Candidate], console: Console) -> Table:
    """Return all candidates, without columns that say nothing, and on a narrow console without the least of them."""
    lines = [_line(rank, one) for rank, one in enumerate(candidates, 1)]
    told = [title for title in lines[0] if any(line[title] != NOTHING for line in lines)]
    spare = [title for title in _SPARE if title in told]
    while True:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for title in told:
            is_word = title in ("strategy", "known", "beyond")
            folds = title == "strategy"
            longest = max(len(word) for line in lines for word in line[title].split()) if folds else None
            justify: Literal["left", "right"] = "left" if is_word else "right"
            table.add_column(Text(title, "bold"), justify=justify, no_wrap=not folds, min_width=longest)
        for line, one in zip(lines, candidates, strict=True):
            table.add_row(*(line[title] for title in told), style="dim" if one.beyond else "")
        needed = Measurement.get(console, console.options.update(width=_WIDE), table).minimum
        if not spare or needed <= console.width:
            return table
        told.remove(spare.pop(0))


def _line(rank: int, one: Candidate) -> dict[str, str]:
    """Return what the table says of a candidate, by the column."""
    timed = one.timed if one.tells_time else None
    return {
        "": NOTHING if one.beyond else str(rank),
        "strategy": one.name,
        "needs": bytes_text(one.needed_bytes),
        "of it KV": bytes_text(one.kv_bytes),
        "known": "modelled" if one.is_modelled else "measured",
        "loss": f"{'<= ' if one.has_interval and one.loss else ''}{_decimals(one.loss)}",
        "behind": NOTHING if one.loss == 0 and one.has_interval else f"{one.loss_tokens:,}",
        "step": NOTHING if timed is None else f"{timed['ratio']:.3f}",
        "interval": NOTHING if timed is None else f"[{timed['ratio_low']:.3f}, {timed['ratio_high']:.3f}]",
        "beyond": ", ".join(one.beyond) or NOTHING,
    }


def _limits(wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    """Yield what the limits are held against."""
    slow = "" if wanted.slowdown == inf else f", --max-slowdown {wanted.slowdown:g}: the upper end of step's interval"
    yield "needs", "weights, cache and the rest of the peak, the most of all runs of a strategy", "dim"
    yield (
        "loss",
        "nats per token above the full cache's: the upper end of its 95% interval (<=), or the loss alone",
        "dim",
    )
    yield "step", f"of decoding, over the full cache's, with its 95% interval{slow}", "dim"


def _doubts(found: Recommendation, wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    """Yield what was not measured of what was."""
    known = [*found.fitting, *found.others]
    lossy = [one for one in known if one.loss != 0 or not one.has_interval]
    longest = max((one.loss_tokens for one in lossy), default=wanted.context)
    if longest < wanted.context:
        text = f"was measured behind at most {longest:,} tokens, not {wanted.context:,}: it is not extrapolated"
        yield "loss", text, "yellow"
    bare = [one.name for one in lossy if not one.has_interval]
    if bare:
        yield "loss", f"without an interval, which workload=perplexity gives: {', '.join(bare)}", "yellow"
    fixed = [one.name for one in lossy if one.row["budget_unit"] in ("tokens", "bytes") and longest < wanted.context]
    if fixed:
        yield (
            "loss",
            f"a budget in tokens or bytes keeps a smaller share of a longer prompt: {', '.join(fixed)}",
            "yellow",
        )
    for tokens in sorted({(one.row["prompt_tokens"], one.row["batch_size"]) for one in known if one.is_modelled}):
        at = f"{tokens[0]:,} tokens, batch {tokens[1]}"
        text = f"the cache by its closed form, and the rest of the peak at {at} grown with the tokens"
        yield "modelled", text, "yellow"
    if any(one.timed and not _is_there(one, wanted) for one in known):
        lengths = sorted({one.timed["prompt_tokens"] for one in known if one.timed})
        yield "step", f"was timed at {', '.join(f'{n:,}' for n in lengths)} tokens; it is not extrapolated", "yellow"
    if any(one.timed and not one.tells_time for one in known):
        yield "step", "says nothing where the cache fits in the processor's own (overhead-bound)", "dim"
    for one in known:
        for remark in dict.fromkeys(one.remarks):
            yield "but", f"{one.name}: {remark}", "yellow"


def _is_there(one: Candidate, wanted: Wanted) -> bool:
    return one.timed is None or (one.timed["prompt_tokens"], one.timed["batch_size"]) == wanted.shape


def _unknown(found: Recommendation, unmeasured: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield what does not count and why, and what there is no row of."""
    for reason, names in found.left_out.items():
        yield "left out", f"{', '.join(names)}: {reason}", "dim"
    if unmeasured:
        few = ": " + ", ".join(unmeasured) if len(unmeasured) <= FEW else ", see kvbench list strategy"
        yield "not measured", f"{len(unmeasured)} strategies have no row here{few}", "dim"
