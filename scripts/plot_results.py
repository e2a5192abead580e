"""The README's picture: learned policies of ResNet-56 beside uniform pruning, from docs/policies.

    python scripts/plot_results.py

Left, test top-1 without labels at half of the MACs, as ``docs/policies/index.json`` has it: by
least squares (``tests/test_policies.py`` holds it to that), and refined on 8,192 images
(``prunepilot apply``, docs/results.md); right, how many units of every group the best policy keeps.
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
    # Points, not bars: the axis does not begin at zero.
    for place, name in enumerate(STRATEGIES):
        entry, colour = index[f"{NETWORK}-{name}"], COLOURS[name]
        fitted, refined = (100 * entry[key] for key in ("test_top1", "refined_top1"))
        axes.plot([place, place], [fitted, refined], color=colour, linewidth=1, zorder=1)
        axes.scatter([place], [fitted], s=55, facecolor="white", edgecolor=colour, zorder=2)
        axes.scatter([place], [refined], s=70, color=colour, zorder=2)
        for value in (fitted, refined):
            axes.annotate(
                f"{value:.2f}", (place, value), (7, 0), textcoords="offset points", va="center"
            )
    axes.scatter([], [], s=55, facecolor="white", edgecolor="#1b1e23", label="least squares")
    axes.scatter([], [], s=70, color="#1b1e23", label="refined")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_xticks(range(len(STRATEGIES)), STRATEGIES)
    axes.axhline(100 * DENSE, color="#1b1e23", linestyle=":", linewidth=1)
    axes.annotate(f"dense {100 * DENSE:.2f}", (-0.4, 100 * DENSE), va="bottom")
    axes.set_ylim(86, 94.6)
    axes.set_xlim(-0.5, len(STRATEGIES) - 0.3)
    axes.set_ylabel("test top-1 %")
    axes.set_title("ResNet-56, CIFAR-10, half of the MACs,\nno labels, no fine-tuning", fontsize=10)


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
