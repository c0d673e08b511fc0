"""The network: its parameters, their names, which parts run, and freezing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskdepth.model import DualDecoderUNet, ModelError, rename_original
from maskdepth.model.unet import PARTS


class _Double(nn.Module):
    def __init__(self, cin: int, cout: int, mid: int | None = None) -> None:
        super().__init__()
        mid = mid or cout
        layers: list[nn.Module] = []
        for a, b in ((cin, mid), (mid, cout)):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.double_conv(x)
        return result


class _Down(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), _Double(cin, cout))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.maxpool_conv(x)
        return result


class _Up(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = _Double(cin, cout, cin // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        result: Tensor = self.conv(torch.cat([skip, up], 1))
        return result


class _Out(nn.Module):
    def __init__(self, cin: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class Original(nn.Module):
    """The original's module layout, written from its description, independent of ours."""

    def __init__(self, w: int = 64) -> None:
        super().__init__()
        self.inc = _Double(6, w)
        self.down1, self.down2 = _Down(w, 2 * w), _Down(2 * w, 4 * w)
        self.down3 = _Down(4 * w, 4 * w)
        for suffix in ("", "_Depth"):
            setattr(self, "up1" + suffix, _Up(8 * w, 2 * w))
            setattr(self, "up2" + suffix, _Up(4 * w, w))
            setattr(self, "up3" + suffix, _Up(2 * w, w))
            setattr(self, "outc" + suffix, _Out(w))

    def forward(self, bg: Tensor, fg_bg: Tensor) -> list[Tensor]:
        x1 = self.inc(torch.cat([bg, fg_bg], 1))
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x4 = self.down3(x3)
        results = []
        for suffix in ("", "_Depth"):
            up = [getattr(self, f"up{n}{suffix}") for n in (1, 2, 3)]
            x = up[2](up[1](up[0](x4, x3), x2), x1)
            results.append(getattr(self, "outc" + suffix)(x))
        return results


def _images(batch: int = 2, size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, batch, 3, size, size, generator=generator)
    return images[0], images[1]


def test_parameter_counts() -> None:
    with torch.device("meta"):
        net = DualDecoderUNet(width=64)
    counts = {n: sum(p.numel() for p in m.parameters()) for n, m in net.named_children()}
    assert counts == {
        "encoder": 2_330_112,
        "mask_decoder": 1_955_969,
        "depth_decoder": 1_955_969,
    }
    assert sum(p.numel() for p in net.parameters()) == 6_242_050


@pytest.mark.parametrize("prefix", ["", "module."])
def test_original_weights_give_the_result_of_the_original(prefix: str) -> None:
    torch.manual_seed(0)
    original = Original(4).train()
    images = _images()
    original(*images)  # moves the running statistics away from 0 and 1
    original.eval()
    net = DualDecoderUNet(4).eval()
    weights = {prefix + name: value for name, value in original.state_dict().items()}
    net.load_state_dict(rename_original(weights))
    for ours, theirs in zip(net(*images), original(*images), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_original_layout_fits_at_full_width() -> None:
    with torch.device("meta"):
        weights = rename_original(Original(64).state_dict())
        DualDecoderUNet(64).load_state_dict(weights, assign=True)


def test_missing_and_unexpected_weights_are_named() -> None:
    weights = Original(2).state_dict()
    weights.pop("inc.double_conv.0.weight")
    weights["head.weight"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"inc\.double_conv\.0\.weight.*head\.weight"):
        rename_original(weights)


@pytest.mark.parametrize(("decode", "ran"), [("both", (1, 1)), ("mask", (1, 0)), ("depth", (0, 1))])
def test_decode(decode: str, ran: tuple[int, int]) -> None:
    net = DualDecoderUNet(4).eval()
    images = _images()
    every = net(*images)
    for result, wanted, reference in zip(net(*images, decode=decode), ran, every, strict=True):
        assert (result is not None) == bool(wanted)
        if result is not None:
            torch.testing.assert_close(result, reference)
            assert result.shape == (2, 1, 32, 32)


def test_invalid_arguments_are_named() -> None:
    net = DualDecoderUNet(2)
    with pytest.raises(ValueError, match="multiples of 8"):
        net(torch.zeros(1, 3, 30, 32), torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="'all'"):
        net(*_images(), decode="all")
    with pytest.raises(ValueError, match="no such part"):
        net.freeze("decoder")
    with pytest.raises(ValueError, match="width"):
        DualDecoderUNet(0)


GFLOP = {  # per sample at 224: forward and backward of a stage with these parts
    ("encoder", "mask", "depth"): 228,
    ("encoder", "depth"): 139,
    ("mask",): 98,
}


@pytest.mark.parametrize("trains", GFLOP)
def test_flops_of_a_stage(trains: tuple[str, ...]) -> None:
    """Counted at 112, a quarter of 224. In the mask stage the encoder runs forward only.

    With torch's upsampling, whose FLOPs nothing counts, as the values above.
    """
    with torch.device("meta"):
        net = DualDecoderUNet(64, "torch").freeze(*set(PARTS) - set(trains))
        images = torch.zeros(2, 1, 3, 112, 112)
    decode = "both" if len(trains) == 3 else trains[-1]
    with FlopCounterMode(display=False) as counter:
        outputs = net(images[0], images[1], decode=decode)
        torch.stack([o.mean() for o in outputs if o is not None]).sum().backward()
    # The values above are rounded to whole GFLOP, an error of up to 0.5 %.
    assert counter.get_total_flops() * 4 / 1e9 == pytest.approx(GFLOP[trains], rel=0.01)


def test_forward_flops() -> None:
    with torch.device("meta"):
        net = DualDecoderUNet(64)
        images = torch.zeros(2, 1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(images[0], images[1])
    by_module = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    assert by_module["DualDecoderUNet.encoder"] / 1e9 == pytest.approx(17.0, rel=0.01)
    assert by_module["DualDecoderUNet.mask_decoder"] / 1e9 == pytest.approx(29.6, rel=0.01)
    assert by_module["DualDecoderUNet.depth_decoder"] / 1e9 == pytest.approx(29.6, rel=0.01)


def test_frozen_parts_do_not_change() -> None:
    torch.manual_seed(0)
    net = DualDecoderUNet(4).freeze("encoder", "depth")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.trained_parameters(), lr=0.1, weight_decay=0.1)
    for mode in (True, False, True):
        net.eval()
        net.train(mode)
        net.train()  # in other networks this call unfreezes BatchNorm
        logits, _ = net(*_images(), decode="mask")
        optimizer.zero_grad()
        logits.mean().backward()
        optimizer.step()
    changed = {
        n.split(".")[0] for n, v in net.state_dict().items() if not torch.equal(v, before[n])
    }
    assert changed == {"mask_decoder"}
    assert net.mask_decoder.training
    assert not net.encoder.training


def test_filters_that_start_from_the_difference_give_0_for_equal_images() -> None:
    torch.manual_seed(0)
    net = DualDecoderUNet(6).start_from_difference()
    same = _images()[0]
    seen = net.encoder.inc[0](torch.cat([same, same], dim=1)) - _bias(net)
    assert seen[:, :3].abs().max() < 1e-5
    assert seen[:, 3:].abs().max() > 0.1
    seen = net.encoder.inc[0](torch.cat([same, same + 1], dim=1)) - _bias(net)
    assert (seen.abs().amax(dim=(0, 2, 3)) > 0.01).all()


def _bias(net: DualDecoderUNet) -> Tensor:
    return net.encoder.inc[0].get_parameter("bias").detach().view(-1, 1, 1)


def test_freeze_replaces_an_earlier_freeze() -> None:
    net = DualDecoderUNet(2).train()
    net.freeze("encoder", "mask")
    net.freeze("depth")
    frozen = {
        n.split(".")[0] for n, p in net.named_parameters() if not p.requires_grad and p.ndim > 1
    }
    assert frozen == {"depth_decoder"}
    assert net.encoder.training
    assert net.mask_decoder.training
    assert not net.depth_decoder.training
    trained = {id(parameter) for parameter in net.trained_parameters()}
    unused = {id(p) for n, p in net.named_parameters() if re.search(r"\.[03]\.bias$", n)}
    parts = (net.encoder, net.mask_decoder)
    assert trained == {id(p) for part in parts for p in part.parameters()} - unused


def test_training_without_biases_is_training_with_them() -> None:
    """Against the original's layers: values, gradients and statistics, then evaluation."""
    torch.manual_seed(0)
    original, net = Original(4).train(), DualDecoderUNet(4).train()
    net.load_state_dict(rename_original(original.state_dict()))
    for _ in range(3):
        found, expected = net(*_images()), original(*_images())
        torch.testing.assert_close(found, tuple(expected))
    (found[0].square().mean() + found[1].square().mean()).backward()
    (expected[0].square().mean() + expected[1].square().mean()).backward()
    gradients = {name: p.grad for name, p in original.named_parameters() if p.grad is not None}
    gradients = rename_original(original.state_dict() | gradients)
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            assert re.search(r"\.[03]\.bias$", name)
            assert gradients[name].abs().max() < 1e-6
        else:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.state_dict(), rename_original(original.state_dict()))
    evaluated = net.eval()(*_images())
    torch.testing.assert_close(evaluated, tuple(original.eval()(*_images())))
