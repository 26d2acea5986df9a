"""The exported network gives what the network gives, at any size."""

import copy
import json
import re

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT
from predicting import blobs
from torch import nn

import parts.export
from parts.errors import UserError
from parts.export import export
from parts.networks import build_network
from predict import Predictor


@pytest.mark.slow
def test_the_exported_program_gives_the_same_at_any_size(network, call, tmp_path, capsys):
    assert call("--export", tmp_path / "model.pt2")[0] == 0
    assert "any N" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "model.pt2").module()
    for shape in ((1, 3, 64, 64), (3, 3, 33, 47), (2, 3, 96, 130)):
        images = torch.rand(shape)
        with torch.no_grad():
            assert torch.allclose(program(images), network(images), atol=1e-4)


@pytest.mark.slow
def test_the_exported_program_takes_the_channels_of_the_network(tmp_path):
    network = build_network(in_channels=5, features=(4, 8), pads=True).eval()
    assert "float32 (N, 5, H, W)" in export(network, tmp_path / "model.pt2")
    images = torch.rand(1, 5, 21, 34)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(images), network(images), atol=1e-4)


def needs_onnx(suffix="onnx"):
    """Skips a test where an .onnx cannot be made or run here."""
    for package in ("onnx", "onnxscript", "onnxruntime") if suffix == "onnx" else ():
        pytest.importorskip(package, reason=f"{package} is not installed: pip install onnx onnxscript onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_exports_tell_of_images_and_classes_and_take_any_size_or_a_fixed_one(
    classes_network, classes_checkpoint, call, tmp_path, capsys, suffix
):
    needs_onnx(suffix)
    path = str(tmp_path / f"model.{suffix}")
    saved = classes_checkpoint(image_range=[0, 4095])
    for size, flags in (([96, 128], []), ([40, 56], ["--image-size", 40, 56])):
        assert call("--checkpoint", saved, "--export", path, *flags)[0] == 0
        said = capsys.readouterr().out
        assert "0, road, a/b, 300" in said and ("any H and W" in said) == (not flags)
        images = torch.rand(2, 3, 40, 56)
        if suffix == "pt2":
            program, space = torch.export.load(path).module(), dict(torch=torch, path=path)
            logits = program(images)
        else:
            session = __import__("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
            logits, space = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), dict(session=session)
            sides = size if flags else ["height", "width"]
            assert session.get_inputs()[0].shape == ["batch", 3, *sides]
            assert session.get_outputs()[0].shape == ["batch", 4, *sides]
        with torch.no_grad():
            assert torch.allclose(logits, classes_network(images), atol=1e-4)
        told = eval("(" + re.search(r"as JSON: (.*)\.$", said, flags=re.M)[1] + ")", space)
        metadata = {name: json.loads(text) for name, text in (told[-1] if suffix == "pt2" else told).items()}
        pixels = "RGB, 8-bit values / 255; those of more bits (value - 0) / 4095, cut to [0, 1]"
        assert metadata.pop("pixels") == f"float32 (N, 3, H, W) in [0, 1]: {pixels}"
        assert metadata == dict(
            image_size=size,
            channels=3,
            image_range=[0, 4095],
            classes=["0", "road", "a/b", "300"],
            threshold=None,
            fit="stretch",
        )


class ByValue(nn.Module):
    """A network of one's own that goes one of two ways by the values of its image."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x):
        return self.layer(x / 2 if x.max() > 0.5 else x)


class Halved(ByValue):
    """One that pools and stretches."""

    def forward(self, x):
        small = nn.functional.avg_pool2d(x, 2)
        return self.layer(nn.functional.interpolate(small, size=x.shape[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_whatever_trains_also_exports_or_is_told(tmp_path, suffix):
    needs_onnx(suffix)
    for options in (dict(encoder="resnet18"), dict(network="attention"), dict(network=Halved)):
        assert "3 trials" in export(build_network(features=(4, 8), pads=True, **options), tmp_path / f"model.{suffix}")
    with pytest.raises(UserError, match="cannot be exported: GuardOnDataDependentSymNode(?s:.*)torch.where"):
        export(build_network(network=ByValue), tmp_path / f"by_value.{suffix}")
    assert not (tmp_path / f"by_value.{suffix}").exists()


@pytest.mark.slow
def test_the_lines_of_the_readme_give_the_mask(checkpoint, call, tmp_path, monkeypatch):
    needs_onnx()
    call("--export", tmp_path / "model.onnx")
    lines = re.search(r"```python\n(session = .*?)```", (ROOT / "README.md").read_text(), flags=re.S)[1]
    space = dict(onnxruntime=__import__("onnxruntime"), json=json, cv2=cv2, np=np, image=blobs(96, 128))
    monkeypatch.chdir(tmp_path)
    exec(lines, space)
    expected = Predictor(checkpoint, DEVICE="cpu", PRECISION="float32")(space["image"]) > 0
    assert (space["mask"] != expected).mean() < 1e-3 and len(lines.splitlines()) == 6


def test_an_export_leaves_the_network_where_it_is_and_as_it_is(network, tmp_path, monkeypatch):
    def fail(*given):
        raise UserError("the disk is full")

    monkeypatch.setitem(parts.export._EXPORTERS, ".pt2", fail)
    halved = copy.deepcopy(network).bfloat16()
    with pytest.raises(UserError, match="the disk is full"):
        export(halved, tmp_path / "model.pt2")
    assert next(halved.parameters()).dtype == torch.bfloat16


def test_onnx_is_compared_or_its_packages_are_named(call, network, tmp_path):
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install onnx"):
            call("--export", tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()
        return
    assert call("--export", tmp_path / "model.onnx")[0] == 0
    assert (tmp_path / "model.onnx").stat().st_size > 4 * sum(p.numel() for p in network.parameters())
