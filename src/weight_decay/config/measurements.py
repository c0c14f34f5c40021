"""Averages and snapshot ensembles, and what every kind of probe has: measurements beyond the iterate's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from weight_decay.config.schema import off, require
from weight_decay.config.span import Span


@dataclass(frozen=True)
class EnsembleConfig:
    """Snapshot ensemble (Tables 2, 3): test predictions of the iterate, averaged over snapshots along the run.

    start: the first snapshot; every: the distance between two; stop: none is taken after it.
    """

    start: Span
    every: Span
    stop: Span

    def __post_init__(self) -> None:
        require(self.every.value > 0, f'every: must be a positive length, got "{self.every}"')
        self.start.check_share("start")


@dataclass(frozen=True)
class AveragingConfig:
    """Averages along the run: of the weights, and (`ensemble`) of the predictions.

    ema: decays of exponential averages; the first of the list is "the" EMA of the metric names.
    reestimate_samples: training images for the batch-norm statistics of an average, null for the whole set.
    reestimate_autocast: that pass in the precision of training; false: in that of the weights, as in the released code.
    tail_start: where the uniform average of the weights begins (`tail/...`), null for none.
    within_epoch: a uniform average over the steps of the present pass over the images (`within_epoch/...`).
    """

    ema: tuple[float, ...]
    reestimate_samples: int | None
    reestimate_autocast: bool = field(metadata=off(True))
    tail_start: Span | None = field(metadata=off(None))
    within_epoch: bool = field(metadata=off(False))
    ensemble: EnsembleConfig | None = field(metadata=off(None))

    def __post_init__(self) -> None:
        for beta in self.ema:
            require(0 < beta < 1, f"ema: every decay must lie strictly between 0 and 1, got {beta:g}")
        require(len(set(self.ema)) == len(self.ema), f"ema: the same decay is listed twice in {list(self.ema)}")
        samples = self.reestimate_samples
        require(samples is None or samples > 0, f"reestimate_samples: must be positive or null, got {samples}")


@dataclass(frozen=True)
class ProbeKind:
    """A measurement beyond loss and error; each kind is a class of its own in `probes/`.

    every: the distance between two; of branches too where `probes.within_branches` says so, and always where one ends.

    Of a kind: `regimes`, those whose runs it can measure; `at_start`, whether the untrained network is measured.
    """

    kind: str
    every: Span
    regimes: ClassVar[tuple[str, ...]] = ("over_training", "under_training")
    at_start: ClassVar[bool] = True

    @property
    def of_averages(self) -> bool:
        """Whether the averaged weights are measured too, under `ema/` and so on."""
        return True

    def ready(self, task: Any, seed: int) -> Callable[[Any], dict[str, Any]]:
        """The measurement: maps a network, left as it was, to scalars on its device, by the names that the record has.

        task: the run's, with `samples(number, at_a_time)`: the same batches (inputs, targets) at every iteration, of
        images so many of each class as the network takes them, of text so many windows; `autocast`, the context of
        the precision of training; and `device`. seed: the run's, for `seeds.generator`. Called once, before the first
        step.
        """
        raise NotImplementedError
