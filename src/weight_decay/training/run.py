"""One run from its config to its summary: claim the folder, build, resume, train, branch, finish."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from weight_decay.config.plain import to_dict
from weight_decay.config.run import RunConfig, folder_name, run_id
from weight_decay.config.schedules import MatchedSchedule
from weight_decay.device.choose import apply_precision, choose_device
from weight_decay.device.compiling import is_compiled
from weight_decay.device.distributed import current, lost_contact
from weight_decay.errors import UserError, first_line
from weight_decay.runs.files import write_text
from weight_decay.runs.folder import ForeignFolderError, Labels
from weight_decay.runs.judge import branches
from weight_decay.runs.lock import LostFolderError, claimed
from weight_decay.runs.progress import Progress
from weight_decay.runs.read import MAIN_BRANCH
from weight_decay.runs.summary import code_of, identity, write_summary
from weight_decay.tasks.choose import build_regime
from weight_decay.training.assemble import build_segment, build_training
from weight_decay.training.branch import branch_event, check_branches, standing_for_all
from weight_decay.training.checkpoint import Owner
from weight_decay.training.course import Course, Origin
from weight_decay.training.provenance import environment, provenance, stretch_provenance
from weight_decay.training.record import Mirror, Telling, recorder, speaker
from weight_decay.training.replay import replay_event
from weight_decay.training.schedule import ReferenceMissingError, find_reference, reference_of
from weight_decay.training.stopping import StopAtOnceError, stop_requests, stopping_at_once
from weight_decay.training.stretch import Outcome


def run(config: RunConfig, labels: Labels) -> Outcome:
    """Bring one run to its end, from wherever it stands.

    Finished runs are skipped, and a run that another process is working on is left to it. A failure is written to
    summary.json with its traceback beside it and returned; bad input raises UserError after that.
    """
    folder = Path(config.execution.results) / "runs" / folder_name(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"execution.results: cannot make {folder} ({error.strerror}); choose a folder you can write to."
        ) from None
    ranks = current()
    with claimed(folder) if ranks.writes else contextlib.nullcontext(True) as mine:
        if not ranks.agree(mine):
            return "busy"
        stands = standing_for_all(folder, config)
        if stands.status == "finished":
            return "skipped"
        if stands.status == "damaged":
            speaker(labels.title)(f"is damaged ({stands.reason}) and is made again")
        try:
            if isinstance(config.schedule, MatchedSchedule):
                find_reference(config, config.schedule)
            return _run_claimed(config, labels, folder)
        except (ReferenceMissingError, ForeignFolderError, LostFolderError):
            raise
        except StopAtOnceError:
            return "interrupted"  # while the data were made: nothing is half done
        except Exception as error:
            status: Outcome = "failed"
            reason = _reason(error, folder)
            if lost_contact(error):
                status = "interrupted"
                reason = (
                    "another process of this run is gone, so it stopped; "
                    "the same command goes on from the last checkpoint"
                )
                print(f"{labels.title}: rank {ranks.rank} of {ranks.count}: {reason}", file=sys.stderr, flush=True)
            # On a full disk this cannot be written either; then the record stays as it was, and only the line is left.
            with contextlib.suppress(OSError):
                if ranks.writes:
                    (folder / "error.txt").write_text(traceback.format_exc())
                    write_summary(folder, {**identity(config, labels), "status": status, "error": reason})
            if isinstance(error, UserError):
                raise
            if status == "failed":
                speaker(labels.title)(f"failed: {reason}")
            return status


def _reason(error: Exception, folder: Path) -> str:
    """The failure in one line, with what to do where the disk is the cause."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename or folder}: {error.strerror}; "
            "see to the disk, then the same command goes on from the last checkpoint"
        )
    return first_line(error)


def _run_claimed(config: RunConfig, labels: Labels, folder: Path) -> Outcome:
    if config.execution.threads:
        torch.set_num_threads(config.execution.threads)
    device = choose_device(config.execution, config.precision)
    apply_precision(config.precision)
    with stopping_at_once():
        regime = build_regime(config, device)
    last = regime.clock.total_steps
    check_branches(config, regime.clock)
    # Written for people and for `collect`; the run itself never reads it back.
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    ranks = current()
    if ranks.writes:
        write_text(folder / "config.yaml", text)
    say = speaker(labels.title)
    training = build_training(config, regime, device, labels.scale, say)
    if told := environment():
        say(f"computes under {told} of the environment, which its summary keeps; unset it if that was not meant")
    tracking = config.tracking if ranks.writes else replace(config.tracking, mode="disabled")
    mirror = Mirror(tracking, run_id(config), folder.name, labels.experiment, to_dict(config), folder)
    progress = Progress(last, labels.title, config.execution.progress and ranks.writes)
    reference = reference_of(config, regime.data["fingerprint"])
    origin = Origin(
        Owner(run_id(config), MAIN_BRANCH),
        regime.data["fingerprint"],
        regime.data["evaluated_fingerprint"],
        stretch_provenance(device, code_of(config), is_compiled(training.forward)),
        None if reference is None else reference["sha256"],
    )
    telling = Telling(recorder(folder, mirror), progress, say)
    segment = build_segment(config, regime, training, Course(folder, 0, last, origin), telling)
    summary = {
        **identity(config, labels),
        "data": regime.data,
        "parameters": sum(parameter.numel() for parameter in training.parameters),
        "total_steps": last,
        "processes": ranks.count,
        "micro_batches": training.micro_batches,
        **config.model.kernels(config.data, config.precision, device),
        **provenance(device),
        **({} if reference is None else {"reference": reference}),
    }
    if ranks.writes:
        write_summary(folder, {**summary, "status": "running", "pid": os.getpid()})
    segment.resume()
    with stop_requests() as requested:

        def stop() -> bool:
            return ranks.any(requested())

        segment.branches = [branch_event(config, branch, segment, regime, labels, stop) for branch in config.branches]
        if config.probes.replay:
            segment.branches.append(replay_event(config, regime, device, segment, stop))
        status, divergence_step = segment.train(stop)
    progress.close()
    final = {k: v for k, v in segment.recorder.latest.items() if k != "step"}
    summary |= {"status": status, "divergence_step": divergence_step, "step": training.step, "final": final}
    summary["record"] = segment.recorder.seal()
    summary["stretches"] = segment.stretches
    summary["branch_folders"] = list(branches(folder))
    summary["weights_sha256"] = weights_digest(training.model)
    summary["seconds"] = round(segment.recorder.seconds, 3)
    segment.recorder.close()
    if status == "diverged":
        say(f"diverged at step {divergence_step}")
    if ranks.writes:
        # First our own file: SLURM may leave no time for W&B.
        write_summary(folder, summary)
    mirror.finish({"status": status, "divergence_step": divergence_step}, ok=status != "interrupted")
    if status != "interrupted":
        if ranks.writes:
            (folder / "error.txt").unlink(missing_ok=True)  # of an earlier try
        try:
            # After the summary: a run killed in between must still be able to resume.
            segment.tidy(completed=status == "completed")
        except OSError as error:
            say(f"is complete, but its final weights could not be kept ({error.strerror})")
    return status


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of all weights and buffers: two runs with the same digest ended bitwise equal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
