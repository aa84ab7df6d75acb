"""The training loop: a task in, the best network by validation error out, resumable.

The batch of a step depends on the seed and the step alone, and a checkpoint holds everything
else, so a killed run goes on as if nothing happened.
"""

import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID

from crowdrt.console import progress_bar, say
from crowdrt.contracts import Artifact
from crowdrt.errors import TrainingError
from crowdrt.learning import TrainingConfig
from crowdrt.manifest import fingerprint, manifest_path, reusable, write_manifest, write_whole
from crowdrt.models.weights import save_weights
from crowdrt.training.checkpoint import load_checkpoint, save_checkpoint
from crowdrt.training.curves import draw_curves
from crowdrt.training.devices import Devices
from crowdrt.training.metrics import append_line, rewind
from crowdrt.training.run import ONE_DEVICE, Run
from crowdrt.training.schedules import learning_rate
from crowdrt.training.task import Task

LOG_EVERY = 10  # steps between the lines of losses.jsonl


def train(
    task: Task[Any],
    out: Path,
    *,
    devices: Devices = ONE_DEVICE,
    save_every: int = 250,
    validate_every: int = 1000,
) -> Artifact | None:
    """Train a network and leave the best one at `out/weights.safetensors`.

    Of several processes the first one writes and returns the file; the others return None.

    Args:
        task: the network, what it learns from and how.
        out: folder for the weights, `checkpoint.safetensors`, `losses.jsonl` (every tenth step),
            `metrics.jsonl` (every validation) and `curves.png`.
        devices: on what.
        save_every: steps between checkpoints; a killed run loses at most these.
        validate_every: steps between validations.

    Raises:
        TrainingError: the configuration or a photograph cannot be trained on, or training
            diverged.
    """
    made_from = {
        "network": task.network,
        "width": str(task.width),
        "config": identity_of(task.config),
        **task.made_from(),
    }
    if done := reusable(out / "weights.safetensors", made_from=made_from):
        return done
    run = Run(task, devices)
    begin(run, out, key=fingerprint(made_from))
    with progress_bar(shown=run.leads) as bar:
        line = bar.add_task("training", total=task.config.steps, completed=run.step, note="")
        clock = Clock(task.config.batch_size)
        for terms in steps(run):
            show(bar, line, run, terms, clock)
            log_losses(run, out, terms)
            last = run.step == task.config.steps
            if run.step % validate_every == 0 or last:
                keep_best(run, out, terms["loss"])
            if run.step % save_every == 0 or last:
                save(run, out, key=fingerprint(made_from))
    return finish(run, out, made_from)


def identity_of(config: TrainingConfig) -> dict[str, Any]:
    """Return what decides the weights; a part that a recipe does not have is no part of it.

    So a run stays the same run when recipes learn to have one part more.
    """
    return {name: value for name, value in asdict(config).items() if value is not None}


def begin(run: Run, out: Path, *, key: str) -> None:
    """Go on where a killed run stood, and make the folder say so."""
    checkpoint = checkpoint_of(out)
    if checkpoint.is_file():
        resume(run, checkpoint, key=key)
    if run.leads:
        for name in ("metrics.jsonl", "losses.jsonl"):
            rewind(out / name, run.step)
        clear(out, fresh=run.step == 0)
    run.wait()


def clear(out: Path, *, fresh: bool) -> None:
    """Remove what killed writes left behind and, for a fresh run, another run's best network."""
    for name in ("checkpoint", "best", "weights", "metrics", "losses", "curves"):
        for torn in out.glob(f".{name}.*.tmp-*"):
            torn.unlink(missing_ok=True)
    if fresh:
        best_weights(out).unlink(missing_ok=True)


def finish(run: Run, out: Path, made_from: Mapping[str, Any]) -> Artifact | None:
    """Give the best network its final name. It can be killed anywhere and done again."""
    best, weights, checkpoint = best_weights(out), out / "weights.safetensors", checkpoint_of(out)
    run.wait()
    if not run.leads:
        run.wait()
        return None
    if not best.is_file():
        raise TrainingError(
            f"{best} is gone, and with it the best network of this run",
            fix=f"put it back, or train from the start: rm '{checkpoint}'",
        )
    with write_whole(weights) as temporary:
        temporary.write_bytes(best.read_bytes())
    facts = {
        f"validation_{run.task.score}": run.best,
        "seconds": run.spent,
        "threads": torch.get_num_threads(),
        "devices": run.fabric.world_size,
    }
    artifact = write_manifest(weights, kind="weights", made_from=made_from, facts=facts)
    for leftover in (checkpoint, best, manifest_path(best)):
        leftover.unlink(missing_ok=True)
    run.wait()
    return artifact


def best_weights(out: Path) -> Path:
    """Return where the best network so far lies while a run goes on."""
    return out / "best.safetensors"


def checkpoint_of(out: Path) -> Path:
    """Return where a run's state lies while it goes on."""
    return out / "checkpoint.safetensors"


def steps(run: Run) -> Iterator[dict[str, float]]:
    """Learn step by step; the next batch is made while this one is learned."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(run.batches, run.step)
        while run.step < run.config.steps:
            batches = coming.result()
            coming = pool.submit(run.batches, run.step + 1)
            yield run.learn(batches)


def resume(run: Run, checkpoint: Path, *, key: str) -> None:
    """Go on where a killed run stood, if it was the same run; otherwise start over."""
    facts = load_checkpoint(checkpoint, run.modules, run.optimizer, key=key)
    if facts is None:
        tell(run, f"{checkpoint} is of another recipe or other images: starting from step 0")
        return
    run.step, run.best = facts["step"], facts["best"]
    run.seconds = facts.get("seconds", 0.0)
    run.fabric.strategy.precision.load_state_dict(facts.get("scaler", {}))
    tell(run, f"resuming at step {run.step}")


def save(run: Run, out: Path, *, key: str) -> None:
    """Write the checkpoint, and wait until it is there."""
    if run.leads:
        scaler = run.fabric.strategy.precision.state_dict()  # of float16 alone
        progress = {"step": run.step, "best": run.best, "seconds": run.spent}
        facts = {"key": key, **progress, "scaler": scaler}
        save_checkpoint(checkpoint_of(out), run.modules, run.optimizer, facts)
    run.wait()


def keep_best(run: Run, out: Path, loss: float) -> None:
    """Validate, log one line, and keep the weights when they are the best so far."""
    if run.leads:
        errors = run.validate()
        score = errors[run.task.score]
        run.check_finite("validation error", score)
        facts: dict[str, Any] = {"step": run.step, "loss": loss, **errors}
        append_line(out / "metrics.jsonl", facts | {"time": time.time()})
        say(f"step {run.step}: validation {spoken(errors)}")
        if score < run.best or not best_weights(out).is_file():
            run.best = score
            task = run.task
            save_weights(
                *(run.shipped(), best_weights(out)),
                network=task.network,
                width=task.width,
                facts=facts,
            )
        draw_curves(out, score=run.task.score)
    run.wait()


def log_losses(run: Run, out: Path, terms: Mapping[str, float]) -> None:
    """Log every tenth step's terms and rate."""
    if run.leads and (run.step % LOG_EVERY == 0 or run.step == run.config.steps):
        rate = learning_rate(run.step - 1, run.config)
        append_line(out / "losses.jsonl", {"step": run.step, **terms, "rate": rate})


def spoken(errors: Mapping[str, float]) -> str:
    """Return the errors as people say them: MAE 12.34, bias +1.20."""
    return ", ".join(
        f"{NAMES.get(name, name)} {value:{'+' if name == 'bias' else ''}.2f}"
        for name, value in errors.items()
        if not name.startswith("num_")
    )


NAMES = {"mae": "MAE", "rmse": "RMSE"}


def tell(run: Run, message: str) -> None:
    """Say something once, whatever the number of processes."""
    if run.leads:
        say(message)


class Clock:
    """How many members of batches are learned per second since this process began."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.taken, self.began = batch_size, 0, time.monotonic()

    def tick(self) -> float:
        """Count one more batch and return the throughput."""
        self.taken += self.batch_size
        return self.taken / max(1e-9, time.monotonic() - self.began)


def show(bar: Progress, line: TaskID, run: Run, terms: Mapping[str, float], clock: Clock) -> None:
    """Update the progress line."""
    note = f"{clock.tick():.1f}/s, loss {terms['loss']:.3g}"
    if not math.isinf(run.best):
        note += f", best {run.task.score} {run.best:.4g}"
    bar.update(line, completed=run.step, note=note)
