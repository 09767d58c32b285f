"""From what was measured to the whole run: seconds by part, devices and hours, disk, and what would not fit."""

import math
import shutil
from dataclasses import dataclass

from sst2.checkpoints.folders import folder_bytes
from sst2.config.settings import Settings
from sst2.runs.run_folder import RunFolder
from sst2.training.dry_run.memory import host_limit_mib, peaks_of_nodes, processes_of_node
from sst2.training.dry_run.rehearsal import Measured
from sst2.training.dry_run.workload import Workload, multiples
from sst2.training.trainer import Trainer

TIME_MARGIN, MEMORY_MARGIN = 1.25, 1.2  # of the batch job's limits
SIGNAL_SECONDS = 120  # before the time limit, in slurm/train.sh
SIGNAL_EARLY_SECONDS = 60  # by which SLURM may send a signal early
NEARLY_ALL = 0.9  # of a memory, above which a run is said to be in danger
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What the whole run will need.

    Attributes:
        seconds: of all that is left, by part.
        processes, nodes: of the job.
        on_gpu: whether each process has a GPU.
        host_mib: of the node that needs most.
        free_bytes: on the disk of the run's folder, when the dry run's own files are gone.
        there_bytes: of what the run finds there and does not keep beside its own: checkpoints, and a model that goes
            before it begins.
        run_bytes: of checkpoints and the model, at most.
    """

    workload: Workload
    measured: Measured
    seconds: dict[str, float]
    processes: int
    nodes: int
    on_gpu: bool
    host_mib: float
    free_bytes: int
    there_bytes: int
    run_bytes: int

    @classmethod
    def of(cls, trainer: Trainer, workload: Workload, measured: Measured) -> "Estimate":
        """Work it out. For the main process, after the measurements, while the folder that they wrote to is there."""
        accelerator, run = trainer.accelerator, RunFolder(trainer.settings.run_dir)
        kept = trainer.checkpointer.most_kept * measured.checkpoint_bytes
        return cls(
            workload=workload,
            measured=measured,
            seconds=seconds_by_part(trainer.settings, workload, measured),
            processes=accelerator.num_processes,
            nodes=math.ceil(accelerator.num_processes / processes_of_node(accelerator)),
            on_gpu=accelerator.device.type == "cuda",
            host_mib=max(peaks_of_nodes(measured.ranks).values()),
            free_bytes=shutil.disk_usage(trainer.run.path).free + folder_bytes(trainer.run.path),
            # a resumed run writes its model beside the one that is there
            there_bytes=folder_bytes(run.checkpoints)
            + (folder_bytes(run.model) if trainer.settings.overwrite_output_dir else 0),
            run_bytes=kept + measured.model_bytes,
        )

    @property
    def total_seconds(self) -> float:
        """From the start of the launcher to the end of the job."""
        return sum(self.seconds.values())

    @property
    def step_seconds(self) -> float:
        """Of a step, on average; 0 if none is left."""
        return self.workload.seconds(self.measured.steps) / max(1, self.workload.left)

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all GPUs together; None in a job without."""
        return self.processes * self.total_seconds / 3600 if self.on_gpu else None

    @property
    def node_hours(self) -> float:
        """Hours of all nodes together."""
        return self.nodes * self.total_seconds / 3600

    def price(self, per_hour: float) -> float:
        """Money, at a price for an hour of a GPU, or of a node in a job without."""
        return per_hour * (self.node_hours if self.gpu_hours is None else self.gpu_hours)

    @property
    def signal_seconds(self) -> int:
        """For which a job must be asked to stop before its time limit: twice a step and a checkpoint, and a minute."""
        needed = 2 * (max((seconds for _, seconds in self.measured.steps), default=0.0) + self.measured.write)
        return max(SIGNAL_SECONDS, math.ceil((needed + SIGNAL_EARLY_SECONDS) / 60) * 60)

    @property
    def limit_minutes(self) -> int:
        """Time limit of a batch job: a quarter more than the run, and the time by which it is asked to stop before."""
        return math.ceil((TIME_MARGIN * self.total_seconds + self.signal_seconds + SIGNAL_EARLY_SECONDS) / 60)

    @property
    def limit_gib(self) -> int:
        """Host memory to ask for on each node: a fifth more than the peak."""
        return math.ceil(MEMORY_MARGIN * self.host_mib / 1024)

    def dangers(self, settings: Settings) -> list[str]:
        """What may not fit, a line each, with the way out."""
        found = []
        for one in self.measured.ranks:
            if one.reserved_mib and one.gpu_mib and one.reserved_mib > NEARLY_ALL * one.gpu_mib:
                found.append(
                    f"the GPU of rank {one.rank} on {one.host} is nearly full ({one.reserved_mib:.0f} of "
                    f"{one.gpu_mib:.0f} MiB): lower --per_device_train_batch_size, with --global_batch_size "
                    f"{settings.global_batch_size} given, or add --gradient_checkpointing"
                )
                break  # the others are as full
        if self.host_mib > NEARLY_ALL * (limit := host_limit_mib()):
            found.append(f"host memory is nearly full ({self.host_mib:.0f} of {limit:.0f} MiB a node): ask for more")
        if (more := self.run_bytes - self.there_bytes) > self.free_bytes:
            found.append(
                f"--output_dir {settings.output_dir} has {self.free_bytes / MIB:.0f} MiB free and the run will write "
                f"up to {more / MIB:.0f} there: make room, or lower --checkpoints_total_limit"
            )
        if (settings.run_dir / "STOP").exists():
            found.append(f"--output_dir {settings.output_dir} has a file STOP, by which the run stops: remove it")
        slowest = max((seconds for _, seconds in self.measured.steps), default=0.0)
        if slowest > settings.step_timeout / 2:
            found.append(
                f"a step takes up to {slowest:.0f} s of --step_timeout {settings.step_timeout:g}: give more, such as "
                f"{math.ceil(slowest / 60) * 240}"
            )
        return found


def seconds_by_part(settings: Settings, workload: Workload, measured: Measured) -> dict[str, float]:
    """Of everything that is left, until the job has ended.

    Where `--early_stopping_patience` ends the run before all steps are taken, it is less.
    """
    steps = workload.seconds(measured.steps)
    if workload.left:
        steps += measured.first_step + measured.new_shape * max(0, workload.shapes - 1)
    points = {*multiples(settings.logging_steps, workload.first, workload.total), workload.total}
    evaluation = measured.evaluation / measured.evaluated_share
    evaluations = len(workload.evaluated) * evaluation
    if evaluations:
        evaluations += max(0.0, measured.first_evaluation - measured.evaluation)
    interval = steps / max(1, len(workload.saved))
    each = measured.pause + measured.beside_checkpoint + max(0.0, measured.write - interval)  # the next save waits
    checkpoints = len(workload.saved) * each + (measured.first_pause if workload.saved else 0.0)
    return {
        "start_up": measured.start_up,
        "steps": steps,
        "logging": len(points) * measured.log if workload.left else 0.0,
        "evaluations": evaluations,
        "checkpoints": checkpoints,
        "end": measured.end + measured.left_out_at_end * measured.evaluation,
    }
