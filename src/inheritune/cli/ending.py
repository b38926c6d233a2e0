"""What a finished run says: the verdict, a sample, and where things are."""

from rich.console import Console
from rich.text import Text

from inheritune.job import GrowthResult
from inheritune.reporting.verdict import verdict_sentences


def show_ending(result: GrowthResult) -> None:
    """Print verdict, sample and paths to the terminal."""
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    for sentence in verdict_sentences(result.summary):
        console.print(Text(sentence))
    for sample in result.summary["samples"][:1]:
        console.print()
        for name in ("prompt", "reference", "child"):
            console.print(Text(f"{name}:", style="bold"), Text(sample[name].strip("\n")))
    console.print()
    console.print(Text(f"report  {result.report}"))
    console.print(Text(f"model   {result.run_dir / 'model'}"))
