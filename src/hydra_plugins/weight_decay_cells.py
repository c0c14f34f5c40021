"""Hydra's doors for this project: a sweeper over an experiment's cells, and SLURM as its sweeps need it.

Hydra imports this file to learn what there is, so everything heavy is imported where it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

try:
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
except ModuleNotFoundError:
    # Without the extra [cluster] there is no SLURM, which `hydra/launcher=slurm` says; everything else is as before.
    SlurmLauncher = Launcher

log = logging.getLogger(__name__)


class CellsSweeper(Sweeper):
    """One job for each unfinished cell of an experiment and each combination of swept values."""

    def __init__(self) -> None:
        self.launcher: Launcher | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher that was chosen."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> int:
        """Launch what is not finished; returns the exit code of the command."""
        from weight_decay.experiments.launch.multirun import sweep
        from weight_decay.extras import told

        assert self.launcher is not None and self.config is not None
        launch, logs = self.launcher.launch, logs_of(self.config)
        return told(lambda: sweep(arguments, launch, logs))


def logs_of(config: DictConfig) -> Path:
    """Where the jobs' output goes: the launcher's folder for it, if it has one."""
    folder = OmegaConf.select(config, "hydra.launcher.submitit_folder")
    return Path(str(folder or config.hydra.sweep.dir).partition("/%")[0])


class SlurmCellsLauncher(SlurmLauncher):
    """Hydra's submitit launcher, waiting by `squeue`.

    submitit waits through `sacct`, which needs a data base that many clusters lack: a cancelled job would be waited
    for without end, and the first failed one would end the waiting for all.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit one job array, and return when none of its jobs is waiting or running any more."""
        import submitit

        from weight_decay.experiments import slurm

        assert self.config is not None
        sweep_dir = Path(str(self.config.hydra.sweep.dir))
        sweep_dir.mkdir(parents=True, exist_ok=True)
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        given = dict(self.params)
        executor = submitit.AutoExecutor(
            given.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=given.pop("max_num_timeout")
        )
        executor.update_parameters(**{key if key in shared else f"slurm_{key}": given[key] for key in given})
        parameters = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
            parameters.append(
                (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            )
        jobs = executor.map_array(self, *zip(*parameters, strict=True))
        slurm.wait([job.job_id for job in jobs], logs_of(self.config))
        return [_returned(job) for job in jobs]


def _returned(job: Any) -> JobReturn:
    """What a job returned; the run folders tell how far one came that returned nothing."""
    try:
        if job.paths.result_pickle.exists():
            return job.results()[0]
        gone: Exception = RuntimeError(f"job {job.job_id} was cancelled or lost")
    except Exception as error:
        gone = error
    return JobReturn(status=JobStatus.FAILED, _return_value=gone)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="cells",
    node={"_target_": f"{__name__}.CellsSweeper"},
    provider="weight_decay",
)
