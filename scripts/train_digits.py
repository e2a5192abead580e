"""Trains the digits network that ships with the package.

Example:
    python scripts/train_digits.py --out automl/models/weights/digits.safetensors

The same machine, torch version and seed give the same file byte for byte. Test accuracy is
printed and decides nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from automl.data import DataSplits, TensorSet, load_data
from automl.models.digits import digits_cnn

BATCH_SIZE = 64
#: More than this does not ship.
MAX_BYTES = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, reports and saves."""
    options = _parser().parse_args(arguments)
    # One thread: sums are taken in one order, so that the file does not depend on the machine's
    # number of cores.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    data = load_data("digits")
    model = digits_cnn()
    start = time.perf_counter()
    train(model, data, options.epochs, options.seed, options.learning_rate)
    print(f"trained {options.epochs} epochs in {time.perf_counter() - start:.0f} s")
    for name, part in (
        ("train", data.train),
        ("validation", data.validation),
        ("test", data.test),
    ):
        top1, loss = evaluate(model, part, data)
        print(f"{name:<10}  {len(part):>4} images  top1 {top1:.4f}  loss {loss:.4f}")
    size = save(model, options.out)
    print(f"wrote {options.out} ({size / 1024:.0f} KiB)")


def train(model: nn.Module, data: DataSplits, epochs: int, seed: int, learning_rate: float) -> None:
    """SGD with Nesterov momentum, one cycle of the learning rate, shifts by one pixel."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * (len(data.train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for x, y in data.train.batches(
            BATCH_SIZE,
            mean=data.mean,
            std=data.std,
            shuffle=True,
            generator=generator,
            augment=data.augment,
            drop_last=True,
        ):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.inference_mode()
def evaluate(model: nn.Module, part: TensorSet, data: DataSplits) -> tuple[float, float]:
    """Returns (top1 in [0, 1], mean cross-entropy)."""
    model.eval()
    x, y = next(part.batches(len(part), mean=data.mean, std=data.std))
    logits = model(x)
    top1 = (logits.argmax(1) == y).double().mean()
    return float(top1), float(F.cross_entropy(logits, y))


def save(model: nn.Module, out: Path) -> int:
    """Writes the weights as safetensors; returns the size in bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # One metadata entry: several are written in random order, and the file would not be the same
    # twice. Batch counts are of no use to inference, and loading does not miss them.
    weights = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, out, metadata={"made_by": "scripts/train_digits.py"})
    size = out.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{out} must be at most {MAX_BYTES} bytes to ship, got {size}")
    return size


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).parents[1] / "automl" / "models" / "weights" / "digits.safetensors"
    parser.add_argument("--out", type=Path, default=default, help="file to write")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
