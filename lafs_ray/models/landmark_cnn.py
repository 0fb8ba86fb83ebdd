"""Landmark CNN: image to N points, learned without landmark labels through the sampled patches.

The published network (`face_pre_pro/mobilenet.py`) is a MobileNetV3-Large whose squeeze-excite has no biases and
precedes the non-linearity, unlike timm's and torchvision's; hence our own trunk. A timm model can replace it. Shape
letters: B images, N landmarks, S image side in pixels.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lafs_ray.compat import import_timm
from lafs_ray.config.train import TIMM_PREFIX
from lafs_ray.errors import ConfigError
from lafs_ray.models.landmark_head import Scaling, build_head, predict_landmarks
from lafs_ray.models.landmark_template import TEMPLATE, TemplateLandmarks

# Kernel, expanded channels, output channels, squeeze-excite, hard-swish, stride: MobileNetV3 paper, Table 1.
_BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
_STEM_CHANNELS = 16
_BUILT_IN = "mobilenetv3"

MIDDLE = 127.5
"""The pixel value, in 0…255, that is 0 for a network."""


def normalize_pixels(pixels: Tensor) -> Tensor:
    """Map values in 0…255 to float32 in [-1, 1]."""
    return pixels.float() / MIDDLE - 1.0


class LandmarkCNN(nn.Module):
    """The published landmark CNN: trunk `stn`, head `output_layer` (dropout, linear).

    Args:
        num_landmarks: N.
        width: factor on all channel counts, which are rounded up to multiples of 8.
        dropout: rate before the head's linear layer.
        scaling: of the head's numbers.
    """

    def __init__(
        self, num_landmarks: int = 196, *, width: float = 1.0, dropout: float = 0.5, scaling: Scaling = "span"
    ) -> None:
        super().__init__()
        self.stn = _MobileNetV3Trunk(width)
        self.output_layer = build_head(scaling, dropout, self.stn.out_channels, num_landmarks)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return predict_landmarks(self.stn, self.output_layer, images)


class TimmLandmarks(nn.Module):
    """A timm model as landmark CNN, untrained; parts are named as in `LandmarkCNN`.

    Args:
        name: timm's name of the model, without prefix.
        num_landmarks: N.
        image_side: S in pixels, for models with a fixed input size.
        dropout: rate before the head's linear layer.
        scaling: of the head's numbers.

    Raises:
        ConfigError: timm does not know the name.
    """

    def __init__(
        self,
        name: str,
        num_landmarks: int = 196,
        *,
        image_side: int = 112,
        dropout: float = 0.5,
        scaling: Scaling = "span",
    ) -> None:
        super().__init__()
        timm = import_timm()
        if not timm.is_model(name):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ConfigError(
                f"landmark CNN {TIMM_PREFIX}{name}",
                found=f"{name!r}, which timm {timm.__version__} does not have",
                expected=f"one of {', '.join(close)}" if close else "a name of timm.list_models()",
                fix="correct the name, or install a timm that has this model",
            )
        fixed_size = timm.models.get_pretrained_cfg_value(name, "fixed_input_size")
        size = {"img_size": image_side} if fixed_size else {}
        self.stn = timm.create_model(name, pretrained=False, num_classes=0, **size)
        # Some families widen once more after the last stage; older models have one number only.
        features = getattr(self.stn, "head_hidden_size", None) or self.stn.num_features
        self.output_layer = build_head(scaling, dropout, features, num_landmarks)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, S, S] in [-1, 1] to landmarks, float32 [B, N, 2] in pixels, (x, y)."""
        return predict_landmarks(self.stn, self.output_layer, images)


LandmarkNetwork = LandmarkCNN | TimmLandmarks | TemplateLandmarks
"""What maps images to landmarks; each has parts `stn` and `output_layer`."""


def build_landmark_cnn(name: str, num_landmarks: int, width: float = 1.0, scaling: Scaling = "span") -> LandmarkNetwork:
    """Build the landmark CNN `mobilenetv3` (published) or `timm/<name>`, or a `template`, all of whose positions are 0.

    Args:
        name: which network.
        num_landmarks: N.
        width: factor on channel counts; only `mobilenetv3` has it.
        scaling: of the head's numbers.

    Raises:
        ConfigError: the name is unknown, or a width is given for a timm model.
    """
    if name == _BUILT_IN:
        return LandmarkCNN(num_landmarks, width=width, scaling=scaling)
    if name == TEMPLATE:
        return TemplateLandmarks(num_landmarks)
    if not name.startswith(TIMM_PREFIX):
        raise ConfigError(
            "landmark CNN",
            found=repr(name),
            expected=f"{_BUILT_IN!r} or '{TIMM_PREFIX}<name>'",
            fix=f"write {TIMM_PREFIX + name!r} for a timm model",
        )
    if width != 1.0:
        raise ConfigError(
            f"landmark CNN {name}",
            found=f"width {width}",
            expected="width 1.0: a timm model has the width of its name",
            fix=f"choose another timm model, or {_BUILT_IN!r} with this width",
        )
    return TimmLandmarks(name.removeprefix(TIMM_PREFIX), num_landmarks, scaling=scaling)


class _MobileNetV3Trunk(nn.Module):
    """Stem and 15 bottlenecks: [B, 3, S, S] to [B, out_channels, S/32, S/32], rounded up."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = _scaled(_STEM_CHANNELS, width)
        layers: list[nn.Module] = [
            nn.Sequential(
                nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(channels), nn.Hardswish()
            )
        ]
        for kernel, expanded, out, squeeze, hard_swish, stride in _BLOCKS:
            block = _Bottleneck(
                (channels, _scaled(expanded, width), _scaled(out, width)),
                kernel=kernel,
                stride=stride,
                squeeze=squeeze,
                hard_swish=hard_swish,
            )
            layers.append(block)
            channels = block.out_channels
        self.features = nn.Sequential(*layers)
        self.out_channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        # Depthwise convolutions prefer channels last: 188 → 258 views/s on one core at batch 32.
        return self.features(images.to(memory_format=torch.channels_last))  # type: ignore[no-any-return]


class _Bottleneck(nn.Module):
    """Expand, depthwise, squeeze-excite *before* the non-linearity, project; with a shortcut.

    The nine indices of `conv` are those of published checkpoints (1, 4, 8: batch norm; 5: squeeze).
    """

    def __init__(
        self, channels: tuple[int, int, int], *, kernel: int, stride: int, squeeze: bool, hard_swish: bool
    ) -> None:
        super().__init__()
        channels_in, expanded, self.out_channels = channels
        self.shortcut = stride == 1 and channels_in == self.out_channels
        activation = nn.Hardswish if hard_swish else nn.ReLU
        self.conv = nn.Sequential(
            nn.Conv2d(channels_in, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            activation(),
            nn.Conv2d(expanded, expanded, kernel, stride, kernel // 2, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            _SqueezeExcite(expanded) if squeeze else nn.Identity(),
            activation(),
            nn.Conv2d(expanded, self.out_channels, 1, bias=False),
            nn.BatchNorm2d(self.out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = self.conv(features)
        return features + changed if self.shortcut else changed


class _SqueezeExcite(nn.Module):
    """Channel gates from channel means: no bias, a bottleneck of a quarter, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(channels, channels // 4, bias=False), nn.ReLU(), nn.Linear(channels // 4, channels, bias=False)
        )

    def forward(self, features: Tensor) -> Tensor:
        gate = F.hardsigmoid(self.fc(features.mean(dim=(-2, -1))))
        return features * gate[:, :, None, None]


def _scaled(channels: int, width: float) -> int:
    return max(8, math.ceil(channels * width / 8) * 8)


def infer_width(state: Mapping[str, Tensor]) -> float | None:
    """Return the width of the `LandmarkCNN` with tensors of these shapes, None if there is none.

    Channels are rounded up to multiples of 8, so a range of widths gives the same network; the result is the largest,
    which is exact if a layer needed no rounding.
    """
    names = ["stn.features.0.0.weight"]
    nominal = [_STEM_CHANNELS]
    for number, (_, expanded, out, *_) in enumerate(_BLOCKS, start=1):
        names += [f"stn.features.{number}.conv.{index}.weight" for index in (0, 7)]
        nominal += [expanded, out]
    if any(name not in state for name in names):
        return None
    actual = [state[name].shape[0] for name in names]
    largest = min(found / base for found, base in zip(actual, nominal, strict=True))
    # The quotient may have been rounded up beyond the range.
    for width in (largest, largest * (1 - 1e-12)):
        if [_scaled(channels, width) for channels in nominal] == actual:
            return width
    return None


@torch.no_grad()
def start_on_grid_(landmark_cnn: LandmarkCNN | TimmLandmarks) -> None:
    """Initialize an untrained CNN so that its landmarks are near a square grid over the image.

    Ours: the reference's initial landmarks are random, and short runs learn more slowly
    (docs/method.md has the numbers). Here the head's bias is the grid, and its weights are scaled by 0.1, so that
    landmarks depend on the face from the first step.
    """
    linear = landmark_cnn.output_layer[1]
    assert isinstance(linear, nn.Linear)
    count = linear.out_features // 2
    side = math.ceil(math.sqrt(count))
    cells = torch.arange(count)
    grid = torch.stack((cells % side, cells // side), dim=1) + 0.5
    linear.bias.copy_((grid / side * 2 - 1).flatten())
    linear.weight.mul_(0.1)


def fuse_batch_norms(network: nn.Module) -> nn.Module:
    """Return a frozen copy in eval mode with batch norms fused into the convolutions before them.

    Equal up to float32 rounding: landmarks move by some 1e-4 pixels. Activations after a
    convolution work in place, as new pages cost a quarter of the network's time.
    """
    network = copy.deepcopy(network).eval().requires_grad_(requires_grad=False)
    for sequence in network.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for place in range(len(sequence) - 1):
            convolution, norm = sequence[place], sequence[place + 1]
            if type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                sequence[place] = fuse_conv_bn_eval(convolution, norm)
                sequence[place + 1] = nn.Identity()
        layers = [layer for layer in sequence if type(layer) is not nn.Identity]
        for convolution, activation in itertools.pairwise(layers):
            follows = type(convolution) is nn.Conv2d
            if follows and isinstance(activation, nn.ReLU | nn.Hardswish):
                activation.inplace = True
    return network
