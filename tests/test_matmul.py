"""A route of matrix products is taken only if it computes in float32, and torch's settings are restored after a run."""

import pytest
import torch

from wgflow_rl.training import loop, matmul
from wgflow_rl.training.settings import from_command_line


def torch_settings() -> dict[str, object]:
    backends = {name: getattr(torch.backends, name) for name in ("mkldnn", "cuda")}
    precision = {
        name: getattr(getattr(backend, "matmul", None), "fp32_precision", None)
        for name, backend in backends.items()
    }
    name = torch.get_float32_matmul_precision()
    return precision | {"name": name, "threads": torch.get_num_threads()}


@pytest.fixture
def onednn_error(monkeypatch):
    """onednn_error(e): a processor whose oneDNN products have a relative error e."""
    product = matmul.product

    def set_error(error):
        def changed(x, w, route):
            return product(x, w, "default") * (1 + error * (route == "onednn"))

        monkeypatch.setattr(matmul, "product", changed)

    return set_error


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize(("route", "inside"), [("default", "highest"), ("onednn", "medium")])
def test_torch_is_as_before_after_a_block(before, route, inside, onednn_error):
    onednn_error(0)
    torch.set_float32_matmul_precision(before)
    try:
        settings = torch_settings()
        with matmul.using(route):
            assert torch.get_float32_matmul_precision() == inside
        assert torch_settings() == settings
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("rows", "width"), [(32, 16), (256, 64), (1024, 512)])
def test_the_error_bound_separates_float32_from_fewer_bits(rows, width):
    torch.manual_seed(0)
    x, w = torch.randn(rows, width), torch.randn(width, width)
    assert matmul.max_error(matmul.product(x, w, "default"), x, w) < matmul.MAX_ERROR
    for bits in (8, 11):  # bfloat16, TF32
        step = 2.0 ** (1 - bits)
        rounded = [t * (1 + step * torch.rand_like(t)) for t in (x, w)]
        assert matmul.max_error(rounded[0] @ rounded[1], x, w) > 10 * matmul.MAX_ERROR


def test_a_route_that_is_not_float32_is_refused(onednn_error):
    onednn_error(1e-3)
    before = torch_settings()
    with (
        pytest.raises(ValueError, match=r"--route is onednn, but .* error of .*allowed: 1e-06"),
        matmul.using("onednn"),
    ):
        pass
    assert torch_settings() == before


def test_a_run_resolves_threads_and_route_first_and_restores_torch(monkeypatch, tmp_path):
    seen = []

    def state(settings, **_):
        seen.append((settings.machine.threads, settings.machine.route))
        raise KeyError("seen")

    monkeypatch.setattr(loop, "TrainingState", state)
    before = torch_settings()
    with pytest.raises(KeyError, match="seen"):
        loop.run(from_command_line(["--run-dir", str(tmp_path / "run")]))
    assert seen == [(torch.get_num_threads(), "default")]
    assert torch_settings() == before
