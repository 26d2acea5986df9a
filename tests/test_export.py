"""The exported network gives what the network gives, at any size."""

import json
import re

import pytest
import torch

from parts.errors import UserError
from parts.export import export
from parts.networks import build_network


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
    network = build_network(in_channels=5, features=(4, 8), pads=True)
    assert "float32 (N, 5, H, W)" in export(network, tmp_path / "model.pt2")
    images = torch.rand(1, 5, 21, 34)
    with torch.no_grad():
        assert torch.allclose(torch.export.load(tmp_path / "model.pt2").module()(images), network(images), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_exports_of_classes_carry_all_channels_and_their_names(
    classes_network, classes_checkpoint, call, tmp_path, capsys, suffix
):
    path = str(tmp_path / f"model.{suffix}")
    if suffix == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    assert call("--checkpoint", classes_checkpoint(), "--export", path)[0] == 0
    said = capsys.readouterr().out
    assert "logits (N, 4, H, W)" in said and "0, road, a/b, 300" in said
    images = torch.rand(2, 3, 40, 56)
    if suffix == "pt2":
        program, space = torch.export.load(path).module(), dict(torch=torch, path=path)
        logits = program(images)
    else:
        session = __import__("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        logits, space = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), dict(session=session)
    with torch.no_grad():
        assert torch.allclose(logits, classes_network(images), atol=1e-4)
    told = re.search(r"their names are in the file, (.*): 0, road", said)[1]
    names = eval(f"({told})", space, {})
    assert json.loads(names[-1] if suffix == "pt2" else names) == ["0", "road", "a/b", "300"]


def test_onnx_is_compared_or_its_packages_are_named(call, network, tmp_path):
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install onnx"):
            call("--export", tmp_path / "model.onnx")
        assert not (tmp_path / "model.onnx").exists()
        return
    assert call("--export", tmp_path / "model.onnx")[0] == 0
    assert (tmp_path / "model.onnx").stat().st_size > 4 * sum(p.numel() for p in network.parameters())
