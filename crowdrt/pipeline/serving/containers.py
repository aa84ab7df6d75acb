"""Which Triton container has which TensorRT, as far as somebody published it; nothing is guessed.

A plan is loaded by exactly the TensorRT that built it, to the fourth number. NVIDIA's own table is
`MATRIX`; below is what was read elsewhere, each with where.
"""

from typing import Any

MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"
IMAGE = "nvcr.io/nvidia/tritonserver"
ISSUES = "https://github.com/triton-inference-server/server/issues"
# TensorRT -> container, where that is said
KNOWN = (
    ("8.6.1.2", "23.04-py3", f"{ISSUES}/5812"),
    ("8.6.1.2", "23.05-py3", f"{ISSUES}/5975"),
    ("10.14.1", "26.01-py3", "DeepStream 9.0: TensorRT 10.14.1 and Triton 26.01"),
)
ADVICE = (
    "Triton must have exactly this TensorRT: ask the container, "
    "`dpkg -l | grep -i nvinfer`, before anything else. The container "
    "nvcr.io/nvidia/tensorrt:YY.MM-py3 is meant to build for tritonserver:YY.MM-py3; 23.05's did "
    f"not ({ISSUES}/5975)."
)


def containers_of(tensorrt: str) -> dict[str, Any]:
    """Return the containers of which it is published that they have this TensorRT.

    Args:
        tensorrt: as `tensorrt.__version__` says it, with three or four numbers.

    Returns:
        "containers": image and source of each, possibly none; "exact" where all four numbers are
        known to be the same; "advice"; "matrix": NVIDIA's table.
    """
    found = [
        {
            "image": f"{IMAGE}:{tag}",
            "tensorrt": version,
            "exact": version == tensorrt and version.count(".") == 3,
            "source": source,
        }
        for version, tag, source in KNOWN
        if agrees(version, tensorrt)
    ]
    return {"containers": found, "advice": ADVICE, "matrix": MATRIX}


def agrees(one: str, other: str) -> bool:
    """Say whether two versions are the same as far as both are written out."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return all(a == b for a, b in pairs)
