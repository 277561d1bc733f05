"""Attention on packed rows in Triton: a row is unpacked into registers, used by every query of its KV head, forgotten.

Compiled for one form of rows, as the `constexpr` arguments say. What lies past the last row or channel is read as the
last one is, and left out of every sum.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _plane(codes, row, channel, start: tl.constexpr, PLANE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Return some bits of every code [rows, channels]: those of the plane that begins at this byte of a row."""
    width: tl.constexpr = (DIM * PLANE + 7) // 8
    byte = tl.load(codes + (row * WIDTH + start)[:, None] + (channel % width)[None, :]).to(tl.int32)
    return (byte >> (channel // width * PLANE)[None, :]) & ((1 << PLANE) - 1)


@triton.jit
def _meant(
    codes, levels, row, channel,
    DIM: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, MIDDLE: tl.constexpr,
):  # fmt: skip
    """Return what codes stand for, without scales [rows, channels]."""
    if BITS == 3:
        code = _plane(codes, row, channel, 0, 2, DIM, WIDTH)
        code |= _plane(codes, row, channel, (DIM * 2 + 7) // 8, 1, DIM, WIDTH) << 2
    else:
        code = _plane(codes, row, channel, 0, BITS, DIM, WIDTH)
    if LEVELS == "codebook":
        number = tl.load(levels + code)
    elif LEVELS == "e4m3":
        size = code & 127
        normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        number = tl.where(size < 8, size.to(tl.float32) / 512, normal)
        number = tl.where(code < 128, number, -number)
    else:
        number = (code - MIDDLE).to(tl.float32)
    return number


@triton.jit
def _scale(scales, group, channel, CHANNELS: tl.constexpr, SCALES: tl.constexpr):
    """Return the scales of numbers [1 or rows, 1 or channels]."""
    if SCALES == 1:
        scale = tl.load(scales + group)[:, None]
    else:
        scale = tl.load(scales + (group * SCALES)[:, None] + (channel // CHANNELS)[None, :])
    return scale.to(tl.float32)


@triton.jit
def _numbers(
    codes, scales, lows, levels, values, places, outliers, row, channel, group, head, is_there,
    DIM: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, MIDDLE: tl.constexpr,
    CHANNELS: tl.constexpr, SCALES: tl.constexpr, HAS_LOW: tl.constexpr, HAS_OUTLIERS: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """Return rows as they were packed [rows, channels]; those of a group [1 or rows] share their scales."""
    if LEVELS == "numbers":
        number = tl.load(codes + (row * DIM)[:, None] + channel[None, :]).to(tl.float32)
    else:
        number = _meant(codes, levels, row, channel, DIM, BITS, WIDTH, LEVELS, MIDDLE)
        number *= _scale(scales, group, channel, CHANNELS, SCALES)
        if HAS_LOW:
            number += _scale(lows, group, channel, CHANNELS, SCALES)
    if HAS_OUTLIERS:
        for which in range(outliers):
            place = tl.load(places + row * outliers + which).to(tl.int32) - head.to(tl.int32) * DIM
            value = tl.load(values + row * outliers + which).to(tl.float32)
            number = tl.where(place[:, None] == channel[None, :], value[:, None], number)
    if PAGE > 0:
        number = tl.where(is_there[:, None], number, 0.0)
    return number


@triton.jit
def _angle(positions, frequencies, row, pair):
    """Return angles [rows, pairs], rounded to float32 as the model's are: in a wider sum they might not be."""
    position, frequency = tl.load(positions + row).to(tl.float64), tl.load(frequencies + pair).to(tl.float64)
    return (position[:, None] * frequency[None, :]).to(tl.float32)


@triton.jit(do_not_specialize=["given", "given_step", "out", "out_step", "entries", "part_rows"])
def read(
    given, given_step, out, out_step, entries, part_rows, heads,
    codes, codes_batch, codes_head, scales, scales_batch, scales_head, lows, lows_batch, lows_head, levels,
    values, places, outliers_batch, outliers, positions, positions_batch, positions_head, frequencies,
    table, table_step, starts, stops,
    SUMS: tl.constexpr, SHARE: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, ROTARY: tl.constexpr,
    PAIRS: tl.constexpr, LANES: tl.constexpr, TOKENS: tl.constexpr, IS_GROUP: tl.constexpr,
    DIM: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr, MIDDLE: tl.constexpr,
    CHANNELS: tl.constexpr, SCALES: tl.constexpr, HAS_LOW: tl.constexpr, HAS_OUTLIERS: tl.constexpr,
    PAGE: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """Write logits of a part of a head's rows, given queries; or with SUMS the part's sums, given weights.

    Steps are from one query's numbers to the next one's. ROWS are unpacked at once, and IS_GROUP where they share their
    scales. PAIRS, LANES and QUERIES are powers of two that hold the pairs of channels that are rotated, those that are
    not, and the queries.
    """
    index, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, head = index // heads, index % heads
    codes += batch * codes_batch + head * codes_head
    scales += batch * scales_batch + head * scales_head
    if HAS_LOW:
        lows += batch * lows_batch + head * lows_head
    if HAS_OUTLIERS:
        values += batch * outliers_batch
        places += batch * outliers_batch
    if ROTARY > 0:
        positions += batch * positions_batch + head * positions_head
    plain: tl.constexpr = DIM - 2 * ROTARY  # channels that are not rotated
    lane, pair = tl.arange(0, LANES), tl.arange(0, PAIRS)
    queries = tl.arange(0, QUERIES)
    total = tl.zeros([QUERIES, LANES], tl.float32)
    begin, end = part * part_rows, tl.minimum(entries, (part + 1) * part_rows)
    if SPANS:
        span = tl.load(starts + index)
        length = (tl.load(stops + index) - span).to(tl.int32)
        if not SUMS:
            for first in range(tl.maximum(begin, length), end, ROWS):
                line = first + tl.arange(0, ROWS)
                for query in range(SHARE):
                    mine = out + (index * SHARE + query) * out_step
                    tl.store(mine + line, tl.full([ROWS], float("-inf"), tl.float32), mask=line < end)
        end = tl.minimum(end, length)
    for first in range(begin, end, ROWS):
        line = first + tl.arange(0, ROWS)
        row = tl.minimum(line, end - 1).to(tl.int64)
        is_there = row >= 0
        if SPANS:
            row += span
        if PAGE > 0:
            page = tl.load(table + batch * table_step + row // PAGE).to(tl.int64)
            is_there = page >= 0
            row = tl.maximum(page, 0) * (heads * PAGE) + row % PAGE
        group = row // TOKENS
        if IS_GROUP:
            group = first // TOKENS + tl.arange(0, 1)
        if plain > 0:
            channel = 2 * ROTARY + lane
            if plain != LANES:
                channel = tl.minimum(channel, DIM - 1)
            number = _numbers(
                codes, scales, lows, levels, values, places, outliers, row, channel, group, head, is_there,
                DIM, BITS, WIDTH, LEVELS, MIDDLE, CHANNELS, SCALES, HAS_LOW, HAS_OUTLIERS, PAGE,
            )  # fmt: skip
        if ROTARY > 0:
            channel = pair
            if ROTARY != PAIRS:
                channel = tl.minimum(pair, ROTARY - 1)
            low = _numbers(
                codes, scales, lows, levels, values, places, outliers, row, channel, group, head, is_there,
                DIM, BITS, WIDTH, LEVELS, MIDDLE, CHANNELS, SCALES, HAS_LOW, HAS_OUTLIERS, PAGE,
            )  # fmt: skip
            high = _numbers(
                codes, scales, lows, levels, values, places, outliers, row, channel + ROTARY, group, head, is_there,
                DIM, BITS, WIDTH, LEVELS, MIDDLE, CHANNELS, SCALES, HAS_LOW, HAS_OUTLIERS, PAGE,
            )  # fmt: skip
            angle = _angle(positions, frequencies, row, channel)
            cos, sin = tl.cos(angle), tl.sin(angle)
            turned_low, turned_high = low * cos - high * sin, high * cos + low * sin
        for query in range(SHARE):
            mine = given + (index * SHARE + query) * given_step
            if SUMS:
                weight = tl.load(mine + line, mask=line < end, other=0.0)
                summed = tl.sum(weight[:, None] * number, axis=0)
                total += tl.where((queries == query)[:, None], summed[None, :], 0.0)
            else:
                logit = tl.zeros([ROWS], tl.float32)
                if plain > 0:
                    logit += tl.sum(number * tl.load(mine + 2 * ROTARY + lane, lane < plain, 0.0)[None, :], axis=1)
                if ROTARY > 0:
                    logit += tl.sum(turned_low * tl.load(mine + pair, pair < ROTARY, 0.0)[None, :], axis=1)
                    logit += tl.sum(turned_high * tl.load(mine + ROTARY + pair, pair < ROTARY, 0.0)[None, :], axis=1)
                tl.store(out + (index * SHARE + query) * out_step + line, logit, mask=line < end)
    if SUMS:
        to = ((part * tl.num_programs(0) + index) * SHARE + queries) * out_step
        mask = (queries < SHARE)[:, None] & (lane < DIM)[None, :]
        tl.store(out + to[:, None] + lane[None, :], total, mask=mask)
