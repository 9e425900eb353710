"""A job of every method and of its main switches, small enough for a test: 8 x 8 digits, batches of 16."""

from __future__ import annotations

from pathlib import Path

COMMON = """
name: tiny
seed: 3
evaluation: []
resources: {runtime: local, workers: 1}
checkpoint: {every_steps: 4, keep: 2}
tracking: {experiment: tests, every_steps: 1, system_metrics: false}
"""
DIGITS = "data: {train: {source: digits, split: train}, test: {source: digits, split: test}}"
CLIPS = "data: {train: {source: moving-digits, split: train, videos: 64, video_frames: 6, clip: {frames: 4}}}\n"
SHAPES = (
    "data: {train: {source: bouncing-shapes, split: train, videos: 64, video_frames: 5, clip: {frames: 3}}, "
    "test: {source: bouncing-shapes, split: test, videos: 16, video_frames: 5, clip: {frames: 3}}}\n"
)
U_NET = "{width: 4, multipliers: [1, 2], blocks: 1, attention: [1], head_width: 4, norm_groups: 2"
RESNET = "{type: resnet18, stem: cifar, width: 4, zero_init_residual: false}"
VIT = "{type: vit-tiny, patch_size: 4, width: 8, depth: 2, heads: 2, mlp_ratio: 2.0, interpolation_offset: 0.1}"
VIEW = "{crop_area: [0.3, 1.0], blur: {probability: 0.5}}"
CROPS = (
    "{first_global: {size: 8, crop_area: [0.4, 1.0]}, second_global: {size: 8, crop_area: [0.4, 1.0], solarize: 0.2}, "
    "local: {size: 4, crop_area: [0.1, 0.4]}, local_crops: 2}"
)
REST = "schedule: {type: cosine, warmup_epochs: 0.02}, batch_size: 16, steps: 10}"
# Statistics of a few rows on 1 x 1 maps magnify rounding: groups need some rows, and steps of a moderate length.
LARS = f"optimization: {{optimizer: {{type: lars, learning_rate: 2.0, per: 256, weight_decay: 1.0e-4}}, {REST}"
SGD = (
    "optimization: {optimizer: {type: sgd, learning_rate: 0.02, per: null, weight_decay: 1.0e-4}, "
    "schedule: {type: cosine, warmup_epochs: 0.02}, batch_size: 32, steps: 10}"
)
ADAMW = (
    "optimization: {optimizer: {type: adamw, learning_rate: 0.002, per: null, weight_decay: 0.04, "
    f"final_weight_decay: 0.4}}, clip_gradient_norm: 3.0, clip_per: parameter, {REST}"
)
PATCHES = "{type: vit-tiny, patch_size: 2, width: 12, depth: 2, heads: 2, mlp_ratio: 2.0, positions: sincos"
MEANS = f"{PATCHES}, class_token: false, pool: mean}}"
CROP = "augmentation: {size: 8, crop_area: [0.4, 1.0]}"
ADAM = f"optimization: {{optimizer: {{type: adam, learning_rate: 0.002}}, clip_gradient_norm: 5.0, {REST}"
DCGAN = "{type: conv, channels: [4, 8], batch_norm: true, encoder_activation: leaky-relu}"
FINE_TUNE = f"type: simclr-v2-fine-tune, backbone: {RESNET}"
COPIES = "{source: copy, split: train, samples: 64, lengths: [3, 5, 7], symbols: 6"
TEXT = f"{{source: text, path: {Path(__file__).parents[2] / 'LICENSE'}, split: train, window: 12}}"
PASSKEYS = "{source: passkey, split: train, samples: 64, lengths: [16], key_length: 2, symbols: 8, near: 4}"
SEQUENCE = "width: 8, depth: 2, heads: 2, hidden: 12, dropout: 0.2"

METHODS: dict[str, str] = {
    "simclr": f"""
algorithm: {{type: simclr, backbone: {RESNET}, projection_dim: 8, temperature: 0.5, augmentation: {VIEW}}}
{LARS}
""",
    "simclr-cached": f"""
algorithm: {{type: simclr, backbone: {VIT}, projection_dim: 8, temperature: 0.5, tile: 5, augmentation: {VIEW}}}
{LARS.replace("batch_size", "accumulate: 2, batch_size")}
""",
    "simclr-v2": f"""
algorithm: {{type: simclr-v2, backbone: {RESNET}, projection_dim: 8, temperature: 0.5, augmentation: {VIEW}}}
{LARS}
""",
    "simclr-v2-memory": f"""
algorithm: {{type: simclr-v2, backbone: {RESNET}, projection_dim: 8, temperature: 0.5, augmentation: {VIEW},
             memory_size: 48, memory_momentum: 0.9}}
{LARS}
""",
    "simclr-v2-fine-tune": f"""
algorithm: {{{FINE_TUNE}}}
{LARS}
""",
    "simclr-v2-distill": f"""
algorithm: {{type: simclr-v2-distill, teacher: {{{FINE_TUNE}}}, temperature: 0.5}}
begin: {{run: ORIGIN}}
{LARS}
""",
    "moco": f"""
algorithm: {{type: moco, backbone: {RESNET}, projection_dim: 8, queue_size: 40, momentum: {{start: 0.9, end: 0.9}},
             batch_norm_groups: 8, augmentation: {{crop_area: [0.3, 1.0]}}}}
{SGD}
""",
    "moco-symmetric": f"""
algorithm: {{type: moco, backbone: {RESNET}, head: mlp, projection_dim: 8, queue_size: 40, symmetric: true,
             momentum: {{start: 0.9, end: 0.9}}, batch_norm_groups: 2, augmentation: {{crop_area: [0.3, 1.0]}}}}
{SGD}
""",
    "moco-v3": f"""
algorithm: {{type: moco-v3, backbone: {RESNET}, projection_hidden: 8, projection_dim: 8, temperature: 1.0,
             momentum: {{start: 0.9, end: 1.0}}}}
{LARS}
""",
    "moco-v3-vit": f"""
algorithm: {{type: moco-v3, projection_hidden: 8, projection_dim: 8, momentum: {{start: 0.9, end: 1.0}},
             backbone: {VIT[:-1]}, positions: sincos, frozen_patch_embedding: true, initialization: xavier}}}}
{ADAMW}
""",
    "dino": f"""
algorithm: {{type: dino, backbone: {VIT}, views: {CROPS}, prototypes: 16, head_hidden: 16, head_bottleneck: 8,
             teacher_momentum: {{start: 0.9, end: 1.0}}, freeze_last_layer_epochs: 0.02, drop_path: 0.3}}
{ADAMW}
""",
    "dino-resnet": f"""
algorithm: {{type: dino, backbone: {RESNET}, views: {CROPS}, prototypes: 16, head_hidden: 16, head_bottleneck: 8,
             head_batch_norm: true, teacher_momentum: {{start: 0.9, end: 1.0}}, freeze_last_layer_epochs: 0}}
{ADAMW}
""",
    "dinov2": f"""
algorithm: {{type: dinov2, views: {CROPS}, head: {{prototypes: 16, hidden: 16, bottleneck: 8}},
             backbone: {VIT[:-1]}, layer_scale: 0.1, mask_token: true, registers: 1, feed_forward: swiglu}},
             masking: {{}}, teacher_momentum: {{start: 0.9, end: 1.0}}, freeze_last_layer_epochs: 0.02}}
{ADAMW}
""",
    "dinov2-centring": f"""
algorithm: {{type: dinov2, views: {CROPS}, head: {{prototypes: 16, hidden: 16, bottleneck: 8}}, centering: centring,
             patch_head: {{prototypes: 12, hidden: 16, bottleneck: 8}},
             backbone: {VIT[:-1]}, layer_scale: 0.1, mask_token: true}},
             masking: {{}}, teacher_momentum: {{start: 0.9, end: 1.0}}, freeze_last_layer_epochs: 0}}
{ADAMW}
""",
    "mae": f"""
algorithm: {{type: mae, backbone: {PATCHES}, initialization: xavier}}, {CROP},
             decoder: {{width: 8, depth: 1, heads: 2}}}}
{ADAMW}
""",
    "ijepa": f"""
algorithm: {{type: ijepa, backbone: {MEANS}, {CROP}, predictor_width: 8, predictor_depth: 1,
             masking: {{min_keep: 1}}, teacher_momentum: {{start: 0.9, end: 1.0, shape: linear}}}}
{ADAMW}
""",
    "ijepa-corrected": f"""
algorithm: {{type: ijepa, backbone: {MEANS}, {CROP}, predictor_width: 8, predictor_depth: 1, loss: smooth-l1,
             masking: {{min_keep: 1, sampler: corrected}}}}
{ADAMW}
""",
    "vjepa": f"""
algorithm: {{type: vjepa, backbone: {MEANS}, {CROP}, predictor_width: 12, predictor_depth: 1,
             short_range: {{sampler: corrected, group: 4}}, long_range: {{group: 4}},
             teacher_momentum: {{start: 0.9, end: 1.0, shape: linear}}}}
{CLIPS}
{ADAMW}
""",
    "vit": f"""
algorithm: {{type: vit, backbone: {VIT}, {CROP}, mixing: {{mixup: 0.8, cutmix: 1.0}}, label_smoothing: 0.1,
             drop_path: 0.3, layer_decay: 0.7, ema: 0.9, pre_logits: 8}}
{ADAMW}
""",
    "transformer": f"""
algorithm: {{type: transformer, {SEQUENCE}}}
data: {{train: {COPIES}}}}}
{ADAMW}
""",
    "language-model": f"""
algorithm: {{type: language-model, network: {{type: transformer, {SEQUENCE}}}, label_smoothing: 0.1}}
data: {{train: {TEXT}}}
{ADAMW}
""",
    "language-model-ragged": f"""
algorithm: {{type: language-model, network: {{type: transformer, norm: pre, {SEQUENCE}}}, tied: false}}
data: {{train: {COPIES}, form: tokens}}}}
{ADAMW}
""",
    "infini-attention": f"""
algorithm: {{type: language-model, network: {{type: infini-attention, {SEQUENCE}, segment: 4}}}}
data: {{train: {PASSKEYS}}}
{ADAMW}
""",
    "sequence-classifier": f"""
algorithm: {{type: sequence-classifier, network: {{type: transformer, {SEQUENCE}}}}}
{ADAMW}
""",
    "s4": f"""
algorithm: {{type: sequence-classifier, network: {{type: s4, width: 8, depth: 2, states: 4, length: 64, dropout: 0.2}}}}
{ADAMW}
""",
    "s4d": f"""
algorithm: {{type: language-model, network: {{type: s4d, width: 8, depth: 2, states: 4, dropout: 0.2}}}}
data: {{train: {COPIES}, form: tokens}}}}
{ADAMW}
""",
    "mamba": f"""
algorithm: {{type: language-model, network: {{type: mamba, width: 8, depth: 2, states: 4, dropout: 0.2}}}}
data: {{train: {COPIES}, form: tokens}}}}
{ADAMW}
""",
    "mamba-exact": f"""
algorithm: {{type: sequence-classifier, pool: last,
             network: {{type: mamba, width: 8, depth: 1, states: 4, exact: true}}}}
{ADAMW}
""",
    "vit-probe": f"""
algorithm: {{type: vit, backbone: {VIT}, {CROP}, frozen: true, normalize: true, classifier_std: 0.01}}
{LARS}
""",
    "vae": f"""
algorithm: {{type: vae, network: {{type: mlp, hidden: [16]}}, latent: 4, draws: 2}}
{ADAM}
""",
    "vae-conv-gaussian": f"""
algorithm: {{type: vae, network: {{type: conv, channels: [4, 8], batch_norm: true}}, latent: 4,
             likelihood: {{type: gaussian, scale: learned}}}}
{ADAM}
""",
    "cvae": f"""
algorithm: {{type: cvae, hidden: [16], latent: 4}}
{ADAM}
""",
    "cvae-hybrid": f"""
algorithm: {{type: cvae, visible: 2, hidden: [16], latent: 4, hybrid: 0.5, draws: 2, baseline_guess: false,
             likelihood: {{type: gaussian}}}}
{ADAM}
""",
    "gan": f"""
algorithm: {{type: gan, generator: {{type: mlp, hidden: [16], activation: relu}}, noise_dim: 4, discriminator_steps: 2,
             discriminator: {{type: mlp, hidden: [16], activation: leaky-relu}}, discriminator_rate: 0.5}}
{ADAM}
""",
    "gan-dcgan": f"""
algorithm: {{type: gan, noise: normal, noise_dim: 4, generator: {DCGAN}, discriminator: {DCGAN}, saturating: true}}
{ADAM}
""",
    "gan-points": f"""
algorithm: {{type: gan, generator: {{type: mlp, hidden: [16], activation: relu}}, noise_dim: 4,
             discriminator: {{type: mlp, hidden: [16], activation: relu}}}}
data: {{train: {{source: ring, split: train, samples: 200}}}}
{ADAM}
""",
    "video-diffusion": f"""
algorithm: {{type: video-diffusion, network: {U_NET}}}, images: 2, label_drop: 0.5, ema: 0.9,
             sampler: {{type: ddim, steps: 2}}}}
{SHAPES}
{ADAMW}
""",
    "video-diffusion-one-frame": f"""
algorithm: {{type: video-diffusion, network: {U_NET}, conditioning: adaptive-norm}}, prediction: eps, loss: x,
             conditional: false, ema: null, sampler: {{type: ddpm, steps: 2}}}}
{SHAPES.replace("frames: 3", "frames: 1")}
{ADAMW}
""",
}


def job_text(method: str, origin: str) -> str:
    """The job file of a method; ``origin`` is a run of ``simclr-v2-fine-tune`` for the one that needs it."""
    rest = METHODS[method].replace("ORIGIN", origin)
    return COMMON + rest if "\ndata:" in rest else COMMON + DIGITS + rest
