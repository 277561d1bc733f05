"""What a table says of caches that lie elsewhere than on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvbench.results.cells import Row, label_of
from kvbench.results.labels import bytes_text


def elsewhere(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield a title and a sentence for each row whose cache lies elsewhere, and one on what that means here."""
    away = [row for row in rows if row["host_bytes"] or row["disk_bytes"]]
    for row in away:
        disk = "on disk, read from it" if row["disk_cold"] else "on disk, read warm from memory that keeps files"
        tiers = (("host_bytes", "in the host's memory"), ("disk_bytes", disk))
        lies = " and ".join(f"{bytes_text(row[column])} {where}" for column, where in tiers if row[column])
        yield "elsewhere", f"{label_of(row)}: {lies}{_moves(row)}"
        if row["modelled_link_ms"] is not None:
            yield "modelled", f"{label_of(row)}: a step's traffic would take a link {row['modelled_link_ms']:.3f} ms"
    if any(row["host_bytes"] for row in away if row["device"] == "cpu"):
        yield "elsewhere", "on a CPU host and device are two pools of one memory: no time above is that of a link"


def _moves(row: Row) -> str:
    if row["up_bytes_per_step"] is None:
        return ""
    came = (row["up_bytes_per_step"] or 0) + (row["disk_read_bytes_per_step"] or 0)
    went = (row["down_bytes_per_step"] or 0) + (row["disk_written_bytes_per_step"] or 0)
    moves = f"; a step brings {bytes_text(came)} and takes {bytes_text(went)} there"
    if row["hit_share"] is not None:
        moves += f", and {100 * row['hit_share']:.0f}% of the pages it reads are at hand"
    if row["wait_share"] is None or row["stall_ms_per_step"] is None:
        return moves
    waits = f"{100 * row['wait_share']:.0f}% of its layers wait, {row['stall_ms_per_step']:.2f} ms in all"
    hidden = "" if row["overlap_share"] is None else f" ({100 * row['overlap_share']:.0f}% of the fetching is hidden)"
    return f"{moves}, and {waits}{hidden}"
