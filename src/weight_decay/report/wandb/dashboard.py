"""The project's W&B dashboard as code: λ × η heatmaps, effective learning rates, Jacobian norm, divergence, by regime.

`wandb` is imported here, in pull.py and in record.py only.
"""

from __future__ import annotations

from typing import Any

from weight_decay.errors import UserError, first_line

LR, STRENGTH = "optimizer.lr", "decay.strength"
REGIMES = (
    ("Over-training (many passes)", "ema/test/error", ("test/error", "ema/test/error", "train/error", "test/loss")),
    ("Under-training (one pass)", "ema/val/loss", ("val/loss", "ema/val/loss", "train/loss", "grad/clipped")),
)
"""Title, outcome of the heatmap, and what is drawn over steps."""
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

    def lines(metrics: tuple[str, ...]) -> list[Any]:
        return [panels.LinePlot(title=metric, x="step", y=[metric], smoothing_type="none") for metric in metrics]

    def section(name: str, shown: list[Any]) -> Any:
        return workspaces.Section(name=name, panels=shown, is_open=True)

    sections = []
    for title, outcome, curves in REGIMES:
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
        sections.append(section(title, [grid, paths, *lines(curves)]))
    ends = panels.BarPlot(title="step of divergence", metrics=["divergence_step"], orientation="h")
    sections += [
        section("Effective learning rate", lines(EFFECTIVE)),
        section("Jacobian norm and noise", lines(JACOBIAN)),
        section("Divergence", [*lines(DIVERGENCE), ends]),
    ]
    return workspaces.Workspace(entity=entity, project=project, name="What weight decay does", sections=sections)


def publish(entity: str, project: str) -> str:
    """Save the dashboard to W&B; returns its address. UserError if nobody is logged in or W&B cannot be reached."""
    require_login("dashboard")
    workspace = build_workspace(entity, project)
    try:
        workspace.save()
    except Exception as error:
        raise UserError(f"dashboard: W&B did not take it for {entity}/{project} ({first_line(error)}).") from error
    return str(workspace.url)


def require_login(command: str) -> None:
    """UserError if nobody is logged in to W&B here, or W&B does not know the login."""
    import wandb

    try:
        if wandb.login(prompt=False):
            return
    except Exception as error:
        raise UserError(f"{command}: W&B does not take the login of this machine ({first_line(error)}).") from error
    raise UserError(f"{command}: nobody is logged in to W&B here; run `wandb login`, or set WANDB_API_KEY.")
