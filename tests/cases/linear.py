"""Convolutions, matrix products and BatchNormalization."""

from __future__ import annotations

from tests.cases import case, const, positive, real, weight

CONV = [
    case("Conv", "1d", real(2, 3, 7), weight(4, 3, 3), weight(4), order2=True),
    case("Conv", "2d", real(2, 3, 5, 6), weight(4, 3, 3, 3), weight(4), pads=[1, 1, 1, 1], order2=True),
    case("Conv", "3d", real(1, 2, 3, 4, 3), weight(2, 2, 2, 3, 2), pads=[0, 1, 0, 1, 1, 0]),
    case("Conv", "1x1", real(2, 3, 4, 4), weight(5, 3, 1, 1)),
    case("Conv", "1x1 strided", real(2, 3, 5, 4), weight(5, 3, 1, 1), strides=[2, 2]),
    case("Conv", "stride 2 odd size", real(1, 2, 7, 6), weight(3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("Conv", "stride over kernel", real(1, 2, 8, 9), weight(3, 2, 2, 2), strides=[3, 3]),
    case("Conv", "remainder left over", real(1, 2, 9, 8), weight(3, 2, 3, 2), strides=[3, 4]),
    case("Conv", "patches", real(1, 3, 8, 8), weight(4, 3, 4, 4), strides=[4, 4]),
    case("Conv", "dilated", real(1, 2, 9, 8), weight(3, 2, 3, 3), dilations=[2, 3], pads=[2, 3, 2, 3]),
    case("Conv", "dilated strided", real(1, 2, 9, 8), weight(3, 2, 3, 2), dilations=[2, 3], strides=[2, 3]),
    case("Conv", "groups", real(1, 4, 5, 5), weight(6, 2, 3, 3), weight(6), group=2, pads=[1, 1, 1, 1]),
    case("Conv", "groups strided", real(1, 4, 6, 5), weight(6, 2, 3, 3), group=2, strides=[2, 2], pads=[1, 0, 0, 1]),
    case("Conv", "depthwise", real(2, 3, 5, 5), weight(3, 1, 3, 3), group=3, pads=[1, 1, 1, 1]),
    case("Conv", "depthwise strided", real(1, 3, 6, 6), weight(6, 1, 3, 3), group=3, strides=[2, 2], pads=[1, 1, 1, 1]),
    case("Conv", "pads differ", real(1, 2, 5, 4), weight(3, 2, 3, 3), pads=[2, 0, 1, 3]),
    case("Conv", "pads over the kernel", real(1, 2, 3, 3), weight(3, 2, 2, 2), pads=[3, 2, 2, 3]),
    case("Conv", "long pads strided", real(1, 2, 3, 4), weight(3, 2, 2, 2), pads=[3, 2, 2, 3], strides=[2, 3]),
    case("Conv", "same upper", real(1, 2, 6, 5), weight(3, 2, 3, 2), auto_pad="SAME_UPPER"),
    case("Conv", "same lower", real(1, 2, 6, 5), weight(3, 2, 4, 2), auto_pad="SAME_LOWER"),
    case(
        "Conv", "same upper strided", real(1, 2, 7, 6), weight(3, 2, 3, 4), auto_pad="SAME_UPPER", strides=[2, 3],
    ),
    case(
        "Conv", "same lower strided", real(1, 2, 6, 8), weight(3, 2, 4, 4), auto_pad="SAME_LOWER", strides=[3, 3]
    ),
    case("Conv", "same lower none", real(1, 2, 4, 6), weight(3, 2, 2, 2), auto_pad="SAME_LOWER", strides=[2, 3]),
    case("Conv", "valid", real(1, 2, 5, 5), weight(3, 2, 3, 3), auto_pad="VALID"),
    case("Conv", "kernel_shape given", real(1, 2, 5, 5), weight(3, 2, 3, 3), kernel_shape=[3, 3]),
]  # fmt: skip

CONV_TRANSPOSE = [
    case("ConvTranspose", "1d", real(2, 3, 5), weight(3, 2, 3), weight(2), order2=True),
    case("ConvTranspose", "2d strided", real(1, 3, 4, 3), weight(3, 2, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", "3d", real(1, 2, 2, 3, 2), weight(2, 2, 2, 2, 3), strides=[1, 2, 1]),
    case(
        "ConvTranspose", "output_padding", real(1, 2, 4, 3), weight(2, 3, 3, 3), strides=[2, 3],
        pads=[1, 1, 1, 1], output_padding=[1, 2],
    ),
    case("ConvTranspose", "groups", real(1, 4, 3, 3), weight(4, 3, 2, 2), weight(6), group=2, strides=[2, 2]),
    case("ConvTranspose", "depthwise", real(1, 3, 3, 3), weight(3, 1, 3, 3), group=3, strides=[2, 1]),
    case("ConvTranspose", "dilated", real(1, 2, 4, 4), weight(2, 3, 2, 3), dilations=[2, 2], strides=[2, 1]),
    case("ConvTranspose", "pads differ", real(1, 2, 4, 4), weight(2, 3, 3, 3), pads=[0, 1, 2, 0]),
    case(
        "ConvTranspose", "output_shape", real(1, 2, 3, 4), weight(2, 3, 3, 3), strides=[2, 2], output_shape=[6, 8],
    ),
    case("ConvTranspose", "same upper", real(1, 2, 3, 4), weight(2, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("ConvTranspose", "same lower", real(1, 2, 3, 4), weight(2, 3, 4, 3), auto_pad="SAME_LOWER", strides=[1, 2]),
    case("ConvTranspose", "valid", real(1, 2, 3, 4), weight(2, 3, 3, 3), auto_pad="VALID"),
]  # fmt: skip

GEMM = [
    case("Gemm", "plain", real(2, 3), weight(3, 4), weight(4), order2=True),
    case("Gemm", "transB", real(2, 3), weight(4, 3), weight(4), transB=1),
    case("Gemm", "transA", real(3, 2), weight(3, 4), weight(2, 1), transA=1),
    case("Gemm", "both", real(3, 2), weight(4, 3), transA=1, transB=1),
    case("Gemm", "alpha and beta", real(2, 3), weight(3, 4), real(1, 4), alpha=0.5, beta=-2.0, order2=True),
    case("Gemm", "without C", real(2, 3), weight(3, 4)),
    case("Gemm", "scalar C", real(2, 3), weight(3, 4), real()),
    case("Gemm", "two data sides", real(2, 3), real(3, 4), real(4), order2=True),
    case("Gemm", "two data sides transposed", real(3, 2), real(4, 3), transA=1, transB=1, alpha=0.5, order2=True),
    case("Gemm", "two data sides, transA", real(3, 2), real(3, 4), transA=1, order2=True),
    case("Gemm", "two data sides, transB", real(2, 3), real(4, 3), transB=1, alpha=-1.5, order2=True),
    case("Gemm", "data on the right", weight(2, 3), real(3, 4)),
]

MATMUL = [
    case("MatMul", f"{note}{kind}", left(*a), right(*b), order2=order2)
    for note, a, b in [
        ("matrix x matrix", (2, 3), (3, 4)),
        ("batch x matrix", (2, 2, 3), (3, 4)),
        ("batch x batch", (2, 2, 3), (2, 3, 2)),
        ("broadcast batch", (2, 1, 2, 3), (2, 3, 2)),
        ("batch of one", (1, 2, 3), (4, 3, 2)),
        ("matrix x batch", (2, 3), (2, 3, 4)),
        ("vector x matrix", (3,), (3, 4)),
        ("matrix x vector", (2, 3), (3,)),
        ("vector x vector", (3,), (3,)),
        ("batch x vector", (2, 2, 3), (3,)),
        ("vector x batch", (3,), (2, 3, 4)),
        ("4d", (2, 2, 2, 3), (2, 2, 3, 2)),
    ]
    for kind, left, right, order2 in [
        ("", real, real, True),
        (", constant right", real, weight, False),
        (", constant left", weight, real, False),
    ]
]

_STATISTICS = (weight(3), const(real(3)), const(positive(3)))
BATCH_NORM = [
    case("BatchNormalization", "2d", real(2, 3, 4, 4), const(positive(3)), *_STATISTICS, order2=True),
    case("BatchNormalization", "epsilon", real(2, 3, 4), weight(3), *_STATISTICS, epsilon=0.1),
    case("BatchNormalization", "after a matrix", real(2, 3), weight(3), *_STATISTICS),
    case("BatchNormalization", "3d", real(1, 3, 2, 2, 2), weight(3), *_STATISTICS),
]

EINSUM = [
    case("Einsum", "matrix product", real(2, 3), real(3, 4), equation="ij,jk->ik", order2=True),
    case("Einsum", "batch, transposed", real(2, 3, 4), weight(2, 5, 4), equation="bij,bkj->bik"),
    case("Einsum", "implicit result", real(2, 3), real(4, 3), equation="ij,kj"),
    case("Einsum", "transpose", real(2, 3, 4), equation="abc->cab"),
    # with unknown sizes ONNX's shape inference claims the first operand's symbol for dots that broadcast
    case(
        "Einsum",
        "dots, broadcast",
        real(1, 3),
        real(4, 3, 2),
        equation="...j, ...jk -> ...k",
        order2=True,
        dynamic=False,
    ),
    case("Einsum", "dots on one side", real(2, 5, 3), real(3, 4), equation="...j,jk->...k"),
    case("Einsum", "three operands", real(2, 3), real(3, 2), real(2), equation="ij,jk,k->i", order2=True),
    case("Einsum", "axis summed away", real(2, 3, 4), real(3), equation="bij,i->b"),
]

LAYER_NORM = [
    case("LayerNormalization", "last axis", real(2, 3, 4), weight(4), weight(4), order2=True),
    case("LayerNormalization", "two axes, no bias", real(2, 3, 4), weight(3, 4), axis=1, epsilon=0.01),
    case("LayerNormalization", "scale and bias as data", real(2, 3, 4), real(4), real(3, 4), order2=True),
    case("LayerNormalization", "positive axis", real(2, 3, 4), weight(4), weight(4), axis=2, epsilon=1e-3),
]

CASES = [*CONV, *CONV_TRANSPOSE, *GEMM, *MATMUL, *BATCH_NORM, *LAYER_NORM, *EINSUM]
