"""Configuration: composed by Hydra, checked against the dataclasses, refused with one readable message."""

from kvbench.configuration.checking import Checked, build_group, check, resolved
from kvbench.configuration.composing import compose, compose_all
from kvbench.configuration.environment import register
from kvbench.configuration.errors import ConfigError

__all__ = ["Checked", "ConfigError", "build_group", "check", "compose", "compose_all", "resolved"]

register()
