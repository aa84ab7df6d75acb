"""A process whose child is busy for ten minutes, for a test that kills it."""

import multiprocessing
import threading
import time

from crowdrt.pipeline.scale.processes import leave_with_parent


def busy() -> None:
    """Watch over the parent as `serve` does, with a shard in hand that takes long."""
    threading.Thread(target=leave_with_parent, daemon=True).start()
    time.sleep(600)


if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=busy)
    child.start()
    print(child.pid, flush=True)
    child.join()
