"""What a run of `benchmarks.serving` has measured so far, and the ratios that follow from it.

In: turns of the servers and of the in-process limit, as they are measured. Out: a `ServingResult` at any time, also of
a run that was cut short. This module measures nothing.
"""

import dataclasses
import statistics
from dataclasses import dataclass, field

from benchmarks import results, serving_results
from benchmarks.figures import Spread, ratio, spread
from benchmarks.pairs import REFERENCE
from benchmarks.systems import OURS


@dataclass
class ServingRecord:
    """Everything measured so far, in the order in which it was measured."""

    head: results.Head
    generator: str
    participants: list[results.Participant] = field(default_factory=list)
    limits: list[serving_results.LimitPair] = field(default_factory=list)
    tried: list[serving_results.Tried] = field(default_factory=list)
    limit_turns: list[serving_results.LimitTurn] = field(default_factory=list)
    turns: list[serving_results.Turn] = field(default_factory=list)

    def result(self, *, complete: bool) -> serving_results.ServingResult:
        """The content of the result file. `complete` is false where the run was cut short."""
        cases = sorted({(turn.model, turn.clients) for turn in self.turns})
        peers = sorted({turn.system for turn in self.turns} - {OURS})
        to_limit: dict[str, Spread] = {}
        to_torchscript: dict[str, Spread] = {}
        to_peer: dict[str, dict[str, Spread]] = {}
        peer_to_limit: dict[str, dict[str, Spread]] = {}
        peer_to_torchscript: dict[str, dict[str, Spread]] = {}
        gains: dict[str, Spread] = {}
        for model, clients in cases:
            case = f"{model}/{clients}"
            by_round = self._gains(model, clients)
            if by_round:
                gains[case] = spread([*by_round.values()])
            ours = self._shares(OURS, model, clients)
            if ours:
                to_limit[case] = spread([*ours.values()])
            if found := _times(ours, by_round):
                to_torchscript[case] = found
            for peer in peers:
                other = self._shares(peer, model, clients)
                if other:
                    peer_to_limit.setdefault(case, {})[peer] = spread([*other.values()])
                if found := _times(other, by_round):
                    peer_to_torchscript.setdefault(case, {})[peer] = found
                if (found := _ratio(ours, other)) is not None:
                    to_peer.setdefault(case, {})[peer] = found
        return serving_results.ServingResult(
            head=dataclasses.replace(self.head, complete=complete),
            generator=self.generator,
            participants=self.participants,
            limits=self.limits,
            tried=self.tried,
            limit_turns=self.limit_turns,
            turns=self.turns,
            ratio_to_limit=to_limit,
            ratio_to_torchscript=to_torchscript,
            ratio_to_peer=to_peer,
            peer_ratio_to_limit=peer_to_limit,
            peer_ratio_to_torchscript=peer_to_torchscript,
            limit_to_torchscript=gains,
            added_ms=self._added_ms(),
        )

    def _gains(self, model: str, clients: int) -> dict[int, float]:
        """By round: the limit / TorchScript in float32.

        The first and the last turn of the limit count, as far as a turn of TorchScript was measured beside them.
        """
        gains: dict[int, float] = {}
        turns = [turn for turn in self.limit_turns if (turn.model, turn.clients) == (model, clients)]
        for number in sorted({turn.round for turn in turns}):
            found: dict[bool, list[float]] = {True: [], False: []}
            for turn in turns:
                if turn.round == number:
                    found[(turn.engine, turn.dtype) == (REFERENCE.engine, REFERENCE.dtype)].append(turn.per_second)
            reference, limit = found[True], found[False]
            if reference and limit:
                beside = (limit[0], limit[-1])[: len(reference)]
                gains[number] = statistics.mean(beside) / statistics.mean(reference)
            elif len(reference) > 1:
                gains[number] = 1.0  # TorchScript in float32 is the limit itself
        return gains

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


def _times(shares: dict[int, float], gains: dict[int, float]) -> Spread | None:
    products = [share * gains[number] for number, share in shares.items() if number in gains]
    return spread(products) if products else None
