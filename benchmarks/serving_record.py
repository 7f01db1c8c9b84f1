"""What a run of `benchmarks.serving` has measured so far, and the ratios that follow from it.

In: turns of the servers and of the in-process limit, as they are measured. Out: a `ServingResult` at any time, also of
a run that was cut short. This module measures nothing.
"""

import dataclasses
from dataclasses import dataclass, field

from benchmarks import results
from benchmarks.figures import Spread, ratio, spread
from benchmarks.systems import OURS


@dataclass
class ServingRecord:
    """Everything measured so far, in the order in which it was measured."""

    head: results.Head
    generator: str
    participants: list[results.Participant] = field(default_factory=list)
    tried: list[results.Tried] = field(default_factory=list)
    limit_turns: list[results.LimitTurn] = field(default_factory=list)
    turns: list[results.Turn] = field(default_factory=list)

    def result(self, *, complete: bool) -> results.ServingResult:
        """The content of the result file. `complete` is false where the run was cut short."""
        cases = sorted({(turn.model, turn.clients) for turn in self.turns})
        peers = sorted({turn.system for turn in self.turns} - {OURS})
        to_limit: dict[str, Spread] = {}
        to_peer: dict[str, dict[str, Spread]] = {}
        peer_to_limit: dict[str, dict[str, Spread]] = {}
        for model, clients in cases:
            case = f"{model}/{clients}"
            ours = self._shares(OURS, model, clients)
            if ours:
                to_limit[case] = spread([*ours.values()])
            for peer in peers:
                other = self._shares(peer, model, clients)
                if other:
                    peer_to_limit.setdefault(case, {})[peer] = spread([*other.values()])
                if (found := _ratio(ours, other)) is not None:
                    to_peer.setdefault(case, {})[peer] = found
        return results.ServingResult(
            head=dataclasses.replace(self.head, complete=complete),
            generator=self.generator,
            participants=self.participants,
            tried=self.tried,
            limit_turns=self.limit_turns,
            turns=self.turns,
            ratio_to_limit=to_limit,
            ratio_to_peer=to_peer,
            peer_ratio_to_limit=peer_to_limit,
            added_ms=self._added_ms(),
        )

    def _added_ms(self) -> dict[str, dict[str, Spread]]:
        """By model and system: mean latency with one client, less what the limit takes for a picture, in ms."""
        added: dict[str, dict[str, list[float]]] = {}
        for turn in self.turns:
            if turn.clients == 1 and turn.limit_per_second and turn.per_second:
                by_system = added.setdefault(turn.model, {})
                by_system.setdefault(turn.system, []).append(1e3 / turn.per_second - 1e3 / turn.limit_per_second)
        return {model: {system: spread(ms) for system, ms in by_system.items()} for model, by_system in added.items()}

    def _shares(self, system: str, model: str, clients: int) -> dict[int, float]:
        """By round: throughput of a system / limit measured just before and just after its turn."""
        return {
            turn.round: turn.per_second / turn.limit_per_second
            for turn in self.turns
            if (turn.system, turn.model, turn.clients) == (system, model, clients) and turn.limit_per_second
        }


def _ratio(ours: dict[int, float], other: dict[int, float]) -> Spread | None:
    rounds = sorted(ours.keys() & other.keys())
    return ratio([ours[number] for number in rounds], [other[number] for number in rounds])
