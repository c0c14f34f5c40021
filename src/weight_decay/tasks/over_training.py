"""Image classification: the over-training regime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weight_decay.config.groups import ImageData
from weight_decay.config.run import RunConfig
from weight_decay.data.images.image_set import ImageSet, seeded_order
from weight_decay.data.images.resident import hold
from weight_decay.data.images.stream import FixedImages, ImageStream, Reading, epoch_samples
from weight_decay.device.choose import autocast, weight_dtype
from weight_decay.device.distributed import current
from weight_decay.device.memory import in_pieces
from weight_decay.device.traits import widest_float
from weight_decay.errors import UserError
from weight_decay.optim.averaging import reestimate_batch_norm
from weight_decay.probes.eval_mode import eval_mode
from weight_decay.seeds import stream_seed
from weight_decay.tasks.regime import Batch, Regime, make_clock


class Floats:
    """From stored images to what the model sees.

    mean, std: the training set's channel statistics in [0, 255], or None to feed images scaled to [0, 1].
    dtype: of the model's weights, and so of its inputs.
    """

    def __init__(self, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        if mean is None or std is None:
            self._scale, self._shift = torch.tensor(1 / 255.0), torch.tensor(0.0)
        else:
            self._scale, self._shift = (1 / std).view(1, 3, 1, 1), (-mean / std).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) as normalised floats."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return torch.addcmul(self._shift, images.float(), self._scale).to(self._dtype)


@dataclass(frozen=True)
class Normalised:
    """The batches of `stored` as the model sees them, however often they are read."""

    stored: Iterable[Batch]
    floats: Floats

    def __iter__(self) -> Iterator[Batch]:
        return ((self.floats(images), labels) for images, labels in self.stored)


@dataclass(eq=False)
class Classification:
    """Cross-entropy on labelled images, evaluated on fixed batches of both sets.

    evaluation: named sets of fixed batches, e.g. {"train": ..., "test": ...}; each yields (uint8 images, labels).
    reestimation: training batches for the batch-norm statistics of averaged models.
    balanced: (images of each class, images at a time) -> training batches of so many of each (PAPER §1).
    autocast: the precision of training; reestimate_autocast: that of re-estimation; device: where the batches are.
    """

    evaluation: dict[str, Iterable[Batch]]
    reestimation: Iterable[Batch]
    balanced: Callable[[int, int], Iterable[Batch]]
    floats: Floats
    autocast: Callable[[], AbstractContextManager[Any]]
    reestimate_autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    def loss(self, forward: Callable[..., Any], batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch in nats; `forward` maps float images (B, 3, H, W) to logits (B, classes)."""
        images, labels = batch
        logits = forward(self.floats(images))
        return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)

    def forward(self, model: nn.Module) -> Callable[..., Any]:
        """The callable that `loss` takes, and that may be compiled."""
        return model

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """`train/loss`, `train/error`, `test/loss`, `test/error` of the model in eval mode; its mode is restored."""
        metrics: dict[str, Tensor] = {}
        with eval_mode(model):
            for name, batches in self.evaluation.items():
                metrics |= {f"{name}/{key}": value for key, value in self._evaluate_set(model, batches).items()}
        return metrics

    def _evaluate_set(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        wide, count = widest_float(device), 0
        loss_sum = torch.zeros((), dtype=wide, device=device)
        wrong = torch.zeros((), dtype=torch.int64, device=device)
        for images, labels in batches:
            logits = self._logits(model, images)
            loss_sum += F.cross_entropy(logits, labels, reduction="sum").to(wide)
            wrong += (logits.argmax(1) != labels).sum()
            count += len(labels)
        return {"loss": loss_sum / count, "error": wrong.to(wide) / count}

    def reestimate(self, model: nn.Module) -> None:
        """One pass over training data for the batch-norm statistics of an averaged model (PAPER §1)."""
        with torch.no_grad(), self.reestimate_autocast():
            reestimate_batch_norm(model, (self.floats(images) for images, _ in self.reestimation))

    def samples(self, number: int, at_a_time: int) -> Iterable[Batch]:
        """`number` training images of each class, normalised (B, 3, H, W), with their labels."""
        return Normalised(self.balanced(number, at_a_time), self.floats)

    @torch.no_grad()
    def predictions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Class probabilities (N, classes), float32, of the model in eval mode for the test set; labels (N,)."""
        probabilities, truth = [], []
        with eval_mode(model):
            for images, labels in self.evaluation["test"]:
                logits = self._logits(model, images)
                probabilities.append(torch.softmax(logits, 1))
                truth.append(labels)
        return torch.cat(probabilities), torch.cat(truth)

    def _logits(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits (B, classes), float32, in the precision of training; of parts of the batch where memory is small."""

        def logits(piece: slice) -> Tensor:
            with self.autocast():
                return model(self.floats(images[piece])).float()

        parts = list(in_pieces(logits, len(images), len(images), "evaluation"))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def load_sets(data: ImageData) -> tuple[ImageSet, ImageSet]:
    """Training and test set; subsets of the training set are nested: the 10k one is inside the 25k one (Fig 1)."""
    train, test = data.load("train"), data.load("test")
    if data.train_size is not None and data.train_size != len(train):
        train = train.subset(data.train_size, data.seed)
    if data.test_size is not None and data.test_size != len(test):
        test = test.chosen(data.test_size, data.seed)
    return train, test


def build(config: RunConfig, device: torch.device) -> Regime:
    """Images and the classification task; UserError if the data cannot serve the run."""
    if current().count > 1:
        raise UserError(
            "torchrun: image runs train in one process each; start them without torchrun, "
            "one cell for each GPU (cell=N)."
        )
    data, probes = config.data, config.probes
    assert isinstance(data, ImageData)
    train, test = load_sets(data)
    if train.classes != data.classes or train.images.shape[1] != data.image_size:
        raise UserError(
            f"data: {data.kind} has {train.classes} classes of {train.images.shape[1]} pixels; "
            f"set data.classes and data.image_size so (now {data.classes} and {data.image_size})."
        )
    mean = std = None
    if data.normalise:
        mean, std = (torch.tensor(values, dtype=torch.float32) for values in train.channel_statistics())
    hold([train, test], device)
    batch = probes.evaluation_batch

    def part(size: int | None) -> np.ndarray | None:
        """Rows of as many training images; None where that is all of them."""
        return None if size is None or size >= len(train) else train.choice(size, data.seed)

    def balanced(per_class: int, at_a_time: int) -> FixedImages:
        return FixedImages(train.class_balanced(per_class, data.seed), at_a_time, device)

    averaging, precision = config.averaging, autocast(config.precision, device)
    task = Classification(
        evaluation={
            "train": FixedImages(train, batch, device, part(probes.evaluation_train_samples)),
            "test": FixedImages(test, batch, device),
        },
        reestimation=FixedImages(
            train,
            config.batch_size,
            device,
            _shuffled(part(averaging.reestimate_samples), len(train), stream_seed(config.seed, "reestimation")),
        ),
        balanced=balanced,
        floats=Floats(mean, std, weight_dtype(config.precision)),
        autocast=precision,
        reestimate_autocast=precision if averaging.reestimate_autocast else nullcontext,
        device=device,
    )
    stream = ImageStream(
        train,
        config.batch_size,
        stream_seed(config.seed, "data"),
        device,
        reading=Reading(data.drop_last, data.order, data.augment),
    )
    described = {
        "name": train.name,
        "fingerprint": train.fingerprint,
        "evaluated_fingerprint": test.fingerprint,
        "split": {"train": train.split, "test": test.split},
        "train_samples": len(train),
        "test_samples": len(test),
    }
    epoch = epoch_samples(len(train), config.batch_size, data.drop_last)
    return Regime(task, stream, make_clock(config.duration, config.batch_size, epoch, 1), described)


def _shuffled(rows: np.ndarray | None, size: int, seed: int) -> np.ndarray:
    """The rows (all of `size` if None) in an order drawn from `seed`.

    Batch norm sees a batch at a time, so the order matters: batches of one class have other statistics.
    """
    order = seeded_order(seed, 0, size if rows is None else len(rows))
    return order if rows is None else rows[order]
