"""Settings: the yaml is the only home of defaults, and a wrong value names its key."""

from __future__ import annotations

from dataclasses import fields

import pytest
from omegaconf import OmegaConf

from kvbench.measure.settings import Limits, Settings
from tests.measure.fake_device import DEFAULTS, default_settings


def test_the_yaml_has_the_fields_of_the_class() -> None:
    keys = list(OmegaConf.load(DEFAULTS))
    assert keys == ["_target_", *(field.name for field in fields(Settings))]
    assert all(field.default is field.default_factory for field in fields(Settings))  # both missing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, r"measure\.threads must be at least 1; got 0\. Set measure\.threads\."),
        ({"block_tokens": 1}, r"measure\.block_tokens must be at least 2; got 1"),
        ({"gpu_block_tokens": 0}, r"measure\.gpu_block_tokens must be at least 2; got 0"),
        ({"warmup_blocks": 0}, r"measure\.warmup_blocks must be at least 1; got 0"),
        ({"min_rounds": 1}, r"measure\.min_rounds must be at least 2; got 1"),
        ({"max_rounds": 9}, r"measure\.max_rounds must be at least measure\.min_rounds; got max_rounds=9, min_rounds"),
        ({"cell_seconds": 0.0}, r"measure\.cell_seconds must be above 0; got 0\.0"),
        ({"half_width": -0.01}, r"measure\.half_width must be above 0; got -0\.01"),
        ({"gpu_half_width": 0.0}, r"measure\.gpu_half_width must be above 0"),
        ({"aa_limit": 0.0}, r"measure\.aa_limit must be above 0"),
        ({"gpu_aa_limit": float("nan")}, r"measure\.gpu_aa_limit must be above 0; got nan"),
        ({"timeout_s": 0.0}, r"measure\.timeout_s must be above 0"),
        ({"gpu_block_ms": -1.0}, r"measure\.gpu_block_ms must not be negative; got -1\.0"),
        ({"rounds_seconds": -1.0}, r"measure\.rounds_seconds must not be negative; got -1\.0"),
        ({"quiet_seconds": -1.0}, r"measure\.quiet_seconds must not be negative; got -1\.0"),
    ],
)
def test_a_value_that_cannot_measure_is_refused_by_name(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        default_settings(**change)


def test_more_threads_than_cores_are_refused() -> None:
    settings = default_settings(threads=4)
    settings.check_threads(4)
    with pytest.raises(ValueError, match=r"measure\.threads must be at most the 2 cores of this machine; got 4"):
        settings.check_threads(2)


def test_blocks_of_slow_steps_are_short_on_a_processor() -> None:
    settings = default_settings()
    assert [settings.steps_per_block("cpu", step_ms=ms) for ms in (0.1, 62.5, 80.0, 200.0, 9000.0)] == [8, 8, 7, 5, 5]
    assert default_settings(block_tokens=3).steps_per_block("cpu", step_ms=9000.0) == 3


def test_a_gpus_blocks_are_long_enough_to_time() -> None:
    settings = default_settings()
    assert settings.steps_per_block("cuda", step_ms=10.0) == 32
    assert settings.steps_per_block("cuda", step_ms=0.3) == 334


def test_limits_are_tighter_on_a_gpu() -> None:
    settings = default_settings()
    assert settings.limits("cpu") == Limits(half_width=0.02, aa_limit=0.02, min_rounds=10)
    assert settings.limits("cuda") == Limits(half_width=0.01, aa_limit=0.01, min_rounds=10)
