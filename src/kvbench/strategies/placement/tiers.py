"""Entries lie on the device, in the host's memory and on disk, and pass through buffers on the device to be read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.cache.placement.rooms import Attend, Axis, Place, Shares
from kvbench.folders import hardware_record
from kvbench.models.view import attention_of
from kvbench.planning.machine import Machine, Rate, machine_of, read_records
from kvbench.planning.recompute import Choice, LayerFetch, recompute_length
from kvbench.strategies.placement.fitting import GIB, Fitting, can_move
from kvbench.strategies.placement.link import Link

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.placement.home import Home
    from kvbench.cache.plan import LayerPlan
    from kvbench.types import LayerShape, ModelView, RunShape

BLOCK = 16  # tokens, of which "auto" chooses a multiple


@dataclass(frozen=True, kw_only=True)
class Tiers(Link):
    """Divides the entries of every layer, and fetches those of the next layers while one attends.

    A token is written once, where it lies; what is fetched is never written back. Or nothing is fetched to decode a
    token: its query goes to the host, which attends to what lies there, and the device merges what comes of it with
    what it found itself.

    What the host keeps of a token, instead of its keys and values, is the input of the layer's projections; they are
    made again on the device while the entries of other tokens are on their way.

    Source: Sheng et al. (FlexGen), arXiv:2303.06865, sec. 3 and 4; https://github.com/FMInference/FlexLLMGen.
        Jiang et al. (KVPR), arXiv:2411.17089, sec. 3.
    Deviates: only caches move, weights and activations stay; one batch at a time. Over a sequence the oldest entries
        lie furthest away, so that new ones stay near. What lies on the device is copied to the buffer as well, so that
        attention reads one piece and its output is that of a cache on the device, bit by bit; but not where the host
        attends: what both find is merged, which rounds otherwise.

    Args:
        host: share of every storage that lies in the host's memory, or "fit" for the least with which the device holds
            the model, what a pass needs and the rest of the cache.
        disk: share that lies on disk.
        memory_gib: of the device, in 2^30 bytes, of which a tenth is left; 0 where the share is given.
        axis: what is divided: "sequence", the entries of each row, or "batch", whole rows.
        attend: where a new token attends to what lies in the host's memory: "device", which fetches it, or "host".
            Prompts, and several new tokens at once, always have it fetched.
        prefetch: layers fetched ahead of need; each takes the room of a layer on the device. None where the host
            attends.
        folder: where files lie, "" for the system's folder of temporary files; they have no name and end with the
            process.
        cold: whether what was read of a file is forgotten by the operating system, so that the disk is read again.
        recompute: first tokens whose keys and values are made again from what the host keeps of them instead: a number
            of tokens, with a point a fraction of the prompt, or "auto" for as many as take the least time; 0 for none.
        stages: pieces in which that is fetched.
        hardware: record of this machine by which "auto" chooses; "" for what `kvbench hardware` wrote last. With a link
            that is modelled, that link counts instead of the record's.
    """

    is_elsewhere: ClassVar[bool] = True

    host: float | Literal["fit"]
    disk: float
    memory_gib: float
    axis: Axis
    attend: Attend
    prefetch: int
    folder: str
    cold: bool
    recompute: int | float | Literal["auto"]
    stages: int
    hardware: str

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        self._check_shares()
        if self.axis not in ("sequence", "batch"):
            raise ValueError(f"strategy.placement.axis must be sequence or batch; got {self.axis!r}.")
        if self.attend not in ("device", "host"):
            raise ValueError(f"strategy.placement.attend must be device or host; got {self.attend!r}.")
        if self.attend == "host" and (self.disk > 0 or self.recompute != 0):
            raise ValueError(
                "strategy.placement.attend=host has the host attend to keys and values in its memory, and what is on "
                "disk, or made again, is not there; use strategy.placement.disk=0 and strategy.placement.recompute=0, "
                "or strategy.placement.attend=device."
            )
        asked = 1 if self.recompute == "auto" else self.recompute
        if asked < 0 or (isinstance(asked, float) and asked > 1):
            raise ValueError(
                f"strategy.placement.recompute must be a number of tokens, a fraction of the prompt up to 1.0, or "
                f"auto; got {self.recompute}."
            )
        if asked > 0 and (self.axis == "batch" or self.host == "fit" or self.host + self.disk < 1):
            raise ValueError(
                "strategy.placement.recompute takes the place of the oldest entries that lie elsewhere; use "
                "strategy.placement.axis=sequence, and strategy.placement.host and disk that add up to 1."
            )
        if self.stages < 1:
            raise ValueError(f"strategy.placement.stages must be at least 1; got {self.stages}.")
        if self.prefetch < 0:
            raise ValueError(f"strategy.placement.prefetch must be 0 or more layers; got {self.prefetch}.")

    def _check_shares(self) -> None:
        """Refuse shares that are none, and a memory that nothing is fitted to."""
        most = self._most_host
        if min(most, self.disk) < 0 or not 0 < most + self.disk <= 1:
            raise ValueError(
                f"strategy.placement.host and strategy.placement.disk are the shares that lie there, together above 0 "
                f"and at most 1; got host={self.host}, disk={self.disk}. For none use strategy/placement=device."
            )
        if (self.host == "fit") != (self.memory_gib != 0):
            raise ValueError(
                f"strategy.placement.host=fit fits to strategy.placement.memory_gib, which goes with it alone; got "
                f"host={self.host}, memory_gib={self.memory_gib}. Set both, or a share with memory_gib=0."
            )

    @property
    def _most_host(self) -> float:
        """The share that the host has, or the most it can have."""
        return 1 - self.disk if self.host == "fit" else self.host

    @property
    def _makes_again(self) -> bool:
        """Whether keys and values are made again, by other sums than the model's."""
        return self.recompute != 0

    def of_run(self, view: ModelView, run: RunShape, plans: Sequence[LayerPlan]) -> Place | None:
        """Return where the entries of a layer lie; None where all of them fit on the device."""
        recomputed = min(self._recomputed(view, run), run.prompt_tokens)
        host = self._most_host
        if self.host == "fit" and can_move(plans):
            host = self._fitting(view, run, plans).share(self.memory_gib * GIB)
        return self._place(host, recomputed)

    def _place(self, host: float, recomputed: int) -> Place | None:
        if host + self.disk == 0:
            return None
        return Place(
            shares=Shares(axis=self.axis, host=host, disk=self.disk),
            prefetch=0 if self.attend == "host" else self.prefetch,
            folder=self.folder,
            is_cold=self.cold,
            recomputed=recomputed,
            stages=self.stages,
            attend=self.attend,
        )

    def fitted_share(self, plans: Sequence[LayerPlan]) -> float | None:
        """Return the host's share that was chosen for the device's memory; None where it is given."""
        if self.host != "fit":
            return None
        return next((plan.place.shares.host for plan in plans if plan.place is not None), 0.0)

    def _fitting(self, view: ModelView, run: RunShape, plans: Sequence[LayerPlan]) -> Fitting:
        where = partial(self._place, recomputed=0)
        return Fitting(plans=plans, view=view, run=run, place_of=where, most=self._most_host)

    def _recomputed(self, view: ModelView, run: RunShape) -> int:
        """Return how many first tokens of each layer are made again."""
        if self.recompute == "auto" and view.device.type == "meta":  # only sizes are asked for, which differ little
            return 0
        if self.recompute == "auto":
            return self.choice(view, run).value if _has_projections(view.layers) else 0
        return math.floor(self.recompute * run.prompt_tokens) if isinstance(self.recompute, float) else self.recompute

    def lacks(self, view: ModelView, run: RunShape) -> str | None:
        """Return what is not known of the machine that has to be, or None."""
        try:
            self._recomputed(view, run)
        except ValueError as error:
            return f"strategy.placement.recompute=auto: {error} Or set strategy.placement.link=modelled for a link."
        return None

    def choice(self, view: ModelView, run: RunShape) -> Choice:
        """Return how many tokens "auto" has made again, and why.

        Raises:
            ValueError: if nothing says how fast the machine is.
        """
        shape, rows = view.layers[0], run.batch_size
        assert shape.key_projection is not None
        hidden = shape.key_projection.weight.shape[2]
        width = shape.kv_heads * (shape.key_dim + shape.value_dim)
        record = Path(self.hardware) if self.hardware else hardware_record(view.device.type)
        machine = machine_of(read_records(record), recompute_shape=f"{hidden}x{width}")
        fetch = LayerFetch(
            activation_bytes=rows * hidden * view.dtype.itemsize,
            kv_bytes=rows * width * view.dtype.itemsize,
            recompute_flops=rows * 2 * hidden * width,
            link=self._link(machine),
            compute=machine.rate("recompute_flops"),
            block=max(BLOCK, run.prompt_tokens // self.stages) if self.stages > 1 else BLOCK,
            mode="pipelined" if self.stages > 1 else "paper",
        )
        return recompute_length(run.prompt_tokens, fetch)

    def _link(self, machine: Machine) -> Rate:
        """Return how fast what lies elsewhere comes; where the host computes, it is read and written in its memory."""
        if self.link == "modelled":
            return Rate(per_s=self.link_gb_per_s * 1e9, latency_s=self.link_latency_us / 1e6, source="given")
        if machine.is_host:
            read = machine.rate("device_memory")
            return replace(read, per_s=read.per_s / 2)
        return machine.rate("host_to_device")

    @property
    def _ways(self) -> int:
        """Times that what is sent for waits for the link."""
        return 2 if self.attend == "host" else 1

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> str | None:
        """Return why the entries of these layers cannot lie so, or None."""
        if not can_move(plans):
            return (
                "entries of this strategy/codec change while they are held; use another strategy/codec, or "
                "strategy/placement=device"
            )
        misfit = self._fitting(view, run, plans).misfit(self.memory_gib * GIB) if self.host == "fit" else None
        if misfit is not None:
            return misfit
        elsewhere = [plan for plan in plans if plan.place is not None]
        if self.attend == "host":
            return _unattended(elsewhere)
        if not self._makes_again:
            return None
        if not all(plan.stays for plan in elsewhere):
            return (
                "strategy.placement.recompute makes keys and values of all first tokens, as the model makes them; use "
                "strategy/budget=all with strategy/codec=dense, or strategy.placement.recompute=0"
            )
        if not _has_projections(plan.shape for plan in elsewhere):
            return (
                "strategy.placement.recompute needs linear layers that make keys and values, with nothing after them "
                "but rotation, which this model has not; set strategy.placement.recompute=0"
            )
        return None

    @contextmanager
    def watch(self, model: nn.Module, cache: KVCache) -> Iterator[None]:
        """Tell each layer of the cache what its keys and values are made of, where they are made again."""
        with ExitStack() as hooks:
            for layer in cache.layers if self._makes_again else ():
                found = attention_of(model, layer.plan.index)
                if found is not None and layer.home is not None:
                    hook = found[0].register_forward_pre_hook(_teller(layer.home), with_kwargs=True)
                    hooks.callback(hook.remove)
            yield


def _unattended(plans: Sequence[LayerPlan]) -> str | None:
    """Return why the host cannot attend to the entries of these layers, or None."""
    if not all(isinstance(plan.codec, Dense | PackedCodec) for plan in plans):
        return (
            "strategy.placement.attend=host has each side attend to what it keeps, and this strategy/codec keeps some "
            "of it for both; use strategy/codec=dense, int8 or kivi4, or strategy.placement.attend=device"
        )
    by_row = all(plan.place is None or plan.place.shares.axis == "batch" for plan in plans)
    if not by_row and not all(plan.codec.writes_each_token_alone for plan in plans):
        return (
            "strategy.placement.attend=host needs key and value of a token in one place, and this strategy/codec packs "
            "them at different times; use strategy.placement.axis=batch, a strategy/codec whose residual is 0, "
            "such as int8, or strategy.placement.attend=device"
        )
    if any(plan.paging is not None or (plan.compresses and plan.evicted.weighs) for plan in plans):
        return (
            "strategy.placement.attend=host has each side attend to all it holds, every entry for one token; use "
            "strategy/reader=all with strategy/evicted=drop, or strategy.placement.attend=device"
        )
    return None


def _has_projections(layers: Iterable[LayerShape]) -> bool:
    return not any(shape.key_projection is None or shape.value_projection is None for shape in layers)


def _teller(home: Home) -> Any:
    def tell(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        home.note(given[0] if given else keywords["hidden_states"])

    return tell
