"""A plain Vision Transformer as a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import ViT
from torch import Tensor, nn

from mod_components.networks.sizes import check_image, checked_size

__all__ = ["ViTSegmenter"]

PATCH_SIZE = 16
UPSAMPLING = 4  # of each of the two transposed convolutions


class ViTSegmenter(nn.Module):
    """MONAI's ViT, and two transposed convolutions that bring its tokens back to voxels.

    The decoder is that of MONAI's ``ViTAutoEnc`` (https://arxiv.org/abs/2010.11929 for the ViT);
    there are no skip connections. Position embeddings are learned for one image size, so only
    images of that size can be given; a sliding window covers larger ones.

    Args:
        in_channels: image channels.
        out_channels: channels of the logits.
        img_size: (D, H, W) in voxels, multiples of 16.
        hidden_size: channels of a token.
        mlp_dim: channels inside each transformer block's MLP.
        num_layers: number of transformer blocks.
        num_heads: attention heads; they divide ``hidden_size``.
        decoder_channels: channels between the two transposed convolutions.
        dropout_rate: dropout of embedding, attention and MLPs.

    Raises:
        SettingsError: when ``img_size`` is no multiple of 16.
        ValueError: when ``hidden_size`` is no multiple of ``num_heads``.
    """

    def __init__(
        self,
        in_channels: int = 4,
        out_channels: int = 3,
        img_size: Sequence[int] = (128, 128, 128),
        *,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        decoder_channels: int = 16,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = checked_size(img_size, PATCH_SIZE)
        self.grid = tuple(side // PATCH_SIZE for side in self.img_size)
        self.vit = ViT(
            in_channels=in_channels,
            img_size=self.img_size,
            patch_size=(PATCH_SIZE,) * 3,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_layers=num_layers,
            num_heads=num_heads,
            dropout_rate=dropout_rate,
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose3d(hidden_size, decoder_channels, UPSAMPLING, stride=UPSAMPLING),
            nn.ConvTranspose3d(decoder_channels, out_channels, UPSAMPLING, stride=UPSAMPLING),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Segment images.

        Args:
            x: (B, in_channels, D, H, W), of the size given as ``img_size``.

        Returns:
            Logits (B, out_channels, D, H, W).

        Raises:
            SettingsError: for images of another size.
        """
        check_image(x, self.img_size)
        tokens, _ = self.vit(x)  # (B, N, C)
        feature = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, C, d, h, w)
        return self.decoder(feature)
