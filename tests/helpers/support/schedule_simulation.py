"""The order of execution by time stamps, to judge the schedule by."""

from __future__ import annotations

from metaweight.engines import Rhythm

Event = tuple[str, str, int]


class Simulation:
    """The rules of execution, each said once as a condition on counts and times."""

    def __init__(self, rhythms: dict[str, Rhythm], parents: dict[str, list[str]]) -> None:
        self.rhythms, self.parents = rhythms, parents
        self.children = {n: [c for c in parents if n in parents[c]] for n in parents}
        self.steps = dict.fromkeys(parents, 0)
        self.stepped = dict.fromkeys(parents, -1)
        self.handed = dict.fromkeys(parents, -2)
        self.redone = dict.fromkeys(parents, -2)
        self.time = 0

    def advance(self, leaf: str) -> tuple[list[Event], set[str]]:
        """Return what happens and who is redone at the end."""
        start = self.time
        events: list[Event] = []
        self.step(leaf, events)
        redone = {n for n in self.parents if self.to_redo(n, start)}
        for name in redone:
            self.redone[name] = self.tick()
        return events, redone

    def step(self, name: str, events: list[Event]) -> None:
        number = self.steps[name] = self.steps[name] + 1
        if self.pending(name):
            events.append((name, "KEEP", 0))
            self.redone[name] = self.tick()
        if number == 1 or self.due(name, number - 1):
            events.append((name, "LOOP_START", 0))
        if self.rolls(name) and (number - 1) % self.loop(name) == 0:
            events.append((name, "SNAPSHOT", 0))
        events.append((name, "STEP", number))
        self.stepped[name] = self.tick()
        if self.due(name, number):
            self.handed[name] = self.tick()
            for parent in self.parents[name]:
                if all(self.handed[c] > self.stepped[parent] for c in self.children[parent]):
                    self.step(parent, events)

    def tick(self) -> int:
        self.time += 1
        return self.time

    def loop(self, name: str) -> int:
        return self.rhythms[name].unroll_steps * self.rhythms[name].accumulation

    def due(self, name: str, number: int) -> bool:
        return number > self.rhythms[name].warmup and number % self.loop(name) == 0

    def rolls(self, name: str) -> bool:
        return self.rhythms[name].roll_back and bool(self.parents[name])

    def pending(self, name: str) -> bool:
        return self.rolls(name) and self.handed[name] > max(self.redone[name], 0)

    def to_redo(self, name: str, start: int) -> bool:
        return self.pending(name) and any(self.stepped[p] > start for p in self.parents[name])
