"""Which input channels a layer keeps, and with which weights: LASSO and least squares.

He, Zhang and Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017,
arXiv:1707.06168, equations 1 to 4. Both steps need no more than sums over the sampled places, so
thousands of photographs take no more memory than one.

Shapes: C input channels, A = k * k places of a kernel, d = C * A, n output channels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crowdrt.lazy import require

FloatArray = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
# Of the mean square of what is read: holds weights to what they were, where samples say little. Of
# 1e-5 to 1e-2, on crowds that nothing was rebuilt by, the largest lost least.
RIDGE = 1e-2
PENALTY_STEP = 0.9  # from one LASSO penalty to the next, down from the one that closes all channels
NUM_PENALTIES = 200  # the last one is 1e-9 of the first
SWEEPS = 100  # of coordinate descent at one penalty, at most
SETTLED = 1e-4  # change of a coefficient that ends the descent


@dataclass
class Sums:
    """What a layer reads and what it should write, summed over sampled places."""

    inputs: FloatArray  # (d, d) products of its inputs
    wanted: FloatArray  # (d, n) products of its inputs with what it should write
    energy: float  # squares of what it should write

    def error(self, weight: FloatArray) -> float:
        """Return the summed squared error of what a weight, (n, d), writes."""
        explained = ((weight @ self.inputs - 2 * self.wanted.T) * weight).sum()
        return float(self.energy + explained)


def select(sums: Sums, weight: FloatArray, places: Places, number: int, *, area: int) -> list[int]:
    """Return which channels LASSO keeps (equation 3), as many as asked for.

    Args:
        sums: of the layer that reads them.
        weight: its weight as it stands, (n, d).
        places: (C',) which of its inputs they are; the others stay as they are.
        number: how many to keep.
        area: A.
    """
    num_inputs = weight.shape[1] // area
    shared = (weight.T @ weight) * sums.inputs
    shared = shared.reshape(num_inputs, area, num_inputs, area).sum((1, 3))
    asked = (sums.wanted * weight.T).sum(1).reshape(num_inputs, area).sum(1)
    others = np.setdiff1d(np.arange(num_inputs), places)
    asked = asked - shared[:, others].sum(1)
    return lasso(shared[np.ix_(places, places)], asked[places], number)


def lasso(shared: FloatArray, asked: FloatArray, number: int) -> list[int]:
    """Return the coefficients that are not zero at the penalty that leaves `number` of them.

    The penalty falls from where all are zero; of the first set that is large enough, the largest.
    Coordinate descent as Friedman, Hastie and Tibshirani, "Regularization Paths for Generalized
    Linear Models via Coordinate Descent", 2010.

    Args:
        shared: (C', C') products of what the channels write.
        asked: (C',) products of what they write with what is wanted.
        number: of coefficients.
    """
    found = np.zeros(len(asked))
    penalty = float(np.abs(asked).max())
    for _ in range(NUM_PENALTIES):
        if np.count_nonzero(np.abs(found) > SETTLED) >= number:
            break
        penalty *= PENALTY_STEP
        descend(shared, asked, found, penalty)
    strongest = np.argsort(-np.abs(found), kind="stable")
    return sorted(strongest[:number].tolist())


def descend(shared: FloatArray, asked: FloatArray, found: FloatArray, penalty: float) -> None:
    """Move the coefficients to the least penalised error, one after the other, in place."""
    own = np.diag(shared)
    left = asked - shared @ found
    for _ in range(SWEEPS):
        largest = 0.0
        moves = (found != 0) | (np.abs(left) > penalty)
        for index in np.flatnonzero(moves & (own > 0)):
            pull = left[index] + own[index] * found[index]
            new = np.sign(pull) * max(abs(pull) - penalty, 0.0) / own[index]
            if change := new - found[index]:
                left -= change * shared[:, index]
                found[index] = new
                largest = max(largest, abs(change))
        if largest <= SETTLED:
            return


def rebuilt(sums: Sums, weight: FloatArray, left: Places, *, area: int) -> FloatArray:
    """Return the weight of least squares that reads nothing but the channels that are left.

    It begins with the weight as it stands and is held to it a little, so that its error is never
    larger than of leaving out the others, however few the samples.

    Args:
        sums: of the layer.
        weight: as it stands, (n, d).
        left: the inputs that are read.
        area: A.
    """
    linalg = require("scipy.linalg", extra="cpu")
    columns = (left[:, None] * area + np.arange(area)).ravel()
    own = sums.inputs[np.ix_(columns, columns)]
    start = weight[:, columns].T
    hold = RIDGE * float(np.trace(own)) / len(own) + np.finfo(np.float64).tiny
    missing = sums.wanted[columns] - own @ start
    step = linalg.solve(own + hold * np.eye(len(own)), missing, assume_a="pos")
    found = np.zeros_like(weight)
    found[:, columns] = (start + step).T
    return found
