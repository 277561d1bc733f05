"""One KV head whose entries leave for the host and come back, written as lists."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvbench.strategies.evicted.offloaded import Offloaded


@dataclass
class Entry:
    """A token of one head: how much it mattered, and in how many calls."""

    mean: float
    calls: int = 1

    def note(self, weight: float, window: int) -> None:
        """Remember one more call."""
        self.calls = min(self.calls + 1, window)
        self.mean += (weight - self.mean) / self.calls


@dataclass
class Head:
    """One KV head as lists: `held` on the device, `host` in order of arrival, `back` with a place on the host."""

    rules: Offloaded
    window: int
    budget: int
    rows: int
    held: dict[int, Entry] = field(default_factory=dict)
    host: dict[int, Entry] = field(default_factory=dict)
    back: list[int] = field(default_factory=list)
    fallen: list[int] = field(default_factory=list)
    returned: int = 0

    def prompt(self, score: list[float]) -> None:
        """Read a prompt whose tokens have got so much attention."""
        entries = {at: Entry(mass / (len(score) - at)) for at, mass in enumerate(score)}
        kept = sorted(sorted(entries, key=lambda at: score[at])[-self.budget :])
        self.held = {at: entries[at] for at in kept}
        for at in entries:
            if at not in self.held:
                self.push(at, entries[at])

    def push(self, at: int, entry: Entry) -> None:
        """Put an entry into the ring."""
        if at in self.back:
            self.back.remove(at)
        elif len(self.host) + len(self.back) == self.rows:
            if self.host:
                oldest = next(iter(self.host))
                del self.host[oldest]
                self.fallen.append(oldest)
            else:
                self.back.pop(0)
        self.host[at] = entry

    def step(self, at: int, weights: dict[int, float], time: int) -> None:
        """Decode a token: remember the call, let go of the weakest, let others come back."""
        self.held[at] = Entry(0.0, 0)
        for each, entry in self.held.items():
            entry.note(weights[each], self.window)
        if len(self.held) <= self.budget:
            return
        victim = min((each for each in self.held if each != at), key=lambda each: weights[each])
        leave = [(victim, self.held.pop(victim))]
        every = self.rules.restore_every
        if every > 0 and time % every == 0:
            able = {each: e.mean for each, e in self.host.items() if e.mean > self.rules.importance_threshold}
            strong = sorted(able, key=lambda each: -able[each])[: self.rules.max_restored]
            weak = sorted((each for each in self.held if each != at), key=lambda each: self.held[each].mean)
            for comes, goes in zip(strong, weak, strict=False):
                if self.host[comes].mean <= self.held[goes].mean:
                    break
                leave.append((goes, self.held.pop(goes)))
                self.held[comes] = self.host.pop(comes)
                self.back.append(comes)
                self.returned += 1
        for each, entry in leave:
            self.push(each, entry)
