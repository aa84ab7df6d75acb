"""What this GPU can do at most: bytes it copies, and operations of large matrix products."""

from collections.abc import Callable
from statistics import median
from typing import Any

from crowdrt.lazy import require

COPY_BYTES = 4 << 30  # many times any cache
SIDE = 8192  # of the products' matrices
REPEATS = 12
OPERATIONS = 2 * SIDE**3


def measure_peaks() -> dict[str, Any]:
    """Return what `peaks.json` holds; a product that this GPU or PyTorch has not is left out.

    All numbers are random: products of zeros run faster than real ones.
    """
    torch = require("torch", extra="train")
    torch.manual_seed(0)
    copy_s = seconds(torch, copying(torch))
    rates: dict[str, float] = {}
    for precision, product in products(torch).items():
        try:
            rates[precision] = OPERATIONS / seconds(torch, product())
        except RuntimeError:
            continue
    return {
        "gpu": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "bytes_per_s": 2 * COPY_BYTES / copy_s,  # read and written
        "operations_per_s": rates,
        "how": f"copy of {COPY_BYTES} bytes, products of side {SIDE}, medians of {REPEATS}",
    }


def copying(torch: Any) -> Callable[[], Any]:
    """Return a copy inside the device."""
    source = torch.randint(0, 256, (COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def products(torch: Any) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Return precision -> what makes its matrices and returns the product to time."""

    def floats(dtype: Any, *, tf32: bool = False) -> Callable[[], Any]:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=dtype) for _ in range(2))
        return lambda: a @ b

    def codes() -> Callable[[], Any]:
        a, b = (
            torch.randint(-127, 128, (SIDE, SIDE), device="cuda", dtype=torch.int8)
            for _ in range(2)
        )
        return lambda: torch._int_mm(a, b.t())  # its fast form: columns of b lie together

    return {
        "fp16": lambda: floats(torch.float16),
        "int8": codes,
        "tf32": lambda: floats(torch.float32, tf32=True),
        "fp32": lambda: floats(torch.float32),
    }


def seconds(torch: Any, work: Callable[[], Any]) -> float:
    """Return the median time of `work` by the GPU's clock."""
    times: list[float] = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return median(times[REPEATS // 4 :])
