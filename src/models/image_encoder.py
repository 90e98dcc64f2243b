"""Image encoders: a Transformer over square patches of pixels (ViT, Dosovitskiy et al. 2020), or over regions."""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.config import ImageEncoderConfig
from src.models.layers import POSITION_STD, TOKEN_STD, LayerNorm, Linear, Transformer, apply_mask_token, padding_bias
from src.models.patches import split_patches

BOX_WIDTH = 7  # corners, sides and area


class ImageEncoder(nn.Cell):
    """Patches, a linear projection, positions, Transformer; a [CLS] is attended to like a patch and not returned.

    Inputs:
        image (B, S, S, 3) uint8; to mask patches also masked (B, P) float32, 1 where one is masked, and the mask_token
        (1, 1, D) that stands in its place.

    Outputs:
        (B, P, D) float with P = (S / patch)², rows of patches from the top.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.patch, self.side = config.patch, config.size // config.patch
        self.patches = self.side**2
        self.project = Linear(config.patch**2 * 3, config.width)
        self.positions = Parameter(initializer(Normal(POSITION_STD), (1, self.patches, config.width)), name="positions")
        self.cls = None
        if config.cls_token:  # with its position, which never changes
            self.cls = Parameter(initializer(Normal(TOKEN_STD), (1, 1, config.width)), name="cls")
        self.transformer = Transformer(config, epsilon=config.eps)

    def construct(self, image, masked=None, mask_token=None):
        x = self.project(split_patches(image, self.side, self.patch))
        if masked is not None:
            x = apply_mask_token(x, masked, mask_token)
        x = x + self.positions
        if self.cls is None:
            return self.transformer(x, None)
        cls = ops.tile(self.cls, (x.shape[0], 1, 1)).astype(x.dtype)
        return self.transformer(ops.concat((cls, x), 1), None)[:, 1:]


class RegionEncoder(nn.Cell):
    """Features of a detector's regions and where they are: two projections, summed, layer norm, Transformer.

    There are no other positions: regions have no order. Without layers it is the encoder of the paper. A masked
    region loses its feature and keeps its box.

    Inputs:
        regions (B, P, Dr) float16; boxes (B, P, 7) float32; mask (B, P) int32, 1 on regions; to mask regions also
        masked (B, P) float32, 1 where one is masked, and the mask_token (1, 1, D) that stands in its feature's place.

    Outputs:
        (B, P, D) float.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.feature_project = Linear(config.region_dim, config.width)
        self.box_project = Linear(BOX_WIDTH, config.width)
        self.norm = LayerNorm(config.width, config.eps)
        self.transformer = Transformer(config, epsilon=config.eps) if config.layers else None

    def construct(self, regions, boxes, mask, masked=None, mask_token=None):
        x = self.feature_project(regions.astype(ms.float32))
        if masked is not None:
            x = apply_mask_token(x, masked, mask_token)
        x = self.norm(x + self.box_project(boxes))  # (B, P, D)
        return x if self.transformer is None else self.transformer(x, padding_bias(mask))


IMAGE_ENCODERS = {"patch": ImageEncoder, "region": RegionEncoder}  # by model.image.input
