"""A trained network as ONNX or as a PyTorch program, for use without this repository."""

import importlib.util
import json
import tempfile
from pathlib import Path

import torch
from torch.export import Dim

from parts.errors import UserError
from parts.files import write_whole
from parts.inference import stride_of

_READ_NAMES = {  # of classes: how an exported file is asked for them
    ".onnx": 'session.get_modelmeta().custom_metadata_map["classes"]',
    ".pt2": 'torch.export.load(path, extra_files=(names := {"classes": ""})), names["classes"]',
}
_TOLERANCE = 1e-3  # of an exported network's float32 logits: another runtime sums in another order


def export(network, path, names=()):
    """Writes `network` to `path` (.onnx or .pt2) with a free number of images, height and width.

    Its input `images` is float32 (N, 3, H, W) in [0, 1], its output `logits` (N, 1, H, W), foreground
    above 0, or (N, C, H, W) of C classes, whose `names` go along as a JSON list under "classes". Before
    the file appears it is read back, run at several sizes and compared with PyTorch. UserError where
    packages are missing or the outputs differ. Returns a line of words for the reader.
    """
    path = Path(path)
    network = network.cpu().float().eval()
    stride = stride_of(network)
    trials = [(1, 2 * stride, 2 * stride), (2, 3 * stride, 4 * stride), (3, 4 * stride + 3, 2 * stride + 3)]
    example = (torch.zeros(2, 3, 4 * stride, 4 * stride + 16),)
    extra = {"classes": json.dumps(names)} if names else {}
    free = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)  # number of images, height, width
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder, "network" + path.suffix)
        call, runtime = (_to_onnx if path.suffix == ".onnx" else _to_pt2)(network, made, example, free, extra)
        noise = [torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(0)) for n, h, w in trials]
        worst = max(float((call(images) - network(images)).abs().max()) for images in noise)
        if not worst <= _TOLERANCE:
            raise UserError(f"{path}: its outputs are up to {worst:.2g} off PyTorch's, so it was not written.")
        content = made.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    reading = (
        f" A pixel's class is the channel of its highest logit; their names are in the file, "
        f"{_READ_NAMES[path.suffix]}: {', '.join(names)}."
    )
    return (
        f"{path}: {len(content) / 1e6:.1f} MB; images float32 (N, 3, H, W) in [0, 1] -> logits "
        f"(N, {len(names) or 1}, H, W), any N, any H and W from {2 * stride}. At {len(trials)} sizes {runtime} differs "
        f"from PyTorch by {worst:.1e} at most.{reading if names else ''}"
    )


def _to_pt2(network, path, example, free, extra):
    torch.export.save(torch.export.export(network, example, dynamic_shapes=free), path, extra_files=extra)
    return torch.export.load(path).module(), "the exported program"


def _to_onnx(network, path, example, free, extra):
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"EXPORT to .onnx needs the package{'s' * (len(absent) > 1)} {' and '.join(absent)}: "
            f"pip install {' '.join(absent)} onnxruntime. A .pt2 needs nothing more."
        )
    names = dict(input_names=["images"], output_names=["logits"])
    program = torch.onnx.export(network, example, dynamo=True, dynamic_shapes=free, verbose=False, **names)
    program.model.metadata_props.update(extra)
    program.save(path)
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session, name = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), "onnxruntime"
    else:
        reference = importlib.import_module("onnx.reference")
        session, name = reference.ReferenceEvaluator(str(path)), "onnx's reference"
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), name
