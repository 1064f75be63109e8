"""A network whose layers are read, with gradients, for images by row number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from featpipe.errors import RequestError, UnsupportedOutput
from featpipe.extraction._forward import precision_of
from featpipe.models import Backbone, Tap, describe
from featpipe.tuning._training import number
from featpipe.tuning._training import whole as whole_number
from featpipe.tuning.images import Images
from featpipe.tuning.network._chance import droppers
from featpipe.tuning.network._frozen import freeze
from featpipe.tuning.network._low_rank import merge, merged, plain_modules, tune_low_rank
from featpipe.tuning.network._prefix import Prefix, find_prefix
from featpipe.tuning.network._trace import TRACED, Trace, tracing
from featpipe.tuning.network._trial import trial


class Body(nn.Module):
    """From row numbers to the outputs of some layers.

    Normalisation stays as in evaluation, whatever the mode of the module, and so does dropout unless it is asked
    for. What no gradient reaches, as layers behind the deepest tap, is frozen. What lies before everything that
    is trained or random is computed once an image and view, for all epochs, folds and candidates of a process,
    where the same view always has the same pixels.

    Parameters
    ----------
    backbone : Backbone
        Its module is trained in place, on the device of the images.
    taps : sequence of Tap
    images : Images
    frozen : str or sequence of str, optional
        Layers whose parameters stay, see `freeze`.
    lora_rank : int, optional
        Train low-rank changes of linear layers and 1×1 convolutions instead of the weights themselves. The
        network then keeps weights and changes apart until `merge`; `tuned` gives their sum.
    lora_scale : float
        What the changes are multiplied by.
    dropout : bool
        Let dropout and stochastic depth outside the frozen layers drop in training.
    micro_batch : int, optional
        Images of which activations are held at a time: they are computed once more for the gradient, which is
        that of the whole batch, augmentation and dropout being the same both times (gradient caching; Gao et
        al. 2021, section 3).
    seed : int
        Of low-rank factors.

    Raises
    ------
    LayerNotFound
        A frozen layer that the network does not have.
    UnsupportedOutput
        A tap whose output depends on weights that the file lacks, or that cannot be read as asked.
    RequestError
        Parameters out of range, or nothing to tune at low rank.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[Tap],
        images: Images,
        *,
        frozen: str | Sequence[str] | None = None,
        lora_rank: int | None = None,
        lora_scale: float = 1.0,
        dropout: bool = False,
        micro_batch: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(backbone, taps, lora_rank, lora_scale, micro_batch)
        self._format = torch.channels_last if backbone.card.channels_last else torch.contiguous_format
        self.network = backbone.module.to(device=images.device, memory_format=self._format)
        self.network.eval()
        self.images, self.taps, self.micro_batch = images, tuple(taps), micro_batch
        self._backbone = backbone
        self._low_rank = None if lora_rank is None else (lora_rank, lora_scale, seed)
        self._dropout = dropout
        self._tapped = backbone.tapped(self.taps)
        self._changed: set[str] = set()
        self._prefix: Prefix | None = None
        self.freeze(frozen)

    def freeze(self, frozen: str | Sequence[str] | None) -> None:
        """Say anew which layers stay as they are, as between two phases of a training; see `freeze`."""
        names = freeze(self.network, frozen)
        if self._low_rank is not None:
            rank, scale, seed = self._low_rank
            tune_low_rank(self.network, rank, frozen=names, scale=scale, seed=seed)
        self._droppers = droppers(self.network, names) if self._dropout else {}
        self.train(self.training)
        self._settle()

    @property
    def kept(self) -> tuple[str, ...]:
        """Layers whose outputs are computed once an image; empty where the whole network runs every time."""
        return () if self._prefix is None else self._prefix.kept

    def train(self, mode: bool = True) -> Body:
        """Set the mode; of the network only dropout follows it, where it was asked for."""
        super().train(mode)
        self.network.eval()
        for layer in self._droppers.values():
            layer.train(mode)
        return self

    def forward(
        self, rows: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return (n_batch, *row) of each tap, float32; without a generator the images themselves."""
        views = self.images.choose(rows, generator)
        size = self.micro_batch or len(rows)
        parts = [
            self._part(r, v, generator) for r, v in zip(rows.split(size), views.split(size), strict=True)
        ]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of a row of each tap."""
        return tuple(self._tapped.row_shapes[tap] for tap in self.taps)

    @property
    def dims(self) -> tuple[tuple[str, ...], ...]:
        """Names of the axes of a row of each tap, such as ("channel", "height", "width")."""
        return tuple(self._tapped.dims[tap] for tap in self.taps)

    def merge(self) -> None:
        """Add low-rank changes to their weights for good; the network is plain again."""
        self._note_trained()
        merge(self.network)
        self._low_rank = None

    def tuned(self) -> dict[str, torch.Tensor]:
        """Return what training has changed: tensors of the plain network by name, on the CPU."""
        self._note_trained()
        with torch.no_grad():
            values = {name: value for name, value, _ in merged(self.network) if name in self._changed}
            return {name: value.detach().cpu().clone() for name, value in values.items()}

    def _part(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, ...]:
        run = partial(self._run, rows, views, generator)
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.network.parameters())
        if self.micro_batch is None or not trains:
            return run()
        return checkpoint(run, use_reentrant=False, preserve_rng_state=True)  # drops the same again

    def _run(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, ...]:
        if self._prefix is not None and any(tensor.requires_grad for tensor in self._prefix.parameters):
            self._settle()  # somebody has let more be trained
        if self._prefix is not None and (generator is None or self.images.reusable):
            found = self._resumed(self._prefix, rows, views, generator)
        else:
            with self._tapped as tapped:
                found = tapped(self._pixels(rows, views, generator))
        return tuple(found[tap] for tap in self.taps)

    def _resumed(
        self, prefix: Prefix, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> dict[Tap, torch.Tensor]:
        def pixels(places: np.ndarray) -> torch.Tensor:
            chosen = torch.from_numpy(places).to(rows.device)
            return self._pixels(rows[chosen], views[chosen], generator)

        labels = self.images.labels(rows, views)
        kept = prefix.rows(labels, pixels, self.images.device, expected=len(self.images))
        return prefix.resume(kept, self._image_shape)

    def _pixels(
        self, rows: torch.Tensor, views: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        return self.images(rows, views, generator).contiguous(memory_format=self._format)

    def _settle(self) -> None:
        """Find out what the taps give, what their gradients reach, and what of the network is computed once."""
        mode = self.training
        self.train(False)
        with torch.inference_mode(False), precision_of("fp32", self.images.device), self._tapped as tapped:
            pixels = self._examples()
            self._image_shape = tuple(pixels.shape[1:])
            with torch.no_grad():
                tapped.probe(pixels)
            layers = {name or "output": layer for name, layer in plain_modules(self.network).items()}
            trace = Trace(self._droppers, self.taps)
            trained = [p for p in self.network.parameters() if p.requires_grad]
            with tracing(layers, trace):
                whole = trial(lambda: tapped(pixels), trained)
            for parameter in trained:
                parameter.requires_grad_(parameter in whole.gradients)
            self._note_trained()
            card, shapes = self._backbone.card, tapped.row_shapes
            self._prefix = find_prefix(layers, card, shapes, pixels, trace=trace, whole=whole)
        self.train(mode)

    def _examples(self) -> torch.Tensor:
        """Return some images that differ from one another even where there is only one."""
        rows = torch.arange(TRACED) % len(self.images)
        pixels = self._pixels(rows, torch.zeros_like(rows), None)
        strength = torch.linspace(1, -1, TRACED, device=pixels.device)
        return (pixels * strength[:, None, None, None]).contiguous(memory_format=self._format)

    def _note_trained(self) -> None:
        self._changed |= {
            n for n, _, made_of in merged(self.network) if any(p.requires_grad for p in made_of)
        }


def _check(
    backbone: Backbone, taps: Sequence[Tap], rank: int | None, scale: float, micro_batch: int | None
) -> None:
    for name, value in (("lora_rank", rank), ("micro_batch", micro_batch)):
        if value is not None:
            whole_number(name, value, 1)
    number("lora_scale", scale, above=0.0)
    if not taps:
        raise RequestError("A tuner reads at least one layer of its network, and none was named.")
    if missing := backbone.card.missing:
        dependent = {info.name for info in describe(backbone) if info.depends_on_missing}
        if refused := sorted({tap.layer for tap in taps} & dependent):
            raise UnsupportedOutput(
                f"The weights file lacks {len(missing)} weights, first {missing[0]!r}, and {', '.join(refused)} "
                "would depend on them. Leave out these layers, or give weights that hold them."
            )
