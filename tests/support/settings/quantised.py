"""Methods whose entries are packed, or coordinates: groups are small, so that prompts of 24 tokens have several."""

from __future__ import annotations

from tests.support.measured import folder
from tests.support.moments import where
from tests.support.settings import Setting
from tests.support.tuned import folder as bits

_KEYS = ("codec.group=4", "codec.value_quantiser.group=4", "codec.residual=8")
_GROUPS = ("codec.key_quantiser.group=4", "codec.value_quantiser.group=4", "codec.residual=8")


_CODEBOOKS = f"codec.codebooks='{folder('codebooks')}'"
_BITS = f"codec.errors='{bits()}'"


def _packed(*overrides: str, like: str = "") -> Setting:
    return Setting(
        overrides=overrides, has_budget=False, merges=True, like=like
    )  # what is held is not what was written


SETTINGS: dict[str, Setting] = {
    "quantization": _packed(like="quantization_8bit"),
    "quantization_8bit": _packed(),
    "quantization_4bit": _packed(),
    "fp8": _packed(like="quantization_8bit"),
    "flexgen_int4": _packed("codec.key_quantiser.group=3", "codec.value_quantiser.group=3", like="quantization_4bit"),
    "lorc": _packed("codec.least=0.5"),
    "lorc_8bit": _packed("codec.least=0.5", like="lorc"),
    "lorc_fp16": _packed("codec.least=0.5", like="lorc"),
    "streaming_kvquant": Setting(
        overrides=("codec.chunk=8", "codec.num_sink=3", "codec.outlier_above=2"),
        has_budget=False,
        merges=True,
        data_dependent=True,
        waits=True,
    ),
    "kvquant2": _packed(_CODEBOOKS, like="kvquant3"),
    "kvquant3": _packed(_CODEBOOKS, "codec.num_sink=3"),
    "kvquant4": _packed(_CODEBOOKS, like="kvquant3"),
    "eigen_attention": _packed(where()),
    "think": _packed("codec.window=4", "codec.num_queries=6"),
    "palu": _packed(where()),
    "palu_fp16": _packed(where(), like="palu"),
    "quarot": _packed(),
    "skvq": _packed(where(), "codec.num_sink=3", "codec.window=8"),
    "rotatekv": _packed(where(), "codec.num_sink=3"),
    "turboquant4": _packed(),
    "turboquant3": _packed(like="turboquant4"),
    "turboquant2": _packed(like="turboquant4"),
    "qoq_kv4": _packed(where()),
    "kivi2": _packed(*_GROUPS),
    "kvtuner": _packed(*(f"codec.like.{each.removeprefix('codec.')}" for each in _GROUPS), _BITS),
    "kivi4": _packed(*_GROUPS, like="kivi2"),
    "gear": _packed(*_GROUPS),
    "polarquant": _packed(*_KEYS),
    "qjl": _packed(*_KEYS, "codec.num_large=2", "codec.first_layers=1"),
}
