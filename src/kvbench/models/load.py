"""Loading: pretrained, embedded or random weights on a device, and the probe that compares the two doors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.models.laying import lay_out
from kvbench.models.spec import TINY, ModelSpec
from kvbench.models.view import view_of
from kvbench.types import ModelView

REACH_TIMEOUT_S = 5.0


class ModelError(Exception):
    """A model that cannot be loaded, with the reason and the key to change."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to run.

    Args:
        model: in evaluation mode, switched to the attention function of the cache.
        tokenizer: or None where there is none (random weights).
        view: what strategies may know of it.
        weights: where the weights come from.
        revision: commit, folder or seed they are identified by.
    """

    model: nn.Module
    tokenizer: Any | None
    view: ModelView
    weights: str
    revision: str


def device_of(spec: ModelSpec) -> torch.device:
    """Return the device a specification means on this machine.

    Raises:
        ModelError: if it asks for one that is not here.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if spec.device == "auto":
        return torch.device(next(name for name, present in here.items() if present))
    if not here[spec.device]:
        present = ", ".join(name for name, is_here in here.items() if is_here)
        raise ModelError(f"model.device={spec.device} is not available here; set one of: auto, {present}.")
    return torch.device(spec.device)


def load(spec: ModelSpec, *, seed: int, attention: str, in_rows: bool = False) -> Loaded:
    """Load a model.

    Args:
        spec: which.
        seed: of random weights.
        attention: name of the attention function it is switched to.
        in_rows: as of `lay_out`.

    Raises:
        ModelError: with the reason, if it cannot be loaded.
    """
    device, dtype = device_of(spec), getattr(torch, spec.dtype)
    origin = origin_of(spec)
    if origin == "random":
        if spec.device_map != "none":
            raise ModelError(
                f"model.device_map={spec.device_map} spreads the weights of a checkpoint, and those of {spec.hub_id} "
                f"are not to be had; set model.path= to a local one, or leave model.device_map out."
            )
        torch.manual_seed(seed)
        with _plain_errors(spec), torch.device(device), _default_dtype(dtype):
            model = _untrained(spec)
        tokenizer, revision = None, f"seed-{seed}"
    else:
        source = str(spec.folder) if spec.folder is not None else spec.hub_id
        with _plain_errors(spec):
            config = _auto_config().from_pretrained(source, **_remote(spec))
            network = recurrent().get(config.model_type, _auto())
            placing = _placing(spec, config.model_type)
            model = network.from_pretrained(source, dtype=dtype, use_safetensors=True, **placing, **_remote(spec))
        model = model.to(device) if spec.device_map == "none" else _spread(model, spec)
        tokenizer = _tokenizer(str(TINY) if origin == "embedded" else source, spec)
        revision = getattr(model.config, "_commit_hash", None) or (spec.folder.name if spec.folder else spec.revision)
    model.eval().requires_grad_(False)
    lay_out(model, in_rows=in_rows)
    model.set_attn_implementation(attention)
    view = replace(view_of(model), asked=_asked(spec, seed, origin))
    return Loaded(model=model, tokenizer=tokenizer, view=view, weights=origin, revision=revision)


def _placing(spec: ModelSpec, kind: str) -> dict[str, str]:
    """Return what transformers is told of devices.

    Raises:
        ModelError: if this kind of network cannot be spread, or what spreads it is not installed.
    """
    if spec.device_map == "none":
        return {}
    if kind in recurrent():
        raise ModelError(f"{spec.name} is a recurrent network, which runs on one device; leave model.device_map out.")
    missing = spec.unavailable()
    if missing is not None:
        raise ModelError(f"{missing}.")
    return {"device_map": spec.device_map}


def _spread(model: Any, spec: ModelSpec) -> Any:
    """Return a model whose weights are all where they compute.

    Raises:
        ModelError: if some are fetched at every pass, from the host or a disk.
    """
    found = getattr(model, "hf_device_map", {})  # which a model that fits on one device does not have
    places = {str(place) for place in found.values()}
    fetched = places & {"cpu", "disk"} if len(places) > 1 else places & {"disk"}
    if fetched:
        raise ModelError(
            f"model.device_map={spec.device_map} left weights of {spec.name} on {' and '.join(sorted(fetched))}, from "
            f"where every pass would fetch them, and that is what would be timed; set model.dtype=bfloat16, or take "
            f"more GPUs or a smaller model."
        )
    return model


def _asked(spec: ModelSpec, seed: int, origin: str) -> str:
    """Return how the command line asks for a model, so that the same weights come."""
    named = f"model={spec.name}"
    if spec.path:
        return f"{named} model.path={spec.path}"
    return f"{named} model.weights=random seed={seed}" if origin == "random" else named


def config_of(spec: ModelSpec) -> Any:
    """Return the transformers config of a specification."""
    if spec.folder is not None:
        return _auto_config().from_pretrained(spec.folder)
    arguments = dict(spec.architecture)
    return _auto_config().for_model(arguments.pop("model_type"), **arguments)


def skeleton(spec: ModelSpec) -> nn.Module:
    """Return the model without any weights, to know its shapes before it is loaded."""
    with _plain_errors(spec), torch.device("meta"):
        model: nn.Module = _untrained(spec)
    return model


def probe(model: nn.Module, stock: str, attention: str, run: Any, ids: Tensor) -> float:
    """Return the largest logit difference to the stock forward, relative to the largest logit.

    Args:
        model: switched to `attention`.
        stock: transformers' own attention function.
        attention: ours.
        run: callable that returns logits [B, T, V] of `ids` through our cache, prompt and decode steps.
        ids: [B, T].
    """
    ours = run(ids)
    model.set_attn_implementation(stock)  # type: ignore[operator]
    try:
        theirs = model(ids, use_cache=False).logits
    finally:
        model.set_attn_implementation(attention)  # type: ignore[operator]
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-30))


def _auto_config() -> Any:
    from transformers import AutoConfig

    from kvbench.models.sharing import SharingConfig

    AutoConfig.register(SharingConfig.model_type, SharingConfig, exist_ok=True)
    return AutoConfig


def _auto() -> Any:
    from transformers import AutoModelForCausalLM

    from kvbench.models.sharing import SharingConfig, SharingForCausalLM

    AutoModelForCausalLM.register(SharingConfig, SharingForCausalLM, exist_ok=True)
    return AutoModelForCausalLM


def recurrent() -> Mapping[str, Any]:
    """Return our classes, by model type, for networks that transformers reads token by token."""
    from kvbench.models.mamba import Mamba
    from kvbench.models.mamba2 import Mamba2
    from kvbench.models.rwkv import Rwkv

    return {"mamba": Mamba, "mamba2": Mamba2, "rwkv": Rwkv}


def _untrained(spec: ModelSpec) -> Any:
    config, dtype = config_of(spec), getattr(torch, spec.dtype)
    network = recurrent().get(config.model_type)
    made = _auto().from_config if network is None else network._from_config
    return made(config, dtype=dtype)


def _remote(spec: ModelSpec) -> dict[str, Any]:
    return {} if spec.folder is not None else {"revision": spec.revision, "trust_remote_code": False}


def origin_of(spec: ModelSpec) -> str:
    """Return where the weights will come from: pretrained, embedded or random."""
    if spec.path:
        return "pretrained"
    if spec.weights != "auto":
        return spec.weights
    return "pretrained" if spec.hub_id and _reachable(spec) else "random"


def _reachable(spec: ModelSpec) -> bool:
    """Return whether the weights are in the local cache or the hub answers."""
    import httpx
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(try_to_load_from_cache(spec.hub_id, "config.json", revision=spec.revision), str):
        return True
    try:
        HfApi().model_info(spec.hub_id, revision=spec.revision, timeout=REACH_TIMEOUT_S)
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError):
        return False
    return True


def _tokenizer(source: str, spec: ModelSpec) -> Any | None:
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(source, **_remote(spec))
    except (OSError, ValueError):
        return None
    return made if made("What is there?", add_special_tokens=False).input_ids else None  # without files an empty one


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _plain_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn the many errors of loading into one sentence."""
    from safetensors import SafetensorError

    where = spec.path or spec.hub_id or spec.name
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the weights of {where} are not readable safetensors ({error}); check model.path.") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{where} cannot be loaded as a causal language model: {reason}") from error
