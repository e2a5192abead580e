"""Trains the small networks on ids that ship with the package: encoder, decoder, recommender.

Example:
    python scripts/train_sequences.py bert_tiny

The same machine, torch version and seed give the same file byte for byte. Test accuracy is
printed and decides nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from automl.data import DataSplits, TensorSet, load_data
from automl.models import load_model
from automl.models.gpt import GPT, NextToken
from automl.paths import conf_dir

WEIGHTS = Path(__file__).parents[1] / "automl" / "models" / "weights"
BATCH_SIZE = 64


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, reports and saves."""
    options = _parser().parse_args(arguments)
    # One thread: sums are taken in one order, so that the file does not depend on the machine's
    # number of cores.
    torch.set_num_threads(1)
    config = yaml.safe_load((conf_dir() / "model" / f"{options.model}.yaml").read_text("utf-8"))
    loaded = load_model(
        config["factory"], kwargs=config["kwargs"], input_shape=config["input_shape"]
    )
    data = load_data(config["data"])
    start = time.perf_counter()
    train(loaded.model, data, options.epochs, options.weight_decay)
    print(f"trained {options.epochs} epochs in {time.perf_counter() - start:.0f} s")
    for name in ("train", "validation", "test"):
        top1, loss = evaluate(loaded.model, getattr(data, name))
        print(f"{name:<10}  top1 {top1:.4f}  loss {loss:.4f}")
    out = options.out / f"{options.model}.safetensors"
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}  # ties
    save_file(weights, out, metadata={"made_by": "scripts/train_sequences.py"})
    print(f"wrote {out} ({out.stat().st_size / 1024:.0f} KiB)")


def train(model: nn.Module, data: DataSplits, epochs: int, weight_decay: float = 0.0) -> None:
    """AdamW and one cycle of the learning rate; the same weights for the same start."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)
    steps = epochs * (len(data.train) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for ids, labels in data.train.batches(
            BATCH_SIZE, shuffle=True, generator=generator, drop_last=True
        ):
            optimizer.zero_grad()
            _loss(model, ids, labels).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def _loss(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy; a decoder learns from the next token after every token, not the last alone."""
    if isinstance(model, NextToken):
        targets = torch.cat((ids[:, 1:], labels[:, None]), dim=1)
        return F.cross_entropy(GPT.forward(model, ids).flatten(0, 1), targets.flatten())
    return F.cross_entropy(model(ids), labels)


@torch.inference_mode()
def evaluate(model: nn.Module, part: TensorSet) -> tuple[float, float]:
    """Returns (top1 in [0, 1], mean cross-entropy in nats)."""
    logits = model(part.images)
    top1 = (logits.argmax(1) == part.labels).double().mean()
    return float(top1), float(F.cross_entropy(logits, part.labels))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="name of a file in conf/model")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    return parser


if __name__ == "__main__":
    main()
