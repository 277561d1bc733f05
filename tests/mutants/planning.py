"""Planners that get one thing wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvbench.planning import cost, machine, policy, recompute, search, split
from kvbench.planning.cost import Cost, Prediction, Use
from kvbench.planning.machine import Machine, Rate
from kvbench.planning.network import Network
from kvbench.planning.policy import Held, Policy, Setup
from kvbench.planning.recompute import Choice, LayerFetch
from kvbench.planning.search import Limits, Plan
from tests.mutants.core_mutant import Mutant
from tests.support import planning, recomputing, searching

REAL_SECONDS, REAL_CROSSING = LayerFetch.seconds, recompute._crossing
REAL_HELD, REAL_DECODE, REAL_PREFILL = policy.held, policy.decode_cost, policy.prefill_cost
REAL_LENGTH, REAL_PARETO, REAL_SPLIT, REAL_RATE = (
    recompute.recompute_length,
    search.pareto,
    split.split_by_memory,
    machine._rate,
)


def one_wait(self: LayerFetch, recomputed: int, tokens: int) -> float:
    """Pay a link's latency once, however many transfers there are."""
    return REAL_SECONDS(replace(self, link=replace(self.link, latency_s=0.0)), recomputed, tokens)


def as_the_paper(self: LayerFetch, recomputed: int, tokens: int) -> float:
    """Send all activations before anything is computed, in every mode."""
    return REAL_SECONDS(replace(self, mode="paper"), recomputed, tokens)


def nowhere_near(tokens: int, fetch: LayerFetch) -> float:
    """Look at the ends alone."""
    return 0.0


def by_bytes_alone(tokens: int, fetch: LayerFetch) -> Choice:
    """Ask neither the link nor the device."""
    return Choice(
        value=0 if fetch.activation_bytes >= fetch.kv_bytes else tokens // fetch.block * fetch.block, reason=""
    )


def transfers_for_nothing(tokens: int, fetch: LayerFetch) -> Choice:
    """Move activations that are larger than keys and values."""
    return replace(REAL_LENGTH(tokens, fetch), value=fetch.block)


def all_in_a_row(work: Cost, known: Machine) -> Prediction:
    """Let nothing overlap."""
    if isinstance(work, Use):
        seconds = known.seconds(work.resource, work.amount, work.starts)
        return Prediction(seconds=seconds, by_resource={work.resource: seconds})
    parts = [all_in_a_row(part, known) for part in work.parts]
    spent = {key: value for part in parts for key, value in part.by_resource.items()}
    return Prediction(seconds=sum(part.seconds for part in parts), by_resource=spent)


def without_weights(asked: Policy, setup: Setup) -> Cost:
    """Read the cache alone."""
    return REAL_DECODE(asked, replace(setup, network=replace(setup.network, read_parameters=0)))


def without_windows(network: Network, context: int) -> int:
    """Let every layer hold every token."""
    return len(network.windows) * context


def squares(tokens: int, window: int) -> int:
    """Score what is masked, too."""
    return tokens * tokens


def without_staging(asked: Policy, setup: Setup) -> Held:
    """Have tokens appear where they are needed."""
    found = REAL_HELD(asked, setup)
    here = replace(asked, device=asked.context, host=0, disk=0, recompute=0)
    kv = asked.batch_size * setup.kv_bytes(asked.bits) * setup.network.num_full(asked.context)
    return replace(found, device=REAL_HELD(here, setup).device - asked.away * kv)


def of_one_layer(tokens: int, setup: Setup, **asked: Any) -> Choice:
    """Forget that there are several layers."""
    mine = setup.network.num_full(tokens)
    found = REAL_SPLIT(tokens, setup, **asked)
    return replace(found, value=min(tokens, found.value * mine))


def without_a_margin(tokens: int, setup: Setup, **asked: Any) -> Choice:
    """Use all of the memory."""
    return REAL_SPLIT(tokens, setup, **asked | {"memory_bytes": asked["memory_bytes"] / split.SAFETY})


def without_scales(network: Network, bits: int, group: int) -> float:
    """Forget what lies beside packed numbers."""
    return network.kv_width * bits / 8


def floating(tokens: int, ratio: float) -> Choice:
    """Multiply in floating point."""
    return Choice(value=int(tokens * ratio), reason="")


def the_fastest(plans: Sequence[Plan]) -> list[Plan]:
    """Keep the fastest step alone."""
    return [min(plans, key=lambda plan: plan.decode.seconds)]


def everything(plans: Sequence[Plan]) -> list[Plan]:
    """Keep what is beaten."""
    return list(plans)


def all_fit(limits: Limits, needed: Held) -> str | None:
    """Let everything fit."""
    return None


def never_on_the_device(*arguments: Any, **asked: Any) -> Choice:
    """Keep nothing on the device that need not be there."""
    return Choice(value=0, reason="")


def slower_with_more(limits: Limits, needed: Held) -> str | None:
    """Refuse what leaves memory unused."""
    return None if limits.device * 0.85 < needed.device < limits.device * 0.9 else "unused"


def with_links(setup: Setup, known: Machine, *arguments: Any) -> Any:
    """Keep tokens in a host's memory that is the device's."""
    return REAL_POLICIES(setup, replace(known, is_host=False), *arguments)


def without_latency(row: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Rate:
    """Read bandwidths alone."""
    return replace(REAL_RATE(row, found), latency_s=0.0)


def of_any_network(rows: Iterable[Mapping[str, Any]], *, recompute_shape: str) -> Machine:
    """Take a product that was measured for another network."""
    kept = list(rows)
    shapes = [str(row["shape"]).partition("x")[2] for row in kept if row["name"] == "gemm_recompute"]
    return REAL_MACHINE(kept, recompute_shape=shapes[0] if shapes else "")


REAL_POLICIES, REAL_MACHINE = search.policies, machine.machine_of

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="latencies are overlooked",
        patches=((LayerFetch, "seconds", one_wait),),
        killed_by=(recomputing.lengths_take_as_long_as_played, recomputing.no_other_length_takes_less),
    ),
    Mutant(
        name="nothing is pipelined",
        patches=((LayerFetch, "seconds", as_the_paper),),
        killed_by=(recomputing.lengths_take_as_long_as_played, recomputing.the_worked_layer_gains_what_was_worked_out),
    ),
    Mutant(
        name="only the ends are looked at",
        patches=((recompute, "_crossing", nowhere_near),),
        killed_by=(recomputing.no_other_length_takes_less, recomputing.the_worked_layer_gains_what_was_worked_out),
    ),
    Mutant(
        name="bytes decide alone",
        patches=((recompute, "recompute_length", by_bytes_alone),),
        killed_by=(
            recomputing.no_other_length_takes_less,
            recomputing.a_faster_link_means_fewer_and_a_faster_device_more,
            recomputing.grouped_heads_compute_nothing_again,
        ),
    ),
    Mutant(
        name="larger activations are moved",
        patches=((recompute, "recompute_length", transfers_for_nothing),),
        killed_by=(recomputing.grouped_heads_compute_nothing_again,),
    ),
    Mutant(
        name="nothing overlaps",
        patches=((cost, "predict", all_in_a_row),),
        killed_by=(planning.work_overlaps_or_waits_as_worked_out, planning.steps_take_what_was_worked_out),
    ),
    Mutant(
        name="weights are not read",
        patches=((policy, "decode_cost", without_weights),),
        killed_by=(planning.steps_take_what_was_worked_out, planning.a_step_away_moves_what_is_counted_by_hand),
    ),
    Mutant(
        name="windows are forgotten",
        patches=((Network, "held_tokens", without_windows),),
        killed_by=(
            planning.a_step_away_moves_what_is_counted_by_hand,
            planning.a_prompt_takes_what_is_counted_by_hand,
            planning.bytes_are_those_counted_by_hand,
        ),
    ),
    Mutant(
        name="masked pairs are scored",
        patches=((policy, "_pairs", squares),),
        killed_by=(planning.a_prompt_takes_what_is_counted_by_hand,),
    ),
    Mutant(
        name="nothing is staged",
        patches=((policy, "held", without_staging), (split, "held", without_staging)),
        killed_by=(planning.bytes_are_those_counted_by_hand, planning.the_worked_memory_keeps_the_worked_tokens),
    ),
    Mutant(
        name="one layer is counted",
        patches=((split, "split_by_memory", of_one_layer),),
        killed_by=(planning.no_more_tokens_would_fit, planning.the_worked_memory_keeps_the_worked_tokens),
    ),
    Mutant(
        name="nothing is left",
        patches=((split, "split_by_memory", without_a_margin),),
        killed_by=(planning.no_more_tokens_would_fit,),
    ),
    Mutant(
        name="scales weigh nothing",
        patches=((Network, "kv_bytes", without_scales),),
        killed_by=(planning.steps_take_what_was_worked_out, planning.a_step_away_moves_what_is_counted_by_hand),
    ),
    Mutant(
        name="shares are floating",
        patches=((split, "split_by_ratio", floating),),
        killed_by=(planning.a_share_is_of_whole_tokens,),
    ),
    Mutant(
        name="only the fastest plan is kept",
        patches=((search, "pareto", the_fastest),),
        killed_by=(searching.nothing_that_was_tried_beats_a_plan,),
    ),
    Mutant(
        name="beaten plans are kept",
        patches=((search, "pareto", everything),),
        killed_by=(searching.nothing_that_was_tried_beats_a_plan,),
    ),
    Mutant(
        name="everything fits",
        patches=((Limits, "misfit", all_fit),),
        killed_by=(searching.plans_fit,),
    ),
    Mutant(
        name="memory must be used",
        patches=((Limits, "misfit", slower_with_more),),
        killed_by=(searching.more_of_anything_is_never_slower,),
        error=Exception,
    ),
    Mutant(
        name="a host has a link to itself",
        patches=((search, "policies", with_links),),
        killed_by=(searching.a_device_that_is_the_host_has_no_tokens_away_but_on_disk,),
        error=Exception,
    ),
    Mutant(
        name="latencies are not read",
        patches=((machine, "_rate", without_latency),),
        killed_by=(planning.a_record_is_read_as_it_was_written,),
    ),
    Mutant(
        name="a product of another network counts",
        patches=((machine, "machine_of", of_any_network),),
        killed_by=(planning.a_record_is_read_as_it_was_written,),
    ),
)
