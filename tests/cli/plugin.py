"""A codec from another package."""

from dataclasses import dataclass

from kvbench.cache.codecs.dense import Dense


@dataclass(frozen=True, kw_only=True)
class Theirs(Dense):
    pass
