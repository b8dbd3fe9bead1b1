"""How often do the limits of AUROC and sensitivity hold the true value? A simulation of patients with several images each.

.venv/bin/python benchmarks/coverage.py [--full] [--rounds 1000]

Scores are normally distributed within each class, so that the true AUROC and the true sensitivity are known. A patient has two and
a half images on average (geometrically distributed), whose scores correlate with 0.3 or 0.6. Six images in ten show pneumonia.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pneumolib.evaluation.intervals import Resamples

NOMINAL, LEAST = 0.95, 0.92
IMAGES, AUROCS, SENSITIVITIES, CORRELATIONS = (40, 100, 624), (0.85, 0.95, 0.99), (0.8, 0.95, 0.99), (0.3, 0.6)
FEW = [("AUROC", 100, 0.99, 0.6), ("AUROC", 624, 0.95, 0.3), ("sensitivity", 100, 0.95, 0.3)]


def draw(rng: np.random.Generator, images: int, auroc: float, correlation: float) -> tuple[np.ndarray, ...]:
    """Labels, scores and groups of one test set; scores of normal images have mean 0, all have a standard deviation of 1."""
    labels, scores, groups = [], [], []
    for label, n in ((1, round(0.6 * images)), (0, images - round(0.6 * images))):
        patient = np.repeat(np.arange(n), rng.geometric(0.4, n))[:n]
        shared = np.sqrt(correlation) * rng.normal(size=n)[patient]
        mean = label * np.sqrt(2) * norm.ppf(auroc)
        labels.append(np.full(n, label))
        scores.append(mean + shared + np.sqrt(1 - correlation) * rng.normal(size=n))
        groups.append(patient + label * images)
    return tuple(map(np.concatenate, (labels, scores, groups)))


def coverage(
    name: str, images: int, true: float, correlation: float, rounds: int, seed: int
) -> tuple[float, float, float]:
    """Share of rounds whose limits hold the true value, their mean width, and the share of rounds without limits."""
    rng, held, widths = np.random.default_rng(seed), [], []
    for _ in range(rounds):
        is_auroc = name == "AUROC"
        labels, scores, groups = draw(rng, images, true if is_auroc else 0.95, correlation)
        threshold = np.sqrt(2) * norm.ppf(0.95) - norm.ppf(true)
        resamples = Resamples(labels, groups, None, (1 - NOMINAL) / 2)
        _, low, high = resamples.clustered_limits(name.lower(), (scores, 0.0 if is_auroc else threshold))
        if np.isfinite(low):
            held.append(low <= true <= high)
            widths.append(high - low)
    return float(np.mean(held)), float(np.mean(widths)), 1 - len(held) / rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all cells, in place of three")
    parser.add_argument("--rounds", type=int, default=1000)
    asked = parser.parse_args()
    cells = FEW
    if asked.full:
        kinds = [("AUROC", AUROCS), ("sensitivity", SENSITIVITIES)]
        cells = [(name, *cell) for name, trues in kinds for cell in itertools.product(IMAGES, trues, CORRELATIONS)]
    print(f"## Coverage of nominal {NOMINAL:.0%} intervals, {asked.rounds} simulated test sets each\n")
    print("| metric | images | true value | correlation within a patient | coverage | mean width |")
    print("|---|---|---|---|---|---|")
    low = []
    for seed, cell in enumerate(cells):
        share, width, _ = coverage(*cell, asked.rounds, seed)
        low += [cell] if share < LEAST else []
        print(f"| {' | '.join(map(str, cell))} | {share:.3f} | {width:.3f} |", flush=True)
    print(f"\nCells below {LEAST}: {low or 'none'}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
