"""Large products use oneDNN, with every derivative; all others use PyTorch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.export import Dim
from torch.func import jvp, vmap
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from perceivers.core.fast import onednn as module
from perceivers.core.fast.onednn import LEAST_COLUMNS, LEAST_WORK, is_for_onednn, linear, matmul

ROWS, INNER, COLUMNS = 512, 160, 104

Three = tuple[Tensor, Tensor, Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch.backends.mkldnn.flags, deprecated


def test_onednn_is_there_where_pytorch_has_it() -> None:
    assert torch.backends.mkldnn.is_available() == module.AVAILABLE


def three(dtype: torch.dtype = torch.float32) -> Three:
    """Return two samples of inputs, a weight and a bias."""
    generator = torch.Generator().manual_seed(0)
    sizes = (2, ROWS, INNER), (COLUMNS, INNER), (COLUMNS,)
    x, weight, bias = (torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes)
    return x, weight, bias


def derivatives(function: Callable[..., Tensor], given: Three) -> list[Tensor]:
    """Return the result, its gradients, their gradients, and directional derivatives in two ways."""
    result = function(*given)
    first = torch.autograd.grad(result.square().sum(), given, create_graph=True)
    second = torch.autograd.grad(torch.stack([x.square().sum() for x in first]).sum(), given)
    with torch.no_grad():
        _, along = jvp(function, given, tuple(x.cos() for x in given))
        with dual_level():
            same = unpack_dual(function(*map(make_dual, given, [x.cos() for x in given]))).tangent
    return [result, *first, *second, along, same]


def test_derivatives_are_those_of_float64() -> None:
    assert is_for_onednn(*three()[:2])
    exact = derivatives(F.linear, three(torch.float64))
    for found, plain, expected in zip(derivatives(linear, three()), derivatives(F.linear, three()), exact, strict=True):
        error, allowed = ((x - expected).abs().max() for x in (found, plain))
        assert error <= 2 * allowed + 1e-6 * expected.abs().max()


def test_samples_are_mapped() -> None:
    x, weight, bias = three()
    torch.testing.assert_close(vmap(lambda own: linear(own, weight, bias))(x), F.linear(x, weight, bias))


@pytest.mark.parametrize("transposed", [False, True])
def test_products_of_any_layout(transposed: bool) -> None:
    x, weight, _ = three()
    y = weight.detach().T if transposed else weight.detach().T.contiguous()
    rows = x[0].detach().T.contiguous().T if transposed else x[0].detach()
    torch.testing.assert_close(matmul(rows, y), rows @ y)


def test_operations_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        linear(*three()).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * ROWS * INNER * COLUMNS


def test_onednn_is_asked_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "onednn", lambda *given: asked.append(given) or F.linear(*given))
    x, weight, bias = (part.detach() for part in three())

    def is_asked(*given: Tensor) -> bool:
        asked.clear()
        torch.testing.assert_close(linear(*given), F.linear(*given))
        return bool(asked)

    assert is_asked(x, weight, bias)
    assert not is_asked(x[:, :8], weight, bias), f"less than {LEAST_WORK} multiply-adds"
    assert not is_asked(x.repeat(60, 1, 1), weight[:2], bias[:2]), f"less than {LEAST_COLUMNS} columns"
    assert not is_asked(x.double(), weight.double(), bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_asked(x, weight, bias)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_asked(x, weight, bias)


def test_a_compiler_is_given_plain_products() -> None:
    x, weight, bias = (tensor.detach() for tensor in three())

    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return linear(x, weight, bias)

    layer = Product()
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},))
    assert "aten.linear" in str(program.graph)
    assert "mkldnn" not in str(program.graph)
    torch.testing.assert_close(program.module()(x[:, :3]), layer(x[:, :3]))
