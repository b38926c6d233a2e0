"""Learning rates as pure functions of the step."""

import math


def learning_rate(
    step: int,
    *,
    num_steps: int,
    peak: float,
    schedule: str = "wsd",
    warmup_fraction: float = 0.02,
    cooldown_fraction: float = 0.2,
) -> float:
    """Learning rate of optimiser step ``step``, counted from 0.

    Warm-up is linear and reaches ``peak`` at its last step. ``wsd`` then holds the peak and cools down by
    1 - sqrt(progress) over the last ``cooldown_fraction``; ``cosine`` falls to a tenth of the peak.

    Source: arXiv:2405.18392 (WSD with a 1-sqrt cool-down).
    """
    warmup_steps = round(warmup_fraction * num_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
        return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))
    cooldown_steps = round(cooldown_fraction * num_steps)
    into_cooldown = step - (num_steps - cooldown_steps)
    if into_cooldown < 0:
        return peak
    return peak * (1 - math.sqrt((into_cooldown + 1) / (cooldown_steps + 1)))
