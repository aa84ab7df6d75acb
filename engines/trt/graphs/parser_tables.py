"""What TensorRT's ONNX parser says that it takes, per generation: operators and their types.

Sources, read in November 2026 in the history of github.com/onnx/onnx-tensorrt:

- 8.6: `docs/operators.md` as of 8.5, and what `docs/Changelog.md` says that 8.6 EA and GA add:
  GroupNormalization, LayerNormalization, IsInf, INT32 for ArgMax, ArgMin and TopK. Opset 17.
- 10: `docs/operators.md` as of 10.15. Its opset range is that of 10.0, which every 10.x reads.
- 11: the operators of 10.15, the last table at hand; the opset range is that of NVIDIA's "ONNX
  Opset Guide" for 11.x.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FP = "FLOAT FLOAT16"
FP_BF16 = "FLOAT FLOAT16 BFLOAT16"
NUMBERS = f"{FP_BF16} INT32 INT64"

# types of a node's first input -> the operators that are limited to them
OPERATORS_8_6: Mapping[str, str] = {
    FP: """Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu Cos Cosh CumSum Dropout
        Einsum Erf Exp Floor GRU GridSample GroupNormalization ImageScaler InstanceNormalization
        IsInf LRN LSTM LayerNormalization Log LogSoftmax LpNormalization MatMul
        MeanVarianceNormalization NonMaxSuppression NonZero Pow QuantizeLinear RNN RandomNormal
        RandomNormalLike RandomUniform RandomUniformLike Reciprocal ReduceL1 ReduceL2
        ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
        ReduceSumSquare Resize ReverseSequence RoiAlign Scan Sin Sinh Softmax Sqrt Tan Upsample""",
    f"{FP} INT32": """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN
        Less LessOrEqual Max Mean Min Mod Mul Neg Range Shrink SpaceToDepth Sub Sum TopK""",
    f"{FP} INT8": """Clip Conv ConvTranspose Elu Gemm GlobalAveragePool GlobalLpPool
        GlobalMaxPool HardSigmoid HardSwish LeakyRelu LpPool MaxPool PRelu ParametricSoftplus
        Relu Round ScaledTanh Selu Sigmoid Softplus Softsign Tanh ThresholdedRelu""",
    f"{FP} INT8 INT32": "AveragePool Pad Scatter ScatterElements ScatterND Sign",
    f"{FP} INT32 BOOL": "Expand EyeLike Flatten If Loop OneHot Split Tile Where",
    f"{FP} INT8 INT32 BOOL": """Cast Concat Constant Gather GatherElements GatherND Identity
        Reshape Shape Size Slice Squeeze Transpose Trilu Unsqueeze""",
    "BOOL": "And Not Or Xor",
    "FLOAT": "ConstantOfShape",
    "INT8": "DequantizeLinear",
}
OPERATORS_10: Mapping[str, str] = {
    "FLOAT": "STFT",
    FP: """BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression
        NonZero RoiAlign""",
    FP_BF16: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip
        Conv ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm
        GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid HardSwish
        Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM LayerNormalization LeakyRelu Log
        LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu
        ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Reciprocal Resize RotaryEmbedding Round ScaledTanh Scan
        Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample""",
    f"{FP_BF16} INT32": "TensorScatter",
    f"{FP_BF16} INT8 FLOAT8E4M3FN": "Attention",
    NUMBERS: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less
        LessOrEqual Max Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum
        ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
        Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    f"{NUMBERS} INT8": "Gelu",
    f"{NUMBERS} FLOAT8E4M3FN": "Mean",
    f"{NUMBERS} BOOL": """Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If
        Loop OneHot Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu
        Unsqueeze Where""",
    f"{NUMBERS} BOOL FLOAT8E4M3FN FLOAT4E2M1 INT4": "Constant ConstantOfShape",
    f"{NUMBERS} BOOL UINT8": "Cast CastLike",
    "BOOL": "And Not Or Xor",
    "INT8 FLOAT8E4M3FN FLOAT4E2M1 INT4": "DequantizeLinear",
}


@dataclass(frozen=True, kw_only=True)
class Parser:
    """The ONNX parser of one TensorRT generation, as far as it is documented."""

    generation: str
    opsets: range
    types: Mapping[str, frozenset[str]]  # operator -> ONNX types of what it reads
    read_as: Mapping[str, str]  # types that it converts when it reads a network
    fixed_norms: bool  # scale and bias of an instance norm have to be stored
    sorted_topk: bool  # TopK has to sort
    fixed_reduce_axes: bool
    plain_pool: bool  # pooling windows without dilation


def by_operator(table: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Return operator -> types."""
    return {
        name: frozenset(types.split()) for types, names in table.items() for name in names.split()
    }


DOUBLE = {"DOUBLE": "FLOAT"}  # with its values clamped
OF_10 = by_operator(OPERATORS_10)
PARSERS = (
    Parser(
        generation="8.6",
        opsets=range(7, 18),
        types=by_operator(OPERATORS_8_6),
        read_as={**DOUBLE, "INT64": "INT32"},
        fixed_norms=True,
        sorted_topk=False,
        fixed_reduce_axes=False,
        plain_pool=False,
    ),
    *(
        Parser(
            generation=generation,
            opsets=opsets,
            types=OF_10,
            read_as=DOUBLE,
            fixed_norms=False,
            sorted_topk=True,
            fixed_reduce_axes=True,
            plain_pool=True,
        )
        for generation, opsets in (("10", range(9, 21)), ("11", range(9, 26)))
    ),
)
