"""Train a classifier on a folder of pictures, in plain PyTorch. In: a definition and a data set. Out: a checkpoint.

The data set is DATA/{train,val}/LABEL/*. Network, labels and input size come from the definition. Prints the top-1
score on DATA/val as JSON. Pictures are resized as the definition says: resize = "squash", bilinear, antialiased.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from model_store.build.trainable import Trainable, trainable


def load(folder: Path, model: Trainable) -> tuple[torch.Tensor, torch.Tensor]:
    """All pictures of a split: uint8 [N, H, W, 3], and their classes, int64 [N]."""
    pictures, classes = [], []
    for number, label in enumerate(model.labels):
        for path in sorted((folder / label).iterdir()):
            picture = Image.open(path).convert("RGB")
            picture = picture.resize((model.width, model.height), Image.Resampling.BILINEAR)
            pictures.append(torch.from_numpy(np.array(picture)))
            classes.append(number)
    return torch.stack(pictures), torch.tensor(classes)


def train(model: Trainable, pictures: torch.Tensor, classes: torch.Tensor, *, epochs: int) -> None:
    """Train with AdamW on shuffled, mirrored pictures."""
    network = model.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * -(-len(classes) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for epoch in range(epochs):
        for batch in torch.randperm(len(classes)).split(16):
            x = model.pixels(pictures[batch])
            x = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, x.flip(3), x)
            loss = nn.functional.cross_entropy(network(x), classes[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}")
    network.eval()


@torch.inference_mode()
def top1(model: Trainable, pictures: torch.Tensor, classes: torch.Tensor) -> float:
    """The share of right answers, in percent."""
    found = torch.cat([model.network(model.pixels(part)).argmax(1) for part in pictures.split(16)])
    return 100 * (found == classes).float().mean().item()


def main() -> None:
    """Train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("definition", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", help="a checkpoint to begin with, or demo")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = trainable(arguments.definition, start=arguments.start)
    train(model, *load(arguments.data / "train", model), epochs=arguments.epochs)
    torch.save({"state_dict": model.network.state_dict(), "epoch": arguments.epochs}, arguments.out)
    print(json.dumps({"top1": top1(model, *load(arguments.data / "val", model))}))


if __name__ == "__main__":
    main()
