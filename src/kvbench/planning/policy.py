"""What a way to keep a cache costs: bytes in each place, and the work of a prompt and of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.planning.cost import Cost, Dependent, Overlapped, Use
from kvbench.planning.network import Network, activations_bytes

STAGED = 2  # layers whose tokens, and blocks whose activations, are on their way or being read


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Where the tokens of a layer are kept and how; layers with a window stay on the device.

    Args:
        device: tokens kept on the device.
        host: kept in the host's memory.
        disk: kept on disk.
        recompute: of those in the host's memory, tokens whose activations are kept instead.
        bits: per number of keys and values.
        batch_size: rows at once.
    """

    device: int
    host: int
    disk: int
    recompute: int
    bits: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse what nothing can keep."""
        assert min(self.device, self.host, self.disk, self.recompute) >= 0
        assert self.recompute <= self.host
        assert self.batch_size >= 1

    @property
    def context(self) -> int:
        """Tokens of a layer."""
        return self.device + self.host + self.disk

    @property
    def away(self) -> int:
        """Tokens that are not on the device."""
        return self.host + self.disk


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all policies of a search share.

    Args:
        network: whose cache is kept.
        group: packed numbers that share a scale and an offset.
        block: tokens that are moved, or computed again, at once.
        prefill_chunk: tokens of the prompt per pass; 0 for all at once.
    """

    network: Network
    group: int
    block: int
    prefill_chunk: int

    def kv_bytes(self, bits: int) -> float:
        """Return the bytes of a token's keys and values in a layer."""
        return self.network.kv_bytes(bits, self.group)


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes in each place.

    Args:
        device: at the peak: weights, cache, staging, and the larger phase's activations.
        host: of cache and activations.
        disk: of cache.
    """

    device: float
    host: float
    disk: float


def held(policy: Policy, setup: Setup) -> Held:
    """Return the bytes that a policy needs in each place."""
    network, rows = setup.network, policy.batch_size
    full = network.num_full(policy.context)
    kv = rows * setup.kv_bytes(policy.bits)
    sliding = network.held_tokens(policy.context) - full * policy.context
    made_again = rows * network.kv_width * network.number_bytes
    staged = min(STAGED, full) * ((policy.away - policy.recompute) * kv + policy.recompute * made_again)
    blocks = min(policy.recompute, STAGED * setup.block) * rows * network.activation_bytes
    passing = min(setup.prefill_chunk or policy.context, policy.context)
    prompt = activations_bytes(network, network.number_bytes, rows, passing)
    cache = (full * policy.device + sliding) * kv
    return Held(
        device=network.weights_bytes + cache + staged + blocks + prompt,
        host=full * rows * policy.recompute * network.activation_bytes + full * (policy.host - policy.recompute) * kv,
        disk=full * policy.disk * kv,
    )


def decode_cost(policy: Policy, setup: Setup) -> Cost:
    """Return the work of a decode step: a layer's tokens come while the layer before is computed, block by block."""
    network, rows = setup.network, policy.batch_size
    full, tokens = network.num_full(policy.context), network.held_tokens(policy.context)
    kv = rows * setup.kv_bytes(policy.bits)
    again = full * policy.recompute
    fetched = full * (policy.away - policy.recompute) * kv
    exact = rows * network.kv_width * network.number_bytes
    read = network.read_parameters * network.number_bytes + (tokens - again) * kv + again * exact
    written = fetched + again * exact  # what comes is written into staging first
    attention = 2 * tokens * network.query_heads * (network.key_dim + network.value_dim)
    blocks = -(-policy.recompute // setup.block)
    transfers = full * (blocks + (policy.away > policy.recompute))
    brought = again * rows * network.activation_bytes + fetched
    step = Overlapped(
        (
            Use("device_memory", read + written),
            Use("device_flops", rows * (2 * network.read_parameters + attention)),
        )
    )
    return Overlapped(
        (
            Dependent((Use("recompute_flops", again * rows * network.recompute_flops, full * blocks), step)),
            Use("host_to_device", brought, transfers),
            Use("device_to_host", full * kv if policy.away else 0, full),
            Use("disk_read", full * policy.disk * kv, full),
            Use("launch", network.launches),
        )
    )


def prefill_cost(policy: Policy, setup: Setup) -> Cost:
    """Return the work of reading the prompt; logits are made of its last token alone."""
    network, rows, prompt = setup.network, policy.batch_size, policy.context
    full = network.num_full(prompt)
    kv = rows * setup.kv_bytes(policy.bits)
    passes = -(-prompt // (setup.prefill_chunk or prompt))
    head = network.hidden * network.vocabulary
    body = network.read_parameters - head
    pairs = sum(_pairs(prompt, window) for window in network.windows)
    attention = 2 * pairs * network.query_heads * (network.key_dim + network.value_dim)
    operations = rows * (2 * (body * prompt + head) + attention)
    read = passes * network.read_parameters * network.number_bytes + network.held_tokens(prompt) * kv
    activations = full * policy.recompute * rows * network.activation_bytes
    sent = full * (policy.away - policy.recompute) * kv + activations
    return Overlapped(
        (
            Use("device_memory", read),
            Use("device_flops", operations),
            Use("device_to_host", sent, full * passes),
            Use("disk_write", full * policy.disk * kv, full * passes),
            Use("launch", passes * network.launches),
        )
    )


def _pairs(tokens: int, window: int) -> int:
    """Return how many pairs of a query and a key a layer scores."""
    seen = min(tokens, window) if window else tokens
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
