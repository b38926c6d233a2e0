"""What a step has cost: speed, FLOPs, share of the machine's peak, memory, energy."""

from collections import deque
from statistics import median

import torch

from inheritune.machine.energy import EnergyMeter
from inheritune.machine.flops import TokenFlops
from inheritune.machine.memory import peak_memory_bytes
from inheritune.machine.probe import Choices

PACE_STEPS = 25
"""Steps whose median time is the pace that a user sees."""


class Meter:
    """Turns the tokens and seconds of a step into what ``metrics.jsonl`` says of it."""

    def __init__(self, flops: TokenFlops, choices: Choices) -> None:
        """Open the energy counter.

        Args:
            flops: of one token.
            choices: device, precision, and the machine's peak.
        """
        self._flops = flops
        self._seconds_per_token: deque[float] = deque(maxlen=PACE_STEPS)
        self._has_begun = False
        self._peak = choices.peak_gflops * 1e9 if choices.peak_gflops else None
        self._device = torch.device(choices.device)
        self._energy = EnergyMeter(choices.device)

    def skip(self) -> None:
        """Leave out the energy since the last look: it was not a step's."""
        self._energy.joules()

    @property
    def pace(self) -> float | None:
        """Tokens per second of the latest steps; None until the second one, since the first compiles."""
        return 1 / median(self._seconds_per_token) if self._seconds_per_token else None

    def utilisation(self, tokens_per_s: float) -> float | None:
        """Model FLOPs per second as a share of the machine's own peak; None where no peak was measured."""
        return self._flops.per_token * tokens_per_s / self._peak if self._peak else None

    def read(self, tokens: int, seconds: float) -> dict[str, float | int | None]:
        """The measures of one step.

        Returns:
            ``tokens_per_s``; ``flops_per_s`` (model FLOPs); ``utilisation`` (of the peak, from 0 to 1; null where no
            peak was measured); ``memory_bytes`` (the peak so far); ``energy_j`` (null where it cannot be read).
        """
        tokens_per_s = tokens / seconds
        if self._has_begun:
            self._seconds_per_token.append(seconds / tokens)
        self._has_begun = True
        return {
            "tokens_per_s": tokens_per_s,
            "flops_per_s": self._flops.per_token * tokens_per_s,
            "utilisation": self.utilisation(tokens_per_s),
            "memory_bytes": peak_memory_bytes(self._device),
            "energy_j": self._energy.joules(),
        }
