"""Write files that other programs load, one function a format, and run each as those programs would."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune.exporting.resizing import GraphResize, describe_resize
from finetune.io.files import write_atomically
from finetune.models.adaptation import RGB, adapt_channels, first_convolution
from finetune.models.libraries import Library, find_library
from finetune.models.specs import NetworkRequest
from finetune.training.module import FineTuner

Runner = Callable[[Tensor], Tensor]
"""A function from uint8 images to probabilities (N, classes): resized and cropped ones (N, C, size, size) or, where the
graph resizes, decoded ones (N, H, W, C)."""


class Exported(NamedTuple):
    """A file, and the function that predicts with it in its own runtime."""

    path: Path
    run: Runner


class Graph(nn.Module):
    """Compute probabilities (N, classes) from uint8 images (N, C, size, size), as an exported graph does.

    The temperature of the checkpoint is part of it, so that a program needs not know of it.
    """

    resizes = False

    def __init__(self, module: FineTuner) -> None:
        """Take network and preprocessing from a module."""
        super().__init__()
        self.network, self.preprocess = module.backbone, module.preprocess
        self.temperature = module.metadata.calibration.temperature

    def forward(self, images: Tensor) -> Tensor:
        """Normalise the images, run the network, and return the softmax of its logits over the temperature."""
        out = self.network(self.preprocess.normalize(images))
        logits: Tensor = out[0] if isinstance(out, tuple) else out
        return (logits if self.temperature == 1 else logits / self.temperature).softmax(dim=1)

    def example(self) -> tuple[Tensor, dict[int, Any]]:
        """Return a batch of two images, black, and which of its dimensions are of any length."""
        p = self.preprocess
        return torch.zeros(2, p.channels, p.size, p.size, dtype=torch.uint8), {0: torch.export.Dim("batch")}


class ResizingGraph(Graph):
    """Compute probabilities (N, classes) from decoded uint8 images (N, H, W, C) of any size."""

    resizes = True

    def __init__(self, module: FineTuner) -> None:
        """Take network and preprocessing from a module."""
        super().__init__(module)
        self.resize = GraphResize(module.preprocess)
        self.channels = decoded_channels(module)

    def forward(self, images: Tensor) -> Tensor:
        """Resize the images, and go on as `Graph`."""
        return super().forward(self.resize(images).to(torch.uint8))

    def example(self) -> tuple[Tensor, dict[int, Any]]:
        """Return a batch of two images, black, and which of its dimensions are of any length."""
        size = self.preprocess.size
        images = torch.zeros(2, size + 9, size + 5, self.channels, dtype=torch.uint8)
        return images, {i: torch.export.Dim(name) for i, name in enumerate(("batch", "height", "width"))}


def decoded_channels(module: FineTuner) -> int:
    """Return the number of channels of decoded images: RGB for grey networks too, unless a loader read the training's."""
    channels = module.preprocess.channels
    return RGB if channels == 1 and module.metadata.data.loader is None else channels


def export_metadata(module: FineTuner, load: str, graph: Graph | None) -> dict[str, Any]:
    """Return what must be known to use an export; it is written beside it, and into it where the format allows.

    Args:
        module: that is exported.
        load: Python code that loads the file.
        graph: what is in the file; None for weights alone, without normalisation and softmax.
    """
    p = module.preprocess
    resizes = graph is not None and graph.resizes
    resized = f"upright (EXIF orientation applied), {p.describe_fit()}"
    if resizes:
        resized = "decoded and upright (EXIF orientation applied), of any size; the graph does the rest"
    if p.depth is not None:
        resized = f"grey of more than 8 bits scaled, counts {p.depth[0]:g} to {p.depth[1]:g} to 0 to 255; {resized}"
    channels = decoded_channels(module) if resizes else p.channels
    kind = {1: "grey (ITU-R 601-2 luminance)", 3: "RGB"}.get(channels, f"{channels} channels")
    if (loader := module.metadata.data.loader) is not None:
        kind += f", as the loader {loader} of the training reads them (times 255, where it gives floats)"
    shape = f"(N, height, width, {channels})" if resizes else f"(N, {channels}, {p.size}, {p.size})"
    pixels = f"{'uint8' if graph else 'float32'} {shape}, {kind}"
    count, temperature = len(module.classes), module.metadata.calibration.temperature
    scaled = "" if temperature == 1 else f" / {temperature}"
    output = f"probabilities (N, {count})" + (f": softmax(logits{scaled})" if scaled else "")
    if graph is None:
        output = f"logits (N, {count}); probabilities are softmax(logits{scaled})"
    normalised = "" if graph else f"; then (pixels / 255 - {list(p.mean)}) / {list(p.std)} per channel"
    return {
        "model": module.model_name,
        "classes": module.classes,
        "preprocess": p.to_dict(),
        "resize": describe_resize(p, resizes),
        "input": f"{pixels}: {resized}{normalised}",
        "output": output,
        **({} if graph else {"temperature": temperature}),
        "load": load,
    }


# --- graphs ------------------------------------------------------------------------------------------------------


def make_graph(module: FineTuner, resize: str) -> Graph:
    """Return what a graph computes, in evaluation mode.

    Args:
        module: that is exported.
        resize: "own" (the program that runs it resizes the images) or "shared" (the graph does).
    """
    return (ResizingGraph if resize == "shared" else Graph)(module).eval()


def export_onnx(module: FineTuner, folder: Path, resize: str = "own") -> Exported:
    """Write ONNX with normalisation and softmax inside; classes and preprocessing are its metadata.

    Args:
        module: in evaluation mode, on the CPU.
        folder: for the file.
        resize: see `make_graph`.

    Raises:
        ValueError: the packages are not installed.
    """
    _require("onnx", "onnxscript", "onnxruntime")
    path, graph = folder / "model.onnx", make_graph(module, resize)
    images, dimensions = graph.example()
    metadata = export_metadata(
        module, "onnxruntime.InferenceSession('model.onnx').run(None, {'images': images})[0]", graph
    )
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (images,),
            dynamo=True,
            dynamic_shapes=(dimensions,),
            input_names=["images"],
            output_names=["probabilities"],
            verbose=False,
        )
        program.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
        program.save(path)  # in one file, where it is not above the 2 GB that one may have
    _write_metadata(metadata, folder)
    return Exported(path, onnx_runner(path))


def onnx_runner(path: Path) -> Runner:
    """Return a function that predicts with an ONNX file in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def export_torch(module: FineTuner, folder: Path, resize: str = "own") -> Exported:
    """Write the program of torch.export, for Python without this package, or C++; normalisation and softmax are inside.

    Args:
        module: in evaluation mode, on the CPU.
        folder: for the file.
        resize: see `make_graph`.
    """
    path, graph = folder / "model.pt2", make_graph(module, resize)
    images, dimensions = graph.example()
    metadata = export_metadata(module, "torch.export.load('model.pt2').module()(images)", graph)
    with _quiet():
        program = torch.export.export(graph, (images,), dynamic_shapes=(dimensions,))
        torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
        loaded = torch.export.load(path).module()
    _write_metadata(metadata, folder)
    return Exported(path, lambda images: loaded(images))


# --- weights -----------------------------------------------------------------------------------------------------


def export_safetensors(module: FineTuner, folder: Path) -> Exported:
    """Write the weights under their library's names, with classes and preprocessing in the header.

    Raises:
        ValueError: the package is not installed.
    """
    _require("safetensors")
    from safetensors.torch import load_file, save

    path = folder / "model.safetensors"
    # by update: torchvision's MNASNet wants the version that a state dict of its own has, and this format has not
    load = "state = network.state_dict(); state.update(safetensors.torch.load_file('model.safetensors')); "
    metadata = export_metadata(
        module, f"{_recipe(module)}{load}network.load_state_dict(state); network.eval()", graph=None
    )
    header = {key: json.dumps(value) for key, value in metadata.items()}
    write_atomically(path, save(dict(_weights(module)), header))
    _write_metadata(metadata, folder)
    network = _new_network(module)
    state = network.state_dict()
    state.update(load_file(path))
    return Exported(path, _runner(module, network, state))


def export_state_dict(module: FineTuner, folder: Path) -> Exported:
    """Write the weights under their torchvision names, as torch saves them."""
    path = folder / "model.pth"
    load = "network.load_state_dict(torch.load('model.pth', weights_only=True)); network.eval()"
    metadata = export_metadata(module, f"{_recipe(module)}{load}", graph=None)
    torch.save(_weights(module), path)
    _write_metadata(metadata, folder)
    return Exported(path, _runner(module, _new_network(module), torch.load(path, weights_only=True)))


def _weights(module: FineTuner) -> dict[str, Tensor]:
    state = module.backbone.state_dict()
    for name, tensor in state.items():  # cloned: a view would be saved with all that it is a view of
        state[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


class _Constructor(NamedTuple):
    """The call of a library's function that makes a plain network like a module's."""

    library: Library
    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        keywords = ", ".join(f"{key}={value!r}" for key, value in self.arguments.items())
        return f"{self.library.factory}({self.name!r}, {keywords})"

    def call(self) -> nn.Module:
        return self.library.make(self.name, **self.arguments)


def _constructor(module: FineTuner) -> _Constructor | None:
    """Return the call that makes a network like the module's; None for a network of the user's own."""
    library = find_library(module.model_name) if module.model_name != "custom" else None
    if library is None or not library.factory:
        return None
    p = module.preprocess
    request = NetworkRequest(
        module.model_name, "none", p.size, p.channels, bool(module.transform_input), module.hparams["model_options"]
    )
    arguments = {"num_classes": len(module.classes), **library.arguments(request, module.backbone)}
    return _Constructor(library, request.bare_name, arguments)


def _recipe(module: FineTuner) -> str:
    constructor = _constructor(module)
    if constructor is None:
        return "network = ...  # your own; "
    recipe = f"network = {constructor}; "
    if isinstance(record := module.hparams["head"], Mapping):
        recipe += f"network.set_submodule({record['path']!r}, ...)  # the head of your own: {module.head!r}; "
    found = first_convolution(module.backbone)
    if found is None or found[1].in_channels == RGB or "in_chans" in constructor.arguments:
        return recipe
    path, conv = found
    weight = f"torch.nn.Parameter(torch.empty({', '.join(map(str, conv.weight.shape))}))"
    return f"{recipe}conv = network.get_submodule({path!r}); conv.in_channels = {conv.in_channels}; conv.weight = {weight}; "


def _new_network(module: FineTuner) -> nn.Module:
    """Build the network as the recipe says."""
    constructor = _constructor(module)
    if constructor is None:
        return copy.deepcopy(module.backbone)
    network = constructor.call()
    if module.preprocess.channels != RGB and "in_chans" not in constructor.arguments:
        adapt_channels(network, module.preprocess.channels)
    if isinstance(record := module.hparams["head"], Mapping):
        network.set_submodule(record["path"], copy.deepcopy(module.head).cpu())
    return network


def _runner(module: FineTuner, network: nn.Module, state: dict[str, Tensor]) -> Runner:
    network.load_state_dict(state, strict=True)
    network.eval()
    temperature = module.metadata.calibration.temperature
    return lambda images: (network(module.preprocess.normalize(images)) / temperature).softmax(dim=1)


# --- 8 bits ------------------------------------------------------------------------------------------------------


def quantize_int8(exported: Exported, images: Tensor) -> Exported:
    """Write an ONNX file with weights and activations in 8 bits, whose ranges are taken from images (N, 3, size, size).

    Raises:
        ValueError: the packages are not installed.
    """
    _require("onnx", "onnxruntime")
    import onnx as onnx_package
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(8))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    path = exported.path.with_name("model.int8.onnx")
    prepared = exported.path.with_name(".model.prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(exported.path, prepared, skip_symbolic_shape=True)
            nodes = onnx_package.load(prepared, load_external_data=False).graph.node
            quantize_static(
                prepared,
                path,
                Reader(),
                per_channel=True,
                nodes_to_exclude=[node.name for node in nodes if node.op_type == "Softmax"],  # else they sum to 0.99
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx_package.load(path)
            metadata = {p.key: p.value for p in model.metadata_props}
            metadata["load"] = metadata["load"].replace(exported.path.name, path.name)
            onnx_package.helper.set_model_props(model, metadata)
            onnx_package.save(model, path)
    finally:
        prepared.unlink(missing_ok=True)
    return Exported(path, onnx_runner(path))


# --- common ------------------------------------------------------------------------------------------------------


def _require(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise ValueError(f"This needs {', '.join(missing)}: pip install 'finetune-lightning[export]'")


def _write_metadata(metadata: dict[str, Any], folder: Path) -> None:
    text = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / "model.json", text.encode(errors="backslashreplace"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' advice, which is meant for those who write networks."""
    root, level = logging.getLogger(), logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            root.manager.disable = level


EXPORTERS: dict[str, Callable[[FineTuner, Path], Exported]] = {
    "onnx": export_onnx,
    "torch_export": export_torch,
    "safetensors": export_safetensors,
    "state_dict": export_state_dict,
}
"""Format -> function that takes a module in evaluation mode on the CPU, and a folder."""

RESIZING_EXPORTERS: dict[str, Callable[[FineTuner, Path], Exported]] = {
    "onnx": partial(export_onnx, resize="shared"),
    "torch_export": partial(export_torch, resize="shared"),
}
"""The same for graphs that resize decoded images of any size."""
