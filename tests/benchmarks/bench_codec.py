"""Ratio and speed of the codecs on real activations; the figures behind ``auto`` in cache/README.md.

``python tests/benchmarks/bench_codec.py``. Uses real photographs and real MobileNetV2 weights where the data
lie beside the project, else scikit-learn's sample images and random weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numcodecs import blosc
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

from featpipe.models._torchvision import import_torchvision
from featpipe.store._codec import CODECS, decode_chunk, encode_chunk

PROJECT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("FEATPIPE_DATA", PROJECT.parent / "shared" / "data"))
N_IMAGES = 32
CHUNK_BYTES = 2 << 20
LAYERS = {
    "mobilenetv2_100": {
        "blocks.2.0.bn2.act": "rectified 28 px",
        "blocks.4.0.bn2.act": "rectified 14 px",
        "blocks.1": "linear bottleneck 56 px",
        "blocks.3": "linear bottleneck 14 px",
        "bn2": "rectified 7 px",
    },
    "deit_tiny_patch16_224": {"blocks.5": "transformer tokens", "blocks.11": "transformer tokens"},
}


def photographs() -> torch.Tensor:
    """N_IMAGES real images as (n, 3, 224, 224), scaled to [-1, 1]."""
    files = sorted((DATA / "algonauts2019").rglob("118images/*.jpg"))[:N_IMAGES]
    pictures = [Image.open(file).convert("RGB").resize((224, 224)) for file in files] or sample_crops()
    stacked = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32)
    return torch.from_numpy(stacked / 127.5 - 1).permute(0, 3, 1, 2)


def sample_crops() -> list[Image.Image]:
    """Crops of the two photographs inside scikit-learn."""
    windows = [
        sliding_window_view(image, (224, 224, 3))[::50, ::100, 0].reshape(-1, 224, 224, 3)
        for image in load_sample_images().images
    ]
    return [Image.fromarray(crop) for crop in np.concatenate(windows)[:N_IMAGES]]


def network(name: str) -> torch.nn.Module:
    import_torchvision()  # before timm, which needs it
    import timm

    torch.manual_seed(0)
    weights = DATA / "weights" / f"{name}.safetensors"
    if name == "mobilenetv2_100" and weights.exists():
        model = timm.create_model(name, pad_type="same")
        model.load_state_dict(load_file(weights))
        return model.eval()
    return timm.create_model(name).eval()


def activations(name: str, images: torch.Tensor) -> dict[str, np.ndarray]:
    model, kept = network(name), {}

    def keep(layer: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: kept.update({layer: output.numpy().copy()})

    modules = dict(model.named_modules())
    for layer in LAYERS[name]:
        modules[layer].register_forward_hook(keep(layer))
    with torch.inference_mode():
        model(images)
    return kept


def seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(rows: np.ndarray, codec: str) -> tuple[float, float, float]:
    """Return stored/raw, encode MB/s and decode MB/s of one thread."""
    per_chunk = max(1, CHUNK_BYTES // rows[0].nbytes)
    chunks = [np.ascontiguousarray(rows[i : i + per_chunk]) for i in range(0, len(rows), per_chunk)]
    encoded = [bytes(encode_chunk(chunk, codec)) for chunk in chunks]
    outs = [np.ones_like(chunk) for chunk in chunks]

    def decode() -> None:
        for stored, out in zip(encoded, outs, strict=True):
            if codec == "none":
                out.reshape(-1).view(np.uint8)[:] = np.frombuffer(stored, np.uint8)
            else:
                decode_chunk(stored, out, codec)

    encode_s = seconds(lambda: [bytes(encode_chunk(chunk, codec)) for chunk in chunks])
    decode_s = seconds(decode)
    megabytes = rows.nbytes / 1e6
    return sum(map(len, encoded)) / rows.nbytes, megabytes / encode_s, megabytes / decode_s


def main() -> None:
    torch.set_num_threads(2)
    blosc.set_nthreads(1)
    images = photographs()
    print(f"{'activations':44}{'dtype':9}{'codec':16}{'stored':>8}{'encode':>9}{'decode':>9}  (MB/s)")
    for name, layers in LAYERS.items():
        for layer, rows in activations(name, images).items():
            for dtype in ("float32", "float16"):
                for codec in CODECS:
                    stored, encode, decode = measure(rows.astype(dtype), codec)
                    label = f"{name} {layer} ({layers[layer]})"[:43]
                    print(f"{label:44}{dtype:9}{codec:16}{stored:8.2f}{encode:9.0f}{decode:9.0f}", flush=True)


if __name__ == "__main__":
    main()
