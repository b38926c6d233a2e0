"""What is known about going over the same text again and again."""

GOOD_PASSES = 4
"""Passes that are about as good as fresh text. Source: arXiv:2305.16264."""

WORN_PASSES = 16
"""Passes from which repeating adds next to nothing. Source: arXiv:2305.16264."""


def warning_of_passes(passes: int) -> str | None:
    """What is known about so many passes over one token budget, or None where they are about as good as fresh text.

    Source: arXiv:2305.16264 (value of repeated text); arXiv:2404.08634 (the 1.5B child goes 8 times over 1B tokens).
    """
    if passes <= GOOD_PASSES:
        return None
    return (
        f"{passes} passes over the same text: up to {GOOD_PASSES} are about as good as fresh text, then each is worth "
        f"less, and by about {WORN_PASSES} next to nothing (arXiv:2305.16264). More text is the best help "
        "(data.token_budget); else train.dropout, a stronger train.weight_decay and a weight average "
        "(train.average_half_life). The paper's own 1.5B run goes 8 times over its 1B tokens."
    )
