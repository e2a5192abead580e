"""The README's picture: learned policies of ResNet-56 beside uniform pruning, from docs/policies.

    python scripts/plot_results.py

Left, test top-1 without any training at half of the MACs, as ``docs/policies/index.json`` has it
(``scripts/reproduce_cifar.py`` measured it, ``tests/test_policies.py`` holds it to it); right, how
many units of every group the best learned policy keeps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import automl

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ROOT / "docs" / "policies"
NETWORK = "resnet56_50"
STRATEGIES = ("uniform", "amc", "sensitivity")
#: The dense network on the same 5,000 images (docs/results.md).
DENSE = 0.9358
#: Okabe and Ito's colours, apart for colour-blind eyes; grey is what is compared with.
COLOURS = {"uniform": "#868d98", "amc": "#0072b2", "sensitivity": "#d55e00"}


def main() -> None:
    """Draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "resnet56.png")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.4), width_ratios=[1, 2.4], layout="constrained"
    )
    _accuracies(left)
    _groups(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


def _accuracies(axes: object) -> None:
    index = json.loads((POLICIES / "index.json").read_text(encoding="utf-8"))
    found = {name: 100 * index[f"{NETWORK}-{name}"]["test_top1"] for name in STRATEGIES}
    # Points, not bars: the axis does not begin at zero.
    axes.scatter(list(found), list(found.values()), s=70, color=[COLOURS[n] for n in found])
    for name, value in found.items():
        axes.annotate(
            f"{value:.2f}", (name, value), (0, -14), textcoords="offset points", ha="center"
        )
    axes.axhline(100 * DENSE, color="#1b1e23", linestyle=":", linewidth=1)
    axes.annotate(f"dense {100 * DENSE:.2f}", (-0.4, 100 * DENSE), va="bottom")
    axes.set_ylim(86, 94.6)
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set_ylabel("test top-1 %")
    axes.set_title("ResNet-56, CIFAR-10, half of the MACs,\nno training at all", fontsize=10)


def _groups(axes: object) -> None:
    width = 0.42
    for name, shift in (("uniform", 0.5), ("sensitivity", -0.5)):
        decisions = automl.Policy.load(POLICIES / f"{NETWORK}-{name}.json").decisions
        kept = [100 * one.kept / one.units for one in decisions]
        places = [i + shift * width for i in range(len(kept))]
        axes.bar(places, kept, width, color=COLOURS[name], label=name)
    names = [one.target.removesuffix(".conv1") for one in decisions]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_xlim(-0.8, len(names) - 0.2)
    axes.set_ylabel("channels kept, %")
    axes.set_title("what is kept of every group", fontsize=10)
    axes.set_ylim(0, 122)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(loc="upper right", ncols=2, frameon=False)


if __name__ == "__main__":
    main()
