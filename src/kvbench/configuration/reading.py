"""The files of a tree, each read once however often it is composed: half of a composition's time is reading."""

from __future__ import annotations

import copy
from functools import cache

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult


class ReadOnce(ConfigRepository):
    """The files found on a search path, as they were when they were first asked for."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Begin anew with other folders."""
        super().initialize_sources(config_search_path)
        self._read: dict[str, ConfigResult | None] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Return a file's content, a copy for each composition: composing takes it apart."""
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self._read[config_path])

    def __deepcopy__(self, memo: object) -> ReadOnce:
        return copy.copy(self)  # Hydra copies before it adds folders, and what it then replaces is the copy's


def read_once(loader: ConfigLoader) -> ConfigLoader:
    """Return the loader, which from now on shares what it reads with all others on its search path."""
    assert isinstance(loader, ConfigLoaderImpl)
    loader.repository = _tree(
        *((str(place.provider), str(place.path)) for place in loader.config_search_path.get_path())
    )
    return loader


@cache
def _tree(*places: tuple[str, str]) -> ReadOnce:
    path = ConfigSearchPathImpl()
    for provider, place in places:
        path.append(provider, place)
    return ReadOnce(path)
