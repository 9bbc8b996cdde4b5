"""Tiny models laid out like those whose code is on the Hub: names, arguments, order of dimensions and calls are theirs.

Everything else is simpler. The rows for them are in `peft_audio.backbones.contrib`, with the files that were read.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


WIDTH, HEADS, DEPTH, CLASSES = 32, 4, 3, 5


def drawn(cls, *args, **options):
    """A model in evaluation mode, the same each time, with weights that make every part of it matter."""
    torch.manual_seed(0)
    model = cls(*args, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model.eval()


def heads_of(states):
    """`(batch, tokens, d)` to `(batch, heads, tokens, d / heads)`."""
    return states.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class Attention(nn.Module):
    """One projection to queries, keys and values, as in timm."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.mix(x, None)

    def mix(self, x, hidden):
        q, k, v = map(heads_of, self.qkv(x).chunk(3, dim=-1))
        mask = None if hidden is None else ~hidden[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class PatchEmbed(nn.Module):
    def __init__(self, size, flatten=False):
        super().__init__()
        self.proj, self.flatten = nn.Conv2d(1, WIDTH, size, stride=size), flatten

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2) if self.flatten else self.proj(x)


# ---- Dasheng and CED -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn, self.ls1, self.drop_path1 = (
            nn.LayerNorm(WIDTH),
            Attention(),
            nn.Identity(),
            nn.Identity(),
        )
        self.norm2, self.mlp, self.ls2, self.drop_path2 = nn.LayerNorm(WIDTH), Mlp(), nn.Identity(), nn.Identity()

    def forward(self, x):
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PatchEncoder(nn.Module):
    """The part that both have: positions for each axis of the grid, and blocks one after the other."""

    def add_parts(self, num_bins, length, patch, depth):
        self.length = length
        self.patch_embed = PatchEmbed(patch)
        self.time_pos_embed = nn.Parameter(torch.zeros(1, WIDTH, 1, length // patch[1]))
        self.freq_pos_embed = nn.Parameter(torch.zeros(1, WIDTH, num_bins // patch[0], 1))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = x + self.time_pos_embed[..., : x.shape[-1]] + self.freq_pos_embed
        return self.norm(self.blocks(x.flatten(2).transpose(1, 2)))

    def in_pieces(self, x):
        if x.shape[-1] <= self.length:
            return self.forward_features(x)
        pieces = nn.functional.pad(x, (0, -x.shape[-1] % self.length)).split(self.length, dim=-1)
        return self.forward_features(torch.cat(pieces)).reshape(len(x), -1, WIDTH)


class Swapped(nn.Module):
    """What einops does in Dasheng: exchange two dimensions."""

    def forward(self, x):
        return x.transpose(1, 2)


class DashengEncoder(PatchEncoder):
    def __init__(self, embed_dim, depth, target_length, patch_size, patch_stride, n_mels=64, pooling="mean", **kwargs):
        super().__init__()
        assert embed_dim == WIDTH and patch_size == patch_stride
        self.init_bn = nn.Sequential(Swapped(), nn.BatchNorm2d(n_mels), Swapped())
        self.pooling = pooling
        self.add_parts(n_mels, target_length, patch_stride, depth)

    def forward(self, x):
        return self.in_pieces(self.init_bn(x))


class DashengConfig(PreTrainedConfig):
    model_type = "dasheng"

    def __init__(self, name="dasheng-base", loss="BCELoss", **kwargs):
        super().__init__(**kwargs)
        sizes = {"target_length": 1008, "patch_size": [64, 4], "patch_stride": [64, 4], "embed_dim": 768, "depth": 12}
        self.name, self.loss, self.encoder_kwargs = name, loss, {**sizes, **kwargs}


class DashengModel(PreTrainedModel):
    config_class, base_model_prefix, main_input_name = DashengConfig, "dasheng", "input_values"
    supports_gradient_checkpointing = True

    def __init__(self, config, outputdim=None):
        super().__init__(config)
        self.encoder = DashengEncoder(**config.encoder_kwargs)
        head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputdim or 1))
        self.outputlayer = nn.Identity() if outputdim is None else head
        self.post_init()

    def forward(self, input_values, labels=None):
        states = self.encoder(input_values.unsqueeze(1))
        logits = self.outputlayer(states.mean(1)).sigmoid()
        return SequenceClassifierOutput(logits=logits, hidden_states=states)


def make_dasheng(outputdim=CLASSES, **options):
    sizes = {"embed_dim": WIDTH, "depth": DEPTH, "target_length": 128, "n_mels": 8, "patch_size": [8, 4]}
    config = DashengConfig(**{**sizes, "patch_stride": [8, 4], **options})
    return drawn(DashengModel, config, outputdim=outputdim)


class CedConfig(PreTrainedConfig):
    model_type = "ced"

    def __init__(self, depth=12, embed_dim=768, n_mels=64, outputdim=527, patch_size=16, target_length=1012, **kwargs):
        super().__init__(**kwargs)
        self.depth, self.embed_dim, self.n_mels, self.outputdim = depth, embed_dim, n_mels, outputdim
        self.patch_size = self.patch_stride = patch_size
        self.target_length = target_length
        if outputdim != 527:
            self.id2label = self.label2id = None


class CedPreTrainedModel(PreTrainedModel):
    config_class, base_model_prefix, main_input_name = CedConfig, "ced", "input_values"
    supports_gradient_checkpointing = True


class CedModel(CedPreTrainedModel, PatchEncoder):
    def __init__(self, config):
        super().__init__(config)
        self.init_bn = nn.BatchNorm2d(config.n_mels)
        self.add_parts(config.n_mels, config.target_length, (config.patch_size,) * 2, config.depth)
        self.post_init()

    def forward(self, input_values):
        x = self.init_bn(input_values.unsqueeze(1).permute(0, 2, 1, 3)).permute(0, 2, 1, 3)
        return SequenceClassifierOutput(logits=self.in_pieces(x))


class CedForAudioClassification(CedPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.encoder = CedModel(config)  # not at its prefix
        self.outputlayer = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, config.outputdim))
        self.post_init()

    def forward(self, input_values, labels=None):
        states = self.encoder(input_values).logits
        return SequenceClassifierOutput(logits=self.outputlayer(states.mean(1)).sigmoid(), hidden_states=states)


def make_ced(bare=False, outputdim=CLASSES):
    config = CedConfig(DEPTH, WIDTH, n_mels=16, outputdim=outputdim, patch_size=4, target_length=128)
    return drawn(CedModel if bare else CedForAudioClassification, config)


# ---- EAT -------------------------------------------------------------------------------------------------------------


class EATConfig(PreTrainedConfig):
    model_type = "eat"

    def __init__(
        self,
        depth=12,
        img_size=(1024, 128),
        in_chans=1,
        patch_size=16,
        model_variant="pretrain",
        layer_norm_first=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.depth, self.img_size, self.in_chans, self.patch_size = depth, img_size, in_chans, patch_size
        self.model_variant, self.layer_norm_first = model_variant, layer_norm_first


class AltAttention(Attention):
    def forward(self, x, padding_mask=None, alibi_bias=None):
        return self.mix(x, padding_mask)


class AltBlock(nn.Module):
    def __init__(self, layer_norm_first):
        super().__init__()
        self.layer_norm_first = layer_norm_first
        self.norm1, self.attn, self.drop_path = nn.LayerNorm(WIDTH), AltAttention(), nn.Identity()
        self.norm2, self.mlp, self.post_mlp_dropout = nn.LayerNorm(WIDTH), Mlp(), nn.Dropout(0.0)

    def forward(self, x, padding_mask=None, alibi_bias=None):
        if self.layer_norm_first:
            x = x + self.drop_path(self.attn(self.norm1(x), padding_mask, alibi_bias))
            target = self.mlp(self.norm2(x))
            return target + self.drop_path(self.post_mlp_dropout(target)), target
        x = self.norm1(x + self.drop_path(self.attn(x, padding_mask, alibi_bias)))
        target = self.mlp(x)
        return self.norm2(x + self.drop_path(self.post_mlp_dropout(target))), target


class EAT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mode, size = config.model_variant, config.patch_size
        self.local_encoder = PatchEmbed((size, size), flatten=True)
        self.extra_tokens = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, config.img_size[0] * config.img_size[1] // size**2, WIDTH))
        self.blocks = nn.ModuleList(AltBlock(config.layer_norm_first) for _ in range(config.depth))
        self.pre_norm = nn.LayerNorm(WIDTH)
        if self.mode == "finetune":
            self.fc_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES) if self.mode == "finetune" else nn.Identity()

    def extract_features(self, x):
        x = self.local_encoder(x)
        x = x + self.positions[:, : x.shape[1]]
        x = self.pre_norm(torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], dim=1))
        for block in self.blocks:
            x, _ = block(x)
        return x

    def forward(self, x):
        x = self.extract_features(x)
        return self.head(self.fc_norm(x[:, 0])) if self.mode == "finetune" else x


class EATModel(PreTrainedModel):
    config_class = EATConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = EAT(config)
        self.post_init()

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)

    def extract_features(self, x):
        return self.model.extract_features(x)


def make_eat(**options):
    return drawn(EATModel, EATConfig(DEPTH, img_size=[64, 16], patch_size=4, **options))
