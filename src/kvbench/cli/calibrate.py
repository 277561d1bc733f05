"""`kvbench calibrate`: measure a model's heads, channels or numbers once, for methods that treat them differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from kvbench.bench import source_of
from kvbench.cache.codecs.bits import KIND as BITS
from kvbench.cache.codecs.codebooks import KIND as CODEBOOKS
from kvbench.cache.codecs.moments import KIND as MOMENTS
from kvbench.calibrated import Calibrated, NeedsCalibration
from kvbench.calibration.bits import bit_errors
from kvbench.calibration.codebooks import codebooks
from kvbench.calibration.maxima import channel_maxima
from kvbench.calibration.measures import MEASURES, measure
from kvbench.calibration.moments import moments
from kvbench.calibration.watching import ATTENTION
from kvbench.cli.catalogue import catalogue
from kvbench.configuration import build_group, check, compose, resolved
from kvbench.configuration.composing import search_path
from kvbench.configuration.errors import ConfigError, hint
from kvbench.folders import cache_folder
from kvbench.models.load import load
from kvbench.runner import job_of
from kvbench.strategies.transform.maxima import KIND as SMOOTH

KINDS: Mapping[str, Callable[..., Calibrated]] = {
    **{kind: partial(measure, kind) for kind in MEASURES},
    SMOOTH: channel_maxima,
    CODEBOOKS: codebooks,
    BITS: bit_errors,
    MOMENTS: moments,
}


def main(what: str, overrides: Sequence[str], *, config_dir: str | None, samples: int, tokens: int, out: str) -> None:
    """Measure a model's heads, channels or numbers and keep what is found in a file.

    Args:
        what: a strategy that needs it, or what to measure.
        overrides: as for `kvbench run`; model= and seed= matter.
        config_dir: folder with more configurations, or None.
        samples: texts; 0 for the kind's own number.
        tokens: per text; 0 for the kind's own number.
        out: file or folder to write; "" for the cache folder.
    """
    elsewhere = search_path(config_dir)
    kind = kind_of(what, elsewhere)
    checked = check(compose([*overrides, "strategy=baseline", "quality=none", *elsewhere]))
    loaded = load(checked.model, seed=checked.seed, attention=ATTENTION)
    if loaded.view.is_recurrent:
        raise ConfigError(f"model={checked.model.name} is recurrent: it has no heads, keys or values to be measured.")
    source = source_of(job_of(checked), loaded)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{checked.model.name}: {kind}", total=1.0)
        found = KINDS[kind](
            checked.model.name,
            loaded,
            source,
            samples=samples,
            tokens=tokens,
            report=lambda share: bar.update(task, completed=share),
        )
    file = place(kind, found, out)
    found.write(file)
    for line in found.drawn():
        print(line)
    print(f"scores: {file}")


def kind_of(what: str, elsewhere: Sequence[str] = ()) -> str:
    """Return what a strategy needs measured, or the kind itself.

    Raises:
        ConfigError: if there is no such thing.
    """
    if what in KINDS:
        return what
    strategies = dict(catalogue())["strategy"]
    if what in strategies or elsewhere:
        built = build_group(resolved(compose([f"strategy={what}", *elsewhere]))["strategy"], "strategy")
        for part in (built.budget, built.transform, built.codec):
            if isinstance(part, NeedsCalibration):
                return part.calibration
        raise ConfigError(f"strategy={what} needs nothing measured. Kinds: {', '.join(KINDS)}.")
    raise ConfigError(
        f"nothing called {what} is measured. {hint(what, [*KINDS, *strategies], label='Kinds and strategies')}"
    )


def place(kind: str, found: Calibrated, out: str) -> Path:
    """Return the file they go to: their own name in a folder, or the file asked for."""
    if not out:
        return cache_folder() / found.file_name(kind)
    return Path(out) if out.endswith(found.suffix) else Path(out) / found.file_name(kind)
