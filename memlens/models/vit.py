"""A vision transformer as a function ``(n_classes, in_shape) -> nn.Module``."""

import torch
from torch import Tensor, nn

PATCH, DIM, DEPTH, HEADS = 16, 512, 12, 8  # ViT-M/16
LAYER_SCALE = 1e-6  # initial scale of every branch (Touvron et al. 2021)
EPS = 1e-6  # of layer norm, as in the original ViT; PyTorch's default is 1e-5
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.out = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, DIM) -> the same shape."""
        shape = (*x.shape[:2], 3, HEADS, DIM // HEADS)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4)  # (n, heads, tokens, dim) each
        # PyTorch's fused attention has no second derivative, which curvature needs.
        weights = (q * (DIM // HEADS) ** -0.5 @ k.mT).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Branch(nn.Module):
    """A residual branch x + scale * inner(norm(x)), with one scale per channel."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(DIM, eps=EPS), inner
        self.scale = nn.Parameter(torch.full((DIM,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        """(n, tokens, DIM) -> the same shape."""
        return x + self.scale * self.inner(self.norm(x))


class VisionTransformer(nn.Module):
    """Patch embedding, alternating attention and MLP, mean over tokens, a linear layer."""

    def __init__(self, n_classes: int, in_shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = in_shape
        tokens = (height // PATCH) * (width // PATCH)
        self.patches = nn.Conv2d(channels, DIM, PATCH, stride=PATCH)
        self.places = nn.Parameter(torch.empty(1, tokens, DIM))
        branches = [Branch(inner) for _ in range(DEPTH) for inner in (Attention(), _mlp())]
        self.body = nn.Sequential(*branches, nn.LayerNorm(DIM, eps=EPS))
        self.head = nn.Linear(DIM, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> (n, n_classes)."""
        tokens = self.patches(x).flatten(2).mT  # (n, DIM, h', w') -> (n, tokens, DIM)
        return self.head(self.body(tokens + self.places).mean(1))


def vit_medium(n_classes: int, in_shape: tuple[int, ...]) -> VisionTransformer:
    """ViT-M/16 (Dosovitskiy et al. 2021, in the form of timm's ``vit_medium_patch16_gap_256``).

    Width 512, 12 layers, 8 heads; queries, keys and values without bias, LayerScale from 1e-6, and
    the mean over the normalised tokens in place of a class token. Weights as in timm: normal of
    standard deviation 0.02, biases 0, the patch embedding as in PyTorch. Designed for 256x256 (256
    tokens); any height and width that are multiples of 16. 38,399,588 parameters with 100 classes,
    38,861,288 with 1,000 (3 channels, 256x256). No batch norm, so samples are independent; no
    dropout, no stochastic depth.
    """
    # torchvision's VisionTransformer is another network (38,406,756 parameters: a class token, more
    # biases, no LayerScale, a head of zeros), and its fused attention has no second derivative.
    if len(in_shape) != 3 or min(in_shape) < 1 or in_shape[1] % PATCH or in_shape[2] % PATCH:
        raise ValueError(
            f"vit_medium needs images (channels, height, width) of whole {PATCH}x{PATCH} patches, "
            f"got in_shape {tuple(in_shape)}"
        )
    net = VisionTransformer(n_classes, in_shape)
    nn.init.trunc_normal_(net.places, std=INIT_STD)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))
