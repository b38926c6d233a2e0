"""How long `inheritune --help` takes: python benchmarks/startup.py [ROUNDS]. The goal is under 0.4 s."""

import json
import statistics
import subprocess
import sys
import time

from inheritune.runs import machine_facts

GOAL_S = 0.4


def seconds(*words: str) -> float:
    """Wall time of one command."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    commands = {"bare python": ("-c", "pass"), "python -m inheritune --help": ("-m", "inheritune", "--help")}
    times = {name: [seconds(*words) for _ in range(rounds)] for name, words in commands.items()}
    medians = {name: round(statistics.median(each), 3) for name, each in times.items()}
    print(json.dumps({"median_s": medians, "rounds": rounds, "goal_s": GOAL_S, **machine_facts()}, indent=2))


if __name__ == "__main__":
    main()
