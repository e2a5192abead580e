"""Trains a CIFAR-10 network on 45,000 images, for searches under the protocol of AMC's paper.

    python scripts/train_cifar.py model=resnet20 seed=0 --out weights/resnet20-s0.safetensors
    python scripts/reproduce_cifar.py experiment=resnet20_50 \
        model.checkpoint=weights/resnet20-s0.safetensors model.trained_on=train

The 5,000 images that ``data.split=holdout`` keeps for validation are left out, so that searches can
be scored on images that the weights have not seen; the test images are looked at once, at the end,
and decide nothing. The last weights are kept, not those of a chosen epoch.

Settings are those of ``prunepilot``; ``finetune=scratch`` says how to train (160 epochs, SGD, as He
et al. did, with a cosine). A training that was cut goes on where it was. With a GPU ResNet-56 takes
about an hour; on one core with bfloat16 (``finetune.precision=bfloat16``) ResNet-20 takes minutes
an epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from automl.commands.build import Bench
from automl.commands.compose import compose
from automl.commands.settings import set_up_process
from automl.commands.training import tuning_of
from automl.model_folder import unique_tensors
from automl.training.finetune import finetune
from automl.training.history import EpochRow
from automl.types import FailedError, InputError

#: What comes before the settings that are given, and may be changed by them.
DEFAULTS = ("data=cifar10", "finetune=scratch", "data.split=holdout")
#: The weights begin as chance has it, whatever checkpoint the model's file names.
FRESH = ("model.checkpoint=null", "model.trained_on=null")


def train(overrides: Sequence[str], out: Path) -> str:
    """Trains, saves the weights and says how good they are.

    Args:
        overrides: Settings, ``model=`` among them.
        out: File to write, ``.safetensors``.

    Returns:
        One line: epochs, and accuracy on validation and test images.

    Raises:
        InputError: A setting is off, or ``out`` cannot be written or exists.
        FailedError: The training diverged.
    """
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors")
    if out.exists():
        raise InputError(f"--out {out} exists; choose another file")
    config = compose([*DEFAULTS, *overrides, *FRESH])
    set_up_process(config)
    tuning, bench = tuning_of(config), Bench(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = out.with_suffix(".training.pt")
    network = bench.complete.model
    finetune(
        network,
        bench.data.train,
        tuning,
        **bench.normalisation,
        augment=bench.data.augment,
        device=bench.device,
        dtype=bench.dtype,
        channels_last=bench.images_channels_last,
        checkpoint=checkpoint,
        progress=lambda row: report(row, tuning.epochs),
    )
    network.eval()
    save_file(unique_tensors(network), out)
    checkpoint.unlink(missing_ok=True)
    validation, test = (
        100 * scorer(network)[1]["top1"] for scorer in (bench.tuning_scorer, bench.test_scorer)
    )
    images = len(bench.data.train)
    return (
        f"{bench.complete.name}, {tuning.epochs} epochs of {images} images, seed {tuning.seed}: "
        f"validation top-1 {validation:.2f} %, test top-1 {test:.2f} %"
    )


def report(row: EpochRow, epochs: int) -> None:
    """One line per epoch on standard error."""
    line = f"epoch {row.epoch}/{epochs}, lr {row.lr:.4f}, loss {row.train_loss:.4f}"
    print(f"{line}, {row.seconds:.0f} s", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, prints and writes; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="model=resnet20, ...")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    args = parser.parse_intermixed_args(arguments)
    try:
        print(train(args.overrides, args.out))
        print(f"wrote {args.out}")
    except (InputError, FailedError) as error:
        print(f"train_cifar: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("train_cifar: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
