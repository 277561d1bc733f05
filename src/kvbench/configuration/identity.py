"""What of a configuration says what is measured, rather than where it goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

NOT_IDENTITY = ("runs", "force", "sink", "sweep", "plugins")  # keys that do not change what is measured


def config_json(config: DictConfig) -> str:
    """Return what is measured as one line that does not depend on how it was written.

    Args:
        config: composed, without Hydra's own node.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, Mapping)
    return json.dumps({key: value for key, value in plain.items() if key not in NOT_IDENTITY}, sort_keys=True)


def short_hash(text: str) -> str:
    """Return twelve digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
