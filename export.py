"""The network for elsewhere: ONNX, or torch.export's .pt2, compared with PyTorch before it counts as done."""

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch.export import Dim

from errors import UserError
from files import write_whole
from windows import stride_of

TOLERANCE = 1e-3  # of float32 logits: another runtime sums in another order
TRIALS = ((1, 2, 2, 0), (2, 3, 4, 0), (3, 4, 2, 3))  # images, height and width in strides, and pixels more
FREE = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}  # number of images, height, width


def export(network, path):
    """Writes `network` to `path` (.onnx or .pt2) with a free number of images, height and width.

    Its input `images` is float32 (N, 3, H, W) in [0, 1], its output `logits` (N, 1, H, W), foreground
    above 0. Before the file appears it is read back, run at several sizes and compared with PyTorch.
    UserError where packages are missing or the outputs differ. Returns a line of words for the reader.
    """
    path = Path(path)
    network = network.cpu().float().eval()
    stride = stride_of(network)
    trials = [(count, rows * stride + odd, columns * stride + odd) for count, rows, columns, odd in TRIALS]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "network" + path.suffix)
        make = _to_onnx if path.suffix == ".onnx" else _to_pt2
        call, runtime = make(network, made, 4 * stride)
        worst = max(_difference(network, call, size) for size in trials)
        if not worst <= TOLERANCE:
            raise UserError(f"{path}: its outputs are up to {worst:.2g} off PyTorch's, so it was not written.")
        content = made.read_bytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    return (
        f"{path}: {len(content) / 1e6:.1f} MB; images float32 (N, 3, H, W) in [0, 1] -> logits (N, 1, H, W), "
        f"any N, any H and W from {2 * stride}. At {len(trials)} sizes {runtime} differs from PyTorch by "
        f"{worst:.1e} at most."
    )


def _difference(network, call, size):
    """The largest difference of the logits of noise images; size is (N, H, W)."""
    count, height, width = size
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return float((call(images) - network(images)).abs().max())


def _to_pt2(network, path, side):
    with torch.no_grad():
        program = torch.export.export(network, (torch.zeros(2, 3, side, side + 16),), dynamic_shapes=(FREE,))
    torch.export.save(program, path)
    return torch.export.load(path).module(), "the exported program"


def _to_onnx(network, path, side):
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(
            f"EXPORT to .onnx needs the package{'s' * (len(absent) > 1)} {' and '.join(absent)}: "
            f"pip install {' '.join(absent)} onnxruntime. A .pt2 needs nothing more."
        )
    with torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, side, side + 16),),
            dynamo=True,
            dynamic_shapes=(FREE,),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    program.save(path)
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session, name = runtime.InferenceSession(path, providers=["CPUExecutionProvider"]), "onnxruntime"
    else:
        reference = importlib.import_module("onnx.reference")
        session, name = reference.ReferenceEvaluator(str(path)), "onnx's reference"
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), name
