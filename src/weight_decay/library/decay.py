"""Weight decay of an optimizer that is not ours: which parameters decay, and whether rounding lets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weight_decay.errors import UserError
from weight_decay.library.measure import innermost
from weight_decay.optim import decay

RuleSet = Literal["everything", "except_norms", "matrices"]


def decay_groups(
    model: nn.Module,
    weight_decay: float,
    rules: RuleSet | Sequence[tuple[str, float] | tuple[str, float, str]] = "everything",
) -> list[dict[str, Any]]:
    """Parameter groups `{"params": [...], "weight_decay": λ}` that any torch optimizer takes as they are.

    rules:
      "everything": all trainable parameters decay, as in the paper's image experiments;
      "except_norms": all but the scales and shifts of normalisation layers, as in its language models;
      "matrices": parameters of two or more dimensions only, as nanoGPT does it;
      or pairs (regular expression, factor on λ): the first that is found in a parameter's name decides, factor 0
      exempts it. A third entry is an expression for the class of the layer that holds the parameter: (".*", 0, "Norm").

    Every trainable parameter is in exactly one group; each group has one λ. Give the optimizer no weight_decay besides.

    Raises UserError for a negative λ or factor, an expression that is none, a parameter that no rule matches, an
    unknown set of rules, or λ > 0 where nothing decays.
    """
    held_by = decay.holders(model)
    if rules == "matrices":
        held_by = {name: "matrix" if parameter.dim() >= 2 else "vector" for name, parameter in model.named_parameters()}
    ordered = _rule_set(rules) if isinstance(rules, str) else [decay.DecayRule(*rule) for rule in rules]
    made = decay.decay_groups(model.named_parameters(), ordered, weight_decay, held_by)
    return [{"params": group.parameters, "weight_decay": group.weight_decay} for group in made]


def _rule_set(name: str) -> list[decay.DecayRule]:
    # By the layer's class and not by its name: GPT-2's norms are called ln_1.
    exempt = {"everything": [], "except_norms": ["(?i)norm"], "matrices": ["vector"]}
    if name not in exempt:
        raise UserError(
            f'decay_groups: there is no set of rules "{name}"; use "everything", "except_norms", "matrices" or a list '
            "of (regular expression, factor)."
        )
    return [*(decay.DecayRule(".*", 0.0, module) for module in exempt[name]), decay.DecayRule(".*")]


_ADAPTIVE = (
    torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Adagrad,
    torch.optim.Adamax, torch.optim.Adadelta,
)  # fmt: skip
"""Optimizers of torch that add λ w to the gradient, unless told otherwise, and then divide by its running size."""


@dataclass(frozen=True)
class DecayKept:
    """How much of a step's weight decay survives rounding.

    share: of the weights that should decay, the share whose decay by one step, η λ w, changes the rounded weight; NaN
    if none should. strongest: the largest η λ of the parameters. needed: the η λ from which every weight of the dtype
    that is no power of two or subnormal decays under rounding to nearest.
    """

    share: float
    strongest: float
    needed: float

    @property
    def kept(self) -> bool:
        """Whether at least half of the weights that should decay do."""
        return self.share >= 0.5

    def __str__(self) -> str:
        verdict = "kept" if self.kept else "mostly rounded away" if self.share > 0 else "rounded away"
        return (
            f"decay {verdict}: {self.share:.1%} of the weights move; η·λ is {self.strongest:.2g} of {self.needed:.2g}"
        )


@torch.no_grad()
def decay_kept(optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None) -> DecayKept:
    """Is my weight decay rounded away? Looks at the weights as they are, and at one step of decay alone.

    dtype: the one the weights are stored in, such as torch.bfloat16; None takes each parameter's own. Weights kept in
    float32 beside bfloat16 copies (autocast, master weights) are float32 here.

    The answer is for decay and update rounded one after the other, as torch's foreach optimizers do it; fused kernels
    round once, and an update of about a unit in the last place can then carry the decay along.

    Reads the weights: waits for the device. Raises UserError for the ℓ2 penalty of Adam, RMSprop and their relatives,
    whose strength the adaptive step decides, and for a dtype that is not floating point.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"decay_kept: {dtype} is no floating-point type; use one such as torch.bfloat16.")
    optimizer = innermost(optimizer, "decay_kept")
    moved, count, strongest, needed = [], 0, 0.0, 0.0
    for group in optimizer.param_groups:
        weight_decay = float(group.get("weight_decay", 0.0))
        trained = [parameter for parameter in group["params"] if parameter.requires_grad]
        if weight_decay == 0 or not trained:
            continue
        if isinstance(optimizer, _ADAPTIVE) and not group.get("decoupled_weight_decay", False):
            raise UserError(
                f"decay_kept: {type(optimizer).__name__} adds λ w to the gradient, so its strength is not η·λ; "
                "use AdamW for decoupled decay."
            )
        rate = float(group["lr"]) * weight_decay
        strongest = max(strongest, rate)
        for parameter in trained:
            stored = dtype or parameter.dtype
            # Half a unit in the last place of a weight just below a power of two.
            needed = max(needed, torch.finfo(stored).eps / 2)
            moved.append(_moves(parameter.detach(), stored, rate))
            count += int((parameter != 0).sum())
    total = int(torch.stack(moved).sum()) if moved else 0
    return DecayKept(total / count if count else float("nan"), strongest, needed)


def _moves(parameter: Tensor, dtype: torch.dtype, rate: float) -> Tensor:
    before = parameter.to(dtype)
    wide = torch.float64 if dtype in (torch.float32, torch.float64) else torch.float32
    return ((before.to(wide) * (1 - rate)).to(dtype) != before).sum()
