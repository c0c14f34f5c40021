"""The project's W&B dashboard as code: λ × η heatmaps, effective learning rates, Jacobian norm, divergence, by regime.

`wandb` is imported here, in from_wandb.py and in record.py only.
"""

from __future__ import annotations

from typing import Any

from weight_decay.errors import UserError, first_line

REGIMES = {"over_training": "Over-training (many passes)", "under_training": "Under-training (one pass)"}
LR, STRENGTH = "optimizer.lr", "decay.strength"
CURVES = {
    "over_training": ("test/error", "ema/test/error", "train/error", "test/loss"),
    "under_training": ("val/loss", "ema/val/loss", "train/loss", "grad/clipped"),
}
OUTCOME = {"over_training": "ema/test/error", "under_training": "ema/val/loss"}
EFFECTIVE = ("effective_lr/adamw", "effective_lr/sgd", "effective_lr/rotation", "weights/norm")
JACOBIAN = ("jacobian/mean_square", "ema/jacobian/mean_square", "noise/scale")
DIVERGENCE = ("divergence/score", "batch/loss")


def build_workspace(entity: str, project: str) -> Any:
    """The dashboard as a `wandb_workspaces.workspaces.Workspace`, one section for each subject and regime.

    It needs no account and sends nothing; `publish` does. The heatmap of λ × η is a scatter plot coloured by the
    outcome, with a parallel-coordinates plot beside it: W&B has no heatmap over two settings.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as workspaces

    def line(metric: str) -> Any:
        return panels.LinePlot(title=metric, x="step", y=[metric], smoothing_type="none")

    sections = []
    for regime, title in REGIMES.items():
        outcome = OUTCOME[regime]
        grid = panels.ScatterPlot(
            title=f"{outcome} over λ × η (colour)",
            x=panels.Config(LR),
            y=panels.Config(STRENGTH),
            z=panels.SummaryMetric(outcome),
            log_x=True,
            gradient=[
                panels.GradientPoint(color="#1B7F5C", offset=0),
                panels.GradientPoint(color="#C2410C", offset=100),
            ],
        )
        paths = panels.ParallelCoordinatesPlot(
            title=f"λ, η -> {outcome}",
            columns=[
                panels.ParallelCoordinatesPlotColumn(panels.Config(STRENGTH)),
                panels.ParallelCoordinatesPlotColumn(panels.Config(LR), log=True),
                panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(outcome)),
            ],
        )
        sections.append(
            workspaces.Section(
                name=title, panels=[grid, paths, *(line(metric) for metric in CURVES[regime])], is_open=True
            )
        )
    sections += [
        workspaces.Section(name="Effective learning rate", panels=[line(metric) for metric in EFFECTIVE], is_open=True),
        workspaces.Section(name="Jacobian norm and noise", panels=[line(metric) for metric in JACOBIAN], is_open=True),
        workspaces.Section(
            name="Divergence",
            panels=[
                *(line(metric) for metric in DIVERGENCE),
                panels.BarPlot(title="step of divergence", metrics=["divergence_step"], orientation="h"),
            ],
            is_open=True,
        ),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="What weight decay does",
        sections=sections,
    )


def publish(entity: str, project: str) -> str:
    """Save the dashboard to W&B; returns its address. UserError if nobody is logged in or W&B cannot be reached."""
    require_login("dashboard")
    workspace = build_workspace(entity, project)
    try:
        workspace.save()
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"dashboard: W&B did not take it for {entity}/{project} ({reason}).") from error
    return str(workspace.url)


def require_login(command: str) -> None:
    """UserError if nobody is logged in to W&B here, or W&B does not know the login."""
    import wandb

    try:
        if wandb.login(prompt=False):
            return
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"{command}: W&B does not take the login of this machine ({reason}).") from error
    raise UserError(f"{command}: nobody is logged in to W&B here; run `wandb login`, or set WANDB_API_KEY.")
