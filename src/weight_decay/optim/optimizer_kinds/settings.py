"""What SGD, AdamW and Muon are set by: one list for the three, because every run's identity names all of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from weight_decay.config.groups import OptimizerConfig
from weight_decay.config.schema import check_pattern, check_size, off, require


@dataclass(frozen=True)
class TorchOptimizer(OptimizerConfig):
    """The settings of torch's optimizers, whether the kind reads them or not.

    dampening: the gradient enters the momentum buffer times 1 - dampening, except at the first step, as in torch.
    betas, eps: of AdamW, and of the parameters that Muon leaves to it.
    matrices: for Muon, the parameters of two dimensions whose names match this regular expression are its own.
    """

    momentum: float
    dampening: float = field(metadata=off(0.0))
    nesterov: bool
    betas: tuple[float, float]
    eps: float
    matrices: str = field(metadata=off(".*"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, f"momentum: must be in [0, 1), got {self.momentum:g}")
        require(
            all(0 <= beta < 1 for beta in self.betas),
            f"betas: both must be in [0, 1), got {list(self.betas)}",
        )
        require(self.kind != "adamw" or self.momentum == 0, "momentum: AdamW has betas instead; set it to 0")
        check_size("eps", self.eps)
        require(not self.nesterov or self.momentum > 0, "nesterov: needs a momentum above 0")
        require(self.kind == "muon" or self.matrices == ".*", "matrices: only muon has its own; leave it out")
        check_pattern(self.matrices, "matrices")
        require(self.kind == "sgd" or self.dampening == 0, "dampening: only SGD has it; set it to 0")
        require(0 <= self.dampening < 1, f"dampening: must be in [0, 1), got {self.dampening:g}")
        require(self.dampening == 0 or self.momentum > 0, "dampening: needs a momentum above 0")
        require(self.dampening == 0 or not self.nesterov, "dampening: must be 0 with nesterov, as torch demands")

    @property
    def kernels(self) -> dict[str, Any]:
        """torch's own words for the kernel."""
        return {self.kernel: True}
